"""A libvirt host's verbs: domains, consoles, volumes, networks; nothing above here imports libvirt."""

from __future__ import annotations

import errno
import posixpath
from collections.abc import Callable
from typing import Any, TypeVar
from xml.sax.saxutils import escape

import attrs
import libvirt
from lxml import etree

from latentvirt.capabilities import HostCapabilities, read_capabilities
from latentvirt.config import Connection
from latentvirt.domainxml import ownership_of_mark
from latentvirt.errors import HostError, LatentvirtError, NotFound
from latentvirt.host.codes import GONE, news_from_state
from latentvirt.host.driver import Driver, LibvirtDriver
from latentvirt.host.link import Deadlines, Link, Watch
from latentvirt.host.streams import ByteStream
from latentvirt.host.views import DomainNews, DomainView, ImageView
from latentvirt.names import METADATA_NAMESPACE, Ownership

T = TypeVar("T")

DIRECTORY_MODE = "0711"
"""QEMU's user must pass through our directory, and nobody needs to list it."""

WRITE_TRIES = 100


@attrs.frozen
class Created:
    """A domain that was created, paused.

    Args:
        uuid: its UUID.
        xml: its live XML, as libvirt made it, secrets included.
    """

    uuid: str
    xml: str = attrs.field(repr=False)


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
        if self._capabilities is None:
            self._capabilities = await self._call(
                "read the host's capabilities", _read_capabilities, deadline_s=self._deadlines.create
            )
        return self._capabilities

    # Domains

    async def domain(self, name: str) -> DomainView | None:
        """Look for a domain by name; None if there is none."""
        try:
            return await self._call(
                "look for the domain", lambda c: _view(c.lookupByName(name)), domain=name
            )
        except NotFound:
            return None

    async def domains(self) -> list[DomainView]:
        """List all domains, running or not."""
        return await self._call(
            "list the domains",
            lambda c: [view for view in map(_view_if_there, c.listAllDomains(0)) if view is not None],
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
            "create the domain", create, deadline_s=self._deadlines.create, domain=name, late=_destroy
        )
        return await self._call("read the domain back", lambda _: _read_back(domain), domain=name)

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
            if only is None or _ownership(domain) == only:
                _destroy(domain)

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
        xml = (
            f"<pool type='dir'><name>{escape(name)}</name><target><path>{escape(path)}</path>"
            f"<permissions><mode>{DIRECTORY_MODE}</mode></permissions></target></pool>"
        )

        def ensure(connection: Any) -> None:
            try:
                pool = connection.storagePoolLookupByName(name)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_POOL:
                    raise
                try:
                    connection.storagePoolCreateXML(xml, libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD)
                except libvirt.libvirtError:
                    # Another start made it meanwhile: libvirt has no code of its own for that, so look again.
                    if not connection.storagePoolLookupByName(name).isActive():
                        raise
                return
            if not pool.isActive():
                pool.create(libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD)

        await self._call(f"make the storage pool over {path}", ensure, deadline_s=self._deadlines.storage)

    async def pools(self) -> dict[str, str]:
        """List the active pools: name to directory."""

        def look(connection: Any) -> dict[str, str]:
            found = {}
            for pool in connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
                found[str(pool.name())] = _text(pool.XMLDesc(0), "target/path") or ""
            return found

        return await self._call("list the storage pools", look)

    async def remove_pool(self, name: str) -> None:
        """Remove a pool and its directory, if that is empty; one that is not there is done already."""

        def remove(connection: Any) -> None:
            try:
                pool = connection.storagePoolLookupByName(name)
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
                    return
                raise
            # Only a defined pool outlives its end, and only one that has ended can delete its directory.
            pool = connection.storagePoolDefineXML(pool.XMLDesc(libvirt.VIR_STORAGE_XML_INACTIVE), 0)
            if pool.isActive():
                pool.destroy()
            try:
                pool.delete(libvirt.VIR_STORAGE_POOL_DELETE_NORMAL)
            finally:
                pool.undefine()

        await self._call(f"remove the storage pool {name}", remove, deadline_s=self._deadlines.storage)

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

        def look(connection: Any) -> list[str]:
            found = connection.storagePoolLookupByName(pool)
            try:
                found.refresh(0)
            except libvirt.libvirtError as error:
                # "has asynchronous jobs running" has no code of its own; if it is worse, the list fails, too.
                if error.get_error_code() != libvirt.VIR_ERR_INTERNAL_ERROR:
                    raise
            return [str(name) for name in found.listVolumes()]

        return await self._call("list the volumes", look, deadline_s=self._deadlines.storage)

    async def delete_volume(self, pool: str, name: str) -> None:
        """Delete a volume; one that is not there is done already."""

        def delete(connection: Any) -> None:
            try:
                connection.storagePoolLookupByName(pool).storageVolLookupByName(name).delete(0)
            except libvirt.libvirtError as error:
                if error.get_error_code() not in (
                    libvirt.VIR_ERR_NO_STORAGE_VOL,
                    libvirt.VIR_ERR_NO_STORAGE_POOL,
                ):
                    raise

        await self._call(f"delete the volume {name}", delete, deadline_s=self._deadlines.storage)

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
            lambda c: _look_at_image(c, path, probe_pool),
            deadline_s=self._deadlines.storage,
        )

    # Networks

    async def network_address(self, name: str) -> str | None:
        """Say which address the host has on a libvirt network; None if it has none there."""

        def look(connection: Any) -> str | None:
            xml = connection.networkLookupByName(name).XMLDesc(0)
            found = etree.fromstring(xml, _PARSER).find("ip")
            return None if found is None else found.get("address")

        return await self._call(f"look at the network {name}", look)


