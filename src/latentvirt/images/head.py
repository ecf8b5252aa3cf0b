"""What an image file says of itself in its first bytes."""

from __future__ import annotations

import struct

from latentvirt.errors import ImageError

HEAD_BYTES = 104
"""How long qcow2's header is; the fields that matter here are in it in every version."""

SMALLEST_BYTES = 64 * 1024
"""A file that is smaller is a text, or empty, but no disk."""

_QCOW2 = b"QFI\xfb"
_BACKING = struct.Struct(">QI")  # offset and length of the name, 0 if there is none
_BACKING_AT = 8
_VERSION_AT = 4
_FEATURES_AT = 72  # from version 3 on
_EXTERNAL_DATA = 1 << 2

_OTHERS = {b"KDMV": "vmdk", b"QED\0": "qed", b"vhdxfile": "vhdx", b"conectix": "vpc"}


def format_of(head: bytes, length: int, *, given: str | None, path: str, host: str, where: str) -> str:
    """Say of which format an image is, if one file is all of it.

    Args:
        head: its first `HEAD_BYTES`.
        length: of the file.
        given: what the person said that it is; None believes the file.
        path: for messages.
        host: URI of the host that it is on, for messages; empty for the master.
        where: the same in words.

    Raises:
        ImageError: it is no image, needs another file, or is of a format that is not copied.
    """
    if length < SMALLEST_BYTES:
        raise ImageError(
            f"the image {path} {where} is no disk image: it holds {length} bytes",
            host=host,
            remedy="check the path; qemu-img info shows what a file is",
        )
    looks = "qcow2" if head.startswith(_QCOW2) else "raw"
    if given is None:
        other = next((name for magic, name in _OTHERS.items() if head.startswith(magic)), None)
        if other is not None:
            raise ImageError(
                f"the image {path} {where} is of the format {other}, which is not copied",
                host=host,
                remedy="make it qcow2: qemu-img convert -O qcow2",
            )
        given = looks
    if given == "qcow2":
        if looks != "qcow2":
            raise ImageError(
                f"the image {path} {where} is no qcow2 image",
                host=host,
                remedy="leave out format=, or say format='raw'",
            )
        _check_alone(head, path, host, where)
    return given


def _check_alone(head: bytes, path: str, host: str, where: str) -> None:
    offset, length = _BACKING.unpack_from(head, _BACKING_AT)
    remedy = "flatten it: qemu-img convert -O qcow2 OLD NEW, and name the new one"
    if offset and length:
        raise ImageError(
            f"the image {path} {where} stands on another image, and only one file is copied",
            host=host,
            remedy=remedy,
        )
    (version,) = struct.unpack_from(">I", head, _VERSION_AT)
    if version > 2 and struct.unpack_from(">Q", head, _FEATURES_AT)[0] & _EXTERNAL_DATA:
        raise ImageError(
            f"the image {path} {where} keeps its data in another file, and only one file is copied",
            host=host,
            remedy=remedy,
        )
