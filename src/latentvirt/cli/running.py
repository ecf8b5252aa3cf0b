"""Running what a command does to its end, also when it is broken off."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from twisted.internet import defer, threads
from twisted.python.failure import Failure

from latentvirt.cli.refusing import EXIT_INTERRUPTED, signals_given_back

T = TypeVar("T")


def run_to_end(work: Callable[[], Awaitable[T]]) -> T:
    """Do what takes long; Ctrl-C or SIGTERM cancels it, and waits until it has cleared up after itself.

    Args:
        work: does it; a process can do this once, unless a reactor runs already, on another thread.

    Raises:
        SystemExit: it was broken off.
    """
    from twisted.internet import reactor

    loop: Any = reactor
    if loop.running:
        return threads.blockingCallFromThread(loop, lambda: defer.ensureDeferred(work()))  # type: ignore[arg-type]
    outcome: list[Any] = []

    def start() -> None:
        doing: defer.Deferred[Any] = defer.ensureDeferred(work())  # type: ignore[arg-type]
        ended: defer.Deferred[None] = defer.Deferred()
        stopping: list[bool] = []

        def over(result: Any) -> None:
            outcome.append(result)
            if not stopping:
                loop.stop()
            ended.callback(None)

        def stop() -> defer.Deferred[None] | None:
            stopping.append(True)
            if outcome:
                return None
            doing.cancel()
            return ended

        doing.addBoth(over)
        loop.addSystemEventTrigger("before", "shutdown", stop)

    loop.callWhenRunning(start)
    with signals_given_back():
        loop.run()
    if isinstance(outcome[0], Failure):
        if isinstance(outcome[0].value, defer.CancelledError):
            sys.exit(EXIT_INTERRUPTED)
        outcome[0].raiseException()
    result: T = outcome[0]
    return result
