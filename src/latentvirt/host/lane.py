"""Blocking calls to one host, each with a deadline, on a bounded number of daemon threads of its own.

The reactor's thread pool is not used: a call that never returns would cost every user of the pool a place,
and the master its exit. Here it costs one host one place.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import attrs
from twisted.internet import defer
from twisted.python.failure import Failure

from latentvirt.errors import HostError, HostTimeout
from latentvirt.host import threads
from latentvirt.host.pace import Pace
from latentvirt.roots import is_embed

T = TypeVar("T")

MUTE_HOST = "see whether libvirt answers there (virsh -c URI list), and whether the network is up"
SLOW_EMBED = (
    "give QEMU's user access to /dev/kvm, or keep the device out, and run the master under a process that "
    "reaps orphans: an embedded libvirt is slow otherwise (the guide to qemu:///embed says more)"
)


@attrs.define(eq=False)
class Seat:
    """One connection's share of a lane.

    Args:
        connection: what calls that run there are given; None for the first seat, which is always there.
    """

    connection: Any = None
    threads: int = 0
    free: list[_Place] = attrs.field(factory=list)
    overdue: int = 0
    """How many of its calls have passed their deadline and not come back."""


@attrs.define(eq=False)
class _Job(Generic[T]):
    what: str
    call: Callable[[Any], T]
    deadline_s: float
    done: defer.Deferred[T]
    late: Callable[[T], object] | None
    on: Seat | None
    timer: Any = None


@attrs.define(eq=False)
class _Place:
    """One thread and the line to it; a job is put there only when the thread is free."""

    seat: Seat
    inbox: SimpleQueue[_Job[Any] | None] = attrs.field(factory=SimpleQueue)


class Lane:
    """Run blocking calls to one host; it lives as long as its host.

    All methods are for the reactor's thread.

    Args:
        name: of the host, for messages and thread names.
        reactor: a Twisted reactor (IReactorTime, IReactorFromThreads).
        places: how many calls may be under way at a time, for each seat.
    """

    def __init__(self, name: str, reactor: Any, places: int) -> None:
        self._name = name
        self._reactor = reactor
        self._places = places
        self._pace = Pace.of(reactor)
        self._begun = 0
        self._waiting: deque[_Job[Any]] = deque()
        self.first = Seat()
        self._seats = [self.first]

    @property
    def overdue(self) -> int:
        """How many calls have passed their deadline and not come back."""
        return sum(seat.overdue for seat in self._seats)

    @property
    def crowded(self) -> bool:
        """Whether calls wait in line."""
        return bool(self._waiting)

    # Seats

    def add(self, connection: Any) -> Seat:
        """Make room for as many more calls, over one more connection.

        Args:
            connection: what they are given.
        """
        seat = Seat(connection)
        self._seats.append(seat)
        self._dispatch()
        return seat

    def remove(self, seat: Seat) -> None:
        """Begin no more calls over a connection; its threads end when theirs have come back.

        Args:
            seat: what `add` returned.
        """
        self._seats.remove(seat)
        while seat.free:
            seat.free.pop().inbox.put(None)

    def is_idle(self, seat: Seat) -> bool:
        """Say whether no call is under way over a connection."""
        return seat.threads == len(seat.free)

    # Calls

    def run(
        self,
        what: str,
        call: Callable[[], T],
        *,
        deadline_s: float,
        late: Callable[[T], object] | None = None,
    ) -> defer.Deferred[T]:
        """Run a call on a thread of ours; see `run_seated`."""
        return self.run_seated(what, lambda _: call(), deadline_s=deadline_s, late=late)

    def run_seated(
        self,
        what: str,
        call: Callable[[Any], T],
        *,
        deadline_s: float,
        late: Callable[[T], object] | None = None,
        on: Seat | None = None,
    ) -> defer.Deferred[T]:
        """Run a call on a thread of ours, over whichever connection is free first.

        Args:
            what: what is being tried, for messages.
            call: runs on the thread; takes its seat's connection.
            deadline_s: seconds from when a thread takes the call up.
            late: is given, in the thread, a result that comes after the deadline, to undo it.
            on: the seat that it is best done on, if that is there and not stuck.

        Returns:
            A Deferred of the call's result; it fails with what the call raises, or with HostTimeout.
        """
        job: _Job[T] = _Job(what, call, deadline_s, defer.Deferred(), late, on)
        if self._all_stuck:
            job.done.errback(
                Failure(
                    self._timeout(
                        f"was not asked to {what}: {self.overdue} earlier calls to it have not come back"
                    )
                )
            )
            return job.done
        place = self._place_for(job)  # those that wait in line have no use for it, or would have it
        if place is None:
            self._waiting.append(job)
        else:
            self._give(place, job)
        return job.done

    def fail_waiting(self, reason: Exception) -> None:
        """Fail the calls that no thread has taken up yet, because the host is known to be gone."""
        waiting, self._waiting = self._waiting, deque()
        for job in waiting:
            job.done.errback(Failure(reason))

    def _is_stuck(self, seat: Seat) -> bool:
        return seat.overdue >= self._places

    @property
    def _all_stuck(self) -> bool:
        return all(map(self._is_stuck, self._seats))

    def _timeout(self, what: str) -> HostTimeout:
        return HostTimeout(what, host=self._name, remedy=SLOW_EMBED if is_embed(self._name) else MUTE_HOST)

    def _dispatch(self) -> None:
        still_waiting: deque[_Job[Any]] = deque()
        while self._waiting and any(map(self._has_place, self._seats)):
            job = self._waiting.popleft()
            if job.done.called:
                continue  # its caller was called off
            place = self._place_for(job)
            if place is None:
                still_waiting.append(job)
                continue
            self._give(place, job)
        self._waiting.extendleft(reversed(still_waiting))

    def _give(self, place: _Place, job: _Job[Any]) -> None:
        job.timer = self._reactor.callLater(job.deadline_s, self._passed_deadline, place.seat, job)
        place.inbox.put(job)

    def _has_place(self, seat: Seat) -> bool:
        return bool(seat.free) or seat.threads < self._places

    def _place_for(self, job: _Job[Any]) -> _Place | None:
        wanted = job.on
        if wanted is not None and wanted in self._seats and not self._is_stuck(wanted):
            fitting = [wanted]
        else:
            fitting = self._seats
        for seat in fitting:
            if seat.free:
                return seat.free.pop()
            if seat.threads < self._places:
                return self._new_place(seat)
        return None

    def _new_place(self, seat: Seat) -> _Place:
        place = _Place(seat)
        seat.threads += 1
        self._begun += 1
        threads.begin(
            f"latentvirt {self._name} {self._begun}",
            partial(self._serve, place),
            lambda error: self._pace.arrive(partial(self._not_begun, place, error)),
        )
        return place

    def _not_begun(self, place: _Place, error: Exception) -> None:
        """Fail the call that a thread was to be begun for; the next one tries again."""
        place.seat.threads -= 1
        job = place.inbox.get_nowait()
        assert job is not None
        if job.timer is None:
            place.seat.overdue -= 1
        else:
            job.timer.cancel()
        if not job.done.called:
            no_thread = HostError(
                f"was not asked to {job.what}: the master can begin no more threads ({error})",
                host=self._name,
                remedy="see how many its user may have (ulimit -u), and how much memory is left",
            )
            job.done.errback(Failure(no_thread))
        self._dispatch()  # else nobody would take up what waits in line

    def _passed_deadline(self, seat: Seat, job: _Job[Any]) -> None:
        job.timer = None
        seat.overdue += 1
        job.done.errback(
            Failure(self._timeout(f"did not answer within {job.deadline_s:g} s when asked to {job.what}"))
        )
        if self._all_stuck:
            self.fail_waiting(self._timeout("does not answer any more: every call to it is overdue"))

    def _serve(self, place: _Place) -> None:
        while (job := place.inbox.get()) is not None:
            result: Any
            try:
                result = job.call(place.seat.connection)
            except BaseException as error:  # whatever it is, it belongs to the caller, not to this thread
                let_go(error)
                result = Failure(error)
            self._pace.arrive(partial(self._returned, place, job, result))
            del job, result

    def _returned(self, place: _Place, job: _Job[Any], result: Any) -> None:
        if job.timer is None:
            place.seat.overdue -= 1
        else:
            job.timer.cancel()
            if not job.done.called:
                self._is_free(place)
                job.done.callback(result)
                return
        # Its caller does not wait any more: the deadline has passed, or the Deferred was cancelled.
        if job.late is not None and not isinstance(result, Failure):
            late, value = job.late, result
            place.inbox.put(
                attrs.evolve(job, call=lambda _: late(value), late=None, done=_ignored(), timer=_never())
            )
            return
        self._is_free(place)

    def _is_free(self, place: _Place) -> None:
        if place.seat in self._seats:
            place.seat.free.append(place)
            if self._waiting:
                self._dispatch()
        else:
            place.inbox.put(None)


def let_go(error: BaseException) -> None:
    """Make an error hold on to nothing that the calls it came through worked with.

    libvirt keeps the reason of a failure per thread, and wipes it out whenever a handle is freed there: one
    that waits in an error's frames for the garbage collector may be freed just when another call has failed,
    and before libvirt-python has asked why.

    Args:
        error: was caught where it leaves the thread.
    """
    passed: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in passed:
        traceback.clear_frames(cause.__traceback__)
        passed.append(cause)
        cause = cause.__cause__ or cause.__context__


def _ignored() -> defer.Deferred[Any]:
    done: defer.Deferred[Any] = defer.Deferred()
    done.addErrback(lambda _: None)
    return done


class _Never:
    """A timer that is never due: undoing a late result has no deadline, its place is lost already."""

    def cancel(self) -> None:
        pass


def _never() -> Any:
    return _Never()
