"""Who may read a file on this machine, in words for a message."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

import attrs

CLASSES = "ugo"
"""Whose rights a mode has, in its order, as chmod names them: the owner's, the group's, those of others."""

CHECK_PATH = "check the path on that host; its folder must be there, too"


def owner_of(status: os.stat_result) -> str:
    """Say whose a file is, and its mode."""
    return f"owner {status.st_uid}:{status.st_gid} mode {stat.S_IMODE(status.st_mode):04o}"


def class_of(uid: int, groups: Sequence[int], *, owner: int, group: int) -> str:
    """Say which of a file's rights are a user's, one of `CLASSES`.

    Args:
        uid: the user.
        groups: all of the user's groups.
        owner: whose the file is.
        group: of which group.
    """
    return "u" if uid == owner else "g" if group in groups else "o"


@attrs.frozen
class Unseen:
    """Why libvirt does not see an image, in words for a message.

    Args:
        state: a clause after the image's name: "is not there".
        remedy: what the person can do.
    """

    state: str
    remedy: str


GONE = Unseen("is not there", CHECK_PATH)

GONE_OR_CLOSED = Unseen(
    "is not there, or libvirt may not read it",
    f"{CHECK_PATH}; if it is there, let the user that libvirt runs as read it: chmod u+r if that user owns "
    "it, else o+r",
)
"""libvirt leaves out files that it may not read, without a word."""


def why_unseen(path: str, uid: int) -> Unseen:
    """Look why libvirt does not see an image on this machine.

    Args:
        path: of the image.
        uid: the user that libvirt runs as.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return GONE
    except OSError:
        return GONE_OR_CLOSED
    whose = class_of(uid, (), owner=status.st_uid, group=status.st_gid)
    return Unseen(
        f"is there ({owner_of(status)}), but libvirt, which runs as user {uid}, cannot read it",
        f"chmod {whose}+r '{path}'; if it is open to that user already, see whether libvirt has the same "
        "files as the master (NFS keeps root out, and a container may have others)",
    )


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
