"""Blocking calls with a deadline, on threads of our own."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet import task
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from latentvirt.errors import HostError, HostTimeout, HostUnreachable
from latentvirt.host.lane import Lane
from reactorthread import Heard

PATIENCE_S = 60


class Reactor(task.Clock):
    """A clock that stands still, and a line of calls from threads that the test takes up one by one."""

    def __init__(self) -> None:
        super().__init__()
        self._line = Heard[Callable[[], object]]()
        self._taken = 0

    def callFromThread(self, call: Callable[..., object], *args: Any) -> None:
        """Put a call in line."""
        self._line(lambda: call(*args))

    def take_up(self, count: int = 1) -> None:
        """Wait for so many calls from threads, and make them."""
        for _ in range(count):
            self._taken += 1
            self._line.until(lambda calls: len(calls) >= self._taken)[self._taken - 1]()
            self.advance(0)


@pytest.fixture
def reactor(monkeypatch: pytest.MonkeyPatch) -> Reactor:
    """A reactor that does what the test says; all that comes back is handed on at once."""
    monkeypatch.setattr("latentvirt.host.pace.BUDGET_S", float("inf"))
    return Reactor()


def _outcome(done: Deferred[Any]) -> Heard[Any]:
    heard: Heard[Any] = Heard()
    done.addBoth(heard)
    return heard


def _fails_with(heard: Heard[Any], kind: type[Exception], words: str = "") -> bool:
    (failure,) = heard.all
    return isinstance(failure, Failure) and bool(failure.check(kind)) and words in str(failure.value)


def test_a_failure_keeps_nothing_that_the_call_worked_with(reactor: Reactor) -> None:
    """A failed call frees its libvirt handles at once: freed later, they would wipe out another's reason."""
    handles: list[weakref.ref[Heard[int]]] = []

    def fail(_: Any) -> None:
        handle: Heard[int] = Heard()
        handles.append(weakref.ref(handle))
        try:
            raise KeyError(handle.all)
        except KeyError as error:
            raise HostUnreachable("away") from error

    heard = _outcome(Lane("the-host", reactor, 1).run_seated("fail", fail, deadline_s=PATIENCE_S))
    reactor.take_up()
    assert _fails_with(heard, HostUnreachable, "away")
    assert handles[0]() is None


def test_a_call_returns_its_result(reactor: Reactor) -> None:
    """A call runs on a daemon thread named after the host, and its result comes back."""
    lane = Lane("the-host", reactor, 1)
    heard = _outcome(lane.run("look", threading.current_thread, deadline_s=1))
    reactor.take_up()
    (thread,) = heard.all
    assert thread.daemon
    assert "the-host" in thread.name
    assert reactor.getDelayedCalls() == []


def test_a_call_raises_what_it_raises(reactor: Reactor) -> None:
    """An exception of a call comes back as it is, SystemExit included, and the thread lives on."""
    lane = Lane("h", reactor, 1)
    for kind in (ValueError, SystemExit):

        def fail(kind: type[BaseException] = kind) -> None:
            raise kind("no")

        heard = _outcome(lane.run("fail", fail, deadline_s=1))
        reactor.take_up()
        assert _fails_with(heard, kind)  # type: ignore[arg-type]
    heard = _outcome(lane.run("work", lambda: 5, deadline_s=1))
    reactor.take_up()
    assert heard.all == [5]


def test_no_more_run_at_a_time_than_there_are_places(reactor: Reactor) -> None:
    """Calls beyond the places wait in line, and run in order."""
    lane = Lane("h", reactor, 2)
    gates = [threading.Event() for _ in range(4)]
    begun: Heard[int] = Heard()

    def work(number: int) -> int:
        begun(number)
        gates[number].wait(PATIENCE_S)
        return number

    outcomes = [_outcome(lane.run("w", lambda n=n: work(n), deadline_s=9)) for n in range(4)]  # type: ignore[misc]
    begun.until(lambda numbers: len(numbers) == 2)
    gates[1].set()
    reactor.take_up()
    begun.until(lambda numbers: len(numbers) == 3)
    assert begun.all[2] == 2
    for gate in gates:
        gate.set()
    while not all(heard.all for heard in outcomes):
        reactor.take_up()
    assert [heard.all for heard in outcomes] == [[0], [1], [2], [3]]


def test_a_call_does_not_wait_behind_those_that_wait_for_another_connection(reactor: Reactor) -> None:
    """What is bound to a busy connection waits by itself; the next call is made where there is room."""
    lane = Lane("h", reactor, 1)
    other = lane.add("other")
    gate = threading.Event()

    def work(connection: Any) -> Any:
        gate.wait(PATIENCE_S)
        return connection

    busy = [_outcome(lane.run_seated("w", work, deadline_s=9, on=lane.first)) for _ in range(2)]
    free = _outcome(lane.run_seated("w", lambda connection: connection, deadline_s=9, on=other))
    reactor.take_up()
    assert (free.all, [heard.all for heard in busy]) == (["other"], [[], []])
    gate.set()
    reactor.take_up(2)
    assert [heard.all for heard in busy] == [[None], [None]]


