"""The disk by which cloud-init's data source NoCloud tells a VM what to do: an ISO 9660 volume ``cidata``."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from latentvirt.errors import ConfigError
from latentvirt.images.cloudconfig import HEADER, written

VOLUME = "cidata"
"""The label by which cloud-init finds the disk."""

SEED_MODE = 0o600
"""A seed may hold a password."""

SECTOR = 2048
FIRST_DESCRIPTOR = 16 * SECTOR
DESCRIPTOR_KINDS_WITH_ROOT = (1, 2)
LAST_DESCRIPTOR = 255
ROOT_RECORD = 156
DATES_OF_DESCRIPTOR = (813, 830, 864)
"""Where a volume descriptor tells when it was created, changed and is good from; it is good for ever."""

DATE_OF_RECORD = 18
NAME_LENGTH_OF_RECORD = 32
ROCK_RIDGE_DATES = b"TF"
LONG_DATES = 0x80
LONG_DATE = b"2000010100000000\0"
SHORT_DATE = struct.pack("7B", 100, 1, 1, 0, 0, 0, 0)
"""Midnight of the first of January 2000: an image of the same is the same, whenever it is made."""


@attrs.frozen
class Seed:
    """What a VM is told.

    Args:
        meta_data: with ``instance-id``: cloud-init does the work of a first boot when it changes.
        user_data: cloud-init's configuration.
        network_config: of the network, in cloud-init's version 1 or 2; None leaves it to DHCP.
    """

    meta_data: Mapping[str, Any]
    user_data: Mapping[str, Any] = attrs.field(factory=dict, repr=False)
    network_config: Mapping[str, Any] | None = None

    def files(self) -> dict[str, bytes]:
        """Return what lies on the disk, by name.

        Raises:
            ConfigError: the meta-data have no ``instance-id``.
        """
        if not self.meta_data.get("instance-id"):
            raise ConfigError(
                "a seed without instance-id is none that cloud-init takes", remedy="name one in its meta-data"
            )
        files = {
            "meta-data": written(self.meta_data),
            "user-data": f"{HEADER}\n".encode() + written(self.user_data),
        }
        if self.network_config is not None:
            files["network-config"] = written(self.network_config)
        return files


def seed_image(seed: Seed) -> bytes:
    """Make the disk.

    Args:
        seed: what it tells.

    Returns:
        An ISO 9660 image, with long names by Rock Ridge and Joliet; equal for equal seeds.

    Raises:
        ConfigError: pycdlib is not installed, or the seed is none.
    """
    try:
        import pycdlib
    except ImportError as error:
        raise ConfigError(
            "seeds for cloud-init are made with pycdlib, which is not installed",
            remedy="pip install 'latentvirt[images]'",
        ) from error
    files = seed.files()
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident=VOLUME, rock_ridge="1.09", joliet=3)
    for number, (name, data) in enumerate(sorted(files.items())):
        iso.add_fp(
            io.BytesIO(data),
            len(data),
            f"/FILE{number}.;1",  # the oldest kind of name, which nobody reads, has no small letters
            rr_name=name,
            joliet_path=f"/{name}",
            file_mode=0o100400,
        )
    image = io.BytesIO()
    iso.write_fp(image)
    iso.close()
    return _dated(bytearray(image.getvalue()))


def write_seed(seed: Seed, path: Path) -> None:
    """Make the disk as a file that only its owner reads.

    Args:
        seed: what it tells.
        path: of a file that is not there yet.

    Raises:
        ConfigError: as `seed_image`.
    """
    image = seed_image(seed)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, SEED_MODE)
    with open(file, "wb") as opened:
        os.fchmod(file, SEED_MODE)
        opened.write(image)


def _dated(image: bytearray) -> bytes:
    """Replace the time at which an image was made, wherever it says so."""
    position = FIRST_DESCRIPTOR
    while image[position] != LAST_DESCRIPTOR:
        if image[position] in DESCRIPTOR_KINDS_WITH_ROOT:
            for offset in DATES_OF_DESCRIPTOR:
                image[position + offset : position + offset + len(LONG_DATE)] = LONG_DATE
            root = position + ROOT_RECORD
            _date_record(image, root)
            for record in _records(image, root):
                _date_record(image, record)
        position += SECTOR
    return bytes(image)


def _records(image: bytearray, folder: int) -> Iterator[int]:
    (extent,) = struct.unpack_from("<I", image, folder + 2)
    (length,) = struct.unpack_from("<I", image, folder + 10)
    position, end = extent * SECTOR, extent * SECTOR + length
    while position < end and image[position]:  # so few files fill no sector
        yield position
        position += image[position]


def _date_record(image: bytearray, record: int) -> None:
    image[record + DATE_OF_RECORD : record + DATE_OF_RECORD + len(SHORT_DATE)] = SHORT_DATE
    name = image[record + NAME_LENGTH_OF_RECORD]
    entry = record + NAME_LENGTH_OF_RECORD + 1 + name + (name + 1) % 2
    end = record + image[record]
    while entry + 4 <= end and image[entry + 2]:
        if image[entry : entry + 2] == ROCK_RIDGE_DATES and not image[entry + 4] & LONG_DATES:
            length = image[entry + 2] - 5
            image[entry + 5 : entry + 5 + length] = SHORT_DATE * (length // len(SHORT_DATE))
        entry += image[entry + 2]
