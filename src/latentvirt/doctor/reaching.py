"""Why a host cannot be reached: ssh that would ask, a daemon that does not run, an embedded root in use."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
from pathlib import Path

import attrs

from latentvirt.doctor.finding import Finding, fine, problem
from latentvirt.doctor.shell import Ran
from latentvirt.doctor.way import Way
from latentvirt.errors import HostTimeout, LatentvirtError

SOCKET_S = 5.0
"""How long a daemon on this machine may take to accept a connection."""

LAST_LINES = 2
"""How many of ssh's last lines are told: the first ones are often a banner."""

PID_FILE = "qemu/driver.pid"
"""Where, below its folder for what runs, QEMU's driver of libvirt says who has it."""


# ssh


def ssh_finding(uri: str, way: Way, ran: Ran, answered: bool) -> Finding:
    """Say what came of a login by ssh that was allowed no question.

    Args:
        uri: the host, as it was named.
        way: to it.
        ran: what came of ssh.
        answered: whether the host's shell said what it was asked.
    """
    if answered:
        return fine("ssh", uri, f"ssh logs in as {way.login} and asks nothing")
    said = ran.err.lower()
    last = "; ".join(line.strip() for line in ran.err.strip().splitlines()[-LAST_LINES:]) or "it said nothing"
    user = pwd.getpwuid(os.geteuid()).pw_name
    if "identification has changed" in said:
        known = f"[{way.host}]:{way.port}" if way.port else way.host
        return problem(
            "ssh-host-key-changed",
            uri,
            f"the ssh host key of {way.host} is another than the one that {user} knows",
            f"if the host was installed anew: ssh-keygen -R '{known}', and then {way.by_hand}; else find out "
            "who answers there",
        )
    if "host key verification failed" in said or "authenticity of host" in said:
        return problem(
            "ssh-host-key-unknown",
            uri,
            f"ssh would ask {user} whether the host key of {way.host} is right, and a master cannot answer",
            f"log in once by hand as {user}, compare the key and answer yes: {way.by_hand}",
        )
    if "permission denied" in said or "too many authentication failures" in said:
        return problem(
            "ssh-login-refused",
            uri,
            f"ssh would ask for a password or a passphrase, or {way.host} refuses the login of {way.login}: "
            f"{last}",
            f"give {user} a key without a passphrase (ssh-keygen -t ed25519) and let the host know it: "
            f"ssh-copy-id {way.by_hand.removeprefix('ssh ')}",
        )
    if ran.code is None or any(
        word in said for word in ("could not resolve", "connect to host", "timed out")
    ):
        return problem(
            "ssh-unreachable",
            uri,
            f"ssh does not reach {way.host}: {last}",
            "see whether the name and the port are right, the host is up, and sshd runs there: "
            f"{way.by_hand}",
        )
    return problem(
        "ssh-failed",
        uri,
        f"ssh to {way.host} ended with status {ran.code}: {last}",
        f"see what it says by hand, as {user}: {way.by_hand} true",
    )


def helper_finding(uri: str, way: Way, programs: frozenset[str]) -> Finding | None:
    """Say that the host lacks what libvirt's ssh transport runs there; None if it does not."""
    if programs:
        return None
    return problem(
        "ssh-no-helper",
        uri,
        f"{way.host} has neither virt-ssh-helper nor nc, of which libvirt's ssh transport runs one there",
        "install libvirt's daemon there (libvirt-daemon-system on Debian, libvirt-daemon on Fedora)",
    )


# The daemon on this machine


@attrs.frozen
class Door:
    """What came of a knock at a daemon's socket.

    Args:
        path: of the socket.
        errno: what the system said; 0 if somebody answered.
        group: the socket's group; empty if that is not known.
        hidden: whether its folder is closed, so that it is not known whether there is a socket.
    """

    path: Path
    errno: int
    group: str = ""
    hidden: bool = False


def knock(paths: list[Path]) -> Door:
    """Look who listens at the first of some sockets that is there; blocks, for a thread."""
    path = next((one for one in paths if _is_there(one)), paths[-1])
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.settimeout(SOCKET_S)
        try:
            door.connect(str(path))
        except OSError as error:
            return Door(path, error.errno or errno.ETIMEDOUT, _group_of(path), _is_hidden(path))
    return Door(path, 0, _group_of(path))


