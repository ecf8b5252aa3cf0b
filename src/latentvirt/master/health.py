"""How hosts fare: one that failed rests, and a worker that was refused waits, longer each time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import attrs

from latentvirt.errors import LatentvirtError
from latentvirt.master.record import FIRST_REST_S, HostRecord

logger = logging.getLogger(__name__)

LONGEST_REST_S = 60.0


@attrs.define(eq=False)
class Health:
    """Note what goes well and what does not.

    Args:
        reactor: for pauses (IReactorTime).
        probe: tries a host that has rested.
        wake: lets builds that wait look again.
    """

    reactor: Any
    probe: Callable[[HostRecord], object]
    wake: Callable[[], object]

    def failed(self, record: HostRecord, error: LatentvirtError) -> None:
        """Note that a host failed: it rests, longer each time, and is then tried before a build is."""
        if record.resting is not None:
            return
        record.resting = str(error)
        logger.warning("%s rests for %g s: %s", record.host.uri, record.rest_s, error)
        self.reactor.callLater(record.rest_s, self.probe, record)
        record.rest_s = min(record.rest_s * 2, LONGEST_REST_S)

    def refused(self, record: HostRecord, worker: str) -> None:
        """Note that a host that answers failed a worker's start: that worker waits, longer each time."""
        pause = record.pauses.get(worker, FIRST_REST_S)
        record.held[worker] = self.reactor.seconds() + pause
        record.pauses[worker] = min(pause * 2, LONGEST_REST_S)
        self.reactor.callLater(pause, self.wake)

    def worked(self, record: HostRecord, worker: str) -> None:
        """Note that a worker's start went well on a host."""
        record.rest_s = FIRST_REST_S
        record.held.pop(worker, None)
        record.pauses.pop(worker, None)
