"""What earlier processes left on hosts is removed, and our directories there stay claimed: every so often."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from twisted.internet import task

from latentvirt.errors import ImageError
from latentvirt.master.record import HostRecord
from latentvirt.storage import Storage
from latentvirt.sweep import sweep

if TYPE_CHECKING:
    from latentvirt.master.hub import Hub

logger = logging.getLogger(__name__)

SWEEP_EVERY_S = 600
LEASE_S = 3600


class Sweeping:
    """Sweep hosts; there is one of it per hub.

    Args:
        hub: the hub.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._loop = task.LoopingCall(self._sweep_all)

    def begin(self) -> None:
        """Begin to sweep every so often."""
        self._loop.clock = self._hub.master.reactor
        self._loop.start(SWEEP_EVERY_S, now=False)

    def end(self) -> None:
        """Sweep no more."""
        if self._loop.running:
            self._loop.stop()

    def _sweep_all(self) -> None:
        for record in self._hub.records.values():
            if record.resting is None:
                self.soon(record)

    def soon(self, record: HostRecord) -> None:
        """Sweep a host in the background."""
        self._hub.in_background(self.sweep(record), f"sweep {record.host.uri}")

    async def sweep(self, record: HostRecord) -> None:
        """Remove what is left on a host of our earlier starts, but for what somebody holds.

        Raises:
            HostError: the host did not let us; the next sweep goes on there.
        """
        hub = self._hub
        await hub.ready()
        if not hub.running:
            return
        await hub.use_known_folders(record)
        await hub.holds.look(record)
        swept = await sweep(record.host, hub.owner, list(record.storages), hub.is_living)
        if swept:
            logger.warning("%s: removed what was left there: %s", record.host.uri, swept)
        for storage in list(record.storages.values()):
            try:
                await self.renew(storage)
            except ImageError as error:
                logger.warning("%s", error)
        hub.standbys.tend(record)

    async def renew(self, storage: Storage) -> None:
        """Claim a directory of ours for another while."""
        await storage.prepare()
        await storage.renew_lease(int(time.time()) + LEASE_S)
