"""Image files on hosts, as people name them: their paths and their formats."""

from __future__ import annotations

from latentvirt.errors import ConfigError
from latentvirt.showing import shown

FORMATS = ("bochs", "cloop", "dmg", "ploop", "qcow", "qcow2", "qed", "raw", "vdi", "vhd", "vmdk", "vpc")
"""The formats of images that libvirt lets QEMU read, in its words."""


def check_image_path(path: str, what: str) -> str:
    """Check the path of an image on a host, and return it.

    Args:
        path: as it was written.
        what: name of the argument, for the message.

    Raises:
        ConfigError: a host could know no file by it.
    """
    if not path.startswith("/"):
        raise ConfigError(
            f"{what}={shown(path)} is not an absolute path",
            remedy="write the whole path, as the host knows it",
        )
    if path.endswith("/"):
        raise ConfigError(f"{what}={shown(path)} is a folder", remedy="name the image file in it")
    if not path.isprintable():
        raise ConfigError(
            f"{what}={shown(path)} has characters that no path on a host should have",
            remedy="rename the file",
        )
    return path


def check_format(format: object, what: str) -> None:
    """Check the format of an image.

    Args:
        format: as it was written.
        what: name of the argument, for the message.

    Raises:
        ConfigError: libvirt knows none of that name.
    """
    if format not in FORMATS:
        raise ConfigError(
            f"{what}={shown(format)} is no format of images that libvirt knows",
            remedy=f"write one of {', '.join(FORMATS)}",
        )
