"""Who may read a file on this machine, in words for a message."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence


def owner_of(status: os.stat_result) -> str:
    """Say whose a file is, and its mode."""
    return f"owner {status.st_uid}:{status.st_gid} mode {stat.S_IMODE(status.st_mode):04o}"


def what_blocks(paths: Sequence[str]) -> str | None:
    """Say which component of local paths keeps a user without rights of its own from reading them.

    Args:
        paths: of image files on this machine.

    Returns:
        A clause such as "/home/buildbot (owner 1000:1000 mode 0700) cannot be passed"; None if all can be.
    """
    for path in paths:
        parts = path.strip("/").split("/")
        for depth in range(1, len(parts) + 1):
            component = "/" + "/".join(parts[:depth])
            try:
                status = os.stat(component)
            except OSError as error:
                return f"{component}: {error.strerror}"
            is_folder = stat.S_ISDIR(status.st_mode)
            if not status.st_mode & (stat.S_IXOTH if is_folder else stat.S_IROTH):
                verb = "passed" if is_folder else "read"
                return f"{component} ({owner_of(status)}) cannot be {verb} by QEMU's own user"
    return None
