"""What must not end half-way, although who waits for it may be called off at any time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet import defer
from twisted.python.failure import Failure

T = TypeVar("T")


async def unbroken(
    doing: Coroutine[Any, Any, T], *, late: Callable[[T], Coroutine[Any, Any, object]] | None = None
) -> T:
    """Do something to its end; who is called off meanwhile hears of it only then.

    Args:
        doing: does it.
        late: is given what came of it if nobody wants it any more, to undo it; also done to its end.

    Raises:
        CancelledError: it was done, but nobody wants it any more.
    """
    result: list[Any] = []
    task = defer.ensureDeferred(doing)
    task.addBoth(result.append)
    called_off: defer.CancelledError | None = None
    while not result:
        ended: defer.Deferred[None] = defer.Deferred()
        task.addCallback(_tell, ended)
        try:
            await ended
        except defer.CancelledError as error:
            called_off = error
    failed = isinstance(result[0], Failure)
    if called_off is not None:
        if late is not None and not failed:
            await unbroken(late(result[0]))
        raise called_off
    if failed:
        result[0].raiseException()
    value: T = result[0]
    return value


def _tell(_: object, ended: defer.Deferred[None]) -> None:
    if not ended.called:
        ended.callback(None)
