"""Twisted's reactor on a thread of its own for the whole session, so that tests stay plain functions."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from twisted.internet import defer, reactor

T = TypeVar("T")

PATIENCE_S = 60.0

_started = threading.Event()
_lock = threading.Lock()


def start() -> Any:
    """Start the reactor if it does not run yet, and return it."""
    with _lock:
        if not _started.is_set():
            reactor.callWhenRunning(_started.set)
            run = threading.Thread(target=reactor.run, args=(False,), name="reactor", daemon=True)
            run.start()
            _started.wait()
    return reactor


def _call(begin: Callable[[], object]) -> None:
    """Call something on the reactor's thread, after all that has come back from hosts until now."""
    reactor = start()
    reactor.callFromThread(reactor.callLater, 0, begin)


def run(doing: Coroutine[Any, Any, T], timeout: float = PATIENCE_S) -> T:
    """Run a coroutine on the reactor's thread and return what it returns, or raise what it raises."""
    future: Future[T] = Future()

    def begin() -> None:
        defer.ensureDeferred(doing).addCallbacks(
            future.set_result, lambda failure: future.set_exception(failure.value)
        )

    _call(begin)
    return future.result(timeout)


def on_reactor(call: Callable[[], T], timeout: float = PATIENCE_S) -> T:
    """Call something on the reactor's thread and return its result; a Deferred is returned as it is."""
    future: Future[T] = Future()

    def begin() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    _call(begin)
    return future.result(timeout)


class Heard(Generic[T]):
    """Collects what callbacks are told, and waits until something is."""

    def __init__(self) -> None:
        self.all: list[T] = []
        self._queue: queue.Queue[T] = queue.Queue()

    def __call__(self, said: T) -> None:
        """Be told something."""
        self.all.append(said)
        self._queue.put(said)

    def until(self, wanted: Callable[[list[T]], bool], timeout: float = PATIENCE_S) -> list[T]:
        """Wait until what was told so far is as wanted, and return it."""
        while not wanted(list(self.all)):
            try:
                self._queue.get(timeout=timeout)
            except queue.Empty:
                raise AssertionError(f"in {timeout:g} s only this came: {self.all}") from None
        return list(self.all)
