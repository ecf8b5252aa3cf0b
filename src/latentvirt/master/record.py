"""What the hub knows of one host: its places, who has them, and how the host fares."""

from __future__ import annotations

from collections.abc import Collection

import attrs

from latentvirt.claim import Claim
from latentvirt.errors import ForeignDomain
from latentvirt.frozen import FrozenStore
from latentvirt.host import Host
from latentvirt.names import slot_of_number
from latentvirt.storage import Storage

FIRST_REST_S = 2.0


@attrs.define(eq=False)
class HostRecord:
    """Know one host; it lives as long as the master.

    Args:
        host: the host.
        slots: how many VMs may run there at a time; None for no limit.
        storages: by image folder.
        frozen_bytes: how much room frozen images may take, in each image folder.
        frozen: the frozen images, by image folder.
        claims: the places that are taken.
        standbys: those of them in which a VM waits for any build, the one that waits longest first.
        reserved: workers that were promised a place, and until when (the reactor's seconds).
        rest_s: how long the host rests after its next failure.
        resting: why it is not used now; None if it is.
        held: workers whose last start it refused, and until when they wait (the reactor's seconds).
        pauses: how long they wait after the next refusal.
    """

    host: Host
    slots: int | None
    storages: dict[str, Storage] = attrs.field(factory=dict)
    frozen_bytes: int = 0
    frozen: dict[str, FrozenStore] = attrs.field(factory=dict)
    claims: list[Claim] = attrs.field(factory=list)
    standbys: list[Claim] = attrs.field(factory=list)
    reserved: dict[str, float] = attrs.field(factory=dict)
    rest_s: float = FIRST_REST_S
    resting: str | None = None
    held: dict[str, float] = attrs.field(factory=dict)
    pauses: dict[str, float] = attrs.field(factory=dict)

    def is_living(self, start: str) -> bool:
        """Say whether a start is under way, or its VM in use, or its files below another VM."""
        return any(start in claim.starts for claim in self.claims) or any(
            store.keeps(start) for store in self.frozen.values()
        )

    def is_claimed(self, start: str) -> bool:
        """Say whether somebody has a start's VM; one that is only waited for to be gone, nobody claims."""
        return any(start in claim.starts and not claim.ending for claim in self.claims)

    @property
    def in_use(self) -> int:
        """How many places builds have; a standby gives way to them."""
        return len(self.claims) - len(self.standbys)

    @property
    def is_full(self) -> bool:
        """Whether the limit is reached, standbys included."""
        return self.slots is not None and len(self.claims) >= self.slots

    def reserve(self, worker: str, now: float, until: float) -> bool:
        """Promise a worker a place for the start that is about to follow; False if there is none now."""
        for holder in [holder for holder, end in self.reserved.items() if end <= now]:
            del self.reserved[holder]
        if self.resting is not None or self.held.get(worker, now) > now:
            return False
        promised = self.in_use + len(self.reserved)
        if self.slots is not None and worker not in self.reserved and promised >= self.slots:
            return False
        self.reserved[worker] = until
        return True

    def standby_in(self, slot: str) -> Claim | None:
        """Find the standby that has a slot; None if there is none."""
        return next((claim for claim in self.standbys if claim.slot == slot), None)

    def take(self, owner: str, slot: str) -> Claim:
        """Take a named slot.

        Raises:
            ForeignDomain: another worker's build has it.
        """
        if any(claim.slot == slot and not claim.ending for claim in self.claims):
            raise ForeignDomain(
                "the domain that is to be started is in use for another worker",
                host=self.host.uri,
                remedy="give each worker a domain of its own, or leave xml= out and give size=",
            )
        return self._claim(owner, slot)

    def take_any(self, owner: str, liked: Collection[str]) -> Claim:
        """Take a numbered slot that is free: one of those that are liked, else the first.

        Args:
            owner: id of the master's installation.
            liked: slots in which something can be thawed.
        """
        free = [slot for slot in self.free_slots(liked) if slot in liked]
        return self._claim(owner, (free or self.free_slots(()))[0])

    def free_slots(self, also: Collection[str]) -> list[str]:
        """List the numbered slots that nobody has: the first of them, and which of these are free, too."""
        taken = {claim.slot for claim in self.claims}
        numbered = [slot_of_number(number) for number in range(1, len(taken) + 2)]
        first = next(slot for slot in numbered if slot not in taken)
        return [first, *sorted(slot for slot in also if slot not in taken and slot != first)]

    def ending_in(self, slots: Collection[str]) -> Claim | None:
        """Find a place among slots whose VM is only waited for to be gone."""
        return next((claim for claim in self.claims if claim.ending and claim.slot in slots), None)

    def _claim(self, owner: str, slot: str) -> Claim:
        claim = Claim(owner, slot)
        self.claims.append(claim)
        return claim

    def end(self, claim: Claim) -> bool:
        """Note that a claim's VM is gone, or left to the sweep; False if that was known."""
        if claim in self.standbys:
            self.standbys.remove(claim)
        if claim not in self.claims:
            return False
        self.claims.remove(claim)
        for store in self.frozen.values():
            store.leave(claim.starts)
        claim.free()
        return True
