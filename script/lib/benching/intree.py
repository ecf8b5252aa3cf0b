"""Buildbot's own LibVirtWorker on the fake: its real code, with the two libvirt methods that only it uses."""

from __future__ import annotations

from typing import Any

from buildbot.worker.libvirt import LibVirtWorker, ServerThreadPool, ThreadWithQueue

from latentvirt.testing import FakeHostState, FakeLibvirt

DOMAIN = "<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><devices/></domain>"


class PredefinedDomain:
    """A handle of a predefined domain, as far as the in-tree worker uses it.

    Args:
        connection: the fake's.
        handle: the fake's.
        definition: the domain's XML.
    """

    def __init__(self, connection: Any, handle: Any, definition: str) -> None:
        self._connection = connection
        self._handle = handle
        self._definition = definition

    def ID(self) -> int:
        """Return its number; libvirt's client knows it without a call."""
        return int(self._handle.ID())

    def setMetadata(self, *_: object) -> int:
        """Take the worker's name and password."""
        self._connection.meet("domain.setMetadata")
        return 0

    def create(self) -> int:
        """Start it: one call as well."""
        self._connection.createXML(self._definition)
        return 0

    def destroy(self) -> int:
        """End it."""
        return int(self._handle.destroy())


class InTreeConnection:
    """A connection, as far as the in-tree worker uses it."""

    def __init__(self, fake: FakeLibvirt, uri: str) -> None:
        self._connection = fake.open(uri)
        self._host = fake.inspect(uri)

    def lookupByName(self, name: str) -> PredefinedDomain:
        """Find a domain."""
        handle = self._connection.lookupByName(name)
        domain = self._host.domain(name)
        assert domain is not None
        assert domain.definition is not None
        return PredefinedDomain(self._connection, handle, domain.definition)

    def registerCloseCallback(self, *args: Any) -> None:
        """Ask to be told of its end."""
        self._connection.registerCloseCallback(*args)

    def close(self) -> int:
        """Close it."""
        return int(self._connection.close())


def in_tree_workers(fake: FakeLibvirt, host: FakeHostState, count: int) -> list[LibVirtWorker]:
    """Make in-tree workers with a pool of their own, and their domains.

    Args:
        fake: what opens connections.
        host: where the domains are.
        count: how many.
    """

    class Thread(ThreadWithQueue):  # type: ignore[misc]
        def libvirt_open(self) -> InTreeConnection:
            return InTreeConnection(fake, self.uri)

    pool = ServerThreadPool()
    pool.ThreadClass = Thread
    workers = []
    for number in range(count):
        name = f"intree{number}"
        host.define(DOMAIN.format(name=name))
        worker = LibVirtWorker(name, "password", uri=host.uri)
        worker.pool = pool
        workers.append(worker)
    return workers
