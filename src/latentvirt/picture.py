"""Pictures of screens, as libvirt hands them out, made into PNG files."""

from __future__ import annotations

import re
import struct
import zlib

PNG = "image/png"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB_BYTES = 3
_BITS, _TRUECOLOUR, _MOST = 8, 2, 255
_NO_FILTER = b"\0"
_PIXMAP = re.compile(rb"P6(?:\s|#[^\n]*\n)+(\d{1,6})(?:\s|#[^\n]*\n)+(\d{1,6})(?:\s|#[^\n]*\n)+(\d{1,5})\s")


def png(kind: str, data: bytes) -> bytes:
    """Make a PNG file of a picture.

    Args:
        kind: its media type.
        data: a portable pixmap (``P6``, 8 bits a colour), or a PNG file, which stays as it is.

    Raises:
        ValueError: it is neither, or not whole.
    """
    if kind == PNG and data.startswith(_SIGNATURE):
        return data
    head = _PIXMAP.match(data)
    if head is None or int(head[3]) != _MOST:
        raise ValueError(f"a picture of the type {kind!r} that is no portable pixmap")
    width, height = int(head[1]), int(head[2])
    row = width * _RGB_BYTES
    points = memoryview(data)[head.end() :]
    if not row or not height or len(points) != row * height:
        raise ValueError(f"a picture of {width} by {height} points with {len(points)} bytes")
    rows = b"".join(_NO_FILTER + points[at : at + row] for at in range(0, len(points), row))
    shape = struct.pack(">IIBBBBB", width, height, _BITS, _TRUECOLOUR, 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", shape) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
