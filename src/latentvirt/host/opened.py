"""One connection from its opening to its close, with the events that were registered on it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import attrs
import libvirt

from latentvirt.errors import HostUnreachable, NotFound
from latentvirt.host.driver import Driver

T = TypeVar("T")
logger = logging.getLogger(__name__)


@attrs.frozen(eq=False)
class Opened:
    """A connection and what was registered on it, which keeps it open until it is taken back."""

    connection: Any
    events: tuple[int, ...]
    _pools: dict[str, Any] = attrs.field(init=False, factory=dict)

    def in_pool(self, name: str, do: Callable[[Any], T]) -> T:
        """Do something with a storage pool, which is looked for by name once; blocks, for a thread.

        Args:
            name: of the pool.
            do: takes the virStoragePool; called again if the one that was known is gone.

        Raises:
            NotFound: there is a pool of that name, but it does not run.
        """
        known = self._pools.get(name)
        if known is not None:
            try:
                return _running(known, name, do)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_POOL:
                    raise
                self._pools.pop(name, None)
        pool = self.connection.storagePoolLookupByName(name)
        result = _running(pool, name, do)
        self._pools[name] = pool
        return result

    def close(self) -> None:
        """Close it; blocks, for a thread, as long as the far end is mute."""
        for undo in (
            self.connection.unregisterCloseCallback,
            *(partial(self.connection.domainEventDeregisterAny, number) for number in self.events),
            self.connection.close,
        ):
            try:
                undo()
            except libvirt.libvirtError:
                pass  # none was registered, or the far end is gone


def _running(pool: Any, name: str, do: Callable[[Any], T]) -> T:
    try:
        return do(pool)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID or pool.isActive():
            raise
        raise NotFound(f"the storage pool {name} does not run", code=error.get_error_code()) from error


def open_connection(
    uri: str,
    driver: Driver,
    hear: Mapping[int, Callable[..., object]],
    on_closed: Callable[[Any, int, Any], object],
) -> Opened:
    """Open a connection, and register for events, which a new one has none of; blocks, for a thread.

    Args:
        uri: libvirt's connection URI or alias.
        driver: opens connections.
        hear: what is called, on libvirt's event thread, by number of the event (``VIR_DOMAIN_EVENT_ID_...``).
        on_closed: called there when the far end closes the connection, which is the last argument.

    Raises:
        HostUnreachable: it cannot be opened.
    """
    try:
        connection = driver.open(uri)
    except Exception as error:
        raise HostUnreachable(
            f"could not connect: {error}", host=uri, remedy=f"try: virsh -c '{uri}' list"
        ) from error
    try:
        connection.registerCloseCallback(on_closed, connection)
    except libvirt.libvirtError:
        # Drivers inside our own process have no connection that could break.
        pass
    registered = []
    for event, call in hear.items():
        try:
            registered.append(connection.domainEventRegisterAny(None, event, call, None))
        except libvirt.libvirtError as error:
            logger.warning("%s: no domain events, so a VM's end goes unseen: %s", uri, error)
    return Opened(connection, tuple(registered))
