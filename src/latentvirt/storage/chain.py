"""The images that an image stands on."""

from __future__ import annotations

import posixpath

import attrs

from latentvirt.domainxml import Layer
from latentvirt.errors import ImageError, NotFound
from latentvirt.host import ImageView
from latentvirt.storage.base import Storage

LONGEST_CHAIN = 32

DIRECTORY = "dir"
"""What libvirt calls the format of a directory."""

SMALLEST_RAW_BYTES = 64 * 1024
"""A file without a format's marks that is smaller is a text, or empty, but no disk."""


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
            raise ImageError(
                f"the {role} {path} stands on more than {LONGEST_CHAIN} images, or on itself",
                host=host,
                remedy="look at it with qemu-img info --backing-chain, and flatten it with qemu-img convert",
            )
        try:
            seen = await storage.image(following)
        except NotFound as error:
            above = f" (it backs {layers[-1].path})" if layers else ""
            why = await storage.why_unseen(following)
            raise ImageError(
                f"the {role} {following}{above} {why.state}: {error.what}", host=host, remedy=why.remedy
            ) from error
        _check_image(seen, host=host, role=role)
        ours = posixpath.dirname(seen.path) == storage.directory
        layers.append(Layer(seen.path, wanted or seen.format, ours=ours))
        stamps.append(seen.stamp)
        capacity = capacity or seen.capacity
        following, wanted = seen.backing, seen.backing_format
    return Chain(tuple(layers), capacity, ", ".join(stamps))


def _check_image(seen: ImageView, *, host: str, role: str) -> None:
    """Refuse what libvirt would take for an image and no guest could start from."""
    if seen.format == DIRECTORY:
        raise ImageError(
            f"the {role} {seen.path} is a directory", host=host, remedy="name the image file in it"
        )
    if seen.format == "raw" and seen.capacity < SMALLEST_RAW_BYTES:
        raise ImageError(
            f"the {role} {seen.path} is no disk image: it holds {seen.capacity} bytes in no known format",
            host=host,
            remedy="check the path on that host; qemu-img info shows what a file is",
        )
