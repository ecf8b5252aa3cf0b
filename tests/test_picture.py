"""Screens' pictures as PNG files."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentvirt.picture import PNG, png

PIXMAP = "image/x-portable-pixmap"


def points_of(file: bytes) -> tuple[int, int, bytes]:
    """Read a PNG file as the standard says: width, height, and the points of all rows."""
    assert file.startswith(b"\x89PNG\r\n\x1a\n")
    rest, chunks = file[8:], {}
    while rest:
        (length,) = struct.unpack(">I", rest[:4])
        body, (check,) = rest[4 : 8 + length], struct.unpack(">I", rest[8 + length : 12 + length])
        assert zlib.crc32(body) == check
        chunks[body[:4]] = body[4:]
        rest = rest[12 + length :]
    width, height, *rest_of_head = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert rest_of_head == [8, 2, 0, 0, 0]
    rows = zlib.decompress(chunks[b"IDAT"])
    size = 1 + 3 * width
    assert [rows[at] for at in range(0, len(rows), size)] == [0] * height
    return width, height, b"".join(rows[at + 1 : at + size] for at in range(0, len(rows), size))


@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([b" ", b"\n", b"\n# QEMU\n"]), st.data())
def test_a_pixmap_becomes_a_png_of_the_same_points(
    width: int, height: int, gap: bytes, data: st.DataObject
) -> None:
    """Whatever the screen shows, the file has its size and its points."""
    size = 3 * width * height
    points = data.draw(st.binary(min_size=size, max_size=size))
    pixmap = b"P6" + gap + b"%d %d" % (width, height) + gap + b"255\n" + points
    assert points_of(png(PIXMAP, pixmap)) == (width, height, points)


def test_a_png_stays_as_it_is() -> None:
    """A host that sends a PNG file is taken at its word."""
    file = png(PIXMAP, b"P6 1 1 255\nabc")
    assert png(PNG, file) == file


@pytest.mark.parametrize(
    "data", [b"", b"P5 1 1 255\na", b"P6 1 1 255\nab", b"P6 0 0 255\n", b"P6 1 1 65535\nabcdef", b"P6 " * 999]
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    """A picture that was cut, or is of another kind, is an error and not a broken file."""
    with pytest.raises(ValueError, match="picture"):
        png(PIXMAP, data)
