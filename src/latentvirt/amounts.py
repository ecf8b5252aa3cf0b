"""Amounts of memory and disk, as people write them."""

from __future__ import annotations

import re

from latentvirt.errors import ConfigError
from latentvirt.showing import shown

MIB_PER_UNIT = {
    "": 1,
    "MIB": 1,
    "MB": 1,
    "M": 1,
    "GIB": 1024,
    "GB": 1024,
    "G": 1024,
    "TIB": 1024 * 1024,
    "TB": 1024 * 1024,
    "T": 1024 * 1024,
}
"""What one of each unit is in MiB; like libvirt's tools and QEMU's, a "GB" here is 1024 MiB."""

BYTES_PER_MIB = 1024 * 1024

MORE_THAN_ANY_AMOUNT = 10**15
"""The first plain number that is not read as MiB."""

# No more digits than a float keeps apart; nobody has so much.
_AMOUNT = re.compile(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([A-Za-z]*)\s*")


def mebibytes(value: int | str, what: str) -> int:
    """Read an amount of memory or disk.

    Args:
        value: a plain number of MiB, or a string with a unit: ``'4 GiB'``, ``'512M'``.
        what: name of the argument, for the message.

    Returns:
        The amount in MiB, rounded up.

    Raises:
        ConfigError: it is not a positive amount in a unit known here.
    """
    # A whole number can be so large that Python would refuse to write it.
    wrong = isinstance(value, bool) or (isinstance(value, int) and not 0 < value < MORE_THAN_ANY_AMOUNT)
    found = None if wrong else _AMOUNT.fullmatch(str(value))
    unit = MIB_PER_UNIT.get(found.group(2).upper()) if found else None
    amount = -(-float(found.group(1)) * unit // 1) if found and unit else 0
    if amount <= 0:
        raise ConfigError(
            f"{what}={shown(value)} is not an amount",
            remedy="write a number of MiB, or a number with MiB, GiB or TiB, as in '4 GiB'",
        )
    return int(amount)
