"""One start of a worker's VM: from a build's properties to a guest that runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import attrs
from twisted.internet import defer

from latentvirt.describing import settled
from latentvirt.errors import (
    ForeignDomain,
    HostFull,
    HostUnreachable,
    ImageError,
    ImpossibleWish,
    LatentvirtError,
    Refused,
    StartCancelled,
    TooManyTries,
)
from latentvirt.guestowner import Identify
from latentvirt.machine import Machine
from latentvirt.master.hub import Hub
from latentvirt.master.kinds import like
from latentvirt.master.password import PasswordGate
from latentvirt.master.placing import Need
from latentvirt.master.record import HostRecord
from latentvirt.master.room import room_for
from latentvirt.master.run import Run
from latentvirt.master.steplog import StepLog
from latentvirt.master.tries import TRIES_OF_A_BUILD
from latentvirt.planning import Plan, plan
from latentvirt.spec import MachineSpec

ELSEWHERE = (ForeignDomain, HostFull, ImageError, Refused)
"""What need not be so on another host: it may have room, or the image."""

CANCELLED = "the start was cancelled"


def called_off(took: float, missing_timeout: float | None) -> StartCancelled:
    """Say why a start came to nothing that does not end by itself.

    Args:
        took: seconds since it began.
        missing_timeout: as Buildbot's argument.
    """
    if missing_timeout and took >= missing_timeout:
        return StartCancelled(
            f"the worker was not attached within missing_timeout={missing_timeout:g} s, and its VM does not "
            "run yet",
            remedy="look at the last line above: that is what it waits for",
        )
    return StartCancelled("the start was called off, and what it waits for takes its time to end")


@attrs.define(eq=False)
class Starting:
    """Start a VM for a build, or go on with one that stands by.

    Args:
        worker: the LibVirtWorker that it is for.
        hub: the master's hub.
        gate: the worker's password.
        identify: says who the guest is to be.
        build: the build; None if there is none.
        steps: the step in the build's page.
        cancel: fires when the start is called off.
        adopt: called with the run as soon as it has a place and a machine.
        note_host: called with what a host did wrong.
        forget: called with a run that came to nothing.
    """

    worker: Any
    hub: Hub
    gate: PasswordGate
    identify: Identify
    build: Any
    steps: StepLog
    cancel: defer.Deferred[None]
    adopt: Callable[[Run], None]
    note_host: Callable[[HostRecord, LatentvirtError], None]
    forget: Callable[[Run], None]

    async def go(self) -> None:
        """Start it.

        Raises:
            LatentvirtError: what went wrong; whatever there is of a VM is being removed.
        """
        await self.hub.ready()
        self._check_wanted()
        self._count_try()
        began = self.worker.master.reactor.seconds()
        need: Need = await self.worker.renderWorkerPropsOnStart(self.build)
        self._check_possible(need)
        try:
            await self._start_somewhere(need, began)
        finally:
            self.hub.placing.over(need)

    def _check_possible(self, need: Need) -> None:
        impossible = self.hub.placing.impossible(need)
        if impossible is not None:
            raise ImpossibleWish(impossible, remedy="ask for less, or add a host that has it")

    async def _start_somewhere(self, need: Need, began: float) -> None:
        came_to_nothing: dict[str, LatentvirtError] = {}
        while True:
            record = self.hub.placing.take(need, came_to_nothing)
            if record is None:
                self._tell_no_room(came_to_nothing)
            try:
                await self._start_on(record, need, began)
                break
            except LatentvirtError as error:
                if isinstance(error, HostFull):
                    self.hub.holds.look_again(record)
                if error.host in ("", record.host.uri):  # or it is the fault of the host that has the image
                    self.note_host(record, error)
                if need.hosts.is_one and isinstance(error, HostFull):
                    self.hub.tries.take_back(self._request)
                if need.hosts.is_one or not (error.fault == "host" or isinstance(error, ELSEWHERE)):
                    raise
                if isinstance(error, ELSEWHERE) and not isinstance(error, HostFull):
                    self.hub.health.refused(record, self.worker.name, error)
                came_to_nothing[record.host.uri] = error
                self.steps.progress(f"{error}\nlooking for another host")
        self.hub.health.worked(record, self.worker.name)

    def _tell_no_room(self, came_to_nothing: dict[str, LatentvirtError]) -> NoReturn:
        """Give the build back to Buildbot's queue, with what went wrong last."""
        if all(isinstance(error, HostFull) for error in came_to_nothing.values()):
            self.hub.tries.take_back(self._request)
        raise next(reversed(came_to_nothing.values()), None) or HostFull(
            "no host has room for this VM now; the build waits for its turn"
        )

    async def _start_on(self, record: HostRecord, need: Need, began: float) -> None:
        planned = await self._plan(record, need.spec)
        self._mind_size(record, need, planned)
        places, say = self.hub.places, self.steps.progress
        claim, standby = await places.claim(record, need, planned, say)
        while True:
            run = Run(self.worker, record, claim, self.steps, began, self._request)
            if await self._start(run, planned, standby):
                return
            claim, standby = await places.claim_another(record, need, planned, say, claim)

    def _mind_size(self, record: HostRecord, need: Need, planned: Plan) -> None:
        """See to it that there is room for a domain whose size only its host has told."""
        if need.spec.kind != "auto":
            return
        self.hub.placing.learn(need, room_for(planned))
        self._check_possible(need)
        if not self.hub.placing.has_room(need, record):
            raise HostFull(
                "there is no room now for a domain of its size; the build waits for its turn",
                host=record.host.uri,
            )

    async def _plan(self, record: HostRecord, asked: MachineSpec) -> Plan:
        spec = await settled(record.host, await self.hub.with_image(record, asked, self.steps.progress))
        storage = None
        if spec.folder is not None and spec.proven:
            storage = (await self.hub.frozen(record, spec.folder)).storage
        clock = self.worker.master.reactor
        began = clock.seconds()
        kind = like(spec)
        planned = await record.plans.join(kind, lambda _: plan(record.host, storage, kind))
        self.steps.progress(f"describe: {clock.seconds() - began:.3f} s")
        self.hub.standbys.note_plan(record, asked, planned)
        return planned

    async def _start(self, run: Run, planned: Plan, standby: Machine | None) -> bool:
        """Start, or wake; False if what stood by turned out to be of no use."""
        record, spec = run.record, planned.spec
        secrets = (self.gate.static or "",)
        store = record.frozen.get(spec.folder or "") if spec.proven else None
        if standby is None:
            run.machine = self.hub.machine(
                record,
                planned,
                run.claim,
                run,
                store,
                identify=self.identify,
                secrets=secrets,
                worker=self.worker.name,
            )
        else:
            run.machine = standby
        if self.cancel.called:
            # It was waited for no longer, and by now its worker may have another build's VM.
            self.forget(run)
            raise StartCancelled(CANCELLED)
        self.adopt(run)
        self.cancel.addCallback(lambda _: run.machine.cancel(CANCELLED))
        run.say(f"starting a VM for {self.worker.name} on {record.host.uri} (slot {run.claim.slot})")
        if not spec.proven:
            run.say("unproven: without a base_image, whether the disk is fresh is not ours to say")
        if spec.identity in ("auto", "static"):
            self.gate.open_for_static()
            run.claim.password_of = self.worker.name if self.gate.static else ""
        try:
            if standby is None:
                await run.machine.start()
            else:
                await run.machine.wake(run, self.identify, secrets, self.worker.name)
            self._check_wanted()
        except LatentvirtError as error:
            self.forget(run)
            if standby is None or isinstance(error, (StartCancelled, HostUnreachable)):
                raise
            run.say(f"the VM that stood by is of no use: {error}")
            return False
        run.say("the VM runs; waiting for its worker to attach")
        return True

    def _check_wanted(self) -> None:
        """Do not go on for a build that was stopped just before Buildbot would have called off its start."""
        if self.build is not None and self.build.stopped:
            raise StartCancelled("the build was stopped before its VM was up")

    @property
    def _request(self) -> int | None:
        """Number of the build request; None if there is no build."""
        return None if self.build is None or not self.build.requests else int(self.build.requests[0].id)

    def _count_try(self) -> None:
        if self._request is not None and self.hub.tries.count(self._request) > TRIES_OF_A_BUILD:
            raise TooManyTries(
                f"this build was started {TRIES_OF_A_BUILD} times and came to nothing each time; its earlier "
                "builds say why",
                remedy="mend that, and rebuild",
            )
