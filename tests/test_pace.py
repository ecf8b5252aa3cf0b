"""What comes back from many hosts at once does not keep the reactor from other things."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from twisted.internet import defer

from latentvirt.host.pace import BUDGET_S, WINDOW_S, Pace


class Turns:
    """A reactor whose turns the test makes."""

    def __init__(self) -> None:
        self._from_threads: list[Callable[[], object]] = []
        self._timed: list[Callable[[], object]] = []

    def callFromThread(self, call: Callable[[], object]) -> None:
        """Put a call into the next turn, before what is timed."""
        self._from_threads.append(call)

    def callLater(self, seconds: float, call: Callable[[], object]) -> None:
        """Put a call into the next turn, or into this one if it has not come to what is timed."""
        assert seconds == 0
        self._timed.append(call)

    @property
    def waiting(self) -> list[Callable[[], object]]:
        """What the next turn will make."""
        return self._from_threads + self._timed

    def turn(self) -> None:
        """Make one, in the order in which Twisted does."""
        calls, self._from_threads = self._from_threads, []
        for call in calls:
            call()
        calls, self._timed = self._timed, []
        for call in calls:
            call()


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which passes only as the test says."""
    now = [100.0]
    monkeypatch.setattr("latentvirt.host.pace.time.perf_counter", lambda: now[0])
    return now


def test_little_is_handed_on_at_once(time: list[float]) -> None:
    """What takes no long is done before the reactor turns to anything else."""
    pace, done = Pace(Turns()), []
    for number in range(100):
        pace.hand_on(lambda number=number: done.append(number))  # type: ignore[misc]
    assert done == list(range(100))


def test_much_is_handed_on_in_turns_and_in_order(time: list[float]) -> None:
    """What takes long is done a little in each of the reactor's turns, in the order in which it came."""
    turns = Turns()
    pace, done = Pace(turns), []

    def work(number: int) -> None:
        done.append(number)
        time[0] += 0.002

    for number in range(7):
        pace.hand_on(lambda number=number: work(number))  # type: ignore[misc]
    progress = [len(done)]
    for _ in range(4):
        turns.turn()
        progress.append(len(done))
    assert progress == [2, 4, 6, 7, 7]
    assert done == list(range(7))


def test_who_waited_for_the_same_goes_on_in_turns(time: list[float]) -> None:
    """Starts that have waited together for one answer do not all go on in the same moment when it comes."""
    turns = Turns()
    pace, done = Pace(turns), []
    answers: list[defer.Deferred[None]] = []

    async def start(number: int) -> None:
        answers.append(defer.Deferred())
        await answers[-1]
        await pace.turn()
        done.append(number)
        time[0] += 0.002

    for number in range(6):
        defer.ensureDeferred(start(number))
    for one in answers:
        one.callback(None)
    progress = []
    for _ in range(3):
        turns.turn()
        progress.append(len(done))
    assert progress == [2, 4, 6]
    assert done == list(range(6))


def test_who_waits_for_a_turn_goes_on_at_once_while_little_is_done(time: list[float]) -> None:
    """What comes back goes on without a pause, until it has taken long; then others have their turn first."""
    turns = Turns()
    pace, done = Pace(turns), []

    async def go() -> None:
        for number in range(6):
            await pace.turn()
            done.append(number)
            time[0] += 0.002

    pace.hand_on(lambda: defer.ensureDeferred(go()))
    progress = [len(done)]
    for _ in range(2):
        turns.turn()
        progress.append(len(done))
    assert progress == [2, 4, 6]


def test_what_is_due_comes_before_what_comes_from_threads(time: list[float]) -> None:
    """A timer that is due, of whomever, does not wait for what has come back meanwhile."""
    turns = Turns()
    pace, done = Pace(turns), []
    pace.arrive(lambda: done.append("came back"))
    turns.callLater(0, lambda: done.append("due"))
    turns.turn()
    assert done == ["due", "came back"]


def test_what_is_for_leisure_comes_after_what_is_waited_for(time: list[float]) -> None:
    """What nobody waits for yet lets what comes back meanwhile go first."""
    turns = Turns()
    pace, done = Pace(turns), []

    async def at_leisure() -> None:
        await pace.leisure()
        done.append("at leisure")

    time[0] += WINDOW_S
    pace.hand_on(lambda: defer.ensureDeferred(_other_leisure(pace)))
    turns.turn()
    defer.ensureDeferred(at_leisure())
    pace.arrive(lambda: done.append("came back"))
    turns.turn()
    assert done == ["came back", "at leisure"]


async def _other_leisure(pace: Pace) -> None:
    await pace.leisure()


def test_what_is_for_leisure_has_its_turn_while_there_is_none(time: list[float]) -> None:
    """Where there is always something else to do, a little is done of what can wait, all the same."""
    turns = Turns()
    pace, waiting = Pace(turns), [0]
    done: list[int] = []

    def work() -> None:
        time[0] += 2 * BUDGET_S
        pace.arrive(work)

    async def at_leisure(number: int) -> None:
        await pace.leisure()
        done.append(number)

    for number in range(3):
        defer.ensureDeferred(at_leisure(number))
    pace.arrive(work)
    for _ in range(12):
        turns.turn()
        waiting.append(len(done))
    assert done == [0, 1, 2]
    assert max(later - before for before, later in itertools.pairwise(waiting)) == 1


def test_what_fails_does_not_stop_the_rest(time: list[float]) -> None:
    """What comes after something that raises is handed on all the same."""
    turns = Turns()
    pace, done = Pace(turns), []

    def fail() -> None:
        time[0] += 0.005
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pace.hand_on(fail)
    pace.hand_on(fail)
    pace.hand_on(lambda: done.append("next"))
    with pytest.raises(ZeroDivisionError):
        turns.turn()
    turns.turn()
    assert done == ["next"]


def test_what_is_handed_on_from_within_comes_after_what_waits(time: list[float]) -> None:
    """What one thing leads to comes after it, and is not lost."""
    pace, done = Pace(Turns()), []

    def first() -> None:
        pace.hand_on(lambda: done.append("second"))
        done.append("first")

    pace.hand_on(first)
    assert done == ["first", "second"]


def test_what_comes_from_threads_wakes_the_reactor_once(time: list[float]) -> None:
    """Results of one moment are handed on in one turn, in order; what comes later wakes it again."""
    turns = Turns()
    pace, done = Pace(turns), []
    for number in range(100):
        pace.arrive(lambda number=number: done.append(number))  # type: ignore[misc]
    assert (len(turns.waiting), done) == (1, [])
    turns.turn()
    assert done == list(range(100))
    pace.arrive(lambda: done.append("late"))
    turns.turn()
    assert done[-1] == "late"
