"""How many VMs stand by on each host, thawed ahead of time; who gets them, and when they are given up."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet import defer

from latentvirt.claim import Claim
from latentvirt.describing import own_name, settled
from latentvirt.errors import GuestFailed, HostUnreachable, LatentvirtError, StartCancelled
from latentvirt.flights import Flights
from latentvirt.frozen import FrozenStore
from latentvirt.machine import Machine
from latentvirt.master.kinds import Kinds, like
from latentvirt.master.record import HostRecord
from latentvirt.master.room import room_for
from latentvirt.master.standby import Standby
from latentvirt.names import slot_of_domain, slot_of_number
from latentvirt.placement import FROZEN_FITS, STANDBY_FITS, Amounts
from latentvirt.planning import Plan, plan
from latentvirt.spec import MachineSpec

if TYPE_CHECKING:
    from latentvirt.master.hub import Hub

logger = logging.getLogger(__name__)

RESERVE = 0.1
"""The part of a host's memory that no standby takes."""

AHEAD_AFTER_S = 30.0
"""How long a host has had no build before more of its slots are frozen ahead."""

AHEAD_UNTIL_S = 600.0
"""How long after the last build it is looked for more to freeze ahead."""

TEND_EVERY_S = 30.0
"""How often it is looked whether the images behind the standbys are still the newest."""

AFTER_FAILURE_S = 60.0
"""How long no standby is made on a host where one failed."""


class Idler(Protocol):
    """A worker, as far as its next build can be foreseen."""

    name: str
    wants_standby: bool

    def foreseen(self) -> tuple[HostRecord, MachineSpec] | None:
        """Say where and what its next VM will probably be; None while it has one, or nobody can tell."""
        ...


