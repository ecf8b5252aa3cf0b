"""The roots of embedded libvirts: ``qemu:///embed?root=DIR``."""

from __future__ import annotations

import os
import shlex
from urllib.parse import parse_qs, urlsplit

from latentvirt.errors import ConfigError
from latentvirt.showing import shown

EMBED_SCHEME = "qemu"
EMBED_PATH = "/embed"

STATE_FOLDER = "lib"
"""Where below its root an embedded libvirt keeps what running VMs need (libvirt's driver of QEMU)."""
WAY_MODE = 0o711
"""QEMU's user must come through, and nobody else needs to list it."""


def is_embed(uri: str) -> bool:
    """Say whether a URI is that of an embedded libvirt."""
    parts = urlsplit(uri)
    return parts.scheme == EMBED_SCHEME and not parts.netloc and parts.path == EMBED_PATH


def check_root(uri: str) -> None:
    """Check that a URI names a root if it is that of an embedded libvirt.

    Raises:
        ConfigError: it names none that libvirt would take.
    """
    root = _root_in(uri)
    if root is not None and not os.path.isabs(root):
        raise ConfigError(
            f"connection URI {uri!r} has root={shown(root)}, which is no absolute path"
            if root
            else f"connection URI {uri!r} names no root",
            remedy="name the folder of that libvirt by its whole path: 'qemu:///embed?root=/srv/buildbot/embed'",
        )


def check_root_is_there(uri: str) -> None:
    """Refuse the URI of an embedded libvirt whose root nobody has made; libvirt would make it, and answer.

    Raises:
        ConfigError: there is no such folder.
    """
    root = _root_in(uri)
    if root and not os.path.isdir(root):
        raise ConfigError(
            f"there is no folder {root}, which is named as the root of an embedded libvirt",
            remedy="name the root that the master's connection has, or make a new one: "
            f"mkdir -p {shlex.quote(root)}",
        )


def open_way(uri: str) -> None:
    """Make the folder of an embedded libvirt's state such that QEMU's user comes through to its part of it.

    libvirt would make it as the umask of the process has it, and a daemon's lets nobody else in.

    Args:
        uri: a connection's; nothing is done for others than an embedded libvirt's, or without its root.
    """
    root = _root_in(uri)
    if not root or not os.path.isdir(root):
        return
    state = os.path.join(root, STATE_FOLDER)
    try:
        os.mkdir(state)
        os.chmod(state, WAY_MODE)
    except OSError:
        return  # it is there, or libvirt will say what is wrong


def _root_in(uri: str) -> str | None:
    """Read the root that a URI names; empty if it lacks one, None if it is no embedded libvirt's."""
    return parse_qs(urlsplit(uri).query).get("root", [""])[-1] if is_embed(uri) else None
