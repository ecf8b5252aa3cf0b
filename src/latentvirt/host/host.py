"""A libvirt host's verbs: domains, consoles, networks, and what the rooms beside this one add."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import libvirt

from latentvirt.errors import HostError, HostUnreachable, LatentvirtError, NotFound
from latentvirt.host import domains
from latentvirt.host.codes import GONE, news_from_state
from latentvirt.host.guests import GuestVerbs
from latentvirt.host.holding import HoldVerbs
from latentvirt.host.inventory import InventoryVerbs
from latentvirt.host.memory import MemoryVerbs
from latentvirt.host.streams import ByteStream
from latentvirt.host.views import Created, DomainNews, DomainView
from latentvirt.host.volumes import VolumeVerbs
from latentvirt.host.watching import Watch
from latentvirt.host.xmlread import read
from latentvirt.names import Ownership

WRITE_TRIES = 100


class Host(GuestVerbs, HoldVerbs, InventoryVerbs, MemoryVerbs, VolumeVerbs):
    """Speak with one libvirt host; it lives as long as somebody names it.

    Every method has a deadline and raises `HostError` or one of its kinds. All are for the reactor's thread.

    Args:
        connection: which host.
        reactor: a Twisted reactor (IReactorTime, IReactorFromThreads).
        driver: opens connections; real libvirt's by default.
        deadlines: how long calls may take.
    """

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

    async def description(self, uuid: str) -> str:
        """Read a domain's live XML, without secrets.

        Raises:
            NotFound: there is no such domain.
        """
        return await self._on_domain(
            "read the domain's description", uuid, lambda domain: str(domain.XMLDesc(0))
        )

    async def create(
        self, xml: str, *, name: str, fresh_vars: bool = False, ownership: Ownership | None = None
    ) -> Created:
        """Create a domain, paused before its first instruction, and read back what came of it.

        Args:
            xml: the domain's description; a persistent definition of the same name and UUID stays as it is.
            name: the domain's name, for messages.
            fresh_vars: fill the UEFI variables from their template, although the file exists.
            ownership: what the description says of it, so that nobody need ask for it again.
        """
        flags = libvirt.VIR_DOMAIN_START_PAUSED
        if fresh_vars:
            flags |= libvirt.VIR_DOMAIN_START_RESET_NVRAM

        def create(connection: Any) -> tuple[Any, Created]:
            domain = connection.createXML(xml, flags)
            return domain, self._read_back(domain, ownership)

        return await self._keep("create the domain", create, self._deadlines.create, name)

    async def resume(self, uuid: str) -> None:
        """Let a paused domain run."""
        await self._on_domain("resume the domain", uuid, lambda domain: domain.resume())

    async def shut_down(self, uuid: str) -> None:
        """Ask the guest to power itself off, as its power button does; returns at once."""
        await self._on_domain("shut the guest down", uuid, lambda domain: domain.shutdown())

    async def destroy(
        self, uuid: str, *, only: Ownership | None = None, deadline_s: float | None = None
    ) -> bool:
        """End a domain at once; one that is not running, or not there, is done already.

        Args:
            uuid: of the domain.
            only: what its metadata must say at that moment; another start's domain of that UUID goes on.
            deadline_s: seconds that it may take.

        Returns:
            Whether it was this that ended it.
        """

        def end(domain: Any) -> bool:
            return (only is None or domains.is_surely(domain, only)) and domains.destroy(domain)

        ended = False
        try:
            ended = await self._on_domain(
                "destroy the domain", uuid, end, deadline_s=deadline_s or self._deadlines.create
            )
        except HostUnreachable:
            raise
        except HostError as error:
            if error.code != libvirt.VIR_ERR_NO_DOMAIN:
                raise
        self._link.forget(uuid)
        return ended

    async def news(self, uuid: str) -> DomainNews:
        """Say how a domain fares now."""
        try:
            return await self._on_domain("look at the domain", uuid, news_from_state)
        except NotFound:
            return GONE

    def watch(self, uuid: str, tell: Callable[[DomainNews], object]) -> Watch:
        """Hear what becomes of a domain: by events, and by a look after every reconnect."""
        return self._link.watches.add(uuid, tell)

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
        def open_it(domain: Any) -> ByteStream:
            stream = domain.connect().newStream(libvirt.VIR_STREAM_NONBLOCK)
            attach(domain, stream)
            bytes_ = ByteStream(stream, self.reactor, on_data, on_end)
            bytes_.begin()
            return bytes_

        return await self._on_domain(what, uuid, open_it, late=ByteStream.close)

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

    # Networks

    async def network_address(self, name: str) -> str | None:
        """Say which address the host has on a libvirt network; None if it has none there."""

        def look(connection: Any) -> str | None:
            xml = connection.networkLookupByName(name).XMLDesc(0)
            found = read(xml).find("ip")
            return None if found is None else found.get("address")

        return await self._call(f"look at the network {name}", look)
