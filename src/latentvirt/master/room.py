"""How much room there is on one host: how large it is, and what others' domains and ours take of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs
from twisted.internet import defer

from latentvirt import domainxml
from latentvirt.config import Connection
from latentvirt.errors import HostFull
from latentvirt.flights import Flights
from latentvirt.host import Change, DomainUse, Host, Node
from latentvirt.names import Ownership
from latentvirt.placement import Amounts, Limits, in_words, total
from latentvirt.planning import Plan

BACK_S = 10.0
"""How long a VM that was saved keeps its room: a master that freezes its guest thaws it at once."""

SPARE = 0.1
"""The part of a host's memory that VMs do not get where the person does not say how much they may have."""


def room_of(use: DomainUse) -> Amounts:
    """Say what a domain takes; a place only if it is latentvirt's."""
    return Amounts(slots=int(use.ownership is not None), memory=use.memory, vcpus=use.vcpus)


def room_for(plan: Plan, disk: int = 0) -> Amounts:
    """Say what a VM takes of its host.

    Args:
        plan: what it is to be.
        disk: MiB that its disk may grow to; 0 if nobody has said.
    """
    memory, vcpus = domainxml.memory_of(plan.xml), domainxml.vcpus_of(plan.xml)
    return Amounts(slots=1, memory=memory, vcpus=vcpus, disk=disk)


def _too_much(used: Amounts, limits: Limits) -> str:
    """Say what would be over the limit, in words."""
    over = [
        f"{name} would be {in_words(name, amount)} of {in_words(name, limit)}"
        for name in ("slots", "memory", "vcpus", "disk")
        if (limit := getattr(limits, name)) is not None and (amount := getattr(used, name)) > limit
    ]
    return " and ".join(over)


def _too_much_for(uuid: str, limits: Limits, found: Sequence[DomainUse]) -> str:
    """Say what would be over the limit with a domain and those that were created before it."""
    mine = next((use for use in found if use.uuid == uuid), None)
    if mine is None:
        return ""  # it has ended; to resume it will say so
    used = total(room_of(use) for use in found if use.number <= mine.number)
    return "" if used.fits(limits) else _too_much(used, limits)


def _is_among(ownership: Ownership, found: Sequence[DomainUse]) -> bool:
    """Say whether a start's domain was found; its UUID may be that of an earlier run."""
    return any(use.ownership == ownership for use in found)


