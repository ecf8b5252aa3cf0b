"""What has come back from threads, handed on a little at a time, so that the reactor stays awake."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet import defer

BUDGET_S = 0.003
"""How long is handed on before the reactor does something else."""

WINDOW_S = 0.01
"""After so long a new budget begins in any case, and one of those that wait for leisure has its turn."""


class Pace:
    """Hand things on, in order; when there are too many, some in each of the reactor's turns.

    Hundreds of calls come back at the same moment when as many VMs start. What each of them leads to takes a
    millisecond or so, and in one go would be heard as a stall by whatever else the master does.

    Args:
        reactor: a Twisted reactor (IReactorTime, IReactorFromThreads).
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = weakref.ref(reactor)
        self._line: deque[Callable[[], object]] = deque()
        self._at_leisure: deque[Callable[[], object]] = deque()
        self._arrived: deque[Callable[[], object]] = deque()
        self._awaited = False
        self._window_began = 0.0
        self._had_leisure = 0.0
        self._spent = 0.0
        self._began: float | None = None
        """When the call that is being made was, if one is."""

    @classmethod
    def of(cls, reactor: Any) -> Pace:
        """Return the one that everybody shares who uses a reactor.

        Args:
            reactor: the reactor.
        """
        if reactor not in _known:
            _known[reactor] = cls(reactor)
        return _known[reactor]

    def hand_on(self, call: Callable[[], object]) -> None:
        """Make a call now, or soon if much is done already; for the reactor's thread.

        Args:
            call: takes care of its own errors.
        """
        going_on = self._is_going_on
        self._line.append(call)
        if going_on:
            return  # there is a line already, and somebody who goes on with it
        now = time.perf_counter()
        if now - self._window_began > WINDOW_S:
            self._window_began, self._spent = now, 0.0
        self._go_on()

    async def turn(self) -> None:
        """Return soon, or at once if little is done yet; for the reactor's thread.

        Who was not called by this has to wait in any case: nothing that it does would be counted.
        """
        if self._began is not None and self._spent + time.perf_counter() - self._began < BUDGET_S:
            return
        turn: defer.Deferred[None] = defer.Deferred()
        self._add_for_later([partial(turn.callback, None)])
        await turn

    async def leisure(self) -> None:
        """Return when nothing else waits to be handed on, or after a while all the same.

        It is for what nobody waits for yet, since something else takes as long; for the reactor's thread.
        """
        turn: defer.Deferred[None] = defer.Deferred()
        going_on = self._is_going_on
        self._at_leisure.append(partial(turn.callback, None))
        if not going_on:
            self._go_on_later()
        await turn

    def arrive(self, call: Callable[[], object]) -> None:
        """Make a call soon, on the reactor's thread; for any other.

        Args:
            call: takes care of its own errors.
        """
        self._arrived.append(call)
        if self._awaited:
            return  # the reactor is awake, and will see it; to wake it each time costs more than the rest
        self._awaited = True
        reactor = self._reactor()
        if reactor is not None:
            reactor.callFromThread(self._take_arrived)

    def _take_arrived(self) -> None:
        self._awaited = False  # first: what comes from here on may be too late for this look
        arrived = []
        while self._arrived:
            arrived.append(self._arrived.popleft())
        self._add_for_later(arrived)

    def _add_for_later(self, calls: list[Callable[[], object]]) -> None:
        going_on = self._is_going_on
        self._line.extend(calls)
        if self._line and not going_on:
            self._go_on_later()

    @property
    def _is_going_on(self) -> bool:
        """Whether something waits, and somebody goes on with it."""
        return bool(self._line or self._at_leisure)

    def _go_on(self) -> None:
        try:
            if self._at_leisure and time.perf_counter() - self._had_leisure > WINDOW_S:
                self._make(self._at_leisure)
            while self._is_going_on and self._spent < BUDGET_S:
                self._make(self._line or self._at_leisure)
        finally:
            if self._is_going_on:
                self._go_on_later()

    def _make(self, line: deque[Callable[[], object]]) -> None:
        self._began = time.perf_counter()
        try:
            line[0]()
        finally:
            line.popleft()
            now = time.perf_counter()
            self._spent += now - self._began
            self._began = None
            if line is self._at_leisure:
                self._had_leisure = now

    def _go_on_later(self) -> None:
        reactor = self._reactor()
        if reactor is not None:
            reactor.callLater(0, self._new_turn)  # after all that is due already, which has waited longer

    def _new_turn(self) -> None:
        self._window_began, self._spent = time.perf_counter(), 0.0
        self._go_on()


_known: weakref.WeakKeyDictionary[Any, Pace] = weakref.WeakKeyDictionary()
