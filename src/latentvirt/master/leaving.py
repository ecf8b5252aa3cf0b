"""What a stopping master does on each host: ends what is being ended, tidies up, and closes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from twisted.internet import defer

from latentvirt.errors import LatentvirtError
from latentvirt.master.record import HostRecord

if TYPE_CHECKING:
    from latentvirt.master.hub import Hub

logger = logging.getLogger(__name__)

FAREWELL_S = 3.0
"""How long a host may take to let a stopping master tidy up; what is left then, the next sweep removes."""


async def leave(hub: Hub, record: HostRecord) -> None:
    """Leave a host; one that is not known to answer is not waited for.

    Args:
        hub: the hub.
        record: the host.
    """
    if record.resting is None and record.host.is_open:
        tidy = defer.ensureDeferred(_tidy(hub, record))
        tidy.addTimeout(FAREWELL_S, hub.master.reactor)
        try:
            await tidy
        except (LatentvirtError, defer.TimeoutError) as error:
            why = f"not done within {FAREWELL_S:g} s" if isinstance(error, defer.TimeoutError) else error
            logger.warning("%s: could not tidy up, the next start does: %s", record.host.uri, why)
    await record.host.close()


async def _tidy(hub: Hub, record: HostRecord) -> None:
    await hub.standbys.end_all(record)
    await defer.gatherResults([claim.gone() for claim in record.claims if claim.ending])
    if record.claims:
        return
    for folder, storage in record.storages.items():
        # What is frozen waits for the master's return.
        if (await hub.frozen(record, folder)).is_empty:
            await storage.remove()
