"""How hosts fare: one that failed rests, one where starts fail far too often is put into quarantine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from latentvirt.errors import LatentvirtError
from latentvirt.master.record import FIRST_REST_S, HostRecord

logger = logging.getLogger(__name__)

REST_GROWTH = 1.5
"""How many times as long as the last one a host's next rest is.

Its return is noticed within half as long as it was away.
"""

LONGEST_REST_S = 30.0

REFUSAL_GROWTH = 2.0
"""How many times as long a worker waits after each further refusal by a host that answers."""

LONGEST_REFUSAL_S = 60.0

LEAST_FAILURES = 5
"""How many of a host's remembered starts must have failed before it is put into quarantine."""

FAILURE_RATE = 0.5
"""Which part of a host's remembered starts must have failed."""

TIMES_WORSE = 3.0
"""How many times as often as elsewhere they must fail: what fails everywhere is no host's fault."""

QUARANTINE_S = 1800.0


@attrs.define(eq=False)
class Health:
    """Note what goes well and what does not.

    Args:
        reactor: for pauses (IReactorTime).
        probe: tries a host that has rested.
        wake: lets builds that wait look again.
        records: all hosts.
    """

    reactor: Any
    probe: Callable[[HostRecord], object]
    wake: Callable[[], object]
    records: Sequence[HostRecord]

    def failed(self, record: HostRecord, error: LatentvirtError) -> None:
        """Note that a host failed: it rests, longer each time, and is then tried before a build is."""
        record.last_error = str(error)
        if record.resting is not None:
            return
        record.resting = str(error)
        logger.warning("%s rests for %g s: %s", record.host.uri, record.rest_s, error)
        self.reactor.callLater(record.rest_s, self.probe, record)
        record.rest_s = min(record.rest_s * REST_GROWTH, LONGEST_REST_S)

    def refused(self, record: HostRecord, worker: str, error: LatentvirtError) -> None:
        """Note that a host that answers failed a worker's start: that worker waits, longer each time."""
        record.last_error = str(error)
        pause = record.pauses.get(worker, FIRST_REST_S)
        record.held[worker] = self.reactor.seconds() + pause
        record.pauses[worker] = min(pause * REFUSAL_GROWTH, LONGEST_REFUSAL_S)
        self.reactor.callLater(pause, self.wake)

    def worked(self, record: HostRecord, worker: str) -> None:
        """Note that a worker's start went well on a host."""
        record.rest_s = FIRST_REST_S
        record.held.pop(worker, None)
        record.pauses.pop(worker, None)

    def attached(self, record: HostRecord) -> None:
        """Note that a guest on a host attached: all that a start is for."""
        record.outcomes.append(True)

    def came_to_nothing(self, record: HostRecord, error: LatentvirtError) -> None:
        """Note that a start on a host, or its guest, failed; too often, and the host is quarantined."""
        record.outcomes.append(False)
        failures = record.outcomes.count(False)
        rate = failures / len(record.outcomes)
        others = [one for one in self.records if one is not record and one.quarantined is None]
        if not others or failures < LEAST_FAILURES or rate < FAILURE_RATE or record.quarantined is not None:
            return
        elsewhere = [outcome for one in others for outcome in one.outcomes]
        usual = elsewhere.count(False) / len(elsewhere) if elsewhere else 0.0
        if rate < TIMES_WORSE * usual:
            return
        record.quarantined = (
            f"{failures} of its last {len(record.outcomes)} starts failed, {usual:.0%} elsewhere; "
            f"the last one: {error.what}"
        )
        logger.error("%s is in quarantine for %g s: %s", record.host.uri, QUARANTINE_S, record.quarantined)
        self.reactor.callLater(QUARANTINE_S, self.release, record)

    def release(self, record: HostRecord) -> None:
        """Let a host out of quarantine; what was remembered of its starts is forgotten."""
        if record.quarantined is not None:
            record.quarantined = None
            record.outcomes.clear()
            logger.warning("%s is out of quarantine", record.host.uri)
            self.wake()
