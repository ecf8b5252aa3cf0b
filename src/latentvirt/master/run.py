"""One start of a worker's VM and what came of it, as the build's page and Buildbot are to see it."""

from __future__ import annotations

from typing import Any

from buildbot.process.results import EXCEPTION, SUCCESS
from twisted.internet import defer
from twisted.python import log

from latentvirt.claim import Claim
from latentvirt.errors import GuestFailed, LatentvirtError
from latentvirt.guest import Ready
from latentvirt.machine import Machine
from latentvirt.master.record import HostRecord
from latentvirt.master.steplog import StepLog

GUEST_PING_S = 4.0
"""How long an attached guest may take to answer when its host's libvirt does not."""

LOOK_S = 2.0
"""How long a host may take to say what became of a VM whose worker is gone."""

LOSS = "VM lost"

UNEXPLAINED = (
    "the worker's connection was lost while its VM ran: the guest restarted, its worker ended, or the "
    "network between failed"
)


class Run:
    """Hear what a machine tells (`machine.Listener`); it lives from a start until its VM is gone.

    Args:
        worker: the LibVirtWorker that it is for.
        record: the host.
        claim: its place.
        steps: the step in the build's page.
        began: when the start began (the reactor's seconds).
        request: number of the build request; None if there is no build.
    """

    def __init__(
        self,
        worker: Any,
        record: HostRecord,
        claim: Claim,
        steps: StepLog,
        began: float,
        request: int | None = None,
    ) -> None:
        self.request = request
        self.record = record
        self.claim = claim
        self.failure: LatentvirtError | None = None
        """Why the VM is of no more use, if it was found so before its worker attached."""
        self._worker = worker
        self._machine: Machine | None = None
        self._steps = steps
        self._began = began
        self.holding: defer.Deferred[None] | None = None
        """Fires when the VM is held for a build that failed on it, or could not be."""
        self._attached = False
        self._tier = ""
        # Builds whose worker's connection was lost, as long as nobody has said why.
        self._orphans: list[int] = []

    @property
    def machine(self) -> Machine:
        """The VM's life."""
        assert self._machine is not None
        return self._machine

    @machine.setter
    def machine(self, machine: Machine) -> None:
        self._machine = machine

    def say(self, line: str) -> None:
        """Add a line to the log of the start."""
        self._steps.progress(line)

    # What the machine tells

    def progress(self, step: str, seconds: float, note: str) -> None:
        """A step of the start is done."""
        self.say(f"{step}: {seconds:.3f} s{' ' + note if note else ''}")

    def tier(self, name: str, why: str) -> None:
        """The start takes this tier."""
        self._tier = name
        self.say(f"tier {name}: {why}")

    def console(self, lines: list[str]) -> None:
        """The guest wrote to its console."""
        self._steps.console(lines)

    def ready(self, told: Ready) -> None:
        """The guest has booted and asks who it is."""
        self.say(f"guest ready after {self._took:.3f} s (helper {told.helper} on {told.system})")

    def failed(self, error: LatentvirtError) -> None:
        """The machine is of no more use: before it attached Buildbot asks us, afterwards we cut the line."""
        if not self._attached:
            self.failure = error
            # Now, not when Buildbot has asked us: who looks at the build's end shall find the reason there.
            self._finish(error)
            return
        self._explain_loss(str(error))
        if self._worker.conn is not None:
            self._worker.conn.loseConnection()

    def host_in_doubt(self, detail: str) -> None:
        """Ask an attached guest itself whether it lives; one that has not attached is given up."""
        if self._worker.conn is None:
            self.machine.lose(detail)
            return

        def silent(_: Any) -> None:
            self.machine.lose(f"{detail}, and the guest does not answer either")

        def answers(_: Any) -> None:
            log.msg(f"latentvirt: {self._worker.name}: {detail}; its guest answers, so the build goes on")

        asked = self._worker.conn.remotePrint("latentvirt asks whether this worker lives")
        asked.addTimeout(GUEST_PING_S, self._worker.master.reactor)
        asked.addCallbacks(answers, silent)

    # What Buildbot tells

    @property
    def was_attached(self) -> bool:
        """Whether builds can have run in the VM."""
        return self._attached

    @property
    def _took(self) -> float:
        return float(self._worker.master.reactor.seconds() - self._began)

    async def attached(self) -> None:
        """The worker's connection is there: the console is free for a person from now on."""
        self._attached = True
        self.say(f"attached after {self._took:.3f} s")
        took = f"attached after {self._took:.1f} s ({self._tier})"
        await self.machine.attached()
        self._steps.finish(SUCCESS, took)

    def detached(self) -> None:
        """The connection is lost: note whose, since what the host says of it may come a moment later."""
        if not self.machine.failed_already:
            self._orphans = self._building()

    async def ended(self) -> None:
        """The VM is about to be ended: say what has not been said."""
        if self.holding is not None:
            await self.holding
        unexplained = UNEXPLAINED
        if self._orphans:
            # libvirt tells of an end late if it was restarted meanwhile; asked, it knows at once.
            looking = defer.ensureDeferred(self.machine.what_became())
            looking.addTimeout(LOOK_S, self._worker.master.reactor)
            try:
                unexplained = await looking or UNEXPLAINED
            except defer.TimeoutError:
                pass  # a host that does not answer has been told of elsewhere
        self._finish(self.failure or GuestFailed("the worker did not attach"))
        if self._orphans:
            host = self.record.host.uri
            self._explain_loss(f"[host {host}, domain {self.machine.name}] {unexplained}")

    def _finish(self, error: LatentvirtError) -> None:
        self.console(self.machine.rest_of_console())
        self._steps.finish(EXCEPTION, str(error))

    def _explain_loss(self, why: str) -> None:
        """Say in the page of each build that was lost what became of its VM."""
        builds, self._orphans = {*self._orphans, *self._building()}, []
        for build in builds:
            steps = StepLog(self._worker.master, build, LOSS)
            steps.console(why.split("\n"))
            steps.finish(EXCEPTION, why)

    def _building(self) -> list[int]:
        return [
            build.buildid
            for builder in self._worker.botmaster.builders.values()
            for build in builder.building
            if build.workerforbuilder is not None and build.workerforbuilder.worker is self._worker
        ]
