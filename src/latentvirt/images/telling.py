"""Lines of progress for a build's page, not more of them than a person reads."""

from __future__ import annotations

from typing import Any

from latentvirt.config import BYTES_PER_MIB
from latentvirt.flights import Say

SAY_EVERY_S = 2.0


class HowFar(str):
    """A line that says how far something got, and the numbers in it, for who can show them otherwise."""

    what: str
    """What is done."""

    moved: int
    """Bytes that have gone."""

    total: int
    """All of them."""

    @classmethod
    def of(cls, what: str, moved: int, total: int) -> HowFar:
        """Write the line."""
        line = cls(f"{what}: {moved // BYTES_PER_MIB} of {-(-total // BYTES_PER_MIB)} MiB")
        line.what, line.moved, line.total = what, moved, total
        return line


class Telling:
    """Tell how far one copy got.

    Args:
        reactor: a Twisted reactor (IReactorTime).
        say: takes a line.
        what: what is done: "copying debian.qcow2 to qemu:///system".
        at_once: whether also of what takes no longer than a moment.
    """

    def __init__(self, reactor: Any, say: Say, what: str, *, at_once: bool = True) -> None:
        self._reactor = reactor
        self._say = say
        self._what = what
        self._next = 0.0 if at_once else reactor.seconds() + SAY_EVERY_S

    def progress(self, moved: int, total: int) -> None:
        """Note how many bytes of how many have gone."""
        now = self._reactor.seconds()
        if now >= self._next:
            self._next = now + SAY_EVERY_S
            self._say(HowFar.of(self._what, moved, total))
