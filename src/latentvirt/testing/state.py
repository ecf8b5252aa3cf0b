"""What a fake host has, and what a test or a passer-by may do to it behind libvirt's clients' backs."""

from __future__ import annotations

import logging
import posixpath
import threading
import uuid as uuids
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import attrs
import libvirt
from lxml import etree

from latentvirt.testing import defaults
from latentvirt.testing.files import FakeFile, FakePool
from latentvirt.testing.guest import CONSOLE, FakeGuest
from latentvirt.testing.streams import UNREAD_BYTES, FakePort
from latentvirt.testing.trouble import Trouble

logger = logging.getLogger(__name__)

GIB_IN_KIB = 1024**2
FAKE_CPUS = 8
DISK_BYTES = 100 * 1024**3


@attrs.define(eq=False, kw_only=True)
class FakeDomain:
    """A domain, running or only defined."""

    host: FakeHostState
    name: str
    uuid: str
    definition: str | None = None
    live: str | None = None
    state: int = libvirt.VIR_DOMAIN_SHUTOFF
    reason: int = 0
    disk_errors: dict[str, int] = attrs.field(factory=dict)
    guest: FakeGuest | None = None
    addresses: dict[int, list[str]] = attrs.field(factory=dict)
    """What is known of its addresses, by libvirt's number of who knows it."""
    screen: bytes = b"P6\n1 1\n255\n\xff\x80\x00"
    """What it shows, as a portable pixmap."""
    _ports: dict[str, FakePort] = attrs.field(factory=dict)
    _unheard: list[bytes] = attrs.field(factory=list)

    @property
    def active(self) -> bool:
        """Whether it runs or is paused."""
        return self.live is not None

    def port(self, name: str) -> FakePort:
        """Return the host's end of the console or a channel; what the XML has is not asked."""
        with self.host.lock:
            if name not in self._ports:
                limit = UNREAD_BYTES if name == CONSOLE else None
                self._ports[name] = FakePort(self.host.post, limit, self._to_guest(name))
            return self._ports[name]

    def _to_guest(self, name: str) -> Callable[[bytes], object]:
        def take(data: bytes) -> None:
            if name == CONSOLE:
                return
            self._unheard.append(data)
            self._hear()

        return take

    def _hear(self) -> None:
        """Give the guest what was written to its channel, once it runs."""
        while self.state == libvirt.VIR_DOMAIN_RUNNING and self._unheard:
            data = self._unheard.pop(0)
            if self.guest is not None:
                self.guest.on_channel(data)

    def resume(self) -> None:
        """Run, as by somebody's command; the guest boots when it runs for the first time."""
        with self.host.lock:
            boots = self.reason == libvirt.VIR_DOMAIN_PAUSED_STARTING_UP
            self.state, self.reason = libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_UNPAUSED
            for file in self.written():
                file.touch()
        self._tell(libvirt.VIR_DOMAIN_EVENT_RESUMED, libvirt.VIR_DOMAIN_EVENT_RESUMED_UNPAUSED)
        guest = self.guest
        if boots and guest is not None:
            self.host.post(guest.on_boot)
        self.host.post(self._hear)

    def pause(self) -> None:
        """Stand still, as by somebody's command."""
        with self.host.lock:
            self.state, self.reason = libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER
        self._tell(libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED)

    def written(self) -> list[FakeFile]:
        """Return the files of the disks that the guest writes to."""
        disks = etree.fromstring(self.live or "<domain/>").iterfind("devices/disk")
        paths = [disk.find("source[@file]") for disk in disks if disk.find("readonly") is None]
        found = [self.host.files.get(path.get("file", "")) for path in paths if path is not None]
        return [file for file in found if file is not None]

    def end(self, reason: int, detail: int) -> None:
        """Be over, for one of libvirt's reasons (VIR_DOMAIN_SHUTOFF_..., VIR_DOMAIN_EVENT_STOPPED_...)."""
        with self.host.lock:
            if not self.active:
                return
            self.live = None
            self.state, self.reason = libvirt.VIR_DOMAIN_SHUTOFF, reason
            self._unheard = []
            if self.guest is not None:
                self.guest.domain = None
            ports, self._ports = self._ports, {}
            if self.definition is None:
                self.host.domains.pop(self.uuid, None)
        for port in ports.values():
            port.end()
        self._tell(libvirt.VIR_DOMAIN_EVENT_STOPPED, detail)

    def destroy(self) -> None:
        """End as by somebody's command."""
        self.end(libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED, libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED)

    def power_off(self) -> None:
        """End as a guest does that powers itself off."""
        self._tell(libvirt.VIR_DOMAIN_EVENT_SHUTDOWN, libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_FINISHED)
        self.end(libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN, libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN)

    def panic(self) -> None:
        """Let the guest's kernel panic, with a panic device and ``on_crash`` destroy."""
        self._tell(libvirt.VIR_DOMAIN_EVENT_CRASHED, libvirt.VIR_DOMAIN_EVENT_CRASHED_PANICKED)
        self.end(libvirt.VIR_DOMAIN_SHUTOFF_CRASHED, libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED)

    def kill(self) -> None:
        """Let the QEMU process die."""
        self.end(libvirt.VIR_DOMAIN_SHUTOFF_FAILED, libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED)

    def disk_full(self, path: str = "/images/full") -> None:
        """Let the host's disk be full: the domain is paused by the I/O error."""
        with self.host.lock:
            self.state, self.reason = libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR
            self.disk_errors = {"vda": libvirt.VIR_DOMAIN_DISK_ERROR_NO_SPACE}
        self.host.tell(
            libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON,
            self,
            path,
            "virtio-disk0",
            libvirt.VIR_DOMAIN_EVENT_IO_ERROR_PAUSE,
            "enospc",
        )
        self._tell(libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_IOERROR)

    def _tell(self, event: int, detail: int) -> None:
        self.host.tell(libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self, event, detail)


