"""Whole files to and from a host: each over a connection and a thread of its own.

libvirtd reads no further call of a client while five of its messages wait, and the packets of an upload count
among them: on a shared connection a slow disk would hold up all other calls, and the answers to keep-alive.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import libvirt
from twisted.internet import defer
from twisted.python.failure import Failure

from latentvirt.errors import HostTimeout, HostUnreachable, LatentvirtError
from latentvirt.host.codes import error_from
from latentvirt.host.driver import Driver
from latentvirt.host.lane import let_go

T = TypeVar("T")

STALL_S = 60.0
"""How long a transfer may stand still; how long it takes as a whole depends on the file."""

OPEN_S = 10.0
"""How long a transfer's connection may take to open."""

MOST_STUCK = 3
"""So many threads may be stuck in transfers that were given up; then no more are begun."""

TICK_S = 1.0
"""How often it is looked whether a transfer stands still, and how often it is told how far it got."""

PACE_TICK_S = 0.05
"""How often a sender that is ahead of its rate looks whether it may go on."""

HAUL_KEEPALIVE_INTERVAL_S = 15
HAUL_KEEPALIVE_COUNT = 3
"""A host's disk may be busy for long, and its daemon reads nothing while a packet waits for it."""


class GaveUp(Exception):
    """Raised within a transfer's thread when nobody waits for it any more."""


class Haul(Generic[T]):
    """One transfer under way, as its thread and the reactor share it.

    Args:
        total: bytes that it has; 0 if that is not known yet.
        rate: bytes per second that it may have; None for any number.
        seconds: the reactor's time.
    """

    def __init__(self, total: int, rate: int | None, seconds: Callable[[], float]) -> None:
        self.total = total
        self.opened = False
        self.returned = False
        self._moved = 0
        self._rate = rate
        self._seconds = seconds
        self._began: float | None = None
        self.given_up = threading.Event()

    @property
    def moved(self) -> int:
        """How many bytes have gone."""
        return self._moved

    def check(self) -> None:
        """End the transfer if it was given up; for its thread."""
        if self.given_up.is_set():
            raise GaveUp

    def note(self, count: int) -> None:
        """Note bytes that have gone, and wait until more may go; for its thread."""
        if self._began is None:
            self._began = self._seconds()
        self._moved += count
        if self._rate is not None:
            due = self._began + self._moved / self._rate
            while self._seconds() < due and not self.given_up.wait(PACE_TICK_S):
                pass
        self.check()


class Haulage:
    """Make transfers with one host; it lives as long as its host.

    All methods are for the reactor's thread.

    Args:
        uri: libvirt's connection URI or alias.
        reactor: a Twisted reactor (IReactorTime, IReactorFromThreads).
        driver: opens connections.
    """

    def __init__(self, uri: str, reactor: Any, driver: Driver) -> None:
        self._uri = uri
        self._reactor = reactor
        self._driver = driver
        self._under_way: set[defer.Deferred[Any]] = set()
        self._stuck = 0

    async def run(
        self,
        what: str,
        move: Callable[[Any, Haul[T]], T],
        *,
        total: int = 0,
        rate: int | None = None,
        progress: Callable[[int, int], object] | None = None,
        stall_s: float = STALL_S,
    ) -> T:
        """Run a transfer; who waits for it may cancel it.

        Args:
            what: what is being tried, for messages.
            move: takes a virConnect and the haul; runs on a thread, and tells the haul what has gone.
            total: bytes that it has, if known.
            rate: bytes per second that it may have.
            progress: called on the reactor's thread about once a second with bytes gone and all bytes.
            stall_s: seconds that it may stand still.

        Raises:
            HostTimeout: it stood still for too long.
            HostError: whatever else went wrong.
        """
        if self._stuck >= MOST_STUCK:
            raise HostTimeout(
                f"was not asked to {what}: {self._stuck} earlier transfers have not come back",
                host=self._uri,
                remedy="see whether libvirt's disk and daemon there are well, and restart the daemon",
            )
        haul: Haul[T] = Haul(total, rate, self._reactor.seconds)
        done: defer.Deferred[T] = defer.Deferred(lambda _: haul.given_up.set())
        threading.Thread(
            target=self._work,
            args=(what, move, haul, done),
            name=f"latentvirt {self._uri} transfer",
            daemon=True,
        ).start()
        self._watch(what, haul, done, progress, stall_s)
        self._under_way.add(done)
        try:
            return await done
        finally:
            self._under_way.discard(done)

    def close(self) -> None:
        """Give up what is under way."""
        for done in list(self._under_way):
            done.cancel()

    def _watch(
        self,
        what: str,
        haul: Haul[T],
        done: defer.Deferred[T],
        progress: Callable[[int, int], object] | None,
        stall_s: float,
    ) -> None:
        """Look every now and then how far it got, until it is done."""
        last, since = (False, 0), self._reactor.seconds()
        timer: Any = None

        def look() -> None:
            nonlocal last, since, timer
            now, here = self._reactor.seconds(), (haul.opened, haul.moved)
            if here != last:
                last, since = here, now
                if progress is not None and haul.total:
                    progress(haul.moved, haul.total)
            limit = stall_s if haul.opened else min(OPEN_S, stall_s)
            if now - since >= limit:
                haul.given_up.set()
                done.errback(
                    HostTimeout(
                        f"stood still for {limit:g} s when asked to {what}, at {haul.moved} bytes",
                        host=self._uri,
                        remedy="see whether libvirt answers there (virsh -c URI list), and whether the "
                        "network and the disk are well",
                    )
                )
                return
            timer = self._reactor.callLater(min(TICK_S, limit), look)

        timer = self._reactor.callLater(min(TICK_S, stall_s), look)

        def over(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            if not haul.returned:
                self._stuck += 1  # until its thread comes back
            return result

        done.addBoth(over)

    def _work(
        self, what: str, move: Callable[[Any, Haul[T]], T], haul: Haul[T], done: defer.Deferred[T]
    ) -> None:
        """Runs on the transfer's thread."""
        result: Any
        try:
            result = self._move(what, move, haul)
        except BaseException as error:  # whatever it is, it belongs to the caller, not to this thread
            let_go(error)
            result = Failure(error)
        self._reactor.callFromThread(self._returned, haul, done, result)

    def _move(self, what: str, move: Callable[[Any, Haul[T]], T], haul: Haul[T]) -> T:
        try:
            connection = self._driver.open(self._uri)
        except Exception as error:
            raise HostUnreachable(
                f"could not connect: {error}", host=self._uri, remedy=f"try: virsh -c '{self._uri}' list"
            ) from error
        try:
            haul.opened = True
            _be_patient(connection)
            return move(connection, haul)
        except GaveUp:
            raise
        except LatentvirtError as error:
            error.host = error.host or self._uri
            raise
        except Exception as error:
            raise error_from(error, what, host=self._uri) from error
        finally:
            try:
                connection.close()
            except libvirt.libvirtError:
                pass  # the far end is gone

    def _returned(self, haul: Haul[T], done: defer.Deferred[T], result: Any) -> None:
        haul.returned = True
        if done.called:
            self._stuck -= 1
        else:
            done.callback(result)


def _be_patient(connection: Any) -> None:
    try:
        connection.setKeepAlive(HAUL_KEEPALIVE_INTERVAL_S, HAUL_KEEPALIVE_COUNT)
    except libvirt.libvirtError:
        pass  # drivers inside our own process have no far end
