"""Blocking calls to one host, each with a deadline, on a bounded number of daemon threads of its own.

The reactor's thread pool is not used: a call that never returns would cost every user of the pool a place,
and the master its exit. Here it costs one host one place.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import attrs
from twisted.internet import defer
from twisted.python.failure import Failure

from latentvirt.errors import HostTimeout

T = TypeVar("T")


@attrs.define(eq=False)
class _Job(Generic[T]):
    what: str
    call: Callable[[], T]
    deadline_s: float
    done: defer.Deferred[T]
    late: Callable[[T], object] | None
    timer: Any = None


@attrs.define(eq=False)
class _Place:
    """One thread and the line to it; a job is put there only when the thread is free."""

    inbox: SimpleQueue[_Job[Any]] = attrs.field(factory=SimpleQueue)


class Lane:
    """Run blocking calls to one host; it lives as long as its host.

    All methods are for the reactor's thread.

    Args:
        name: of the host, for messages and thread names.
        reactor: a Twisted reactor (IReactorTime, IReactorFromThreads).
        places: how many calls may be under way at a time.
    """

    def __init__(self, name: str, reactor: Any, places: int) -> None:
        self._name = name
        self._reactor = reactor
        self._places = places
        self._threads = 0
        self._free: list[_Place] = []
        self._waiting: deque[_Job[Any]] = deque()
        self._overdue = 0

    @property
    def overdue(self) -> int:
        """How many calls have passed their deadline and not come back."""
        return self._overdue

    def run(
        self,
        what: str,
        call: Callable[[], T],
        *,
        deadline_s: float,
        late: Callable[[T], object] | None = None,
    ) -> defer.Deferred[T]:
        """Run a call on a thread of ours.

        Args:
            what: what is being tried, for messages.
            call: runs on the thread.
            deadline_s: seconds from when a thread takes the call up.
            late: is given, in the thread, a result that comes after the deadline, to undo it.

        Returns:
            A Deferred of the call's result; it fails with what the call raises, or with HostTimeout.
        """
        job: _Job[T] = _Job(what, call, deadline_s, defer.Deferred(), late)
        if self._overdue >= self._places:
            job.done.errback(
                Failure(
                    self._timeout(
                        f"was not asked to {what}: {self._places} earlier calls to it have not come back"
                    )
                )
            )
            return job.done
        self._waiting.append(job)
        self._dispatch()
        return job.done

    def fail_waiting(self, reason: Exception) -> None:
        """Fail the calls that no thread has taken up yet, because the host is known to be gone."""
        waiting, self._waiting = self._waiting, deque()
        for job in waiting:
            job.done.errback(Failure(reason))

    def _timeout(self, what: str) -> HostTimeout:
        return HostTimeout(
            what,
            host=self._name,
            remedy="see whether libvirt answers there (virsh -c URI list), and whether the network is up",
        )

    def _dispatch(self) -> None:
        while self._waiting and (self._free or self._threads < self._places):
            place = self._free.pop() if self._free else self._new_place()
            job = self._waiting.popleft()
            job.timer = self._reactor.callLater(job.deadline_s, self._passed_deadline, job)
            place.inbox.put(job)

    def _new_place(self) -> _Place:
        place = _Place()
        self._threads += 1
        threading.Thread(
            target=self._serve, args=(place,), name=f"latentvirt {self._name} {self._threads}", daemon=True
        ).start()
        return place

    def _passed_deadline(self, job: _Job[Any]) -> None:
        job.timer = None
        self._overdue += 1
        job.done.errback(
            Failure(self._timeout(f"did not answer within {job.deadline_s:g} s when asked to {job.what}"))
        )
        if self._overdue >= self._places:
            self.fail_waiting(self._timeout("does not answer any more: every call to it is overdue"))

    def _serve(self, place: _Place) -> None:
        while True:
            job = place.inbox.get()
            result: Any
            try:
                result = job.call()
            except BaseException as error:  # whatever it is, it belongs to the caller, not to this thread
                result = Failure(error)
            self._reactor.callFromThread(self._returned, place, job, result)
            del job, result

    def _returned(self, place: _Place, job: _Job[Any], result: Any) -> None:
        if job.timer is None:
            self._overdue -= 1
        else:
            job.timer.cancel()
            if not job.done.called:
                self._free.append(place)
                self._dispatch()
                job.done.callback(result)
                return
        # Its caller does not wait any more: the deadline has passed, or the Deferred was cancelled.
        if job.late is not None and not isinstance(result, Failure):
            late, value = job.late, result
            place.inbox.put(
                attrs.evolve(job, call=lambda: late(value), late=None, done=_ignored(), timer=_never())
            )
            return
        self._free.append(place)
        self._dispatch()


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
