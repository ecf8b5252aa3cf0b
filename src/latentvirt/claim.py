"""A place on a host that is taken, and the starts that are made in it."""

from __future__ import annotations

from collections.abc import Callable

import attrs
from twisted.internet import defer

from latentvirt.names import Ownership, new_start
from latentvirt.placement import Amounts

ONE_PLACE = Amounts(slots=1)


@attrs.define(eq=False)
class Claim:
    """Hold one slot of one host for one machine, from before anything of it exists until all of it is gone.

    A machine may make several starts in its place: one that is frozen, and one that is thawed from it.

    Args:
        owner: id of the master's installation.
        slot: the place.
        room: what of the host is taken with it.
        new: makes the ids of starts.
    """

    owner: str
    slot: str
    room: Amounts = ONE_PLACE
    new: Callable[[], str] = new_start
    ending: bool = attrs.field(init=False, default=False)
    """Whether the machine is only waited for to be gone."""
    password_of: str = attrs.field(init=False, default="")
    """Name of the worker whose own, static password the VM's guest may know; empty for none."""
    starts: set[str] = attrs.field(init=False, factory=set)
    """Ids of the starts whose things no sweep may touch."""
    _waiting: list[defer.Deferred[None]] = attrs.field(init=False, factory=list)
    _is_free: bool = attrs.field(init=False, default=False)

    def begin(self) -> Ownership:
        """Note one more start, before anything of it exists, so that no sweep takes it for a leftover."""
        ownership = Ownership(self.owner, self.slot, self.new())
        self.starts.add(ownership.start)
        return ownership

    def over(self, ownership: Ownership) -> None:
        """Note that nothing of a start is left, or that what is left belongs to a frozen image."""
        self.starts.discard(ownership.start)

    def gone(self) -> defer.Deferred[None]:
        """Return a Deferred that fires when the place is free, at once if it is."""
        waiter: defer.Deferred[None] = defer.Deferred()
        if self._is_free:
            waiter.callback(None)
        else:
            self._waiting.append(waiter)
        return waiter

    def free(self) -> None:
        """Tell those who wait that the place is free."""
        self._is_free = True
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None)
