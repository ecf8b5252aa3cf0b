"""One service per master that owns its hosts, their slots and their health, across reconfigs."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Coroutine
from typing import Any

import attrs
from buildbot.util.service import SharedService
from twisted.internet import defer, task

from latentvirt.config import Connection
from latentvirt.errors import ForeignDomain, LatentvirtError
from latentvirt.host import Host
from latentvirt.machine import Machine
from latentvirt.master.state import HubState
from latentvirt.names import Ownership, new_start, slot_of_number
from latentvirt.storage import Storage, open_storage
from latentvirt.sweep import sweep

logger = logging.getLogger(__name__)

SWEEP_EVERY_S = 600
LEASE_S = 3600
RESERVATION_S = 30
"""How long a yes to Buildbot holds a place; the start that it was for follows within moments, or never."""

FIRST_REST_S = 2.0
LONGEST_REST_S = 60.0
FAREWELL_S = 2.0
"""How long a host may take to let a stopping master tidy up; what is left then, the next sweep removes."""

REMEMBERED_BUILDS = 10_000
TRIES_OF_A_BUILD = 5


@attrs.define(eq=False)
class HostRecord:
    """What the hub knows of one host; it lives as long as the master.

    Args:
        host: the host.
        slots: how many VMs may run there at a time; None for no limit.
        storages: by image folder.
        living: starts that are under way or whose VM is in use, by start id.
        ending: those of them whose VM is only waited for to be gone.
        reserved: workers that were promised a place, and until when (the reactor's seconds).
        rest_s: how long the host rests after its next failure.
        resting: why it is not used now; None if it is.
        held: workers whose last start it refused, and until when they wait (the reactor's seconds).
        pauses: how long they wait after the next refusal.
    """

    host: Host
    slots: int | None
    storages: dict[str, Storage] = attrs.field(factory=dict)
    living: dict[str, Ownership] = attrs.field(factory=dict)
    ending: set[str] = attrs.field(factory=set)
    reserved: dict[str, float] = attrs.field(factory=dict)
    rest_s: float = FIRST_REST_S
    resting: str | None = None
    held: dict[str, float] = attrs.field(factory=dict)
    pauses: dict[str, float] = attrs.field(factory=dict)


class Hub(SharedService):
    """Own what outlives a worker's configuration: connections, places, health, and the sweep.

    There is one per master, made by the first worker that needs it; it stops after all workers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.owner = ""
        self._records: dict[str, HostRecord] = {}
        self._tries: OrderedDict[int, int] = OrderedDict()
        self._state: HubState | None = None
        self._sweeps = task.LoopingCall(self._sweep_all)
        self._background: set[defer.Deferred[Any]] = set()
        self.driver: Any = None

    @classmethod
    def getName(cls) -> str:
        """Name the service; there is one of it."""
        return "latentvirt-hub"

    def startService(self) -> Any:
        """Begin to sweep every so often."""
        self._sweeps.clock = self.master.reactor
        self._sweeps.start(SWEEP_EVERY_S, now=False)
        return super().startService()

    async def ready(self) -> None:
        """Wait until the hub knows whose things are its own."""
        if self._state is None:
            self._state = await HubState.load(self.master)
            self.owner = self._state.owner

    # Hosts

    def record(self, connection: Connection) -> HostRecord:
        """Return what is known of a host; its connection survives reconfigs."""
        record = self._records.get(connection.uri)
        if record is None:
            host = Host(connection, self.master.reactor, driver=self.driver)
            record = self._records[connection.uri] = HostRecord(host, connection.slots)
        record.slots = connection.slots
        return record

    async def expect(self, connection: Connection, folder: str | None) -> None:
        """Hear that a worker will use a host; what earlier processes left there is removed.

        Args:
            connection: the host.
            folder: the image folder, if it is known before a build.
        """
        await self.ready()
        first = connection.uri not in self._records
        record = self.record(connection)
        if folder is not None:
            await self._use_folder(record, folder)
        if first:
            self._in_background(self._sweep(record), f"sweep {connection.uri}")

    async def _use_folder(self, record: HostRecord, folder: str) -> Storage:
        storage = record.storages.get(folder)
        if storage is None:
            storage = record.storages[folder] = open_storage(record.host, self.owner, folder)
            if self._state is not None:
                await self._state.remember(record.host.uri, folder)
        return storage

    async def storage(self, record: HostRecord, folder: str) -> Storage:
        """Return the storage in a folder; a new one is noted first, so that a later sweep finds it."""
        fresh = folder not in record.storages
        storage = await self._use_folder(record, folder)
        if fresh:
            self._in_background(self._renew(record, storage), f"renew the lease in {storage.directory}")
        return storage

    # Places

    def reserve(self, record: HostRecord, worker: str) -> bool:
        """Promise a worker a place for the start that is about to follow; False if there is none now."""
        now = self.master.reactor.seconds()
        for holder in [holder for holder, until in record.reserved.items() if until <= now]:
            del record.reserved[holder]
        if record.resting is not None or record.held.get(worker, now) > now:
            return False
        promised = len(record.living) + len(record.reserved)
        if record.slots is not None and worker not in record.reserved and promised >= record.slots:
            return False
        record.reserved[worker] = now + RESERVATION_S
        self.master.reactor.callLater(RESERVATION_S, self._expire, record, worker)
        return True

    def _expire(self, record: HostRecord, worker: str) -> None:
        until = record.reserved.get(worker)
        if until is not None and until <= self.master.reactor.seconds():
            del record.reserved[worker]
            self._wake()

    def begin(self, record: HostRecord, worker: str, slot: str | None) -> Ownership:
        """Note a start before anything of it exists, so that no sweep takes it for a leftover.

        Args:
            record: the host.
            worker: whose reservation the start takes up.
            slot: the place of a domain that has a name of its own; None takes the first free numbered one.

        Raises:
            ForeignDomain: another worker's build has that domain.
        """
        record.reserved.pop(worker, None)
        if any(held.slot == slot and held.start not in record.ending for held in record.living.values()):
            raise ForeignDomain(
                f"the domain that worker {worker} is to start is in use for another worker",
                host=record.host.uri,
                remedy="give each worker a domain of its own, or leave xml= out and give size=",
            )
        if slot is None:
            taken = {held.slot for held in record.living.values()}
            slot = next(s for s in (slot_of_number(n) for n in range(1, len(taken) + 2)) if s not in taken)
        ownership = Ownership(self.owner, slot, new_start())
        record.living[ownership.start] = ownership
        return ownership

    def is_living(self, start: str) -> bool:
        """Say whether a start is under way or its VM in use, on whichever host: one may have two names."""
        return any(start in record.living for record in self._records.values())

    def is_claimed(self, start: str) -> bool:
        """Say whether a build has a start's VM; one that is only waited for to be gone, nobody claims."""
        return any(start in record.living and start not in record.ending for record in self._records.values())

    def end(self, record: HostRecord, ownership: Ownership) -> None:
        """Note that a start's VM is gone, or left to the sweep; its place is free."""
        record.ending.discard(ownership.start)
        if record.living.pop(ownership.start, None) is not None:
            self._wake()

    def end_later(self, record: HostRecord, ownership: Ownership, machine: Machine) -> None:
        """Go on ending a machine whose host takes its time; its place stays taken until then."""
        record.ending.add(ownership.start)

        async def go_on() -> None:
            try:
                await machine.stop()
            except LatentvirtError as error:
                # The sweep after the host's return ends what is left: nobody claims it any more.
                self.failed(record, error)
                raise
            finally:
                self.end(record, ownership)

        self._in_background(go_on(), f"end {machine.name} on {record.host.uri}")

    def _wake(self) -> None:
        if self.running and self.master is not None:
            self.master.botmaster.maybeStartBuildsForAllBuilders()

    # Tries

    def count_try(self, request: int) -> int:
        """Count the starts for one build request.

        Returns:
            Which one this is, from 1.
        """
        tries = self._tries.pop(request, 0) + 1
        self._tries[request] = tries
        while len(self._tries) > REMEMBERED_BUILDS:
            self._tries.popitem(last=False)
        return tries

    # Health

    def failed(self, record: HostRecord, error: LatentvirtError) -> None:
        """Note that a host failed: it rests, longer each time, and is then tried before a build is."""
        if record.resting is not None or not self.running:
            return
        record.resting = str(error)
        logger.warning("%s rests for %g s: %s", record.host.uri, record.rest_s, error)
        self.master.reactor.callLater(record.rest_s, self._try_again, record)
        record.rest_s = min(record.rest_s * 2, LONGEST_REST_S)

    def refused(self, record: HostRecord, worker: str) -> None:
        """Note that a host that answers failed a worker's start: that worker waits, longer each time."""
        pause = record.pauses.get(worker, FIRST_REST_S)
        record.held[worker] = self.master.reactor.seconds() + pause
        record.pauses[worker] = min(pause * 2, LONGEST_REST_S)
        self.master.reactor.callLater(pause, self._wake)

    def worked(self, record: HostRecord, worker: str) -> None:
        """Note that a worker's start went well on a host."""
        record.rest_s = FIRST_REST_S
        record.held.pop(worker, None)
        record.pauses.pop(worker, None)

    def _try_again(self, record: HostRecord) -> None:
        if self.running:
            self._in_background(self._probe(record), f"try {record.host.uri} again")

    async def _probe(self, record: HostRecord) -> None:
        try:
            await record.host.domains()
        except LatentvirtError as error:
            record.resting = None
            self.failed(record, error)
            return
        record.resting = None
        self._wake()
        await self._sweep(record)

    # Sweep

    def _sweep_all(self) -> None:
        for record in self._records.values():
            if record.resting is None:
                self._in_background(self._sweep(record), f"sweep {record.host.uri}")

    async def _sweep(self, record: HostRecord) -> None:
        await self.ready()
        if self._state is None or not self.running:
            return
        for folder in self._state.folders(record.host.uri):
            await self._use_folder(record, folder)
        swept = await sweep(record.host, self.owner, list(record.storages), self.is_living)
        if swept:
            logger.warning("%s: removed what was left there: %s", record.host.uri, swept)
        for storage in list(record.storages.values()):
            await self._renew(record, storage)

    async def _renew(self, record: HostRecord, storage: Storage) -> None:
        await storage.prepare()
        await storage.renew_lease(int(time.time()) + LEASE_S)

    def _in_background(self, doing: Coroutine[Any, Any, Any], what: str) -> None:
        done = defer.ensureDeferred(doing)
        self._background.add(done)

        def over(result: Any) -> None:
            self._background.discard(done)

        done.addErrback(lambda failure: logger.warning("could not %s: %s", what, failure.value))
        done.addBoth(over)

    @defer.inlineCallbacks
    def stopService(self) -> Any:
        """Tidy up on every host that answers, and close the connections; the dead are not waited for."""
        if self._sweeps.running:
            self._sweeps.stop()
        yield defer.DeferredList(
            [defer.ensureDeferred(self._farewell(record)) for record in self._records.values()],
            consumeErrors=True,
        )
        yield super().stopService()

    async def _farewell(self, record: HostRecord) -> None:
        if record.resting is None and record.host.is_open:
            tidy = defer.ensureDeferred(self._tidy(record))
            tidy.addTimeout(FAREWELL_S, self.master.reactor)
            try:
                await tidy
            except (LatentvirtError, defer.TimeoutError) as error:
                logger.warning("%s: could not tidy up: %s", record.host.uri, error)
        await record.host.close()

    async def _tidy(self, record: HostRecord) -> None:
        if not record.living:
            for storage in record.storages.values():
                await storage.remove()
