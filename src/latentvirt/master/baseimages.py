"""The worker's base_image: a path, an `Image`, or the name of one, and what of it depends on a build."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from latentvirt.config import Image
from latentvirt.errors import ConfigError
from latentvirt.images.items import plain_arch
from latentvirt.images.named import check_named
from latentvirt.master.depending import depends
from latentvirt.showing import shown

_NAMING = ("name", "os_type", "os_version", "arch")


def by_name(given: Any) -> Any:
    """Return what was given as base image, or an `Image` if that is a name: a text without a slash."""
    return Image(name=given) if isinstance(given, str) and given and "/" not in given else given


def written_image(given: Any) -> Any:
    """Return a base image as it can be rendered: what an `Image` is made of, if that depends on a build."""
    if isinstance(given, Image) and any(depends(getattr(given, part)) for part in _NAMING):
        return {field.name: getattr(given, field.name) for field in attrs.fields(Image)}
    return given


def read_image(rendered: Any, *, stock: bool = False) -> Any:
    """Make an `Image` of what was rendered if it is one, what one is made of, or a name.

    Args:
        rendered: what was rendered.
        stock: whether an image that has a name is meant as its vendor made it.

    Raises:
        ConfigError: it cannot be right, or nobody knows it.
    """
    image = by_name(rendered)
    if isinstance(rendered, Mapping):
        try:
            image = Image(**rendered)
        except TypeError as error:
            raise ConfigError(
                f"base_image={shown(dict(rendered))} is no image",
                remedy="write a path, a name, or Image(...)",
            ) from error
    if isinstance(image, Image):
        image.check()
        if image.called:
            check_named(image)
            image = attrs.evolve(image, stock=image.stock or stock)
    return image


def archs_of(image: Image | None) -> frozenset[str]:
    """Say which architectures a host may have for an image; empty for any."""
    return frozenset() if image is None or image.arch is None else frozenset({plain_arch(image.arch)})
