"""The rehearsal of a guest that is to stand by: it runs for a moment, and is paused again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import attrs
from twisted.internet import defer

from latentvirt.livedomain import LiveDomain

T = TypeVar("T")

REHEARSE_S = 60.0
"""How long a guest may take to answer; its helper ends a rehearsal after 20 s."""


@attrs.define(eq=False)
class Rehearsal:
    """Let a thawed, paused guest do once what it will have to do for a build.

    Args:
        live: its domain.
        clock: for durations (IReactorTime).
    """

    live: LiveDomain
    clock: Any
    _replied: defer.Deferred[None] = attrs.field(init=False, factory=defer.Deferred)
    _called_off: bool = attrs.field(init=False, default=False)
    _turn: defer.DeferredLock = attrs.field(init=False, factory=defer.DeferredLock)
    """Whose turn it is to let the domain run, or to pause it."""

    async def go_through(self) -> bool:
        """Go through it, unless it is called off; False if the guest does not answer.

        Raises:
            HostFull: there is no room to let it run.
            HostError: the host failed.
        """
        await self._in_turn(self._begin)
        self._replied.addTimeout(REHEARSE_S, self.clock)
        try:
            await self._replied
        except defer.TimeoutError:
            return self._called_off
        await self._in_turn(self.live.pause)
        return True

    async def _begin(self) -> None:
        await self.live.resume()
        await self.live.listening.ask_to_rehearse()

    def replied(self) -> None:
        """Hear that the guest is through with it, or cannot do it."""
        if not self._replied.called:
            self._replied.callback(None)

    async def call_off(self) -> None:
        """Leave the guest as it is from now on, running or paused: it is needed."""
        await self._turn.acquire()
        self._called_off = True
        self._turn.release()
        self.replied()

    async def _in_turn(self, doing: Callable[[], Awaitable[None]]) -> None:
        await self._turn.acquire()
        try:
            if not self._called_off:
                await doing()
        finally:
            self._turn.release()
