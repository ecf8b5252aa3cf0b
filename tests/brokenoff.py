"""Processes that tests break off."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOOK_AGAIN_S = 0.01
PATIENCE_S = 60.0


@contextmanager
def watched(process: subprocess.Popen[Any]) -> Iterator[subprocess.Popen[Any]]:
    """Wait for a process when the test is over with it; one that a failed test leaves behind is killed."""
    with process:
        try:
            yield process
            process.wait()
        finally:
            process.kill()


def wait_until_it_waits(process: subprocess.Popen[Any]) -> None:
    """Return when a process sleeps, or has ended.

    A signal just before Python waits for a file would not end the wait.
    """
    ends = time.monotonic() + PATIENCE_S
    while _state(process.pid) not in ("S", "Z"):
        assert time.monotonic() < ends, f"after {PATIENCE_S:g} s it is still busy"
        time.sleep(LOOK_AGAIN_S)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
