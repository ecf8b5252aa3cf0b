"""`hold_on_failure`: the VM of a build that failed is held, and the build's page says how to get in."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

from buildbot.process.results import EXCEPTION, FAILURE, SUCCESS
from buildbot.worker.latent import AbstractLatentWorker
from twisted.internet import defer

from latentvirt.errors import LatentvirtError
from latentvirt.hold import Hold, moment
from latentvirt.master.arguments import Arguments
from latentvirt.master.run import Run
from latentvirt.master.steplog import StepLog

logger = logging.getLogger(__name__)

STEP = "hold VM"

FAILED = (FAILURE, EXCEPTION)
"""A build that is tried again, or was cancelled, did not fail."""


class HoldsOnFailure(AbstractLatentWorker):
    """The part of `LibVirtWorker` that sees how a build ended."""

    _run: Run | None

    @property
    def _arguments(self) -> Arguments | None:
        raise NotImplementedError

    def buildFinished(self, wfb: Any) -> Any:
        """Note that a build is over, before Buildbot stops its VM; part of Buildbot's contract."""
        run, arguments = self._run, self._arguments
        if run is not None and run.was_attached and arguments is not None and arguments.hold_on_failure_s:
            for build in _failed_on(wfb):
                run.holding = defer.ensureDeferred(self._hold(run, build, arguments.hold_on_failure_s))
        return super().buildFinished(wfb)

    async def _hold(self, run: Run, build: Any, seconds: int) -> None:
        name, uri = run.machine.name, run.record.host.uri
        wanted = Hold(
            until=int(time.time()) + seconds,
            by=f"worker {self.name}",
            why=f"build {build.number} of {build.builder.name} failed",
        )
        steps = StepLog(self.master, build.buildid, STEP)
        try:
            hold = await run.machine.hold_until(wanted)
        except LatentvirtError as error:
            logger.warning("%s on %s could not be held: %s", name, uri, error)
            steps.finish(EXCEPTION, f"the VM could not be held: {error}")
            return
        steps.progress(f"the VM {name} on {uri} is {hold}")
        for what, command in (("its console", "console"), ("a shell in it", "ssh"), ("let it go", "release")):
            steps.progress(f"{what}: latentvirt vm {command} {name} -c '{uri}'")
        if run.record.connection.is_embed:
            steps.progress(
                "this libvirt runs inside the master: these commands reach it while no master runs"
            )
        steps.finish(SUCCESS, f"held until {moment(hold.until)}")


def _failed_on(wfb: Any) -> Iterator[Any]:
    """List the builds that just ended in a failure on a worker for a builder."""
    for build in wfb.builder.building if wfb.builder is not None else ():
        if build.workerforbuilder is wfb and build.results in FAILED:
            yield build
