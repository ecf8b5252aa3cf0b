"""A fake virConnect and the driver that opens it; only what `latentvirt.host.Host` calls is there."""

from __future__ import annotations

import threading
import uuid as uuids
from collections.abc import Callable
from typing import Any

import libvirt
from lxml import etree

from latentvirt.testing import defaults
from latentvirt.testing.domain import VirDomain
from latentvirt.testing.files import FakePool
from latentvirt.testing.guest import FakeGuest
from latentvirt.testing.network import VirNetwork
from latentvirt.testing.saving import check_target, read_saved, restored_guest
from latentvirt.testing.state import FakeDomain, FakeHostState
from latentvirt.testing.storage import VirPool, VirVolume, volume_at
from latentvirt.testing.streams import FakeStream
from latentvirt.testing.trouble import libvirt_error

DEFAULT_URI = "qemu:///system"

_ACTIVE_POOLS = libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE
_INACTIVE_POOLS = libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_INACTIVE


class FakeLibvirt:
    """Open connections to fake hosts: a `latentvirt.host.Driver`.

    Each URI is a host of its own, which exists from its first mention on.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hosts: dict[str, FakeHostState] = {}

    @property
    def inspector(self) -> FakeHostState:
        """The host behind ``qemu:///system``, seen from inside."""
        return self.inspect(DEFAULT_URI)

    def inspect(self, uri: str) -> FakeHostState:
        """Return the host behind a URI, seen from inside."""
        with self._lock:
            if uri not in self._hosts:
                self._hosts[uri] = FakeHostState(uri)
            return self._hosts[uri]

    def open(self, uri: str) -> Any:
        """Open a connection; blocks as long as the host's trouble has it."""
        host = self.inspect(uri)
        host.trouble.meet("open", lambda: False)
        if not host.reachable:
            raise libvirt_error(
                libvirt.VIR_ERR_SYSTEM_ERROR, "unable to connect to server: Connection refused", errno=111
            )
        connection = VirConnect(host)
        with host.lock:
            host.connections.append(connection)
        return connection


