"""What the hub knows of one host: its places, who has them, how much room there is, and how it fares."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping
from typing import Any

import attrs

from latentvirt.claim import Claim
from latentvirt.config import Connection
from latentvirt.errors import ForeignDomain
from latentvirt.flights import Flights
from latentvirt.frozen import FrozenStore
from latentvirt.host import Host
from latentvirt.hosts import Hosts
from latentvirt.master.room import Room
from latentvirt.names import Ownership, slot_of_number
from latentvirt.placement import Amounts, HostView, total
from latentvirt.planning import Plan
from latentvirt.storage import Storage

FIRST_REST_S = 2.0

REMEMBERED_STARTS = 20


@attrs.frozen(eq=False)
class Promise:
    """Room on a host that a worker was promised for its next start, or that is kept for one under way.

    Args:
        until: when it expires (the reactor's seconds); infinite for a start under way.
        room: how much.
    """

    until: float
    room: Amounts


@attrs.define(eq=False)
class HostRecord:
    """Know one host; it lives as long as the master.

    Args:
        host: the host.
        connection: what the person says of it, as of the last reconfig.
        room: what is in use there.
        storages: by image folder.
        frozen: the frozen images, by image folder.
        claims: the places that are taken.
        standbys: those of them in which a VM waits for any build, the one that waits longest first.
        reserved: what workers were promised.
        rest_s: how long the host rests after its next failure.
        resting: why it is not used now; None if it is.
        last_error: what went wrong there last; empty if nothing has.
        quarantined: why nothing is started there until it has proved itself; None if it is in use.
        drained: whether a program has taken it out of use.
        yields: the timer that runs while the room that a VM has just left there is another master's, if it
            wants it; None at all other times.
        outcomes: of its last starts, whether a guest attached.
        held: workers whose last start it refused, and until when they wait (the reactor's seconds).
        pauses: how long they wait after the next refusal.
    """

    host: Host
    connection: Connection
    room: Room
    storages: dict[str, Storage] = attrs.field(factory=dict)
    frozen: dict[str, FrozenStore] = attrs.field(factory=dict)
    claims: list[Claim] = attrs.field(factory=list)
    standbys: list[Claim] = attrs.field(factory=list)
    reserved: dict[str, Promise] = attrs.field(factory=dict)
    rest_s: float = FIRST_REST_S
    resting: str | None = None
    last_error: str = ""
    quarantined: str | None = None
    drained: bool = False
    yields: Any = None
    outcomes: deque[bool] = attrs.field(factory=lambda: deque(maxlen=REMEMBERED_STARTS))
    held: dict[str, float] = attrs.field(factory=dict)
    pauses: dict[str, float] = attrs.field(factory=dict)
    labels: Mapping[str, str] = attrs.field(init=False, factory=dict)
    plans: Flights[Plan] = attrs.field(init=False)
    """Each is made once for all starts of its kind that want it at the same time."""
    _used: tuple[int, Amounts] | None = attrs.field(init=False, default=None)
    """What is taken, standbys left out, and the room's looks that this is after; None to add it up anew."""
    _first_expires: float = attrs.field(init=False, default=math.inf)
    _view: HostView | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self.plans = Flights(self.host.hand_on)

    def configure(self, connection: Connection, hosts: Hosts) -> None:
        """Take over what the person says now.

        Args:
            connection: of the host.
            hosts: those that it is one of.
        """
        self.connection = connection
        self.labels = dict(connection.labels)
        self.room.configure(connection, shared=not hosts.is_one, overcommit=hosts.overcommit)
        for store in self.frozen.values():
            store.most_bytes = connection.frozen_bytes

    def is_living(self, start: str) -> bool:
        """Say whether a start is under way, or its VM in use, or its files below another VM."""
        return any(start in claim.starts for claim in self.claims) or any(
            store.keeps(start) for store in self.frozen.values()
        )

    def is_claimed(self, start: str) -> bool:
        """Say whether somebody has a start's VM; one that is only waited for to be gone, nobody claims."""
        return any(start in claim.starts and not claim.ending for claim in self.claims)

    @property
    def has_frozen(self) -> bool:
        """Whether there is any frozen image there."""
        return any(not store.is_empty for store in self.frozen.values())

    # Room

    @property
    def in_use(self) -> int:
        """How many places builds have; a standby gives way to them."""
        return len(self.claims) - len(self.standbys)

    def used(self, now: float, but: str = "", *, with_standbys: bool = False) -> Amounts:
        """Add up what is taken of the host: by everyone's VMs, and by what was promised.

        Args:
            now: the reactor's seconds.
            but: a worker whose own promise does not count.
            with_standbys: whether VMs count that give way to builds.
        """
        if now >= self._first_expires:
            for worker in [worker for worker, promise in self.reserved.items() if promise.until <= now]:
                self.withdraw(worker)
        # Each host is asked for each start, and seldom has anything changed there.
        if self._used is None or self._used[0] != self.room.looks:
            self._used = (self.room.looks, self._add_up())
        used = self._used[1]
        if with_standbys:
            used = total([used, *(claim.room for claim in self.standbys)])
        own = self.reserved.get(but)
        return used if own is None else used - own.room

    def _add_up(self) -> Amounts:
        standbys = set(map(id, self.standbys))
        taken = [claim.room for claim in self.claims if id(claim) not in standbys]
        promised = [promise.room for promise in self.reserved.values()]
        return total([self.room.others(claim.slot for claim in self.claims), *taken, *promised])

    def promise(self, worker: str, until: float, room: Amounts) -> Promise:
        """Keep room for a start that a worker makes, or is about to make.

        Args:
            worker: its name.
            until: when the promise expires (the reactor's seconds).
            room: how much.
        """
        promise = self.reserved[worker] = Promise(until, room)
        self._promised_otherwise()
        return promise

    def withdraw(self, worker: str, promise: Promise | None = None) -> None:
        """Take back what a worker was promised, if anything.

        Args:
            worker: its name.
            promise: which one; None for whichever it has.
        """
        if worker in self.reserved and promise in (None, self.reserved[worker]):
            del self.reserved[worker]
            self._promised_otherwise()

    def _promised_otherwise(self) -> None:
        self._used = None
        self._first_expires = min((promise.until for promise in self.reserved.values()), default=math.inf)

    def has_room_for(self, room: Amounts, now: float, but: str = "") -> bool:
        """Say whether something fits beside all that is there, standbys included.

        Args:
            room: what it takes.
            now: the reactor's seconds.
            but: a worker whose own promise does not count.
        """
        return (self.used(now, but, with_standbys=True) + room).fits(self.room.limits)

    def why_not(self, worker: str, now: float) -> str:
        """Say why a worker's start does not go there now, whatever the room; empty if it may."""
        refused = "it refused the worker's last start" if self.held.get(worker, now) > now else ""
        return self._why_nobody() or refused

    def _why_nobody(self) -> str:
        if self.connection.drain or self.drained:
            return "it is being drained"
        if self.quarantined is not None:
            return f"it is in quarantine: {self.quarantined}"
        if self.yields is not None:
            return "another master has its turn there first"
        return "" if self.resting is None else f"it rests: {self.resting}"

    def view(self, now: float) -> HostView:
        """See the host as it is for a worker that it has neither refused nor promised anything.

        Args:
            now: the reactor's seconds.
        """
        # Each host is seen for each start, and seldom has anything changed there.
        used, why_not, seen = self.used(now), self._why_nobody(), self._view
        if (
            seen is None
            or seen.used is not used
            or seen.why_not != why_not
            or seen.limit is not self.room.limits
            or seen.arch != self.room.arch
            or seen.labels is not self.labels
        ):
            seen = self._view = HostView(
                uri=self.host.uri,
                labels=self.labels,
                arch=self.room.arch,
                limit=self.room.limits,
                used=used,
                usable=not why_not,
                why_not=why_not,
            )
        return seen

    # Places

    def stand_by(self, claim: Claim) -> None:
        """Note that a place's VM waits for any build, and gives way to others."""
        self.standbys.append(claim)
        self._used = None

    def stand_by_no_more(self, claim: Claim) -> None:
        """Note that a build has the VM that waited."""
        self.standbys.remove(claim)
        self._used = None

    def standby_in(self, slot: str) -> Claim | None:
        """Find the standby that has a slot; None if there is none."""
        return next((claim for claim in self.standbys if claim.slot == slot), None)

    def take(self, owner: str, slot: str, room: Amounts) -> Claim:
        """Take a named slot.

        Args:
            owner: id of the master's installation.
            slot: its name.
            room: what is taken of the host with it.

        Raises:
            ForeignDomain: another worker's build has it.
        """
        if any(claim.slot == slot and not claim.ending for claim in self.claims):
            raise ForeignDomain(
                "the domain that is to be started is in use for another worker",
                host=self.host.uri,
                remedy="give each worker a domain of its own, or leave xml= out and give size=",
            )
        return self._claim(owner, slot, room)

    def take_any(self, owner: str, liked: Collection[str], room: Amounts) -> Claim:
        """Take a numbered slot that is free: one of those that are liked, else the first.

        Args:
            owner: id of the master's installation.
            liked: slots in which something can be thawed.
            room: what is taken of the host with it.
        """
        free = [slot for slot in self.free_slots(liked) if slot in liked]
        return self._claim(owner, (free or self.free_slots(()))[0], room)

    def adopt(self, mark: Ownership, room: Amounts) -> Claim:
        """Take the place of a VM that runs there since before this process.

        Args:
            mark: whose it is.
            room: what it takes of the host.
        """
        claim = self._claim(mark.owner, mark.slot, room)
        claim.starts.add(mark.start)
        return claim

    def free_slots(self, also: Collection[str]) -> list[str]:
        """List the numbered slots that nobody has: the first of them, and which of these are free, too."""
        taken = {claim.slot for claim in self.claims}
        numbered = [slot_of_number(number) for number in range(1, len(taken) + 2)]
        first = next(slot for slot in numbered if slot not in taken)
        return [first, *sorted(slot for slot in also if slot not in taken and slot != first)]

    def ending_in(self, slots: Collection[str]) -> Claim | None:
        """Find a place among slots whose VM is only waited for to be gone."""
        return next((claim for claim in self.claims if claim.ending and claim.slot in slots), None)

    def _claim(self, owner: str, slot: str, room: Amounts) -> Claim:
        claim = Claim(owner, slot, room)
        self.claims.append(claim)
        self._used = None
        return claim

    def end(self, claim: Claim) -> bool:
        """Note that a claim's VM is gone, or left to the sweep; False if that was known."""
        if claim in self.standbys:
            self.stand_by_no_more(claim)
        if claim not in self.claims:
            return False
        self.claims.remove(claim)
        self._used = None
        self.room.forget(claim.slot)
        for store in self.frozen.values():
            store.leave(claim.starts)
        claim.free()
        return True
