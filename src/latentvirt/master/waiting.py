"""Waiting that ends in time, whatever becomes of what is waited for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import defer
from twisted.python.failure import Failure


async def at_most(doing: defer.Deferred[Any], seconds: float, clock: Any) -> Any:
    """Wait for something at most so long; it goes on by itself when the time is up.

    Args:
        doing: what is waited for.
        seconds: how long.
        clock: IReactorTime.

    Returns:
        What came of it.

    Raises:
        TimeoutError: Twisted's, when the time is up.
    """
    waiting: defer.Deferred[Any] = defer.Deferred()
    timer = clock.callLater(seconds, waiting.errback, defer.TimeoutError(f"{seconds:g} s are over"))

    def over(result: Any) -> None:
        if timer.active():
            timer.cancel()
            waiting.callback(result)

    doing.addBoth(over)
    return await waiting


async def unless(
    cancel: defer.Deferred[None],
    doing: defer.Deferred[None],
    error: Callable[[], Exception],
    patience_s: float,
    clock: Any,
) -> None:
    """Wait for something, but not for long once it is called off; then it goes on by itself.

    Args:
        cancel: fires when it is called off.
        doing: what is waited for; it is expected to hear of `cancel` by itself.
        error: makes what is raised if it does not end in time after that.
        patience_s: how long it may take to end by itself.
        clock: IReactorTime.
    """
    waiting: defer.Deferred[None] = defer.Deferred()
    timer: Any = None

    def over(result: Any) -> None:
        if not waiting.called:
            if timer is not None:
                timer.cancel()
            waiting.callback(result)

    def give_up() -> None:
        waiting.errback(Failure(error()))

    def called_off(_: Any) -> None:
        nonlocal timer
        if not waiting.called:
            timer = clock.callLater(patience_s, give_up)

    cancel.addCallback(called_off)
    doing.addBoth(over)
    await waiting
