"""One thing that was found out about a host, and what to do about it."""

from __future__ import annotations

import enum
from typing import Literal

import attrs


class Severity(enum.Enum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@attrs.frozen
class Fix:
    """Something safe that mends a finding.

    Args:
        what: what to do.
        name: of the network or the pool, or the path of the folder.
    """

    what: Literal["start network", "start pool", "make folder"]
    name: str


@attrs.frozen(kw_only=True)
class Finding:
    """Say what was found out.

    Args:
        id: what kind of finding it is, for programs and for the documentation.
        severity: ``problem`` if builds fail of it, ``warning`` if they may, ``ok`` if it is as it should be.
        host: URI of the host, as it was named.
        what: one sentence.
        remedy: what the person can do; empty if there is nothing to do.
        fix: what mends it; None if that is the person's to do.
    """

    id: str
    severity: Severity
    host: str
    what: str
    remedy: str = ""
    fix: Fix | None = None

    @property
    def fixable(self) -> bool:
        """Whether it can be mended for the person."""
        return self.fix is not None


def fine(id: str, host: str, what: str, remedy: str = "") -> Finding:
    """Say that something is as it should be, or what can be done about it although nothing is wrong."""
    return Finding(id=id, severity=Severity.OK, host=host, what=what, remedy=remedy)


def warning(id: str, host: str, what: str, remedy: str, fix: Fix | None = None) -> Finding:
    """Say what builds may fail of."""
    return Finding(id=id, severity=Severity.WARNING, host=host, what=what, remedy=remedy, fix=fix)


def problem(id: str, host: str, what: str, remedy: str, fix: Fix | None = None) -> Finding:
    """Say what builds fail of."""
    return Finding(id=id, severity=Severity.PROBLEM, host=host, what=what, remedy=remedy, fix=fix)
