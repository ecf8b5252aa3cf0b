"""A serial console as lines for a log: bounded, readable, and without secrets."""

from __future__ import annotations

import codecs
import re
from collections import deque
from collections.abc import Iterable

HEAD_LINES = 5000
TAIL_LINES = 500
LONGEST_LINE = 2000
KEPT_OF_A_LINE = 4 * LONGEST_LINE
"""How much of a line is looked at; escape sequences and the like take their part of it."""

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
        self._cut = False
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
        first, *others = self._decode(data).split("\n")
        self._keep(first)
        lines = []
        for text in others:
            lines.append(self._take())
            self._keep(text)
        return [line for line in lines if line is not None]

    def _keep(self, text: str) -> None:
        """Add to the line that has not ended yet, as much as is kept of one."""
        room = KEPT_OF_A_LINE - len(self._rest)
        self._rest += text[:room]
        self._cut = self._cut or len(text) > room

    def _take(self) -> str | None:
        """Take the line that has ended now; None if it is kept for later, or dropped."""
        raw, self._rest = self._rest, ""
        cut, self._cut = self._cut, False
        line = self.redact(_CONTROLS.sub("", _ESCAPES.sub("", raw.replace("\t", " "))))
        if cut:
            line = self._without_beginning_of_secret(line)
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

    def redact(self, text: str) -> str:
        """Take the secrets out of a text."""
        # The longest first: one secret may begin with another.
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, REDACTED)
        return text

    def _without_beginning_of_secret(self, text: str) -> str:
        """Drop from a text that was cut what may be the first part of a secret."""
        for secret in self._secrets:
            for length in range(min(len(secret) - 1, len(text)), 0, -1):
                if text.endswith(secret[:length]):
                    text = text[:-length]
                    break
        return text

    def finish(self) -> list[str]:
        """Return what is to be logged when the console ends: how much was dropped, and the last lines."""
        live = [self._take()] if self._rest else []
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
