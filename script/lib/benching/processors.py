"""Who uses the machine's processors: the benchmark, or somebody else who spoils its figures."""

from __future__ import annotations

import os
from pathlib import Path

import attrs

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
IDLE, IO_WAIT = 3, 4
"""Fields of the first line of /proc/stat that are no work."""
FIELDS = 8
"""Those behind count guests, and are in others as well."""
PARENT, OWN, OF_CHILDREN = 1, slice(11, 13), slice(13, 15)
"""Fields of /proc/PID/stat behind the name; children's are those of processes that have ended."""


@attrs.frozen
class Usage:
    """Processor time used so far, in seconds.

    Args:
        everybody: since the machine started.
        ours: by this process and all that it has started.
    """

    everybody: float
    ours: float

    @classmethod
    def now(cls) -> Usage:
        """Look."""
        first = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1 : 1 + FIELDS]
        busy = sum(int(ticks) for field, ticks in enumerate(first) if field not in (IDLE, IO_WAIT))
        return cls(busy / TICKS_A_SECOND, _tree(os.getpid()) / TICKS_A_SECOND)


def others_share(before: Usage, after: Usage, seconds: float, processors: int) -> float:
    """Say which part of all processors others used meanwhile.

    Args:
        before: usage at the beginning.
        after: usage at the end.
        seconds: between the two.
        processors: how many there are.
    """
    used = (after.everybody - before.everybody) - (after.ours - before.ours)
    return min(1.0, max(0.0, used / (seconds * processors)))


def _tree(root: int) -> int:
    """Add up the ticks of a process and of all that it has started, ended or not."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended while we looked
        pid = int(entry.name)
        parents[pid] = int(fields[PARENT])
        ticks[pid] = sum(int(field) for field in (*fields[OWN], *fields[OF_CHILDREN]))
    ours = {root}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(ticks.get(pid, 0) for pid in ours)
