"""A libvirt host's verbs: domains, consoles, volumes, networks; nothing above here imports libvirt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import libvirt
from twisted.internet import defer

from latentvirt.capabilities import HostCapabilities
from latentvirt.config import Connection
from latentvirt.errors import HostError, LatentvirtError, NotFound
from latentvirt.host import domains, storage
from latentvirt.host.codes import GONE, news_from_state
from latentvirt.host.driver import Driver, LibvirtDriver
from latentvirt.host.link import Deadlines, Link, Watch
from latentvirt.host.probe import probe
from latentvirt.host.streams import ByteStream
from latentvirt.host.views import Created, DomainNews, DomainView, ImageView
from latentvirt.host.xmlread import read
from latentvirt.names import Ownership

T = TypeVar("T")

WRITE_TRIES = 100


class Host:
    """Speak with one libvirt host; it lives as long as somebody names it.

    Every method has a deadline and raises `HostError` or one of its kinds. All are for the reactor's thread.

    Args:
        connection: which host.
        reactor: a Twisted reactor (IReactorTime, IReactorFromThreads).
        driver: opens connections; real libvirt's by default.
        deadlines: how long calls may take.
    """

    def __init__(
        self,
        connection: Connection,
        reactor: Any,
        *,
        driver: Driver | None = None,
        deadlines: Deadlines | None = None,
    ) -> None:
        self.connection = connection
        self.reactor = reactor
        self._deadlines = deadlines or Deadlines()
        self._link = Link(connection.uri, reactor, driver or LibvirtDriver(), self._deadlines)
        self._capabilities: HostCapabilities | None = None
        self._asking = defer.DeferredLock()

    @property
    def uri(self) -> str:
        """The host's name for libvirt, which messages use too."""
        return self.connection.uri

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that is not known to be broken."""
        return self._link.is_open

    async def open(self) -> None:
        """Open the connection, if there is none."""
        await self._link.open()

    async def close(self) -> None:
        """Close the connection for good."""
        await self._link.close()

    async def run_local(self, what: str, do: Callable[[], T], *, deadline_s: float | None = None) -> T:
        """Do something blocking on one of the host's threads; for embed's own storage."""
        return await self._link.run(what, do, deadline_s=deadline_s or self._deadlines.storage)

    async def _call(
        self,
        what: str,
        do: Callable[[Any], T],
        *,
        deadline_s: float | None = None,
        domain: str = "",
        late: Callable[[T], object] | None = None,
    ) -> T:
        return await self._link.call(
            what, do, deadline_s=deadline_s or self._deadlines.call, domain=domain, late=late
        )

    async def capabilities(self) -> HostCapabilities:
        """Read what the host can run; asked once per host, since probing QEMU is slow."""
        await self._asking.acquire()
        try:
            if self._capabilities is None:
                self._capabilities = await self._call(
                    "read the host's capabilities", probe, deadline_s=self._deadlines.create
                )
            return self._capabilities
        finally:
            self._asking.release()

    # Domains

    async def domain(self, name: str) -> DomainView | None:
        """Look for a domain by name; None if there is none."""
        try:
            return await self._call(
                "look for the domain", lambda c: domains.view(c.lookupByName(name)), domain=name
            )
        except NotFound:
            return None

    async def domains(self) -> list[DomainView]:
        """List all domains, running or not."""
        return await self._call(
            "list the domains",
            lambda c: [view for view in map(domains.view_if_there, c.listAllDomains(0)) if view is not None],
            deadline_s=self._deadlines.create,
        )

    async def definition(self, name: str) -> str:
        """Read a domain's persistent definition, secrets included.

        Raises:
            NotFound: there is no domain of that name.
        """
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        return await self._call(
            "read the domain's definition", lambda c: str(c.lookupByName(name).XMLDesc(flags)), domain=name
        )

    async def create(self, xml: str, *, name: str, fresh_vars: bool = False) -> Created:
        """Create a domain, paused before its first instruction, and read back what came of it.

        Args:
            xml: the domain's description; a persistent definition of the same name and UUID stays as it is.
            name: the domain's name, for messages.
            fresh_vars: fill the UEFI variables from their template, although the file exists.
        """
        flags = libvirt.VIR_DOMAIN_START_PAUSED
        if fresh_vars:
            flags |= libvirt.VIR_DOMAIN_START_RESET_NVRAM

        def create(connection: Any) -> Any:
            return connection.createXML(xml, flags)

        domain = await self._call(
            "create the domain", create, deadline_s=self._deadlines.create, domain=name, late=domains.destroy
        )
        return await self._call("read the domain back", lambda _: domains.read_back(domain), domain=name)

    async def resume(self, uuid: str) -> None:
        """Let a paused domain run."""
        await self._call("resume the domain", lambda c: c.lookupByUUIDString(uuid).resume())

    async def shut_down(self, uuid: str) -> None:
        """Ask the guest to power itself off, as its power button does; returns at once."""
        await self._call("shut the guest down", lambda c: c.lookupByUUIDString(uuid).shutdown())

    async def destroy(
        self, uuid: str, *, only: Ownership | None = None, deadline_s: float | None = None
    ) -> None:
        """End a domain at once; one that is not running, or not there, is done already.

        Args:
            uuid: of the domain.
            only: what its metadata must say at that moment; another start's domain of that UUID goes on.
            deadline_s: seconds that it may take.
        """

        def end(connection: Any) -> None:
            try:
                domain = connection.lookupByUUIDString(uuid)
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return
                raise
            if only is None or domains.ownership(domain) == only:
                domains.destroy(domain)

        await self._call("destroy the domain", end, deadline_s=deadline_s or self._deadlines.create)

    async def news(self, uuid: str) -> DomainNews:
        """Say how a domain fares now."""
        try:
            return await self._call(
                "look at the domain", lambda c: news_from_state(c.lookupByUUIDString(uuid))
            )
        except NotFound:
            return GONE

    def watch(self, uuid: str, tell: Callable[[DomainNews], object]) -> Watch:
        """Hear what becomes of a domain: by events, and by a look after every reconnect."""
        return self._link.watch(uuid, tell)

    # Streams

    async def open_console(
        self, uuid: str, on_data: Callable[[bytes], object], on_end: Callable[[], object]
    ) -> ByteStream:
        """Open a domain's first serial console; a person who has it keeps it."""
        return await self._open_stream(
            "open the console",
            uuid,
            lambda domain, stream: domain.openConsole(None, stream, 0),
            on_data,
            on_end,
        )

    async def open_channel(
        self, uuid: str, port: str, on_data: Callable[[bytes], object], on_end: Callable[[], object]
    ) -> ByteStream:
        """Open the host's end of a virtio-serial port.

        Args:
            uuid: of the domain.
            port: the port's name in the domain's XML.
            on_data: called with the bytes that the guest writes.
            on_end: called once when the guest's side is gone.
        """
        return await self._open_stream(
            f"open the channel {port}",
            uuid,
            lambda domain, stream: domain.openChannel(port, stream, 0),
            on_data,
            on_end,
        )

    async def _open_stream(
        self,
        what: str,
        uuid: str,
        attach: Callable[[Any, Any], object],
        on_data: Callable[[bytes], object],
        on_end: Callable[[], object],
    ) -> ByteStream:
        def open_it(connection: Any) -> ByteStream:
            domain = connection.lookupByUUIDString(uuid)
            stream = connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
            attach(domain, stream)
            bytes_ = ByteStream(stream, self.reactor, on_data, on_end)
            bytes_.begin()
            return bytes_

        return await self._call(what, open_it, late=ByteStream.close)

    async def write(self, stream: ByteStream, data: bytes) -> None:
        """Write bytes to a stream of this host's, all of them.

        Raises:
            HostError: the far side does not take them.
        """
        rest = data
        for _ in range(WRITE_TRIES):
            now = rest
            taken = await self._call("write to the guest's channel", lambda _, now=now: stream.write(now))  # type: ignore[misc]
            rest = rest[taken:]
            if not rest:
                return
        raise HostError("the guest's channel takes no more bytes", host=self.uri)

    async def close_stream(self, stream: ByteStream) -> None:
        """End a stream; a broken one is done already."""
        stream.silence()
        try:
            await self._call("close a stream", lambda _: stream.close())
        except LatentvirtError:
            # The connection is gone, and with it the stream.
            pass

    # Storage

    async def ensure_pool(self, name: str, path: str) -> None:
        """See to a directory and the active pool over it."""
        await self._call(
            f"make the storage pool over {path}",
            lambda c: storage.ensure_pool(c, name, path),
            deadline_s=self._deadlines.storage,
        )

    async def pools(self) -> dict[str, str]:
        """List the active pools: name to directory."""
        return await self._call("list the storage pools", storage.list_pools)

    async def remove_pool(self, name: str) -> None:
        """Remove a pool and its directory, if that is empty; one that is not there is done already."""
        await self._call(
            f"remove the storage pool {name}",
            lambda c: storage.remove_pool(c, name),
            deadline_s=self._deadlines.storage,
        )

    async def create_volume(self, pool: str, xml: str) -> str:
        """Create a volume.

        Returns:
            Its path on the host.

        Raises:
            AlreadyExists: there is one of that name.
        """

        def create(connection: Any) -> str:
            return str(connection.storagePoolLookupByName(pool).createXML(xml, 0).path())

        return await self._call("create a volume", create, deadline_s=self._deadlines.storage)

    async def volumes(self, pool: str) -> list[str]:
        """List a pool's volumes by name, as the directory holds them now.

        While a volume is being made libvirt does not look there; then it is what libvirt knows of.
        """
        return await self._call(
            "list the volumes", lambda c: storage.list_volumes(c, pool), deadline_s=self._deadlines.storage
        )

    async def delete_volume(self, pool: str, name: str) -> None:
        """Delete a volume; one that is not there is done already."""
        await self._call(
            f"delete the volume {name}",
            lambda c: storage.delete_volume(c, pool, name),
            deadline_s=self._deadlines.storage,
        )

    async def volume_path(self, pool: str, name: str) -> str:
        """Say where a volume of the person's lies."""
        return await self._call(
            f"look for the volume {name} in pool {pool}",
            lambda c: str(c.storagePoolLookupByName(pool).storageVolLookupByName(name).path()),
        )

    async def image(self, path: str, *, probe_pool: str) -> ImageView:
        """Look at an image file on the host: its format, its size and what it stands on.

        A file in no active pool is seen through a pool that exists for the moment of the look.

        Args:
            path: of the file, on the host.
            probe_pool: name for that pool.

        Raises:
            NotFound: there is no such file.
        """
        return await self._call(
            f"look at the image {path}",
            lambda c: storage.look_at_image(c, path, probe_pool),
            deadline_s=self._deadlines.storage,
        )

    # Networks

    async def network_address(self, name: str) -> str | None:
        """Say which address the host has on a libvirt network; None if it has none there."""

        def look(connection: Any) -> str | None:
            xml = connection.networkLookupByName(name).XMLDesc(0)
            found = read(xml).find("ip")
            return None if found is None else found.get("address")

        return await self._call(f"look at the network {name}", look)
