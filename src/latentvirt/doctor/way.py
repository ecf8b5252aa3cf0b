"""Which way libvirt's client takes to a host: read from its URI, without taking it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import attrs

from latentvirt.aliases import client_config, read_aliases
from latentvirt.config import SESSION_PATH

SSH_CONNECT_S = 10
"""How long ssh may take to reach a host."""

SSH = "ssh"
UNIX = "unix"

LIBVIRTD_SOCKET = "libvirt/libvirt-sock"
QEMU_SOCKET = "libvirt/virtqemud-sock"


@attrs.frozen(kw_only=True)
class Way:
    """How a host is reached.

    Args:
        uri: libvirt's, with aliases resolved.
        transport: ``unix`` for a daemon on this machine, ``ssh``, ``tls``, ``tcp``...; empty if the driver
            runs in our own process.
        host: name of the machine; empty for this one.
        user: who is logged in there; empty for ssh's own choice.
        port: its port; None for the usual one.
        path: ``/system``, ``/session``, ``/embed``...
        parameters: those of the URI.
    """

    uri: str
    transport: str
    host: str
    user: str
    port: int | None
    path: str
    parameters: Mapping[str, str]

    @property
    def is_ssh(self) -> bool:
        """Whether libvirt runs the program ssh."""
        return self.transport == SSH

    @property
    def is_here(self) -> bool:
        """Whether the host is this machine."""
        return not self.host

    @property
    def ssh(self) -> list[str]:
        """The command that runs another on the host as libvirt does, but asks nothing."""
        given = self.parameters
        words = [given.get("command", "ssh"), "-T", "-o", "BatchMode=yes"]
        words += ["-o", f"ConnectTimeout={SSH_CONNECT_S}"]
        if given.get("no_verify", "0") != "0":
            words += ["-o", "StrictHostKeyChecking=no"]
        if self.port is not None:
            words += ["-p", str(self.port)]
        if self.user:
            words += ["-l", self.user]
        if "keyfile" in given:
            words += ["-i", given["keyfile"]]
        return [*words, "--", self.host]

    @property
    def by_hand(self) -> str:
        """The command by which a person logs in there."""
        port = "" if self.port is None else f"-p {self.port} "
        key = f"-i {self.parameters['keyfile']} " if "keyfile" in self.parameters else ""
        return f"ssh {port}{key}{self.login}"

    @property
    def login(self) -> str:
        """Who is logged in where, as ssh writes it."""
        return f"{self.user}@{self.host}" if self.user else self.host

    @property
    def is_own_session(self) -> bool:
        """Whether it leads to a user's own daemon, which is started when somebody needs it."""
        return self.path == SESSION_PATH and os.geteuid() != 0

    @property
    def sockets(self) -> list[Path]:
        """Where the daemon on this machine may listen, those of its own user for ``/session``."""
        if "socket" in self.parameters:
            return [Path(self.parameters["socket"])]
        if self.is_own_session:
            runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}")
            return [runtime / QEMU_SOCKET, runtime / LIBVIRTD_SOCKET]
        return [Path("/run") / QEMU_SOCKET, Path("/run") / LIBVIRTD_SOCKET]

    @property
    def embed_root(self) -> Path | None:
        """The root of an embedded libvirt; None if it is none."""
        root = self.parameters.get("root")
        return Path(root) if self.path == "/embed" and root else None


def way_to(uri: str) -> Way:
    """Read the way from a URI or an alias.

    Args:
        uri: as the person wrote it; one that `latentvirt.aliases.check_alias` has let pass.
    """
    resolved = uri if urlsplit(uri).scheme else _resolved(uri)
    parts = urlsplit(resolved)
    driver, _, transport = parts.scheme.partition("+")
    if not transport:
        in_process = driver == "test" or parts.path == "/embed"
        transport = "tls" if parts.hostname else "" if in_process else UNIX
    return Way(
        uri=resolved,
        transport=transport,
        host=parts.hostname or "",
        user=parts.username or "",
        port=parts.port,
        path=parts.path,
        parameters=dict(parse_qsl(parts.query)),
    )


def _resolved(alias: str) -> str:
    try:
        return read_aliases(client_config().read_text(errors="replace")).get(alias, alias)
    except OSError:
        return alias
