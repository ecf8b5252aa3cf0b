"""Whether the sockets of VMs in a user's own libvirt fit in the paths that sockets may have."""

from __future__ import annotations

import os
import posixpath

from latentvirt.doctor.finding import Finding, warning
from latentvirt.doctor.way import Way
from latentvirt.names import CHANNEL_PORT

SOCKET_PATH_BYTES = 107
"""The longest path that a socket may have, on Linux."""

NAME_BYTES = 20
"""How much of a VM's name is in the name of its folder."""

VM = f"domain-9999-{'x' * NAME_BYTES}"
"""What libvirt calls the folder of a VM after a long time: it numbers them all."""

CHANNELS_ELSEWHERE_LIBVIRT = 9_007_000
"""Since when libvirt makes the sockets of channels below the folder for what runs, which is short."""


def socket_finding(uri: str, way: Way, libvirt: int) -> Finding | None:
    """Say that a user's home is too long a path for the sockets of VMs; None if it is not.

    Args:
        uri: the host.
        way: to it.
        libvirt: version of its daemon, as it numbers it.
    """
    if not way.is_here or not way.is_own_session:
        return None
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    socket = (
        posixpath.join("lib", VM, "monitor.sock")
        if libvirt >= CHANNELS_ELSEWHERE_LIBVIRT
        else posixpath.join("channel", "target", VM, CHANNEL_PORT)
    )
    most = SOCKET_PATH_BYTES - len(posixpath.join("/libvirt/qemu", socket))
    length = len(os.fsencode(config))
    if length <= most:
        return None
    return warning(
        "session-home-long",
        uri,
        f"libvirt makes the sockets of VMs below {config}, whose {length} bytes are too many: with more than "
        f"{most}, their paths may get longer than the {SOCKET_PATH_BYTES} bytes that a socket's may have",
        "set XDG_CONFIG_HOME to a short folder of this user's, for the master and for libvirt's daemon, and "
        "start that anew; or let the master run as a user with a shorter home; or use qemu:///system",
    )