_PARSER = etree.XMLParser(resolve_entities=False, no_network=True)


def _text(xml: str, path: str) -> str | None:
    return etree.fromstring(xml, _PARSER).findtext(path)


def _view(domain: Any) -> DomainView:
    ownership = _ownership(domain)
    return DomainView(
        name=str(domain.name()),
        uuid=str(domain.UUIDString()),
        # Asked last: a domain that ends meanwhile must not seem to run without a mark of ours.
        active=bool(domain.isActive()),
        persistent=bool(domain.isPersistent()),
        ownership=ownership,
    )


def _view_if_there(domain: Any) -> DomainView | None:
    try:
        return _view(domain)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None  # it ended between the list and the look
        raise


def _ownership(domain: Any) -> Ownership | None:
    try:
        element = domain.metadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT, METADATA_NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_LIVE
        )
    except libvirt.libvirtError:
        return None  # it has none of ours, or ended while we looked
    return ownership_of_mark(element)


def _read_back(domain: Any) -> Created:
    return Created(str(domain.UUIDString()), str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)))


def _destroy(domain: Any) -> None:
    try:
        domain.destroy()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return
        try:
            active = bool(domain.isActive())
        except libvirt.libvirtError:
            active = False  # it went away by itself
        if active:
            raise


def _read_capabilities(connection: Any) -> HostCapabilities:
    capabilities = str(connection.getCapabilities())
    arch = _text(capabilities, "host/cpu/arch")
    try:
        kvm = str(connection.getDomainCapabilities(None, arch, None, "kvm", 0))
    except libvirt.libvirtError:
        kvm = None
    emulated = str(connection.getDomainCapabilities(None, arch, None, "qemu", 0))
    return read_capabilities(
        capabilities,
        emulated,
        kvm_domain_capabilities_xml=kvm,
        host_cpu_features=_cpu_features(connection, capabilities),
    )


def _cpu_features(connection: Any, capabilities: str) -> frozenset[str]:
    cpu = etree.fromstring(capabilities, _PARSER).find("host/cpu")
    if cpu is None:
        return frozenset()
    described = etree.tostring(cpu, encoding="unicode")
    try:
        # A CPU model may imply vmx or svm without naming it; expanding names all.
        described = str(connection.baselineCPU([described], libvirt.VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES))
    except libvirt.libvirtError:
        pass  # then what is named must do
    found = etree.fromstring(described, _PARSER).iter("feature")
    return frozenset(str(f.get("name")) for f in found if f.get("policy") != "disable")


def _look_at_image(connection: Any, path: str, probe_pool: str) -> ImageView:
    try:
        return _image_view(connection.storageVolLookupByPath(path), path)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
            raise
    folder, name = posixpath.split(path)
    for pool in connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
        if _text(pool.XMLDesc(0), "target/path") == folder:
            # Somebody's active pool has not seen the file yet; two pools on one folder would be worse.
            pool.refresh(0)
            return _image_view(pool.storageVolLookupByName(name), path)
    xml = (
        f"<pool type='dir'><name>{escape(probe_pool)}</name>"
        f"<target><path>{escape(folder)}</path></target></pool>"
    )
    try:
        pool = connection.storagePoolCreateXML(xml, 0)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_SYSTEM_ERROR and error.get_int1() == errno.ENOENT:
            code = error.get_error_code()
            raise NotFound(f"could not look at the image {path}: {error}", code=code) from error
        raise
    try:
        return _image_view(pool.storageVolLookupByName(name), path)
    finally:
        pool.destroy()


def _image_view(volume: Any, path: str) -> ImageView:
    root = etree.fromstring(volume.XMLDesc(0), _PARSER)
    permissions = root.find("target/permissions")
    owner = ""
    if permissions is not None:
        owner = "owner {}:{} mode {}".format(
            *(permissions.findtext(part, "?") for part in ("owner", "group", "mode"))
        )
    found = root.find("target/format")
    backing_format = root.find("backingStore/format")
    return ImageView(
        path=path,
        format=str(found.get("type")) if found is not None else "raw",
        capacity=int(root.findtext("capacity", "0")),
        backing=root.findtext("backingStore/path"),
        backing_format=backing_format.get("type") if backing_format is not None else None,
        owner=owner,
    )


