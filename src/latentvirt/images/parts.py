"""What was fetched of images that are not whole yet, and who may touch it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from latentvirt.images.store import ImageStore

PART = ".part"
NOTE = ".note"

Which = tuple[str, str, str]
"""Name, architecture and kind of an image."""


def getting(
    store: ImageStore, which: Which, waits: Callable[[], None] = lambda: None
) -> AbstractContextManager[None]:
    """Let one process, and one thread in it, at a time get an image, or remove what was fetched of it.

    Args:
        store: takes it.
        which: the image.
        waits: called once if somebody else does so already.

    Raises:
        ImageError: the store cannot be locked.
    """
    return store.lock(f"pull {'.'.join(which)}", waits)


def part_of(store: ImageStore, which: Which) -> tuple[Path, Path]:
    """Say where what was fetched of an image lies, and what is known of that.

    Raises:
        ImageError: there can be no such files.
    """
    part = store.scratch() / f"{'.'.join(which)}{PART}"
    return part, part.with_suffix(NOTE)


def partial_files(store: ImageStore) -> dict[Which, tuple[Path, ...]]:
    """List what was fetched of images that are not whole yet.

    Raises:
        ImageError: the store cannot be read.
    """
    found: dict[Which, tuple[Path, ...]] = {}
    for path in store.files("scratch", PART):
        parts = path.name.removesuffix(PART).rsplit(".", 2)
        if len(parts) == 3:
            found[(parts[0], parts[1], parts[2])] = (path, path.with_suffix(NOTE))
    return found
