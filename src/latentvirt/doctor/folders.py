"""Whether image folders are there, can be reached by QEMU's user, and have room."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

import attrs

from latentvirt.doctor.finding import Finding, Fix, fine, problem, warning
from latentvirt.doctor.shell import Part, SeenPath, Shell
from latentvirt.host import PoolView
from latentvirt.storage.base import NAME_ANOTHER

MIB = 1024**2
GIB = 1024**3

LEAST_FREE = GIB
"""With less room than this builds soon stand still."""
LOW_FREE = 10 * GIB
"""With less room than this an image and some builds may not fit any more."""

NETWORK_FILES = frozenset({"nfs", "nfs4", "cifs", "smb2", "fuseblk", "fuse"})
"""File systems whose files have no label of SELinux's own."""

NOBODY = "No such file or directory"
"""What a system says of a path that is not there."""


@attrs.frozen
class Someone:
    """Whom QEMU runs as.

    Args:
        uid: the user.
        groups: all of its groups.
    """

    uid: int
    groups: tuple[int, ...]

    @classmethod
    def of(cls, shell: Shell, qemu: tuple[int, int] | None) -> Someone:
        """Say who that is, on a host whose shell answered."""
        if qemu is None:
            return cls(shell.uid, shell.groups)
        return cls(qemu[0], (qemu[1], *shell.qemu_groups))


def folder_findings(
    uri: str,
    seen: SeenPath,
    someone: Someone,
    *,
    named: bool,
    by_user: bool,
    selinux: bool,
) -> list[Finding]:
    """Say whether an image folder is as it should be.

    Args:
        uri: the host.
        seen: the folder.
        someone: whom QEMU runs as.
        named: whether somebody named it; one that is only usual need not be there.
        by_user: whether it is the user who looked that makes the files there: by latentvirt itself, as on
            embed, or by a libvirt of its own.
        selinux: whether SELinux confines VMs there.
    """
    last = seen.parts[-1]
    if last.mode.startswith("-"):
        return [
            problem(
                "folder-missing",
                uri,
                f"{seen.path} is a file ({last.mode}), and no folder",
                "name the folder that the images are in, here or in master.cfg",
            )
        ]
    blocked = _blocked(seen, someone, image=False)
    if blocked is not None and blocked.error == NOBODY:
        if not named:
            return []
        return [
            problem(
                "folder-missing",
                uri,
                f"there is no folder {seen.path}{_which(blocked, seen)}",
                f"mkdir -p '{seen.path}', or correct the path in master.cfg",
                Fix("make folder", seen.path),
            )
        ]
    if blocked is not None:
        return [_closed("folder-closed", uri, seen, blocked, someone)]
    if by_user and not seen.writable:
        tell = problem if named else warning
        return [
            tell(
                "folder-not-writable",
                uri,
                f"this user may make no files in {seen.path} ({_last(seen)}), and nobody else does that here",
                f"chown it to the master's user, or chmod g+w '{seen.path}' and let its group have them, "
                f"or {NAME_ANOTHER}",
            )
        ]
    found = [fine("folder", uri, f"QEMU's user {someone.uid} can pass through to {seen.path}")]
    if selinux and seen.kind in NETWORK_FILES:
        found.append(
            warning(
                "selinux-network-files",
                uri,
                f"{seen.path} is on a file system of the kind {seen.kind}, which SELinux closes to VMs "
                "unless told",
                "setsebool -P virt_use_nfs on (virt_use_samba, virt_use_fusefs for the others)",
            )
        )
    return found


def image_finding(uri: str, seen: SeenPath, someone: Someone, folders: Sequence[str]) -> Finding | None:
    """Say whether QEMU's user can read a base image, whose owner and mode latentvirt never changes.

    Args:
        uri: the host.
        seen: the image.
        someone: whom QEMU runs as.
        folders: those that were looked at themselves; what is wrong with them is not told twice.
    """
    blocked = _blocked(seen, someone, image=True)
    if blocked is not None and blocked is not seen.parts[-1] and posixpath.dirname(seen.path) in folders:
        return None
    if blocked is None:
        return fine("image", uri, f"QEMU's user {someone.uid} can read {seen.path}")
    if blocked.error == NOBODY:
        return problem(
            "image-missing",
            uri,
            f"there is no image {seen.path}{_which(blocked, seen)}",
            "put it there, correct base_image in master.cfg, or let it be copied: base_image=Image(...)",
        )
    return _closed("image-closed", uri, seen, blocked, someone)


