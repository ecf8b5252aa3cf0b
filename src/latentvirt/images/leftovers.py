"""Files in this machine's image store that no image is in any more."""

from __future__ import annotations

import time
from pathlib import Path

import attrs

from latentvirt.images.store import ImageStore

SCRATCH_KEPT_S = 604800
"""How long half a download waits to be gone on with: a week."""


@attrs.frozen
class Leftover:
    """A file that nobody needs.

    Args:
        path: of it.
        size: in bytes.
        why: nobody needs it.
    """

    path: Path
    size: int
    why: str


def leftovers(store: ImageStore) -> list[Leftover]:
    """List the files of a store that no image is in any more.

    Args:
        store: this machine's.
    """
    found = [
        (path, "a newer image has its name, or it was removed")
        for path in (store.root / "blobs").glob("*")
        if not store.is_named(path.stem)
    ]
    oldest = time.time() - SCRATCH_KEPT_S
    found += [
        (path, "nobody has gone on with it for a week")
        for path in (store.root / "scratch").glob("*")
        if path.is_file() and path.stat().st_mtime < oldest
    ]
    return [Leftover(path, path.stat().st_size, why) for path, why in sorted(found)]


def remove_leftovers(store: ImageStore) -> list[Leftover]:
    """Remove the files of a store that no image is in any more.

    Args:
        store: this machine's.

    Returns:
        What was removed.

    Raises:
        ImageError: the user may not.
    """
    if not leftovers(store):
        return []
    with store.alone():
        found = leftovers(store)
        for one in found:
            one.path.unlink(missing_ok=True)
    return found
