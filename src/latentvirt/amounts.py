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

MORE_THAN_ANY_AMOUNT = 2**63 // BYTES_PER_MIB
"""The first number of MiB that libvirt and QEMU, which count bytes, have no number for."""

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
    amount = 0 if isinstance(value, bool) else value if isinstance(value, int) else _with_unit(str(value))
    if amount >= MORE_THAN_ANY_AMOUNT:
        raise ConfigError(
            f"{what}={shown(value)} is more than any machine can have",
            remedy=f"write an amount below {MORE_THAN_ANY_AMOUNT // MIB_PER_UNIT['TIB']} TiB",
        )
    if amount <= 0:
        raise ConfigError(
            f"{what}={shown(value)} is not an amount",
            remedy="write a number of MiB, or a number with MiB, GiB or TiB, as in '4 GiB'",
        )
    return amount


def _with_unit(text: str) -> int:
    """Read a number with a unit or without, in MiB, rounded up; 0 if it is none."""
    found = _AMOUNT.fullmatch(text)
    unit = MIB_PER_UNIT.get(found.group(2).upper()) if found else None
    return int(-(-float(found.group(1)) * unit // 1)) if found and unit else 0


def amount_text(mib: int) -> str:
    """Write an amount of memory or disk in the largest unit that makes a whole number."""
    unit = next(unit for unit in ("TiB", "GiB", "MiB") if mib % MIB_PER_UNIT[unit.upper()] == 0)
    return f"{mib // MIB_PER_UNIT[unit.upper()]} {unit}"