def test_a_call_for_which_there_is_no_thread_fails_and_the_next_one_tries_again(
    reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the system lets the master begin no more threads, a call says so, and takes no place for good."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("latentvirt h "):
            raise RuntimeError("can't start new thread")
        start(thread)

    lane = Lane("h", reactor, 1)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    both = [_outcome(lane.run("list the domains", lambda: 1, deadline_s=10)) for _ in range(2)]
    while not all(refused.all for refused in both):  # the second waits in line for the first one's thread
        reactor.take_up()
    for refused in both:
        assert _fails_with(refused, HostError, "was not asked to list the domains: the master can begin no")
    monkeypatch.setattr(threading.Thread, "start", start)
    next_one = _outcome(lane.run("list the domains", lambda: 2, deadline_s=10))
    reactor.take_up()
    assert next_one.all == [2]
    assert lane.overdue == 0


@pytest.mark.parametrize(
    ("host", "remedy"),
    [("qemu+ssh://h/system", "whether the network is up"), ("qemu:///embed?root=/x", "access to /dev/kvm")],
)
def test_a_call_that_takes_too_long_is_told_with_what_may_be_done(
    reactor: Reactor, host: str, remedy: str
) -> None:
    """A person whose libvirt is in the master's own process is not sent to look after a network."""
    gate = threading.Event()
    heard = _outcome(Lane(host, reactor, 1).run("create it", gate.wait, deadline_s=3))
    reactor.advance(3)
    assert _fails_with(heard, HostTimeout, remedy)
    gate.set()


def test_waiting_in_line_does_not_count_against_the_deadline(reactor: Reactor) -> None:
    """A call's time begins when a thread takes it up."""
    lane = Lane("h", reactor, 1)
    gate = threading.Event()
    first = _outcome(lane.run("first", lambda: gate.wait(PATIENCE_S), deadline_s=10))
    second = _outcome(lane.run("second", lambda: 2, deadline_s=1))
    reactor.advance(5)
    gate.set()
    reactor.take_up(2)
    assert (first.all, second.all) == ([True], [2])


def test_an_overdue_call_fails_and_its_result_is_undone(reactor: Reactor) -> None:
    """A call that passes its deadline fails with the deadline's name; a late result is handed back."""
    lane = Lane("h", reactor, 2)
    gate = threading.Event()
    undone: Heard[str] = Heard()

    def create() -> str:
        gate.wait(PATIENCE_S)
        return "thing"

    heard = _outcome(lane.run("create it", create, deadline_s=3, late=undone))
    reactor.advance(3)
    assert _fails_with(heard, HostTimeout, "did not answer within 3 s when asked to create it")
    assert lane.overdue == 1
    gate.set()
    reactor.take_up()
    assert undone.until(lambda things: bool(things)) == ["thing"]
    reactor.take_up()
    assert lane.overdue == 0


def test_a_call_that_was_called_off_in_line_is_not_made(reactor: Reactor) -> None:
    """Nothing is asked of a busy host for a build that was stopped before its turn came."""
    lane, go, made = Lane("the-host", reactor, 1), threading.Event(), Heard[str]()
    first = _outcome(lane.run("wait", lambda: go.wait(PATIENCE_S), deadline_s=PATIENCE_S))
    off = lane.run("make a domain", lambda: made("called off"), deadline_s=PATIENCE_S)
    _outcome(off)
    last = _outcome(lane.run("make another", lambda: made("wanted"), deadline_s=PATIENCE_S))
    off.cancel()
    go.set()
    reactor.take_up(2)
    assert (first.all, last.all, made.all) == ([True], [None], ["wanted"])


def test_a_cancelled_calls_result_is_undone(reactor: Reactor) -> None:
    """A call whose caller went away has its result handed back, too."""
    lane = Lane("h", reactor, 1)
    gate = threading.Event()
    undone: Heard[bool] = Heard()
    done = lane.run("create it", lambda: gate.wait(PATIENCE_S), deadline_s=3, late=undone)
    heard = _outcome(done)
    done.cancel()
    assert _fails_with(heard, CancelledError)
    gate.set()
    reactor.take_up()
    assert undone.until(lambda things: bool(things)) == [True]
    reactor.take_up()
    after = _outcome(lane.run("go on", lambda: 1, deadline_s=1))
    reactor.take_up()
    assert after.all == [1]


def test_when_all_are_overdue_the_rest_fail_at_once(reactor: Reactor) -> None:
    """Once every thread is stuck, those in line and those who come fail, until one thread is back."""
    lane = Lane("h", reactor, 1)
    gate = threading.Event()
    stuck = _outcome(lane.run("stick", lambda: gate.wait(PATIENCE_S), deadline_s=1))
    waiting = _outcome(lane.run("wait", lambda: 2, deadline_s=1))
    reactor.advance(1)
    coming = _outcome(lane.run("come", lambda: 3, deadline_s=1))
    assert all(_fails_with(heard, HostTimeout) for heard in (stuck, waiting, coming))
    gate.set()
    reactor.take_up()
    again = _outcome(lane.run("come", lambda: 4, deadline_s=1))
    reactor.take_up()
    assert again.all == [4]


def test_those_in_line_can_be_told_that_the_host_is_gone(reactor: Reactor) -> None:
    """When the connection breaks, calls that no thread has taken up fail at once; others go on."""
    lane = Lane("h", reactor, 1)
    gate = threading.Event()
    running = _outcome(lane.run("run", lambda: gate.wait(PATIENCE_S), deadline_s=9))
    waiting = _outcome(lane.run("wait", lambda: 2, deadline_s=9))
    lane.fail_waiting(HostUnreachable("gone"))
    assert _fails_with(waiting, HostUnreachable, "gone")
    gate.set()
    reactor.take_up()
    assert running.all == [True]
