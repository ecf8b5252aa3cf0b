"""What the guest of a build says on its port: lines that begin with what they are."""

from __future__ import annotations

import re
from collections.abc import Callable

LONGEST_LINE = 4000
MOST_LOG_LINES = 200

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")


class Report:
    """Collect what a guest says; it may say anything, and is believed only about itself.

    Args:
        on_step: called with each step that it begins, for people.
    """

    def __init__(self, on_step: Callable[[str], object] = lambda step: None) -> None:
        self.step = ""
        """What it did last."""
        self.facts: dict[str, str] = {}
        """What it told of itself: ``python``, ``buildbot-worker``, ``worker`` (where that came from)."""
        self.log: list[str] = []
        """The last lines of cloud-init's log, of one that failed."""
        self.failed: str | None = None
        """Why it failed, if it did."""
        self.over = False
        """Whether one that failed has said all about it."""
        self.done = False
        """Whether all was done, and only the shutdown is left."""
        self._on_step = on_step
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take bytes as they come."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[:LONGEST_LINE]
        for line in lines:
            text = line[:LONGEST_LINE].decode("utf-8", "replace")
            what, _, rest = _UNPRINTABLE.sub(" ", text).strip().partition(" ")
            self._take(what, rest.strip())

    def _take(self, what: str, rest: str) -> None:
        if what == "step":
            self.step = rest
            self._on_step(rest)
        elif what == "fact":
            name, _, value = rest.partition(" ")
            self.facts[name] = value
        elif what == "log":
            self.log = [*self.log, rest][-MOST_LOG_LINES:]
        elif what == "failed":
            self.failed = self.failed or rest or "it does not say why"
        elif what == "over":
            self.over = True
        elif what == "done":
            self.done = True
