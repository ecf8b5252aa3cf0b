"""One service per master that owns its hosts, their slots and their health, across reconfigs."""

from __future__ import annotations

import logging
import time
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any

import attrs
from buildbot.util.service import SharedService
from twisted.internet import defer, task

from latentvirt.address import this_machine
from latentvirt.claim import Claim
from latentvirt.config import Connection
from latentvirt.errors import LatentvirtError
from latentvirt.frozen import FrozenStore
from latentvirt.guestowner import Identify, nobody
from latentvirt.hold import Hold
from latentvirt.host import Host, threads
from latentvirt.hosts import Hosts
from latentvirt.images import Library, Say, say_nothing
from latentvirt.listening import Listener
from latentvirt.machine import Machine
from latentvirt.master.firstboot import seed_of
from latentvirt.master.health import Health
from latentvirt.master.holds import Holds
from latentvirt.master.leaving import leave
from latentvirt.master.looking import Looking
from latentvirt.master.places import Places
from latentvirt.master.placing import Placing
from latentvirt.master.record import HostRecord
from latentvirt.master.room import Room
from latentvirt.master.standbys import TEND_EVERY_S, Standbys
from latentvirt.master.state import HubState
from latentvirt.master.sweeping import Sweeping
from latentvirt.master.tries import Tries
from latentvirt.planning import Plan
from latentvirt.spec import MachineSpec, folder_of_copies
from latentvirt.storage import Storage, open_storage

logger = logging.getLogger(__name__)


