"""VMs that somebody holds: their places stay taken until they are released, or the time is up."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import attrs
from twisted.internet import task

from latentvirt import domainxml
from latentvirt.claim import Claim
from latentvirt.describing import own_name
from latentvirt.errors import HostFull, HostUnreachable, LatentvirtError, NotFound
from latentvirt.flights import Flights
from latentvirt.hold import Hold
from latentvirt.host import DomainView
from latentvirt.machine import Machine
from latentvirt.master.placing import Need
from latentvirt.master.record import HostRecord
from latentvirt.names import Ownership, slot_of_domain
from latentvirt.placement import Amounts
from latentvirt.sparing import starts_below

if TYPE_CHECKING:
    from latentvirt.master.hub import Hub

logger = logging.getLogger(__name__)

HOLDS_EVERY_S = 10.0
"""How often hosts are asked whether VMs are held still."""


@attrs.frozen(kw_only=True)
class HeldVM:
    """A VM that is not ended, since somebody holds it.

    Args:
        domain: its name on the host.
        until: seconds since the epoch.
        by: who holds it.
        why: in that person's words.
        in_doubt: why nobody can tell now whether it is still so; empty if the host tells.
    """

    domain: str
    until: int
    by: str
    why: str
    in_doubt: str = ""


@attrs.define(eq=False)
class _Kept:
    """A held VM whose place is kept; without a machine it is one of an earlier process's."""

    record: HostRecord
    claim: Claim
    name: str
    hold: Hold
    read: Callable[[], Awaitable[Hold | None]]
    machine: Machine | None = None
    in_doubt: str = ""
    told: set[str] = attrs.field(factory=set)

    def __str__(self) -> str:
        return f"the VM {self.name} on {self.record.host.uri} is {self.hold}"


