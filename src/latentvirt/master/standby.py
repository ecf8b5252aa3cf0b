"""One VM that stands by for any build that needs one like it, from its making until a build has it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet import defer

from latentvirt.claim import Claim
from latentvirt.errors import LatentvirtError
from latentvirt.guest import Ready
from latentvirt.machine import Machine
from latentvirt.master.record import HostRecord
from latentvirt.planning import Plan

logger = logging.getLogger(__name__)

MAKING_S = 60.0
"""How long a build waits for a standby that is just being made for it."""


@attrs.define(eq=False)
class Standby:
    """Hear what becomes of a machine for as long as no build has it; it may still be in the making.

    Args:
        record: its host.
        plan: what it is.
        claim: its place.
        give_up: called with it when it is of no more use.
        machine: its life; None before that begins.
        is_ready: whether a build can have it.
    """

    record: HostRecord
    plan: Plan
    claim: Claim
    give_up: Callable[[Standby], None]
    machine: Machine | None = None
    is_ready: bool = False
    _waiting: list[defer.Deferred[None]] = attrs.field(init=False, factory=list)

    async def made(self, clock: Any) -> None:
        """Wait until it is made, or cannot be, but not for ever.

        Args:
            clock: IReactorTime.
        """
        made: defer.Deferred[None] = defer.Deferred()
        made.addTimeout(MAKING_S, clock)
        self._waiting.append(made)
        try:
            await made
        except defer.TimeoutError:
            pass

    def tell_made(self) -> None:
        """Tell those who wait for it that it is made, or cannot be."""
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.called:
                waiter.callback(None)

    def progress(self, step: str, seconds: float, note: str) -> None:
        """Pass over it; nobody watches."""

    def tier(self, name: str, why: str) -> None:
        """Pass over it."""

    def console(self, lines: list[str]) -> None:
        """Pass over it."""

    def ready(self, told: Ready) -> None:
        """Pass over it."""

    def failed(self, error: LatentvirtError) -> None:
        """Give it up."""
        logger.warning("%s: a standby is of no more use: %s", self.record.host.uri, error)
        self.give_up(self)

    def host_in_doubt(self, detail: str) -> None:
        """Give it up: nobody can say what became of it."""
        self.give_up(self)
