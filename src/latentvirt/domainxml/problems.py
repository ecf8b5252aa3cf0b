"""What stands in the way of a fresh start, and how it is told."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from latentvirt.errors import NotFresh


@attrs.frozen
class Problem:
    """Something in a domain's XML that the guest writes to and that outlives the start.

    Args:
        name: how ``allow_shared`` names it.
        line: where it is in the XML, counted from 1; 0 if unknown.
        what: one clause for a person.
        remedies: what can be done about it, besides allowing it.
    """

    name: str
    line: int
    what: str
    remedies: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"line {self.line}: {self.what}" if self.line else self.what

    @property
    def ways_out(self) -> str:
        """All that the person can do, as one clause."""
        allow = f"allow it with allow_shared={{{self.name!r}}} if builds may find each other's traces there"
        return ", or ".join((*self.remedies, allow))


def refuse(problems: Sequence[Problem]) -> None:
    """Refuse a start that would not be fresh.

    Args:
        problems: all that is in the way; nothing happens if there is none.

    Raises:
        NotFresh: with every problem's line and way out.
    """
    if not problems:
        return
    if len(problems) == 1:
        raise NotFresh(f"{problems[0]}.", remedy=f"{problems[0].ways_out}.")
    raise NotFresh(
        f"{len(problems)} things outlive the start. " + " ".join(f"{problem}." for problem in problems),
        remedy=" ".join(f"For {problem.name}: {problem.ways_out}." for problem in problems),
    )
