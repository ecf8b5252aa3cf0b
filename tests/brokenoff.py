"""Processes that tests break off."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def watched(process: subprocess.Popen[Any]) -> Iterator[subprocess.Popen[Any]]:
    """Wait for a process when the test is over with it; one that a failed test leaves behind is killed."""
    with process:
        try:
            yield process
            process.wait()
        finally:
            process.kill()
