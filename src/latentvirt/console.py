"""A serial console as lines for a log: bounded, readable, and without secrets."""

from __future__ import annotations

import codecs
import re
from collections import deque
from collections.abc import Iterable

HEAD_LINES = 5000
TAIL_LINES = 500
LONGEST_LINE = 2000
REDACTED = "<redacted>"

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_]|[ -/]+[0-~])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_PANIC = re.compile(r"Kernel panic - not syncing")


class ConsoleLog:
    """Keep the first and the last part of what a guest writes to its console; one per start.

    Args:
        secrets: strings that must not appear in what comes out.
        head_lines: how many lines come out live, before only the last ones are kept.
        tail_lines: how many of the last ones.
    """

    def __init__(
        self, secrets: Iterable[str] = (), *, head_lines: int = HEAD_LINES, tail_lines: int = TAIL_LINES
    ) -> None:
        self._secrets = [secret for secret in secrets if secret]
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._rest = ""
        self._head_left = head_lines
        self._tail: deque[str] = deque(maxlen=tail_lines)
        self._recent: deque[str] = deque(maxlen=tail_lines)
        self._dropped = 0
        self.panic: str | None = None
        """The line in which the guest's kernel said that it panics, once it has."""

    def hide(self, secret: str) -> None:
        """Keep one more secret out of what comes out from now on."""
        if secret:
            self._secrets.append(secret)

    def feed(self, data: bytes) -> list[str]:
        """Take bytes as they come.

        Returns:
            The lines that belong in the live log now, without line ends.
        """
        *lines, self._rest = (self._rest + self._decode(data)).split("\n")
        longest = LONGEST_LINE + max((len(secret) for secret in self._secrets), default=0)
        if len(self._rest) > longest:
            # A line without end is cut; redacted first, so that no secret is cut in two and missed.
            rest = self._redact(self._rest)
            lines.append(rest[:LONGEST_LINE])
            self._rest = rest[LONGEST_LINE:]
        return [line for line in (self._take(line) for line in lines) if line is not None]

    def _take(self, raw: str) -> str | None:
        line = self._redact(_CONTROLS.sub("", _ESCAPES.sub("", raw.replace("\t", " "))))
        if _PANIC.search(line):
            self.panic = line.strip()
        line = line[:LONGEST_LINE]
        self._recent.append(line)
        if self._head_left > 0:
            self._head_left -= 1
            return line
        if len(self._tail) == self._tail.maxlen:
            self._dropped += 1
        self._tail.append(line)
        return None

    def _redact(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        return text

    def finish(self) -> list[str]:
        """Return what is still to be logged when the console ends: how much was dropped, and the last lines."""
        rest, self._rest = self._rest, ""
        live = [self._take(rest)] if rest else []
        lines = [line for line in live if line is not None]
        if self._dropped:
            lines.append(f"[latentvirt: {self._dropped} lines dropped here]")
        lines.extend(self._tail)
        self._tail.clear()
        self._dropped = 0
        return lines

    def tail(self, lines: int) -> list[str]:
        """Return the last lines, for a message."""
        return list(self._recent)[-lines:]