class FakeHostState:
    """One fake host, seen from inside; all methods may be called on any thread.

    Attributes:
        trouble: what goes wrong there.
        domains: by UUID.
        files: by path; directories are in ``folders``.
        pools: by name.
        networks: by name: the host's address there, None for a network without one.
        stopped_networks: names of those that do not run.
        networks_without_dhcp: names of those that give no addresses.
        networks_without_autostart: names of those that do not run after the host was booted.
        guests: makes the guest of a domain that is created.
        cpus: how many processors it has.
        memory: as libvirt tells it, in KiB.
        libvirt_version: as libvirt numbers it; so does `hypervisor_version`.
        full: whether its disk has no room left.
        free: how many bytes libvirt says are free; what is uploaded takes of them.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.lock = threading.RLock()
        self.trouble = Trouble()
        self.domains: dict[str, FakeDomain] = {}
        self.files: dict[str, FakeFile] = {}
        self.folders: set[str] = {"/"}
        self.pools: dict[str, FakePool] = {}
        self.networks: dict[str, str | None] = {}
        self.stopped_networks: set[str] = set()
        self.networks_without_dhcp: set[str] = set()
        self.networks_without_autostart: set[str] = set()
        self.guests: Callable[[FakeDomain], FakeGuest] = lambda domain: FakeGuest()
        self.capabilities = defaults.CAPABILITIES
        self.domain_capabilities = defaults.DOMAIN_CAPABILITIES
        self.cpus = FAKE_CPUS
        self.memory = {
            "total": 16 * GIB_IN_KIB,
            "free": 6 * GIB_IN_KIB,
            "buffers": 0,
            "cached": 2 * GIB_IN_KIB,
        }
        self.libvirt_version, self.hypervisor_version = 9_000_000, 7_002_000
        self.full = False
        self.free = DISK_BYTES
        self.connections: list[Any] = []
        self.reachable = True
        self._last_id = 0
        self._line: SimpleQueue[Callable[[], object]] = SimpleQueue()
        threading.Thread(target=self._run_events, name=f"fake libvirt {uri}", daemon=True).start()

    # What a test prepares

    def add_folder(self, path: str) -> None:
        """Make a directory and those above it."""
        with self.lock:
            while path not in self.folders:
                self.folders.add(path)
                path = posixpath.dirname(path)

    def add_file(self, path: str, file: FakeFile | None = None) -> FakeFile:
        """Put a file there, by hand: pools do not see it before they are refreshed."""
        self.add_folder(posixpath.dirname(path))
        with self.lock:
            return self.files.setdefault(path, file or FakeFile())

    def define(self, xml: str) -> FakeDomain:
        """Define a domain, as a person does."""
        root = etree.fromstring(xml)
        uuid = root.findtext("uuid") or str(uuids.uuid4())
        with self.lock:
            domain = self.domains.get(uuid)
            if domain is None:
                domain = FakeDomain(host=self, name=root.findtext("name") or "", uuid=uuid)
                self.domains[uuid] = domain
            domain.definition = defaults.normalised(xml, uuid=uuid, id=None)
            return domain

    # What a test looks at

    def domain(self, name: str) -> FakeDomain | None:
        """Look for a domain by name."""
        with self.lock:
            return next((domain for domain in self.domains.values() if domain.name == name), None)

    def running(self) -> list[str]:
        """Name the domains that run or are paused."""
        with self.lock:
            return sorted(domain.name for domain in self.domains.values() if domain.active)

    def listing(self, folder: str) -> list[str]:
        """Name the files in a directory."""
        with self.lock:
            parts = (posixpath.split(path) for path in self.files)
            return sorted(name for there, name in parts if there == folder)

    def images_below(self, path: str) -> list[tuple[str, str]]:
        """List path and format of each image that a file stands on, the next one first."""
        found = []
        file = self.files.get(path)
        while file is not None and file.backing is not None:
            found.append((file.backing, file.backing_format or "raw"))
            file = self.files.get(file.backing)
        return found

    # What befalls a host

    def break_connections(self, reason: int = libvirt.VIR_CONNECT_CLOSE_REASON_EOF) -> None:
        """Break all connections, as keep-alive or the daemon's end does; the domains go on."""
        with self.lock:
            broken, self.connections = self.connections, []
        for connection in broken:
            connection.break_off(reason)

    def restart_daemon(self) -> None:
        """Restart libvirtd: connections break, domains and active pools are found again."""
        self.break_connections()

    def reboot(self) -> None:
        """Take the power away for a moment: no domain, and no pool that is only transient, is left."""
        self.break_connections()
        with self.lock:
            for domain in list(self.domains.values()):
                domain.kill()
            self.pools = {name: pool for name, pool in self.pools.items() if pool.persistent}
            for pool in self.pools.values():
                pool.active = False

    # The fake's own

    def next_id(self) -> int:
        """Number a domain that begins to run."""
        self._last_id += 1
        return self._last_id

    def tell(self, event: int, domain: FakeDomain, *details: object) -> None:
        """Send an event to every connection that is registered for it."""
        for connection in list(self.connections):
            self.post(lambda connection=connection: connection.deliver(event, domain, details))  # type: ignore[misc]

    def post(self, call: Callable[[], object]) -> None:
        """Put a call in line for the event thread, as libvirt's event loop does."""
        self._line.put(call)

    def settle(self) -> None:
        """Wait until the event thread has done all that was in line."""
        done = threading.Event()
        self.post(done.set)
        done.wait()

    def _run_events(self) -> None:
        while True:
            try:
                self._line.get()()
            except Exception:
                logger.exception("a callback failed on the fake's event thread")
