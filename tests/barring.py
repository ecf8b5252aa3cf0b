"""A folder that the tests themselves may not pass, also where root runs them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = 0
NOBODY = 65534


@contextlib.contextmanager
def barred(folder: Path) -> Iterator[None]:
    """Keep this process out of a folder, as long as this is held."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0)
    is_root = os.geteuid() == ROOT
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(ROOT)
        folder.chmod(0o700)
