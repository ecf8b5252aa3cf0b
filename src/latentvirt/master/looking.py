"""Looks at what is in use on hosts that others may use as well: regularly, and when their domains change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet import task

from latentvirt.errors import LatentvirtError
from latentvirt.master.record import HostRecord

if TYPE_CHECKING:
    from latentvirt.master.hub import Hub

LOOK_EVERY_S = 30.0
"""How often it is listed what runs on a host; events tell of most changes before."""

LOOK_SOON_S = 0.5
"""How long after a domain has started somewhere it is looked how large it is; more may follow at once."""


class Looking:
    """See to it that it is known what is in use; there is one of it per hub.

    Args:
        hub: the hub.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._loop = task.LoopingCall(self._look_all)
        self._new: dict[str, set[str]] = {}

    def begin(self) -> None:
        """Begin to look every so often."""
        self._loop.clock = self._hub.master.reactor
        self._loop.start(LOOK_EVERY_S, now=False)

    def end(self) -> None:
        """Look no more."""
        if self._loop.running:
            self._loop.stop()

    def changed(self, uri: str, uuid: str, ended: bool) -> None:
        """Hear that a domain has ended, or started, on a host.

        Args:
            uri: of the host.
            uuid: of the domain; empty if the host is not heard any more.
            ended: whether there may be more room now, rather than less.
        """
        record = self._hub.records[uri]
        if not record.room.shared or not self._hub.running:
            return
        if ended:
            self._hub.wake()
            return
        if uri not in self._new:
            self._new[uri] = set()
            self._hub.master.reactor.callLater(LOOK_SOON_S, self._look_soon, record)
        self._new[uri].add(uuid)

    def _look_soon(self, record: HostRecord) -> None:
        """Look if there is news; a start of ours has looked meanwhile, at what it started as well."""
        new = self._new.pop(record.host.uri)
        if not all(map(record.room.knows, new)):
            self.look(record)

    def _look_all(self) -> None:
        for record in self._hub.records.values():
            if record.resting is None:
                self.look(record)

    def look(self, record: HostRecord) -> None:
        """See in the background what is in use on a host, if others may use it as well."""
        if record.room.shared and self._hub.running:
            self._hub.in_background(self._see(record), f"see what is in use on {record.host.uri}")

    async def _see(self, record: HostRecord) -> None:
        try:
            await record.room.look()
        except LatentvirtError as error:
            self._hub.failed(record, error)
            raise
        self._hub.wake()
