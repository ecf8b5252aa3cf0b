"""Where a person says that hosts are, and where the master is: read and checked."""

from __future__ import annotations

from typing import Any

from latentvirt.address import read_address
from latentvirt.aliases import check_alias
from latentvirt.config import Connection
from latentvirt.errors import ConfigError
from latentvirt.hosts import Hosts


def read_hosts(connection: Any, uri: Any) -> Hosts:
    """Make the hosts of what was given: ours, one connection, Buildbot's own, or a URI.

    Raises:
        ConfigError: there is none, there are two, or it cannot be one.
    """
    if isinstance(connection, str) and connection.startswith("/"):
        raise ConfigError(
            f"the third argument is the connection, not the path {connection!r}",
            remedy="put Connection('qemu:///system') before it, or name it hd_image=, and what follows it "
            "base_image=",
        )
    if connection is not None and uri is not None:
        raise ConfigError(
            "both connection and uri were given", remedy="leave one of them out; they name the same thing"
        )
    given = connection if connection is not None else uri
    if given is None:
        raise ConfigError(
            "no connection was given",
            remedy="write Connection('qemu:///system') as the third argument, or uri=",
        )
    if isinstance(given, (list, tuple)):
        raise ConfigError(
            f"the connection is a {type(given).__name__}",
            remedy="write Hosts(Connection('qemu+ssh://user@host/system'), ...) for several hosts",
        )
    if isinstance(given, Hosts):
        given.check()
        for one in given.connections:
            check_alias(one.uri)
        return given
    if not isinstance(given, Connection):
        given = Connection(getattr(given, "uri", given))  # Buildbot's own Connection has no more than that
    given.check()
    check_alias(given.uri)
    return Hosts(given)


def read_fqdn(given: Any) -> str | None:
    """Read where guests find the master: text, or a function that returns it.

    Raises:
        ConfigError: the function failed, or it is not ``host`` or ``host:port``.
    """
    if callable(given):
        try:
            given = given()
        except Exception as error:
            raise ConfigError(
                f"the function that is masterFQDN failed: {error!r}",
                remedy="mend it, or write 'host' or 'host:port'",
            ) from error
    return read_address(given, "masterFQDN")