@attrs.define(eq=False)
class Room:
    """See what is in use on one host, between looks by the events of domains that start and end.

    Args:
        host: the host.
        connection: what the person says of it.
        owner: tells whose id ours is.
        changed: called with what has happened to the room.
    """

    host: Host
    connection: Connection
    owner: Callable[[], str]
    changed: Callable[[Change], object]
    shared: bool = attrs.field(init=False, default=False)
    """Whether others' domains count, and the host's own size limits what it gets."""
    overcommit: float = attrs.field(init=False, default=1.0)
    node: Node | None = attrs.field(init=False, default=None)
    arch: str | None = attrs.field(init=False, default=None)
    limits: Limits = attrs.field(init=False, factory=Limits)
    """What VMs may take together, as far as it is known."""
    looked_at: float | None = attrs.field(init=False, default=None)
    """When all that runs was last listed (the reactor's seconds)."""
    looks: int = attrs.field(init=False, default=0)
    """Grows whenever something else is known to be in use."""
    contested: bool = attrs.field(init=False, default=False)
    """Whether another master has begun a VM there, or tried to, since we last had a turn and gave it up."""
    _seen: dict[str, DomainUse] = attrs.field(init=False, factory=dict)
    _missed: dict[str, DomainUse] = attrs.field(init=False, factory=dict)
    """What the last look did not find any more: how it ended may be heard a moment later."""
    _listed: tuple[DomainUse, ...] = attrs.field(init=False, default=())
    """What the last look found; what has ended since is still in it."""
    _looking: Flights[tuple[DomainUse, ...]] = attrs.field(init=False)
    """Looks, by how many had begun before."""
    _begun: int = attrs.field(init=False, default=0)
    _turn: defer.DeferredLock = attrs.field(init=False, factory=defer.DeferredLock)
    _saved: dict[str, Any] = attrs.field(init=False, factory=dict)
    """Calls to be made when domains that were saved have not come back, by UUID."""

    def __attrs_post_init__(self) -> None:
        self._looking = Flights(self.host.hand_on)
        self.host.hear_of_domains(self._hear)

    def configure(self, connection: Connection, *, shared: bool, overcommit: float) -> None:
        """Take over what the person says now.

        Args:
            connection: of the host.
            shared: whether it is one of several hosts.
            overcommit: virtual processors for each processor.
        """
        self.connection, self.overcommit = connection, overcommit
        self.shared = shared or connection.memory is not None or connection.vcpus is not None
        self.limits = self._limits()
        self.looks += 1

    def _limits(self) -> Limits:
        memory, vcpus = self.connection.memory_mib, self.connection.vcpus
        if self.shared and self.node is not None:
            memory = memory or int(self.node.memory * (1 - SPARE))
            vcpus = vcpus or max(1, int(self.node.cpus * self.overcommit))
        return Limits(slots=self.connection.slots, memory=memory, vcpus=vcpus, disk=self.connection.disk_mib)

    def others(self, ours: Iterable[str]) -> Amounts:
        """Add up what domains take that are in none of our places.

        Args:
            ours: the slots that are taken; what is in them is counted by who took them.
        """
        if not self.shared or not self._seen:
            return Amounts()
        places = set(ours)
        owner = self.owner()
        return total(
            room_of(use)
            for use in self._seen.values()
            if (held := use.ownership) is None or held.owner != owner or held.slot not in places
        )

    def forget(self, slot: str) -> None:
        """Hear that a place of ours is free; the event of its domain's end may come later."""
        owner = self.owner()
        self.looks += 1
        self._seen = {
            uuid: use
            for uuid, use in self._seen.items()
            if use.ownership is None or (use.ownership.owner, use.ownership.slot) != (owner, slot)
        }

    def _hear(self, uuid: str, change: Change) -> None:
        back = self._saved.pop(uuid, None)
        if back is not None:
            back.cancel()
        use = self._seen.get(uuid) or self._missed.get(uuid)
        if change is Change.SAVED and use is not None:
            self._seen[uuid] = use
            self.looks += 1
            self._saved[uuid] = self.host.reactor.callLater(BACK_S, self._is_not_back, uuid)
            return
        ended = change in (Change.SAVED, Change.ENDED)
        if ended:
            self._seen.pop(uuid, None)
            self.looks += 1
        self.changed(Change.ENDED if ended else change)

    def _is_not_back(self, uuid: str) -> None:
        del self._saved[uuid]
        self._hear(uuid, Change.ENDED)

    async def look(self) -> None:
        """See anew what is in use."""
        await self._measure()
        if self.arch is None:
            self.arch = (await self.host.capabilities()).arch
        await self._next_look()

    @property
    def will_look(self) -> bool:
        """Whether a look is asked for that has not begun yet, and will see all that has happened by now."""
        return self._begun in self._looking

    # One look is made at a time, for all who asked for it before it began.

    def _next_look(self) -> defer.Deferred[tuple[DomainUse, ...]]:
        return self._looking.join(self._begun, lambda _: self._look_in_turn())

    def _look_under_way(self) -> defer.Deferred[tuple[DomainUse, ...]]:
        if not self._turn.locked:
            return self._next_look()
        return self._looking.join(self._begun - 1, lambda _: self._look_in_turn())

    async def _look_in_turn(self) -> tuple[DomainUse, ...]:
        await self._turn.acquire()
        try:
            self._begun += 1  # who asks from here on, asks for another
            found = await self.host.usage()
            self._note(found)
            return found
        finally:
            self._turn.release()

    async def _measure(self) -> None:
        if self.node is None:
            self.node = await self.host.node()
            self.limits = self._limits()

    def _note(self, found: tuple[DomainUse, ...]) -> None:
        self._listed = found
        before, saved = self._seen, {uuid: self._seen[uuid] for uuid in self._saved if uuid in self._seen}
        self._seen = saved | {use.uuid: use for use in found}
        self._missed = {uuid: use for uuid, use in before.items() if uuid not in self._seen}
        owner = self.owner()
        if any(
            use.ownership is not None and use.ownership.owner != owner and use.uuid not in before
            for use in self._seen.values()
        ):
            self.contested = True
        self.looks += 1
        self.looked_at = self.host.reactor.seconds()

    async def let_run(self, uuid: str, ownership: Ownership) -> None:
        """Let a paused domain run, if there is room for it and all that was created before it.

        Who created his domain later withdraws, so that of two masters that take the last room at the same
        time exactly one gets it, and what runs never takes more than there is.

        Args:
            uuid: of the domain.
            ownership: whose it is.

        Raises:
            HostFull: there is none.
        """
        if self.shared:
            await self._see_room_for(uuid, ownership)
        await self.host.resume(uuid)

    async def _see_room_for(self, uuid: str, ownership: Ownership) -> None:
        await self._measure()
        # Only what was created before it counts, and a look that has found it has found all of that.
        listed = self._listed
        if _is_among(ownership, listed) and not _too_much_for(uuid, self.limits, listed):
            return
        found = await self._look_under_way()
        if not _is_among(ownership, found):
            found = await self._next_look()
        too_much = _too_much_for(uuid, self.limits, found)
        if too_much:
            self.contested = False  # who has had no turn has none to give up
            raise HostFull(f"others were quicker: with this VM {too_much}", host=self.host.uri)