def _is_there(path: Path) -> bool:
    return _is_hidden(path) or path.exists()


def _is_hidden(path: Path) -> bool:
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def _group_of(path: Path) -> str:
    try:
        return grp.getgrgid(path.stat().st_gid).gr_name
    except (OSError, KeyError):
        return ""


def unreached(uri: str, way: Way, error: LatentvirtError, door: Door | None) -> Finding:
    """Say why libvirt could not be reached.

    Args:
        uri: the host, as it was named.
        way: to it.
        error: what came of the try.
        door: what came of a knock at the daemon's socket, where it is on this machine.
    """
    user = pwd.getpwuid(os.geteuid()).pw_name
    said = error.what.removeprefix("could not connect: ")
    if way.embed_root is not None:
        return _embed(uri, way.embed_root, said)
    if isinstance(error, HostTimeout):
        return problem(
            "libvirt-mute",
            uri,
            f"libvirt takes the connection and does not answer: {error.what}",
            "restart it (systemctl restart libvirtd, or virtqemud), which does not hurt VMs; if that does "
            "not "
            "help, look into its log: journalctl -u libvirtd",
        )
    if door is not None and door.errno in (errno.EACCES, errno.EPERM):
        group = door.group if door.group not in ("", "root") else "libvirt"
        join = (
            f"usermod -a -G {group} {user}, then log in again (and restart the master), or use "
            "qemu:///session"
        )
        if door.hidden:
            return problem(
                "libvirt-closed",
                uri,
                f"{user} may not use libvirt, or its daemon does not run: {door.path.parent} is closed to "
                f"that user, so it is not known whether anybody listens at {door.path}",
                "see as root whether it runs (systemctl status 'libvirtd*' 'virtqemud*'); if not: systemctl "
                "enable --now libvirtd (virtqemud.socket where libvirt has many daemons); if it does: "
                f"{join}",
            )
        return problem(
            "libvirt-closed",
            uri,
            f"{user} may not use libvirt: the socket {door.path} is closed to that user",
            join,
        )
    if door is not None and door.errno and way.is_own_session:
        return problem(
            "libvirt-unreachable",
            uri,
            f"libvirt cannot be reached: {said}",
            "a session's daemon is started by whoever needs it: see that one is installed "
            "(libvirt-daemon on Debian, libvirt-daemon-kvm on Fedora), and what it says by hand, as "
            f"{user}: virsh -c '{uri}' list",
        )
    if door is not None and door.errno:
        return problem(
            "libvirt-not-running",
            uri,
            f"libvirt's daemon does not run: {door.path}: {os.strerror(door.errno)}",
            "systemctl enable --now libvirtd (virtqemud.socket where libvirt has many daemons); if there is "
            "no "
            "such unit, install it: libvirt-daemon-system on Debian, libvirt-daemon-kvm on Fedora",
        )
    return problem(
        "libvirt-unreachable",
        uri,
        f"libvirt cannot be reached: {said}",
        f"see what it says by hand, as {user}: virsh -c '{uri}' list",
    )


def _embed(uri: str, root: Path, said: str) -> Finding:
    holder = _holder(root)
    if holder is not None:
        return problem(
            "embed-in-use",
            uri,
            f"{holder} has the root {root} open, and only one process at a time can",
            "if that is a master, ask it: its web page, or latentvirt.host_states(master); or stop it first",
        )
    return problem(
        "embed-failed",
        uri,
        f"libvirt in our own process cannot be opened: {said}",
        f"see whether {root} is this user's, and what {root}/log says",
    )


def _holder(root: Path) -> str | None:
    """Name the process that has an embedded root open; None if there is none."""
    me = os.getpid()
    for file in root.glob(f"**/{PID_FILE}"):
        try:
            pid = int(file.read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (OSError, ValueError):
            continue  # it has ended
        if pid != me:
            return f"process {pid} ({' '.join(words.split())})"
    return None
