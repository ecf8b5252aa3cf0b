"""Several libvirt hosts, as a person names them in master.cfg, and how builds are to be spread over them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs

from latentvirt.config import Connection, check_labels, comparable_labels
from latentvirt.errors import ConfigError
from latentvirt.showing import shown

DEFAULT_OVERCOMMIT = 4.0


def _connection(given: object) -> object:
    return Connection(given) if isinstance(given, str) else given


@attrs.frozen(init=False)
class Hosts:
    """Name the hosts that builds of a worker may go to.

    Args:
        connections: each host's `Connection`, or its URI or alias.
        spread: whether a build goes to the host that will have the most room left; False fills up one host
            after the other.
        prefer: labels of the hosts that come first as long as they have room: ``{'region': 'lab-1'}``.
        overcommit: how many virtual processors there may be for each processor of a host.
    """

    connections: tuple[Connection, ...]
    spread: bool
    prefer: tuple[tuple[str, str], ...]
    overcommit: float

    def __init__(
        self,
        *connections: Connection | str,
        spread: bool = True,
        prefer: Mapping[str, str] | None = None,
        overcommit: float = DEFAULT_OVERCOMMIT,
    ) -> None:
        known: Any = tuple(map(_connection, connections))
        preferred: Any = comparable_labels({} if prefer is None else prefer)
        self.__attrs_init__(known, spread, preferred, overcommit)

    def check(self) -> None:
        """Check them as far as that goes without libvirt.

        Raises:
            ConfigError: there is none, one is there twice, or one cannot be right.
        """
        if not self.connections:
            raise ConfigError("Hosts() names no host", remedy="write Hosts(Connection('qemu:///system'))")
        for connection in self.connections:
            if not isinstance(connection, Connection):
                raise ConfigError(
                    f"Hosts() got {shown(connection)}, which is no host",
                    remedy="write Hosts(Connection('qemu:///system'), ...), without a list around them",
                )
            try:
                connection.check()
            except ConfigError as error:
                uri = repr(connection.uri)
                if self.is_one or uri in error.what:
                    raise
                raise error.about(f"Connection({uri})") from None
        uris = [connection.uri for connection in self.connections]
        twice = next((uri for uri in uris if uris.count(uri) > 1), None)
        if twice is not None:
            raise ConfigError(f"Hosts() names {twice!r} twice", remedy="name each host once")
        if not isinstance(self.spread, bool):
            raise ConfigError(
                f"Hosts(): spread={self.spread!r} is neither True nor False",
                remedy="write True to spread VMs, or False to pack them",
            )
        check_labels("prefer", self.prefer)
        factor: object = self.overcommit
        if not isinstance(factor, (int, float)) or isinstance(factor, bool) or not 0 < factor < math.inf:
            raise ConfigError(
                f"overcommit={factor!r} is not a factor", remedy="write a number greater than 0, such as 4"
            )

    @property
    def is_one(self) -> bool:
        """Whether there is a single host."""
        return len(self.connections) == 1
