"""A person's wish that a VM is not ended yet: until when, whose, and why. It lives on the host, at the VM."""

from __future__ import annotations

import math
from datetime import datetime

import attrs

from latentvirt.durations import DAY_S, read_seconds
from latentvirt.errors import ConfigError
from latentvirt.showing import shown

HOLD_NAMESPACE = "urn:latentvirt:hold:1"
HOLD_PREFIX = "latentvirt-hold"

MOST_HOLD_S = 7 * DAY_S
"""How long a VM can be held at a time; it may be held again."""

LEAST_HOLD_S = 1
"""What is shorter would be over before anybody was told."""

LONGEST_WHY = 200


@attrs.frozen(kw_only=True)
class Hold:
    """Until when a VM is not ended, although its build is over.

    Args:
        until: seconds since the epoch.
        by: who wants that: ``user@machine``, or the worker's name.
        why: in a person's words.
        worker: the worker that starts no other VM meanwhile, since this one's guest knows its password; empty
            if none has to wait for that.
    """

    until: int
    by: str
    why: str
    worker: str = ""

    def __str__(self) -> str:
        return f"held until {moment(self.until)} by {self.by}: {self.why}"


def moment(seconds: float) -> str:
    """Write a time for people: ``2026-01-31 14:05+00:00``, in the zone of whoever reads it here."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "minutes")


def read_duration(value: object, what: str) -> int:
    """Read for how long a VM is to be held.

    Args:
        value: a number with a unit: ``'2h'``, ``'30 min'``, ``'1d'``.
        what: name of the argument, for the message.

    Returns:
        Seconds, at least 1.

    Raises:
        ConfigError: it is no duration, shorter than `LEAST_HOLD_S`, or longer than `MOST_HOLD_S`.
    """
    exactly = read_seconds(value, what)
    if exactly < LEAST_HOLD_S:
        raise ConfigError(
            f"{what}={shown(value)} is over at once", remedy="hold it for a second at least, as in '2h'"
        )
    seconds = math.ceil(exactly)
    if seconds > MOST_HOLD_S:
        raise ConfigError(
            f"{what}={shown(value)} is longer than a VM is held: {MOST_HOLD_S // DAY_S} days at most",
            remedy="hold it for less; it can be held again before the time is up",
        )
    return seconds


def read_why(value: str) -> str:
    """Check a reason: a line of text that is not endless.

    Raises:
        ConfigError: it is something else.
    """
    why = value.strip()
    if not why or not why.isprintable():
        raise ConfigError(f"the reason {shown(value)} is not a line of text", remedy="say why in a few words")
    if len(why) > LONGEST_WHY:
        raise ConfigError(
            f"the reason has {len(why)} characters, and at most {LONGEST_WHY} are kept", remedy="be brief"
        )
    return why