def _closed(id: str, uri: str, seen: SeenPath, blocked: Part, someone: Someone) -> Finding:
    if blocked.error:
        return warning(
            f"{id.partition('-')[0]}-unseen",
            uri,
            f"whether QEMU's user can reach {seen.path} is not known: {blocked.path}: {blocked.error}",
            "let the user that asks look there, or run this command on the host as root",
        )
    last = blocked.path == seen.parts[-1].path
    right, verb = ("r", "read") if last and id == "image-closed" else ("x", "pass through")
    # The owner has no rights but the owner's own, whatever others have.
    whose = blocked.class_of(someone.uid, someone.groups)
    tell = warning if blocked.acl else problem
    return tell(
        id,
        uri,
        f"QEMU's user {someone.uid} cannot {verb} {blocked}"
        + (", unless its access control list says so (getfacl)" if blocked.acl else "")
        + ("" if last else f", on the way to {seen.path}"),
        f"chmod {whose}+{right} '{blocked.path}', or move the images to a folder that all may pass through, "
        "such as /var/lib/libvirt/images",
    )


def _blocked(seen: SeenPath, someone: Someone, *, image: bool) -> Part | None:
    """Find the first component of a path that keeps a user from it."""
    for part in seen.parts:
        right = "r" if image and part is seen.parts[-1] else "x"
        if part.error or not part.lets(right, someone.uid, someone.groups):
            return part
    return None


def _which(blocked: Part, seen: SeenPath) -> str:
    return "" if blocked.path == seen.path else f": {blocked.path} is not there"


def _last(seen: SeenPath) -> str:
    part = seen.parts[-1]
    return f"{part.mode}, owner {part.uid}:{part.gid}"


def pool_findings(
    uri: str, pools: Sequence[PoolView], folders: Sequence[str], *, named: bool, shown: str
) -> list[Finding]:
    """Say which pools over image folders do not run.

    Args:
        uri: the host.
        pools: all of its pools.
        folders: image folders.
        named: whether somebody named the folders.
        shown: how virsh is told of the host.
    """
    paths = {posixpath.normpath(folder) for folder in folders}
    return [
        warning(
            "pool-inactive",
            uri,
            f"the storage pool {pool.name} over {pool.path} does not run",
            f"virsh -c '{shown}' 'pool-start {pool.name}'"
            if pool.autostart
            else f"virsh -c '{shown}' 'pool-start {pool.name}; pool-autostart {pool.name}'",
            Fix("start pool", pool.name) if named else None,
        )
        for pool in pools
        if not pool.active and posixpath.normpath(pool.path or "/") in paths
    ]


def room_finding(uri: str, seen: SeenPath, frozen: int, budget: int) -> Finding | None:
    """Say how much room there is where an image folder lies; None if that is not known.

    Args:
        uri: the host.
        seen: the folder.
        frozen: bytes that frozen images take there.
        budget: bytes that they may take.
    """
    if seen.size is None:
        return None
    room = (
        f"{_amount(seen.free)} of {_amount(seen.size)} are free at {seen.path}; frozen images take "
        f"{_amount(frozen)} of the {_amount(budget)} that they may"
    )
    mend = (
        "make room: what dead masters left (latentvirt sweep), images that nobody uses, or less for frozen "
        "images: Connection(frozen_space='5 GiB')"
    )
    if seen.size < LEAST_FREE:
        return problem(
            "disk-full",
            uri,
            f"{room}; the file system is too small for VMs, even when it is empty",
            "name a folder on a larger one, here or in master.cfg, or enlarge it",
        )
    if seen.free < LEAST_FREE:
        return problem("disk-full", uri, room, mend)
    if seen.free < LOW_FREE:
        return warning("disk-low", uri, room, mend)
    if seen.free < budget - frozen:
        return warning("disk-frozen", uri, f"{room}, so they may fill the disk", mend)
    return fine("disk", uri, room)


def _amount(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size // MIB} MiB"
