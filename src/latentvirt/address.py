"""Which address a guest reaches its master at."""

from __future__ import annotations

import functools
import re
import socket
from collections.abc import Callable
from ipaddress import IPv6Address

from latentvirt.domainxml import NetworkUse
from latentvirt.errors import ConfigError
from latentvirt.showing import shown

USER_MODE_HOST = "10.0.2.2"
"""Where QEMU's user-mode networking shows the machine that QEMU runs on."""

HIGHEST_PORT = 65535

_HOST_NAME = re.compile(r"[\w.-]+")
"""Of any letters: a name may be written in its own script."""


@functools.cache
def this_machine() -> str:
    """Return this machine's full name; the first time it may take as long as its resolver lets one wait."""
    return socket.getfqdn()


def master_host(
    use: NetworkUse,
    *,
    given: str | None,
    host_is_local: bool,
    network_address: str | None,
    fallback: Callable[[], str],
) -> str:
    """Decide which host name or address a guest connects to.

    Args:
        use: the network of the domain's first interface.
        given: what the person said (masterFQDN); it wins always.
        host_is_local: whether the VM runs on the master's own machine.
        network_address: the host's address on the domain's libvirt network, if it has one.
        fallback: tells the master's own name; only asked if that is the answer.
    """
    if given:
        return given
    if host_is_local and use.kind == "user":
        return USER_MODE_HOST
    if host_is_local and use.kind == "network" and network_address:
        return network_address
    return fallback()


def split_address(given: str | None) -> tuple[str | None, int | None]:
    """Part what a person wrote as ``host`` or ``host:port``; a bare IPv6 address has no port."""
    found = re.fullmatch(r"(\[[^\]]+\]|[^:]+):(\d+)", given or "")
    if found:
        return found.group(1), int(found.group(2))
    return given or None, None


def read_address(given: object, what: str) -> str | None:
    """Check what a person wrote as ``host`` or ``host:port``, and return it; None if nothing was.

    Args:
        given: as it was written.
        what: name of the argument, for the message.

    Raises:
        ConfigError: no guest could find a master by it.
    """
    if given is None or given == "":
        return None
    host, port = split_address(given) if isinstance(given, str) else (None, None)
    if host is None or not (_HOST_NAME.fullmatch(host) or _is_ipv6(host.strip("[]"))):
        raise ConfigError(
            f"{what}={shown(given)} is not where a guest could find the master",
            remedy="write a host's name or address, and if need be a port: 'buildmaster.example.org:9989'",
        )
    if port is not None and not 0 < port <= HIGHEST_PORT:
        raise ConfigError(
            f"{what}={shown(given)}: there is no port {shown(port)}",
            remedy=f"write one of 1 to {HIGHEST_PORT}",
        )
    return str(given)


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def master_port(portstr: str | int) -> int | None:
    """Read the TCP port from Buildbot's ``protocols['pb']['port']``.

    Args:
        portstr: a number, or a Twisted server endpoint such as ``tcp:9989:interface=127.0.0.1``.

    Returns:
        The port; None if there is none in it, or it is left to the system (0).
    """
    text = str(portstr)
    found = re.fullmatch(r"(\d+)", text) or re.match(r"(?:tcp6?|ssl):(?:(?:[^:]*:)*port=)?(\d+)", text)
    return int(found.group(1)) or None if found else None
