"""Things that are done once for all who want them at the same time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Generic, TypeVar

import attrs
from twisted.internet import defer

T = TypeVar("T")
Say = Callable[[str], object]


def say_nothing(_: str) -> None:
    """Tell nobody."""


@attrs.define(eq=False)
class _Flight(Generic[T]):
    waiting: dict[defer.Deferred[T], Say] = attrs.field(factory=dict)
    task: defer.Deferred[Any] | None = None

    def say(self, text: str) -> None:
        for say in list(self.waiting.values()):
            say(text)


class Flights(Generic[T]):
    """Do a thing once for all who want it while it is done; it goes on as long as one of them waits.

    Args:
        hand_on: makes a call now, or soon; what many wait for may lead to much.
    """

    def __init__(self, hand_on: Callable[[Callable[[], object]], object] = lambda call: call()) -> None:
        self._hand_on = hand_on
        self._flights: dict[Hashable, _Flight[T]] = {}
        self._tasks: set[defer.Deferred[Any]] = set()

    def join(
        self, key: Hashable, begin: Callable[[Say], Coroutine[Any, Any, T]], say: Say = say_nothing
    ) -> defer.Deferred[T]:
        """Wait for a thing, which is begun if nobody waits for it yet.

        Args:
            key: tells one thing from another.
            begin: begins it; what it says is told to all who wait.
            say: tells this one.

        Returns:
            A Deferred of what comes of it, to each who waits; who cancels it waits no more.
        """
        flight = self._flights.get(key)
        begins = flight is None
        if flight is None:
            flight = self._flights[key] = _Flight()
        waiter: defer.Deferred[T] = defer.Deferred(lambda done: self._leave(key, flight, done))
        flight.waiting[waiter] = say
        if begins:
            flight.task = defer.ensureDeferred(begin(flight.say))
            self._tasks.add(flight.task)
            flight.task.addBoth(self._landed, key, flight)
        return waiter

    def __contains__(self, key: Hashable) -> bool:
        """Say whether somebody waits for a thing."""
        return key in self._flights

    async def over(self) -> None:
        """Wait until all has ended that was begun, also what nobody waits for and tidies up."""
        for task in list(self._tasks):
            ended: defer.Deferred[None] = defer.Deferred()
            task.chainDeferred(ended)
            await ended

    def _leave(self, key: Hashable, flight: _Flight[T], waiter: defer.Deferred[T]) -> None:
        flight.waiting.pop(waiter, None)
        if not flight.waiting and self._flights.get(key) is flight:
            # Who comes from here on begins anew; this one may take a while to tidy up.
            del self._flights[key]
            if flight.task is not None:
                flight.task.cancel()

    def _landed(self, result: Any, key: Hashable, flight: _Flight[T]) -> None:
        if flight.task is not None:
            self._tasks.discard(flight.task)
        if self._flights.get(key) is flight:
            del self._flights[key]
        waiting, flight.waiting = flight.waiting, {}
        for waiter in waiting:
            self._hand_on(partial(_tell, waiter, result))


def _tell(waiter: defer.Deferred[Any], result: Any) -> None:
    if not waiter.called:  # nobody has cancelled it meanwhile
        waiter.callback(result)
