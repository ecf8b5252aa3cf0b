"""What is under way for one machine: told step by step, called off between steps, undone, waited for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import attrs
from twisted.internet import defer

from latentvirt.errors import LatentvirtError, StartCancelled

T = TypeVar("T")


@attrs.define(eq=False)
class Undertaking:
    """Do what takes several steps on a host.

    Args:
        told: called with a step's name, its seconds, and a note.
        undo: removes what was done, after something failed.
        clock: for durations (IReactorTime).
    """

    told: Callable[[str, float, str], object]
    undo: Callable[[], Awaitable[None]]
    clock: Any
    why_cancelled: str | None = attrs.field(init=False, default=None)
    _under_way: int = attrs.field(init=False, default=0)
    _waiting: list[defer.Deferred[None]] = attrs.field(init=False, factory=list)

    def cancel(self, why: str) -> None:
        """Let what is under way stop at its next step.

        Args:
            why: for the error that it then raises.
        """
        if self.why_cancelled is None:
            self.why_cancelled = why

    async def step(self, name: str, doing: Awaitable[T], note: str = "") -> T:
        """Do one step and tell how long it took.

        Raises:
            StartCancelled: the whole was called off meanwhile.
        """
        began = self.clock.seconds()
        result = await doing
        self.told(name, self.clock.seconds() - began, note)
        if self.why_cancelled is not None:
            raise StartCancelled(self.why_cancelled)
        return result

    async def do(self, doing: Coroutine[Any, Any, T]) -> T:
        """Do all steps, or undo what was done and say why.

        Raises:
            LatentvirtError: what went wrong; nothing is left, or a later sweep sees to it.
        """
        self._under_way += 1
        try:
            if self.why_cancelled is not None:
                doing.close()
                raise StartCancelled(self.why_cancelled)
            return await doing
        except BaseException:
            try:
                await self.undo()
            except LatentvirtError:
                # The host does not let us clean up now; the sweep knows this start by its names.
                pass
            raise
        finally:
            self._under_way -= 1
            if not self._under_way:
                waiting, self._waiting = self._waiting, []
                for waiter in waiting:
                    waiter.callback(None)

    async def over(self) -> None:
        """Wait until nothing is under way."""
        if self._under_way:
            waiter: defer.Deferred[None] = defer.Deferred()
            self._waiting.append(waiter)
            await waiter
