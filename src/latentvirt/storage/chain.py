"""The images that an image stands on."""

from __future__ import annotations

import posixpath

import attrs

from latentvirt.domainxml import Layer
from latentvirt.errors import ImageError, NotFound
from latentvirt.storage.base import Storage

LONGEST_CHAIN = 32


@attrs.frozen
class Chain:
    """An image and all that it stands on.

    Args:
        layers: nearest first.
        capacity: bytes that a guest sees.
        stamp: changes with the content of any of them.
    """

    layers: tuple[Layer, ...]
    capacity: int
    stamp: str


async def backing_chain(
    storage: Storage, path: str, given_format: str | None, *, host: str, role: str
) -> Chain:
    """Follow an image down to the one that stands alone.

    Args:
        storage: of the host where the image lies.
        path: of the image.
        given_format: what the person said that it is; None believes the image itself.
        host: URI, for messages.
        role: what the image is for, for messages: "base image".

    Raises:
        ImageError: a link of the chain is missing, or the chain has no end.
    """
    layers: list[Layer] = []
    stamps: list[str] = []
    capacity = 0
    following: str | None = path
    wanted = given_format
    while following is not None:
        if len(layers) == LONGEST_CHAIN:
            raise ImageError(f"the {role} {path} stands on more than {LONGEST_CHAIN} images", host=host)
        try:
            seen = await storage.image(following)
        except NotFound as error:
            above = f" (it backs {layers[-1].path})" if layers else ""
            raise ImageError(
                f"the {role} {following} is not there{above}: {error.what}",
                host=host,
                remedy="check the path on that host; its folder must be there, too",
            ) from error
        ours = posixpath.dirname(seen.path) == storage.directory
        layers.append(Layer(seen.path, wanted or seen.format, ours=ours))
        stamps.append(seen.stamp)
        capacity = capacity or seen.capacity
        following, wanted = seen.backing, seen.backing_format
    return Chain(tuple(layers), capacity, ", ".join(stamps))