class Holds:
    """Keep the places of held VMs; there is one of it per hub.

    Args:
        hub: the hub.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._kept: list[_Kept] = []
        self._looked: dict[str, int] = {}
        self._looks: Flights[None] = Flights()
        self._loop = task.LoopingCall(self.see_all)

    def begin(self) -> None:
        """Begin to ask hosts every so often."""
        self._loop.clock = self._hub.master.reactor
        self._loop.start(HOLDS_EVERY_S, now=False)

    def end(self) -> None:
        """Ask no more; what is held stays so, for the master's next process to find."""
        if self._loop.running:
            self._loop.stop()

    def on(self, record: HostRecord) -> list[HeldVM]:
        """List the held VMs of a host."""
        return [
            HeldVM(
                domain=kept.name,
                until=kept.hold.until,
                by=kept.hold.by,
                why=kept.hold.why,
                in_doubt=kept.in_doubt,
            )
            for kept in self._kept
            if kept.record is record
        ]

    # Who waits for them

    @property
    def are_any(self) -> bool:
        """Whether any VM is held."""
        return bool(self._kept)

    def why_not(self, need: Need, record: HostRecord) -> str:
        """Say which held VM a worker's start would be in the way of; empty if there is none.

        Args:
            need: what is to be started.
            record: where.
        """
        for kept in self._kept:
            if kept.hold.worker != need.worker and not self._has_domain(kept, need, record):
                continue
            if need.worker not in kept.told:
                kept.told.add(need.worker)
                logger.warning("worker %s starts no other VM: %s", need.worker, kept)
            return str(kept)
        return ""

    def _has_domain(self, kept: _Kept, need: Need, record: HostRecord) -> bool:
        """Say whether a held VM has the domain that is to be started; generated ones take another slot."""
        if kept.record is not record or need.spec.kind == "generated":
            return False
        return kept.claim.slot == slot_of_domain(own_name(need.spec))

    async def known(self, record: HostRecord, need: Need) -> None:
        """See to it that a start gets no place that a held VM has.

        Args:
            record: where it is to go.
            need: what it is.

        Raises:
            HostFull: it has to wait for one.
        """
        uri = record.host.uri
        first = uri not in self._looked
        if self._looked.get(uri) != record.host.opens:
            await self._looks.join(uri, lambda say: self.look(record))
        why = self.why_not(need, record)
        if not why and first and self.on(record):
            # It was promised room before anybody knew of them.
            used = record.used(self._hub.master.reactor.seconds(), need.worker) + need.room
            why = "" if used.fits(record.room.limits) else "VMs that are held have the room"
        if why:
            raise HostFull(why, host=uri, remedy="wait, or see latentvirt vm list and latentvirt vm release")

    def look_again(self, record: HostRecord) -> None:
        """Hear that something held was found that nobody knew of."""
        self._looked.pop(record.host.uri, None)

    # Which there are

    async def look(self, record: HostRecord) -> None:
        """Find the VMs of earlier processes, or such as we had lost, that somebody holds.

        Raises:
            HostError: the host does not tell.
        """
        for domain in await record.host.domains():
            mark, hold = domain.ownership, domain.held_at(time.time())
            if mark is None or hold is None or mark.owner != self._hub.owner:
                continue
            if not self._hub.is_living(mark.start):
                await self._adopt(record, domain, mark, hold)
        self._looked[record.host.uri] = record.host.opens

    async def _adopt(self, record: HostRecord, domain: DomainView, mark: Ownership, hold: Hold) -> None:
        try:
            xml = await record.host.description(domain.uuid)
        except NotFound:
            return  # it has ended meanwhile
        below = await starts_below(record.host, domain)
        if self._hub.is_living(mark.start):
            return  # another look was quicker
        room = Amounts(slots=1, memory=domainxml.memory_of(xml), vcpus=domainxml.vcpus_of(xml))
        claim = record.adopt(mark, room)
        for store in record.frozen.values():
            store.stood_on(below, mark.start)

        async def read() -> Hold | None:
            return _still(await record.host.hold(domain.uuid, only=mark))

        self._keep(_Kept(record, claim, domain.name, hold, read))

    def keep(self, record: HostRecord, claim: Claim, machine: Machine, hold: Hold) -> None:
        """Keep the place of a VM that was to be ended, and is held.

        Args:
            record: its host.
            claim: its place.
            machine: its life.
            hold: until when, and why.
        """
        claim.ending = False
        if claim in record.standbys:
            record.stand_by_no_more(claim)
        self._keep(_Kept(record, claim, machine.name, hold, machine.held_until, machine))

    def _keep(self, kept: _Kept) -> None:
        self._kept.append(kept)
        logger.warning("%s; it is not ended before that, and its place stays taken", kept)

    # What becomes of them

    def see_all(self) -> None:
        """Ask all hosts now that have held VMs."""
        for record in {id(kept.record): kept.record for kept in self._kept}.values():
            self._hub.in_background(self._see(record), f"see what is held on {record.host.uri}")

    async def _see(self, record: HostRecord) -> None:
        for kept in [kept for kept in self._kept if kept.record is record]:
            if record.resting is not None:
                self._doubt(kept, record.resting)
                continue
            try:
                hold = await kept.read()
            except LatentvirtError as error:
                self._doubt(kept, str(error))
                if isinstance(error, HostUnreachable):
                    self._hub.failed(record, error)
                continue
            if kept.in_doubt:
                kept.in_doubt = ""
                logger.warning("%s is there again", record.host.uri)
            if hold is None:
                await self._release(kept)
            else:
                kept.hold = hold

    def _doubt(self, kept: _Kept, why: str) -> None:
        if not kept.in_doubt:
            logger.warning(
                "%s, and its host does not tell whether that is still so; it is asked again: %s", kept, why
            )
        kept.in_doubt = why

    async def _release(self, kept: _Kept) -> None:
        if kept not in self._kept:
            return  # two looks at the same time
        self._kept.remove(kept)
        over = "the time is up" if kept.hold.until <= time.time() else "it was released, or has ended"
        logger.warning("%s no more: %s", kept, over)
        hub, record, claim = self._hub, kept.record, kept.claim
        if kept.machine is not None:
            hub.end_later(record, claim, kept.machine)
            return
        claim.ending = True
        starts = set(claim.starts)
        claim.starts.clear()
        try:
            await hub.sweeping.sweep(record)
        finally:
            for store in record.frozen.values():
                store.leave(starts)
            hub.end(record, claim)


def _still(hold: Hold | None) -> Hold | None:
    return hold if hold is not None and hold.until > time.time() else None
