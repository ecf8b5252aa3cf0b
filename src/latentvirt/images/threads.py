"""Work on the master's own files, on daemon threads: a dead file server must not keep it from its exit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet import defer
from twisted.python.failure import Failure

T = TypeVar("T")


def in_thread(reactor: Any, do: Callable[[threading.Event], T]) -> defer.Deferred[T]:
    """Do something that blocks.

    Args:
        reactor: a Twisted reactor (IReactorFromThreads).
        do: runs on a thread of its own; the event that it is given is set when nobody waits any more.

    Returns:
        A Deferred of its result, which may be cancelled.
    """
    given_up = threading.Event()
    done: defer.Deferred[T] = defer.Deferred(lambda _: given_up.set())

    def work() -> None:
        result: Any
        try:
            result = do(given_up)
        except BaseException as error:  # whatever it is, it belongs to the caller, not to this thread
            result = Failure(error)
        reactor.callFromThread(returned, result)

    def returned(result: Any) -> None:
        if not done.called:
            done.callback(result)

    threading.Thread(target=work, name="latentvirt images", daemon=True).start()
    return done
