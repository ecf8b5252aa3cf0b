"""Looks at what is in use on hosts that others may use as well: regularly, and when their domains change."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from twisted.internet import task

from latentvirt.errors import LatentvirtError
from latentvirt.host import Change
from latentvirt.master.record import HostRecord

if TYPE_CHECKING:
    from latentvirt.master.hub import Hub

LOOK_EVERY_S = 30.0
"""How often it is listed what runs on a host; events tell of most changes before."""

LOOK_AGAIN_S = 0.5
"""How long after a connection broke it is looked anew: a libvirtd that restarts is away for a moment."""


class Looking:
    """See to it that it is known what is in use; there is one of it per hub.

    Args:
        hub: the hub.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._loop = task.LoopingCall(self._look_all)

    def begin(self) -> None:
        """Begin to look every so often."""
        self._loop.clock = self._hub.master.reactor
        self._loop.start(LOOK_EVERY_S, now=False)

    def end(self) -> None:
        """Look no more."""
        if self._loop.running:
            self._loop.stop()

    def changed(self, uri: str, change: Change) -> None:
        """Hear what has happened to the room on a host.

        Args:
            uri: of the host.
            change: what.
        """
        record = self._hub.records[uri]
        if not record.room.shared or not self._hub.running:
            return
        if change is Change.UNHEARD:
            self._hub.master.reactor.callLater(LOOK_AGAIN_S, self.look, record)
        elif change is not Change.BEGAN:
            self._hub.wake()
        elif not record.room.will_look:
            self._in_background(record, self._see(record))

    def _look_all(self) -> None:
        for record in self._hub.records.values():
            if record.resting is None:
                self.look(record)

    def look(self, record: HostRecord) -> None:
        """See in the background what is in use on a host, if others may use it as well."""
        if record.room.shared and self._hub.running:
            self._in_background(record, self._see_and_wake(record))

    def _in_background(self, record: HostRecord, seeing: Coroutine[Any, Any, None]) -> None:
        self._hub.in_background(seeing, f"see what is in use on {record.host.uri}")

    async def _see_and_wake(self, record: HostRecord) -> None:
        await self._see(record)
        self._hub.wake()

    async def _see(self, record: HostRecord) -> None:
        try:
            await record.room.look()
        except LatentvirtError as error:
            self._hub.failed(record, error)
            raise
