"""The disks of a build, by qemu-img; all of it blocks, and stops when nobody waits any more."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path

import attrs

from latentvirt.config import IMAGE_FORMATS
from latentvirt.errors import ImageError

LOOK_EVERY_S = 0.2
FORMAT = "qcow2"


@attrs.frozen
class Disk:
    """What an image file is.

    Args:
        format: ``qcow2`` or ``raw``.
        capacity: bytes that a guest sees.
    """

    format: str
    capacity: int


def look_at(path: Path, given_up: threading.Event) -> Disk:
    """Look at an image that a build is to begin from.

    Raises:
        ImageError: it is none, or not one that stands alone.
    """
    try:
        path.stat()
    except OSError as error:
        raise ImageError(
            f"the image {path} cannot be read: {error.strerror}", remedy="check the path, and who may read it"
        ) from error
    told = json.loads(qemu_img(given_up, "info", "-U", "--output=json", str(path)))
    if told["format"] not in IMAGE_FORMATS:
        raise ImageError(
            f"the image {path} is of the format {told['format']}",
            remedy=f"convert it: qemu-img convert -O qcow2 {path} NEW",
        )
    if told.get("backing-filename"):
        raise ImageError(
            f"the image {path} stands on another ({told['backing-filename']})",
            remedy=f"flatten it: qemu-img convert -O qcow2 {path} NEW",
        )
    return Disk(told["format"], told["virtual-size"])


def make_overlay(path: Path, base: Path, disk: Disk, capacity: int, given_up: threading.Event) -> None:
    """Make the disk that the guest writes to, over an image that it only reads.

    Args:
        path: of the new file.
        base: the image.
        disk: what that is.
        capacity: bytes that the guest is to see.
        given_up: set when nobody waits any more.

    Raises:
        ImageError: qemu-img says no.
    """
    path.touch(mode=0o600)
    qemu_img(
        given_up, "create", "-q", "-f", FORMAT, "-F", disk.format, "-b", str(base), str(path), str(capacity)
    )


def flatten(overlay: Path, path: Path, given_up: threading.Event) -> None:
    """Make one image, which stands alone, of an overlay that nobody writes to any more.

    Raises:
        ImageError: the overlay is damaged, or qemu-img says no.
    """
    qemu_img(given_up, "check", "-q", "-f", FORMAT, str(overlay))
    qemu_img(given_up, "convert", "-f", FORMAT, "-O", FORMAT, str(overlay), str(path))


def qemu_img(given_up: threading.Event, *arguments: str) -> str:
    """Run qemu-img to its end, or until nobody waits any more; returns what it printed.

    Raises:
        ImageError: it is not there, or failed.
    """
    try:
        process = subprocess.Popen(
            ["qemu-img", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        raise ImageError(
            "qemu-img is not installed on this machine", remedy="install it (Debian, Ubuntu: qemu-utils)"
        ) from None
    try:
        while True:
            try:
                out, err = process.communicate(timeout=LOOK_EVERY_S)
                break
            except subprocess.TimeoutExpired:
                if given_up.is_set():
                    process.terminate()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode:
        raise ImageError(
            f"qemu-img {arguments[0]} failed: {' '.join((err or out).split())}",
            remedy="check the image with qemu-img info, and whether the disk is full",
        )
    return out