class Hub(SharedService):
    """Own what outlives a worker's configuration: connections, places, health, and the sweep.

    There is one per master, made by the first worker that needs it; it stops after all workers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.owner = ""
        self._records: dict[str, HostRecord] = {}
        self._last_known: tuple[Hosts, list[HostRecord]] | None = None
        self.tries = Tries()
        self._state: HubState | None = None
        self._tends = task.LoopingCall(self._tend_all)
        self.standbys = Standbys(self)
        self.placing = Placing(self)
        self.places = Places(self)
        self.holds = Holds(self)
        self.sweeping = Sweeping(self)
        self._looking = Looking(self)
        self._background: set[defer.Deferred[Any]] = set()
        self.driver: Any = None
        self.library: Library

    @classmethod
    def getName(cls) -> str:
        """Name the service; there is one of it."""
        return "latentvirt-hub"

    @property
    def health(self) -> Health:
        """How the hosts fare."""
        return Health(self.master.reactor, self._try_again, self.wake, list(self._records.values()))

    def startService(self) -> Any:
        """Begin to do what is done every so often."""
        # Where the resolver is slow, no start is to wait for it on the reactor's thread.
        threads.begin("latentvirt name", this_machine, lambda error: None)
        self._tends.clock = self.master.reactor
        self._tends.start(TEND_EVERY_S, now=False)
        for regular in (self.sweeping, self.holds, self._looking):
            regular.begin()
        return super().startService()

    async def ready(self) -> None:
        """Wait until the hub knows whose things are its own."""
        if self._state is None:
            self._state = await HubState.load(self.master)
            self.owner = self._state.owner
            self.library = Library(
                self.master.reactor, self.owner, lambda connection: self.know(Hosts(connection))[0].host
            )

    # Hosts

    @property
    def records(self) -> dict[str, HostRecord]:
        """All hosts that workers have named since the master started, by URI."""
        return self._records

    def know(self, hosts: Hosts) -> Sequence[HostRecord]:
        """Return what is known of hosts, in the person's order; a connection survives reconfigs.

        Args:
            hosts: as the person describes them now.
        """
        # Workers share one list of hosts, and each start asks several times.
        if self._last_known is None or self._last_known[0] is not hosts:
            self._last_known = hosts, [self._know(connection, hosts) for connection in hosts.connections]
        return self._last_known[1]

    def _know(self, connection: Connection, hosts: Hosts) -> HostRecord:
        record = self._records.get(connection.uri)
        if record is None:
            host = Host(connection, self.master.reactor, driver=self.driver)
            changed = partial(self._looking.changed, connection.uri)
            room = Room(host, connection, lambda: self.owner, changed)
            record = self._records[connection.uri] = HostRecord(host, connection, room)
            record.configure(connection, hosts)
        return record

    async def expect(self, hosts: Hosts, folder: str | None) -> None:
        """Hear that a worker will use hosts; what earlier processes left there is removed.

        Args:
            hosts: the hosts.
            folder: the image folder, if it is known before a build.
        """
        await self.ready()
        new = [connection.uri for connection in hosts.connections if connection.uri not in self._records]
        for record, connection in zip(self.know(hosts), hosts.connections, strict=True):
            record.configure(connection, hosts)
            if folder is not None:
                await self._use_folder(record, folder)
            if record.host.uri in new:
                self.sweeping.soon(record)
                self._looking.look(record)

    async def _use_folder(self, record: HostRecord, folder: str) -> Storage:
        storage = record.storages.get(folder)
        if storage is None:
            storage = record.storages[folder] = open_storage(record.host, self.owner, folder)
            most = record.connection.frozen_bytes
            record.frozen[folder] = FrozenStore(storage, self.master.reactor.seconds, most)
            if self._state is not None:
                await self._state.remember(record.host.uri, folder)
        return storage

    async def use_known_folders(self, record: HostRecord) -> None:
        """Open the storage in each folder of a host in which we have ever had a directory."""
        if self._state is not None:
            for folder in self._state.folders(record.host.uri):
                await self._use_folder(record, folder)

    async def storage(self, record: HostRecord, folder: str) -> Storage:
        """Return the storage in a folder; a new one is noted first, so that a later sweep finds it."""
        fresh = folder not in record.storages
        storage = await self._use_folder(record, folder)
        if fresh:
            self.in_background(self.sweeping.renew(storage), f"renew the lease in {storage.directory}")
        return storage

    async def with_image(self, record: HostRecord, spec: MachineSpec, say: Say = say_nothing) -> MachineSpec:
        """See to it that a spec's image is on a host, and what cloud-init is told.

        Args:
            record: the host.
            spec: what a VM is to be.
            say: hears how the copying goes.

        Returns:
            The spec, with the paths of the copies.
        """
        folder = folder_of_copies(spec.hd_image, record.connection.images)
        if spec.image is not None:
            spec = spec.with_copy(await self.library.path_on(record.host, folder, spec.image, say), folder)
        if spec.cloud_init is not None:
            seed = await seed_of(self.master, spec.cloud_init)
            path = await self.library.path_on(record.host, spec.folder or folder, seed, say)
            spec = attrs.evolve(spec, seed=path)
        return spec

    async def frozen(self, record: HostRecord, folder: str) -> FrozenStore:
        """Return the frozen images in a folder, those of earlier processes among them."""
        await self.storage(record, folder)
        store = record.frozen[folder]
        await store.load()
        return store

    def machine(
        self,
        record: HostRecord,
        planned: Plan,
        claim: Claim,
        listener: Listener,
        store: FrozenStore | None,
        identify: Identify = nobody,
        secrets: tuple[str, ...] = (),
        worker: str = "",
    ) -> Machine:
        """Make a machine in a place.

        Args:
            record: its host.
            planned: what it is to be.
            claim: the place.
            listener: who hears of it.
            store: the frozen images of its folder; None if it has no files of its own.
            identify: says who the guest is to be.
            secrets: what must not be seen in the console's log.
            worker: name of the worker that it is for; empty if it is to stand by.
        """
        return Machine(
            host=record.host,
            storage=None if store is None else store.storage,
            plan=planned,
            claim=claim,
            listener=listener,
            identify=identify,
            frozen=store,
            claimed=self.is_claimed,
            let_run=record.room.let_run,
            clock=self.master.reactor,
            now=time.time,
            secrets=secrets,
            worker=worker,
        )

    # Places

    def is_living(self, start: str) -> bool:
        """Say whether a start is under way or its VM in use, on whichever host: one may have two names."""
        return any(record.is_living(start) for record in self._records.values())

    def is_claimed(self, start: str) -> bool:
        """Say whether a build has a start's VM; one that is only waited for to be gone, nobody claims."""
        return any(record.is_claimed(start) for record in self._records.values())

    def end(self, record: HostRecord, claim: Claim) -> None:
        """Note that a claim's VM is gone, or left to the sweep; its place is free."""
        if record.end(claim):
            self.placing.freed(record, claim)
            self.wake()
            self.standbys.tend(record)

    def ended(self, record: HostRecord, claim: Claim, machine: Machine, hold: Hold | None) -> None:
        """Note what came of ending a machine: its place is free, unless somebody holds the VM."""
        if hold is None:
            self.end(record, claim)
        else:
            self.holds.keep(record, claim, machine, hold)

    def end_later(self, record: HostRecord, claim: Claim, machine: Machine, graceful_s: float = 0.0) -> None:
        """Go on ending a machine; its place stays taken until then.

        Args:
            record: its host.
            claim: its place.
            machine: the machine.
            graceful_s: seconds that its guest gets to power itself off.
        """
        claim.ending = True

        async def go_on() -> None:
            hold = None
            try:
                hold = await machine.stop(graceful_s=graceful_s)
            except LatentvirtError as error:
                # The sweep after the host's return ends what is left: nobody claims it any more.
                self.failed(record, error)
                raise
            finally:
                self.ended(record, claim, machine, hold)

        self.in_background(go_on(), f"end {machine.name} on {record.host.uri}")

    def wake(self) -> None:
        """Let builds that wait look for room again."""
        if self.running and self.master is not None:
            self.master.botmaster.maybeStartBuildsForAllBuilders()

    # Health

    def failed(self, record: HostRecord, error: LatentvirtError) -> None:
        """Note that a host failed; see `Health`."""
        if self.running:
            self.health.failed(record, error)

    def _try_again(self, record: HostRecord) -> None:
        if self.running:
            self.in_background(self._probe(record), f"try {record.host.uri} again")

    async def _probe(self, record: HostRecord) -> None:
        try:
            await record.host.domains()
        except LatentvirtError as error:
            record.resting = None
            self.failed(record, error)
            return
        record.resting = None
        self._looking.look(record)
        self.wake()
        await self.sweeping.sweep(record)
        self.standbys.tend(record)

    def _tend_all(self) -> None:
        for record in self._records.values():
            self.standbys.tend(record)

    def in_background(self, doing: Coroutine[Any, Any, Any], what: str) -> None:
        """Do something that nobody waits for; what goes wrong is logged.

        Args:
            doing: what is done.
            what: the same in words: "sweep qemu:///system".
        """
        done = defer.ensureDeferred(doing)
        self._background.add(done)

        def over(result: Any) -> None:
            self._background.discard(done)

        done.addErrback(lambda failure: logger.warning("could not %s: %s", what, failure.value))
        done.addBoth(over)

    @defer.inlineCallbacks
    def stopService(self) -> Any:
        """Tidy up on every host that answers, and close the connections; the dead are not waited for."""
        for regular in (self.sweeping, self.holds, self._looking):
            regular.end()
        if self._tends.running:
            self._tends.stop()
        # First, so that a place that is freed now is given to nobody.
        yield super().stopService()
        yield defer.DeferredList(
            [defer.ensureDeferred(leave(self, record)) for record in self._records.values()],
            consumeErrors=True,
        )