class VirConnect:
    """A connection; what its names mean, libvirt's documentation says."""

    def __init__(self, host: FakeHostState) -> None:
        self.host = host
        self.broken = False
        self.served = host.trouble.connection_served()
        self._on_close: tuple[Callable[..., object], object] | None = None
        self._registered: dict[int, tuple[int, Callable[..., object], object]] = {}

    def meet(self, method: str) -> None:
        """Begin a call: suffer the trouble that the test asked for; the fake's own."""
        self.host.trouble.meet(method, lambda: self.broken, self.served)

    def break_off(self, reason: int) -> None:
        """Break; the fake's own."""
        self.broken = True
        if self._on_close is not None:
            call, opaque = self._on_close
            self.host.post(lambda: call(self, reason, opaque))

    def deliver(self, event: int, domain: FakeDomain, details: tuple[object, ...]) -> None:
        """Hand an event on; the fake's own, on its event thread."""
        for wanted, call, opaque in list(self._registered.values()):
            if wanted == event and not self.broken:
                call(self, VirDomain(self, domain), *details, opaque)

    def isAlive(self) -> int:
        return 0 if self.broken else 1

    def close(self) -> int:
        # What is still under way on it goes on: the client's handles keep it.
        self.meet("close")
        with self.host.lock:
            if self in self.host.connections:
                self.host.connections.remove(self)
        return 0

    def setKeepAlive(self, interval: int, count: int) -> int:
        return 0

    def registerCloseCallback(self, call: Callable[..., object], opaque: object) -> None:
        self._on_close = (call, opaque)

    def unregisterCloseCallback(self) -> None:
        if self._on_close is None:
            raise libvirt_error(libvirt.VIR_ERR_OPERATION_INVALID, "A different callback was requested")
        self._on_close = None

    def domainEventRegisterAny(
        self, domain: object, event: int, call: Callable[..., object], opaque: object
    ) -> int:
        self.meet("domainEventRegisterAny")
        number = len(self._registered)
        self._registered[number] = (event, call, opaque)
        return number

    def domainEventDeregisterAny(self, number: int) -> None:
        self.meet("domainEventDeregisterAny")
        del self._registered[number]

    # Domains

    def lookupByName(self, name: str) -> VirDomain:
        self.meet("lookupByName")
        domain = self.host.domain(name)
        if domain is None:
            raise libvirt_error(
                libvirt.VIR_ERR_NO_DOMAIN, f"Domain not found: no domain with matching name '{name}'"
            )
        return VirDomain(self, domain)

    def lookupByUUIDString(self, uuid: str) -> VirDomain:
        self.meet("lookupByUUIDString")
        with self.host.lock:
            domain = self.host.domains.get(uuid)
        if domain is None:
            raise libvirt_error(
                libvirt.VIR_ERR_NO_DOMAIN, f"Domain not found: no domain with matching uuid '{uuid}'"
            )
        return VirDomain(self, domain)

    def listAllDomains(self, flags: int = 0) -> list[VirDomain]:
        self.meet("listAllDomains")
        with self.host.lock:
            return [VirDomain(self, domain) for domain in self.host.domains.values()]

    def getInfo(self) -> list[Any]:
        self.meet("getInfo")
        return ["x86_64", self.host.memory["total"] // 1024, self.host.cpus, 2000, 1, 1, self.host.cpus, 1]

    def getAllDomainStats(self, stats: int = 0, flags: int = 0) -> list[tuple[VirDomain, dict[str, int]]]:
        self.meet("getAllDomainStats")
        with self.host.lock:
            return [
                (VirDomain(self, domain), defaults.stats(domain.live or ""))
                for domain in self.host.domains.values()
                if domain.active
            ]

    def createXML(self, xml: str, flags: int = 0) -> VirDomain:
        self.meet("createXML")
        root = _read(xml, "domain_definition")
        name = root.findtext("name")
        if not name:
            raise libvirt_error(libvirt.VIR_ERR_NO_NAME, "missing name information")
        uuid = root.findtext("uuid") or str(uuids.uuid4())
        domain = self._begin(xml, name, uuid, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP, self.host.guests)
        self._tell(domain, libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_BOOTED)
        if not flags & libvirt.VIR_DOMAIN_START_PAUSED:
            domain.resume()
        return VirDomain(self, domain)

    def saveImageGetXMLDesc(self, path: str, flags: int = 0) -> str:
        self.meet("saveImageGetXMLDesc")
        return read_saved(self.host, path).xml

    def restoreFlags(self, path: str, xml: str | None, flags: int = 0) -> int:
        self.meet("restoreFlags")
        saved = read_saved(self.host, path)
        wanted = xml or saved.xml
        root = _read(wanted, "domain_definition")
        check_target(saved, root)
        name, uuid = root.findtext("name") or "", root.findtext("uuid") or ""
        with self.host.lock:
            self._place_for(name, uuid)
        if not saved.whole:
            raise libvirt_error(
                libvirt.VIR_ERR_INTERNAL_ERROR,
                "internal error: qemu unexpectedly closed the monitor: qemu-system-x86_64: load of migration "
                "failed: Input/output error",
            )
        paused = libvirt.VIR_DOMAIN_PAUSED_MIGRATION
        domain = self._begin(wanted, name, uuid, paused, lambda _: restored_guest(saved))
        self._tell(domain, libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_RESTORED)
        if flags & libvirt.VIR_DOMAIN_SAVE_PAUSED:
            self._tell(
                domain, libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_RESTORED
            )
        else:
            domain.resume()
        return 0

    def _begin(
        self, xml: str, name: str, uuid: str, reason: int, guests: Callable[[FakeDomain], FakeGuest]
    ) -> FakeDomain:
        with self.host.lock:
            domain = self._place_for(name, uuid)
            self._see_disks(_read(xml, "domain_definition"))
            domain.live = defaults.normalised(
                xml, uuid=uuid, id=self.host.next_id(), below=self.host.images_below
            )
            domain.state, domain.reason = libvirt.VIR_DOMAIN_PAUSED, reason
            domain.disk_errors = {}
            domain.guest = guests(domain)
            domain.guest.domain = domain
            self.host.domains[uuid] = domain
            return domain

    def _tell(self, domain: FakeDomain, event: int, detail: int) -> None:
        self.host.tell(libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, domain, event, detail)

    def _place_for(self, name: str, uuid: str) -> FakeDomain:
        same_uuid, same_name = self.host.domains.get(uuid), self.host.domain(name)
        if same_uuid is not None and same_uuid.name != name:
            raise libvirt_error(
                libvirt.VIR_ERR_OPERATION_FAILED,
                f"operation failed: domain '{same_uuid.name}' is already defined with uuid {uuid}",
            )
        if same_name is not None and same_name.uuid != uuid:
            raise libvirt_error(
                libvirt.VIR_ERR_OPERATION_FAILED,
                f"operation failed: domain '{name}' already exists with uuid {same_name.uuid}",
            )
        if same_uuid is not None and same_uuid.active:
            raise libvirt_error(
                libvirt.VIR_ERR_OPERATION_INVALID,
                f"Requested operation is not valid: domain '{name}' is already active",
            )
        return same_uuid or FakeDomain(host=self.host, name=name, uuid=uuid)

    def _see_disks(self, root: etree._Element) -> None:
        for source in root.iterfind("devices/disk/source[@file]"):
            path = source.get("file", "")
            if path not in self.host.files:
                raise libvirt_error(
                    libvirt.VIR_ERR_SYSTEM_ERROR,
                    f"Cannot access storage file '{path}' (as uid:0, gid:0): No such file or directory",
                    errno=2,
                )
        for source in (
            *root.iterfind("devices/disk/source[@file]"),
            *root.iterfind("devices/disk//backingStore/source[@file]"),
        ):
            # libvirt gives files to QEMU's user, unless it is told to leave them alone.
            file = self.host.files.get(source.get("file", ""))
            if file is not None and source.find("seclabel[@relabel='no']") is None:
                file.touch(modified=False)

    def newStream(self, flags: int = 0) -> FakeStream:
        return FakeStream(self, self.host.post)

    # Storage

    def storagePoolLookupByName(self, name: str) -> VirPool:
        self.meet("storagePoolLookupByName")
        with self.host.lock:
            pool = self.host.pools.get(name)
        if pool is None:
            raise libvirt_error(
                libvirt.VIR_ERR_NO_STORAGE_POOL,
                f"Storage pool not found: no storage pool with matching name '{name}'",
            )
        return VirPool(self, pool)

    def listAllStoragePools(self, flags: int = 0) -> list[VirPool]:
        self.meet("listAllStoragePools")
        with self.host.lock:
            wanted = [
                pool
                for pool in self.host.pools.values()
                if not flags or flags & (_ACTIVE_POOLS if pool.active else _INACTIVE_POOLS)
            ]
        return [VirPool(self, pool) for pool in wanted]

    def storagePoolCreateXML(self, xml: str, flags: int = 0) -> VirPool:
        self.meet("storagePoolCreateXML")
        with self.host.lock:
            pool = self._new_pool(xml)
            made = VirPool(self, pool)
            made.start(flags)
            self.host.pools[pool.name] = pool
        return made

    def storagePoolDefineXML(self, xml: str, flags: int = 0) -> VirPool:
        self.meet("storagePoolDefineXML")
        with self.host.lock:
            pool = self.host.pools.get(_read(xml, "storage_pool_definition").findtext("name") or "")
            if pool is None:
                pool = self._new_pool(xml)
            pool.persistent = True
            self.host.pools[pool.name] = pool
        return VirPool(self, pool)

    def _new_pool(self, xml: str) -> FakePool:
        root = _read(xml, "storage_pool_definition")
        name, path = root.findtext("name") or "", root.findtext("target/path") or ""
        for other in self.host.pools.values():
            if other.name == name:
                raise libvirt_error(
                    libvirt.VIR_ERR_OPERATION_FAILED,
                    f"operation failed: pool '{name}' already exists with uuid {other.uuid}",
                )
            if other.path == path:
                raise libvirt_error(
                    libvirt.VIR_ERR_OPERATION_FAILED,
                    f"operation failed: Storage source conflict with pool: '{other.name}'",
                )
        return FakePool(name=name, path=path, mode=root.findtext("target/permissions/mode") or "0755")

    def storageVolLookupByPath(self, path: str) -> VirVolume:
        self.meet("storageVolLookupByPath")
        return volume_at(self, path)

    # The rest

    def networkLookupByName(self, name: str) -> VirNetwork:
        self.meet("networkLookupByName")
        if name not in self.host.networks:
            raise libvirt_error(
                libvirt.VIR_ERR_NO_NETWORK, f"Network not found: no network with matching name '{name}'"
            )
        return VirNetwork(self, name)

    def listAllNetworks(self, flags: int = 0) -> list[VirNetwork]:
        self.meet("listAllNetworks")
        return [VirNetwork(self, name) for name in self.host.networks]

    def getLibVersion(self) -> int:
        self.meet("getLibVersion")
        return self.host.libvirt_version

    def getVersion(self) -> int:
        self.meet("getVersion")
        return self.host.hypervisor_version

    def getMemoryStats(self, cell: int, flags: int = 0) -> dict[str, int]:
        self.meet("getMemoryStats")
        return dict(self.host.memory)

    def getCapabilities(self) -> str:
        self.meet("getCapabilities")
        return self.host.capabilities

    def getDomainCapabilities(
        self, emulator: str | None, arch: str | None, machine: str | None, virttype: str, flags: int = 0
    ) -> str:
        self.meet("getDomainCapabilities")
        if virttype == "kvm":
            raise libvirt_error(
                libvirt.VIR_ERR_INVALID_ARG, "invalid argument: KVM is not supported by this binary"
            )
        return self.host.domain_capabilities

    def baselineCPU(self, descriptions: list[str], flags: int = 0) -> str:
        self.meet("baselineCPU")
        return descriptions[0]


def _read(xml: str, what: str) -> etree._Element:
    try:
        return etree.fromstring(xml)
    except etree.XMLSyntaxError as error:
        raise libvirt_error(libvirt.VIR_ERR_XML_DETAIL, f"({what}):1: {error.msg}") from None
