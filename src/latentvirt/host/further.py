"""Further connections to a host while many calls are under way: of each, its daemon serves only some."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet import defer
from twisted.python.failure import Failure

from latentvirt.host.lane import Lane, Seat
from latentvirt.host.opened import Opened

logger = logging.getLogger(__name__)

MOST_CONNECTIONS = 4
"""More would be of no use: libvirtd has 20 workers (max_workers), and takes 5 calls of each connection."""

IDLE_S = 60.0
"""After so long without a call a further connection is closed."""

TRY_AGAIN_S = 60.0
"""How long none is tried after one could not be opened."""

CLOSE_S = 1.0


@attrs.define(eq=False)
class _Connection:
    opened: Opened
    seat: Seat
    used_at: float


class Further:
    """Open further connections when calls wait in line, and close them when none does for a while.

    All methods are for the reactor's thread.

    Args:
        name: of the host, for messages.
        reactor: a Twisted reactor (IReactorTime, IReactorFromThreads).
        lane: whose calls wait.
        most: how many there may be.
        open_one: opens one; runs on a thread.
        open_s: seconds that it may take.
        needed: tells of a seat whether something is kept on its connection.
    """

    def __init__(
        self,
        name: str,
        reactor: Any,
        lane: Lane,
        *,
        most: int,
        open_one: Callable[[], Opened],
        open_s: float,
        needed: Callable[[Seat], bool],
    ) -> None:
        self._name = name
        self._reactor = reactor
        self._lane = lane
        self._most = most
        self._open_one = open_one
        self._open_s = open_s
        self._needed = needed
        self._door = Lane(name, reactor, 1)
        self._connections: list[_Connection] = []
        self._opening = False
        self._round = 0
        self._not_before = 0.0
        self._timer: Any = None

    def seat_of(self, connection: Any) -> Seat | None:
        """Find the seat of a connection; None if it is none of these.

        Args:
            connection: a virConnect.
        """
        return next((one.seat for one in self._connections if one.opened.connection is connection), None)

    def grow(self) -> None:
        """Open one more if calls wait in line, the host answers, and there may be more."""
        now = self._reactor.seconds()
        if (
            not self._lane.crowded
            or self._lane.overdue
            or self._opening
            or len(self._connections) >= self._most
            or now < self._not_before
        ):
            return
        self._opening = True
        round_ = self._round

        def opened(one: Opened) -> None:
            self._opening = False
            if round_ != self._round:
                self._close(one)
                return
            self._connections.append(_Connection(one, self._lane.add(one), now))
            if self._timer is None:
                self._timer = self._reactor.callLater(IDLE_S, self._look)
            self.grow()

        def failed(failure: Failure) -> None:
            self._opening = False
            self._not_before = self._reactor.seconds() + TRY_AGAIN_S
            logger.info("%s: no further connection for now: %s", self._name, failure.value)

        done = self._door.run(
            "open a further connection", self._open_one, deadline_s=self._open_s, late=Opened.close
        )
        done.addCallbacks(opened, failed)

    def _look(self) -> None:
        """Close what nobody needed since the last look."""
        self._timer = None
        now = self._reactor.seconds()
        for one in list(self._connections):
            if not self._lane.is_idle(one.seat) or self._needed(one.seat):
                one.used_at = now
            elif now - one.used_at >= IDLE_S:
                self._drop(one)
        if self._connections:
            self._timer = self._reactor.callLater(IDLE_S, self._look)

    def close(self) -> defer.Deferred[Any]:
        """Close all; those that are about to open as well.

        Returns:
            A Deferred that is called when they are closed, or have shown that they cannot be for now.
        """
        self._round += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return defer.DeferredList([self._drop(one) for one in list(self._connections)])

    def _drop(self, one: _Connection) -> defer.Deferred[None]:
        self._connections.remove(one)
        self._lane.remove(one.seat)
        return self._close(one.opened)

    def _close(self, opened: Opened) -> defer.Deferred[None]:
        closed = self._door.run("close a connection", opened.close, deadline_s=CLOSE_S)
        return closed.addErrback(lambda _: None)  # closing may block on a mute far end
