"""Which place on its host a start gets: a standby's, one in which it can thaw, or any that is free."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.internet import defer

from latentvirt.claim import Claim
from latentvirt.describing import own_name
from latentvirt.machine import Machine
from latentvirt.master.placing import Need
from latentvirt.master.record import HostRecord
from latentvirt.master.room import room_for
from latentvirt.names import slot_of_domain
from latentvirt.planning import Plan

if TYPE_CHECKING:
    from latentvirt.master.hub import Hub

PATIENCE_WITH_AN_END_S = 5.0
"""How long a start waits for a place that is just being freed, if it can thaw there."""


class Places:
    """Give starts their places; there is one of it per hub.

    Args:
        hub: the hub.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def claim(
        self, record: HostRecord, need: Need, plan: Plan, say: Callable[[str], object]
    ) -> tuple[Claim, Machine | None]:
        """Give a worker's start a place: that of a standby if there is one.

        Args:
            record: the host.
            need: whose promise the start takes up, and for how much disk.
            plan: what it needs.
            say: hears what is waited for.

        Returns:
            The place, and the VM that stands by there; None if one is to be made.

        Raises:
            ForeignDomain: another worker's build has the domain.
            HostFull: somebody holds a VM that the worker has to wait for.
        """
        await self._hub.holds.known(record, need)
        place = await self._place(record, need, plan, say)
        self._hub.placing.withdraw(need)  # only now: what was kept for it was not to be others' meanwhile
        return place

    async def claim_another(
        self,
        record: HostRecord,
        need: Need,
        plan: Plan,
        say: Callable[[str], object],
        instead_of: Claim,
    ) -> tuple[Claim, Machine | None]:
        """Give a start a place instead of one whose standby is of no use, and is being ended; see `claim`."""
        self._hub.placing.keep(need, record)
        await self._gone(instead_of)
        return await self.claim(record, need, plan, say)

    async def _place(
        self, record: HostRecord, need: Need, plan: Plan, say: Callable[[str], object]
    ) -> tuple[Claim, Machine | None]:
        standbys, owner = self._hub.standbys, self._hub.owner
        ready = await standbys.take(record, plan, say)
        if ready is not None:
            return ready
        room = room_for(plan, need.wish.disk)
        named = None if plan.spec.kind == "generated" else slot_of_domain(own_name(plan.spec))
        if named is not None:
            await standbys.give_up(record, named)
        now = self._hub.master.reactor.seconds
        while record.standbys and not record.has_room_for(room, now(), need.worker):
            await standbys.give_up(record)
        await standbys.make_room(record, room.memory)
        if named is not None:
            return record.take(owner, named, room), None
        liked = self.to_thaw_in(record, plan)
        if liked and not liked & set(record.free_slots(liked)):
            # To thaw in the place of a VM that is just being ended is quicker than to boot beside it.
            ending = record.ending_in(liked)
            if ending is not None:
                await self._gone(ending)
        return record.take_any(owner, liked, room), None

    async def _gone(self, claim: Claim) -> None:
        gone = claim.gone()
        gone.addTimeout(PATIENCE_WITH_AN_END_S, self._hub.master.reactor)
        try:
            await gone
        except defer.TimeoutError:
            pass  # its host takes its time; another place will do

    def to_thaw_in(self, record: HostRecord, plan: Plan) -> set[str]:
        """Say in which slots of a host a frozen image lies that fits a plan."""
        store = record.frozen.get(plan.spec.folder or "")
        return store.slots(plan.fingerprint) if store is not None and plan.fingerprint else set()
