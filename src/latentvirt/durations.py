"""Durations, as people write them."""

from __future__ import annotations

import re

from latentvirt.errors import ConfigError
from latentvirt.showing import shown

DAY_S = 24 * 3600

SECONDS_PER_UNIT = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), DAY_S),
}

_DURATION = re.compile(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([A-Za-z]+)\s*")


def read_seconds(value: object, what: str) -> float:
    """Read a duration.

    Args:
        value: a number with a unit: ``'2h'``, ``'30 min'``, ``'1d'``.
        what: name of the argument, for the message.

    Returns:
        Seconds, more than 0.

    Raises:
        ConfigError: it is no duration.
    """
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    unit = SECONDS_PER_UNIT.get(found.group(2).lower()) if found else None
    seconds = float(found.group(1)) * unit if found and unit else 0
    if seconds <= 0:
        raise ConfigError(
            f"{what}={shown(value)} is not a duration",
            remedy="write a number with s, min, h or d, as in '2h', '30 min' or '1d'",
        )
    return seconds