class Standbys:
    """Keep as many standbys as idle workers ask for; there is one of it per hub.

    Args:
        hub: the hub.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._workers: dict[str, Idler] = {}
        self._standbys: dict[str, list[Standby]] = {}
        self._ends: Flights[None] = Flights()
        self._kinds = Kinds()
        self._tending: set[str] = set()
        self._again: set[str] = set()
        self._not_before: dict[str, float] = {}
        self._busy_at: dict[str, float] = {}
        self._ahead: set[tuple[str, str, str]] = set()

    # Workers

    def hear_of(self, worker: Idler) -> None:
        """Hear that a worker is there, or has changed."""
        self._workers[worker.name] = worker

    def forget(self, worker: Idler) -> None:
        """Hear that a worker is gone."""
        if self._workers.get(worker.name) is worker:
            del self._workers[worker.name]

    def note_plan(self, record: HostRecord, spec: MachineSpec, planned: Plan) -> None:
        """Note what a VM took on a host; the next one like it will probably take the same."""
        self._kinds.note(record.host.uri, spec, planned)

    def readiness(self, spec: MachineSpec) -> dict[str, int]:
        """Say on which hosts a VM need not boot: by URI, `STANDBY_FITS` or `FROZEN_FITS`.

        Args:
            spec: what it is to be.
        """
        records, plans = self._hub.records, {} if spec.start == "boot" else self._kinds.plans(spec)
        return {uri: how for uri, plan in plans.items() if (how := self._readiness(records[uri], plan))}

    def _readiness(self, record: HostRecord, planned: Plan) -> int:
        if not planned.may_be_thawed or not (self._on(record) or record.has_frozen):
            return 0
        if self._find(record, planned, ready=True) is not None:
            return STANDBY_FITS
        return FROZEN_FITS if self._hub.places.to_thaw_in(record, planned) else 0

    # Builds

    def _on(self, record: HostRecord) -> list[Standby]:
        return self._standbys.setdefault(record.host.uri, [])

    def _find(self, record: HostRecord, planned: Plan, *, ready: bool) -> Standby | None:
        for standby in self._on(record):
            if (
                standby.is_ready is ready
                and standby.plan.fingerprint == planned.fingerprint
                and not standby.claim.ending
                and not (standby.machine is not None and standby.machine.failed_already)
            ):
                return standby
        return None

    async def take(
        self, record: HostRecord, planned: Plan, say: Callable[[str], object]
    ) -> tuple[Claim, Machine] | None:
        """Take the standby that fits a plan; None if there is none.

        One that is just being made is waited for, if there is nothing else to thaw.

        Args:
            record: the host.
            planned: what a build needs.
            say: hears what is waited for.
        """
        self._busy_at[record.host.uri] = self._hub.master.reactor.seconds()
        if not planned.may_be_thawed:
            return None
        found = self._find(record, planned, ready=True)
        making = self._find(record, planned, ready=False)
        if found is None and making is not None:
            free = set(record.free_slots(self._hub.places.to_thaw_in(record, planned)))
            if not free & self._hub.places.to_thaw_in(record, planned):
                say("waiting for a VM that is just being made to stand by")
                await making.made(self._hub.master.reactor)
                found = self._find(record, planned, ready=True)
        if found is None or found.machine is None:
            return None
        self._on(record).remove(found)
        record.stand_by_no_more(found.claim)
        return found.claim, found.machine

    async def give_up(self, record: HostRecord, slot: str | None = None) -> None:
        """End a standby, since a build needs its place; if one is just being ended, wait for that instead.

        Args:
            record: the host.
            slot: which place; None ends the one that waits longest.
        """
        there = [standby for standby in self._on(record) if slot in (None, standby.claim.slot)]
        if there:
            await self._end(next((standby for standby in there if standby.claim.ending), there[0]))

    async def make_room(self, record: HostRecord, needed_mib: int) -> None:
        """End standbys until a build's VM fits into the host's memory beside the rest."""
        while record.standbys and not await self._fits(record, needed_mib):
            await self.give_up(record)

    async def _fits(self, record: HostRecord, needed_mib: int) -> bool:
        try:
            memory = await record.host.memory()
        except HostUnreachable:
            raise
        except LatentvirtError:
            return True  # a host that does not tell is not asked twice
        return memory.available - needed_mib >= memory.total * RESERVE

    # End

    def drop(self, standby: Standby) -> None:
        """End a standby in the background."""
        self._hub.in_background(self._end(standby), "end a standby")

    async def _end(self, standby: Standby) -> None:
        """End a standby; who comes while it is ended waits for the same."""
        await self._ends.join(standby, lambda _: self._end_once(standby))

    async def _end_once(self, standby: Standby) -> None:
        others = self._on(standby.record)
        if standby not in others:
            return  # that was done before, or a build has it
        standby.claim.ending = True
        machine, hold = standby.machine, None
        try:
            hold = await machine.stop() if machine is not None else None
        finally:
            others.remove(standby)
            if machine is not None:
                self._hub.ended(standby.record, standby.claim, machine, hold)
            else:
                self._hub.end(standby.record, standby.claim)

    async def end_all(self, record: HostRecord) -> None:
        """End all standbys of a host: the master stops."""
        await defer.DeferredList(
            [defer.ensureDeferred(self._end(standby)) for standby in list(self._on(record))],
            consumeErrors=True,
        )

    # Tend

    def tend(self, record: HostRecord) -> None:
        """See to it, in the background, that there are as many standbys on a host as are asked for."""
        uri = record.host.uri
        if uri in self._tending:
            self._again.add(uri)
        elif self._hub.running and record.resting is None and record.yields is None:
            self._tending.add(uri)
            self._hub.in_background(self._tend_until_done(record), f"see to the standbys on {uri}")

    async def _tend_until_done(self, record: HostRecord) -> None:
        uri = record.host.uri
        try:
            while True:
                self._again.discard(uri)
                await self._tend(record)
                if uri not in self._again or not self._hub.running:
                    return
        except HostUnreachable as error:
            self._hub.failed(record, error)
        finally:
            self._tending.discard(uri)

    async def _tend(self, record: HostRecord) -> None:
        now = self._hub.master.reactor.seconds()
        ahead = AHEAD_AFTER_S <= now - self._busy_at.get(record.host.uri, now) <= AHEAD_UNTIL_S
        plans = await self._foreseen(record, all_workers=ahead)
        wanted = Counter(planned.fingerprint for planned, standby in plans if standby)
        for standby in [standby for standby in self._on(record) if not standby.claim.ending]:
            if wanted[standby.plan.fingerprint] > 0:
                wanted[standby.plan.fingerprint] -= 1
            else:
                await self._end(standby)
        if now < self._not_before.get(record.host.uri, now):
            return
        for planned, wants_standby in plans:
            if wants_standby and wanted[planned.fingerprint] > 0:
                wanted[planned.fingerprint] -= 1
                await self._make(record, planned)
        if ahead and not record.in_use:
            await self._freeze_ahead(record, [planned for planned, _ in plans])

    async def _foreseen(self, record: HostRecord, *, all_workers: bool) -> list[tuple[Plan, bool]]:
        """List what idle workers of a host will need next, and which of them want a standby.

        Args:
            record: the host.
            all_workers: whether those that want none are asked, too; the host is not bothered for nothing.
        """
        found = []
        known: dict[Any, Plan] = {}
        for worker in list(self._workers.values()):
            foreseen = worker.foreseen() if all_workers or worker.wants_standby else None
            if foreseen is None or foreseen[0] is not record:
                continue
            asked = spec = foreseen[1]
            if spec.start == "boot" or not spec.proven:
                continue
            try:
                spec = await settled(record.host, await self._hub.with_image(record, spec))
                key = like(spec)
                if key not in known:
                    storage = (await self._hub.frozen(record, str(spec.folder))).storage
                    known[key] = await plan(record.host, storage, spec)
            except HostUnreachable:
                raise
            except LatentvirtError:
                continue  # its build will say what is wrong
            self.note_plan(record, asked, known[key])
            if not known[key].hindrance:
                found.append((known[key], worker.wants_standby))
        return found

    async def _make(self, record: HostRecord, planned: Plan) -> None:
        room = room_for(planned)
        if not self._has_room(record, room) or not await self._fits(record, room.memory):
            return
        store = await self._hub.frozen(record, str(planned.spec.folder))
        claim = self._place(record, planned)
        if claim is not None:
            await self._hold(record, planned, claim, store)

    def _has_room(self, record: HostRecord, room: Amounts) -> bool:
        return record.has_room_for(room, self._hub.master.reactor.seconds())

    async def _hold(
        self, record: HostRecord, planned: Plan, claim: Claim, store: FrozenStore
    ) -> Standby | None:
        standby = Standby(record, planned, claim, self.drop)
        self._on(record).append(standby)
        record.stand_by(claim)
        try:
            standby.machine = self._hub.machine(record, planned, claim, standby, store)
            await standby.machine.hold()
            standby.is_ready = True
            return standby
        except BaseException as error:
            # Most often it is called off because a build needs its place: no reason to make none for a while.
            if isinstance(error, LatentvirtError) and not isinstance(error, StartCancelled):
                if not isinstance(error, HostUnreachable):  # then it rests, and is seen to after that
                    self._not_before[record.host.uri] = self._hub.master.reactor.seconds() + AFTER_FAILURE_S
                logger.warning("%s: no standby could be made: %s", record.host.uri, error)
                if isinstance(error, GuestFailed):
                    store.refuse(planned.fingerprint, error.what)
            await self._end(standby)
            if isinstance(error, LatentvirtError) and not isinstance(error, HostUnreachable):
                return None
            raise  # the host's, or a fault of ours, which keeps no place either
        finally:
            standby.tell_made()

    def _place(self, record: HostRecord, planned: Plan) -> Claim | None:
        room = room_for(planned)
        if not self._hub.running or not self._has_room(record, room):
            return None  # the master stops, or a build has come first
        liked = self._hub.places.to_thaw_in(record, planned)
        if planned.spec.kind != "generated":
            slot = slot_of_domain(own_name(planned.spec))
            free = all(claim.slot != slot for claim in record.claims)
            return record.take(self._hub.owner, slot, room) if free and (liked or not record.in_use) else None
        if not set(record.free_slots(liked)) & liked and record.in_use:
            return None  # to boot beside a build would slow the build
        return record.take_any(self._hub.owner, liked, room)

    async def _freeze_ahead(self, record: HostRecord, plans: list[Plan]) -> None:
        """Freeze one more slot, if there are more workers than slots in which builds can be thawed."""
        for fingerprint, workers in Counter(planned.fingerprint for planned in plans).items():
            planned = next(planned for planned in plans if planned.fingerprint == fingerprint)
            frozen = self._hub.places.to_thaw_in(record, planned)
            room = room_for(planned)
            few = planned.spec.kind == "generated" and 0 < len(frozen) < workers
            if not few or not self._has_room(record, room):
                continue
            store = await self._hub.frozen(record, str(planned.spec.folder))
            if not self._hub.running or not self._has_room(record, room):
                return
            taken = {claim.slot for claim in record.claims} | frozen
            slot = next(slot for slot in map(slot_of_number, count(1)) if slot not in taken)
            tried = (record.host.uri, fingerprint, slot)
            if tried not in self._ahead:
                self._ahead.add(tried)
                logger.info("%s: freezing %s ahead, for the host is idle", record.host.uri, slot)
                made = await self._hold(record, planned, record.take(self._hub.owner, slot, room), store)
                if made is not None:
                    await self._end(made)
                return
