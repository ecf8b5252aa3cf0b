"""Builds, standbys, a person and trouble at the same time, in any order, on fake hosts that take their time.

What meets what is not in the test's hand, and cannot be played back: a seed tells what is done, and in which
order. It is for what hangs, or is left over, when ends and beginnings overlap.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import libvirt
import pytest
from buildbot.interfaces import LatentWorkerCannotSubstantiate, LatentWorkerFailedToSubstantiate
from twisted.internet import defer, reactor, task, threads

from latentvirt import drain
from latentvirt.config import DEFAULT_IMAGES, Connection, Image
from latentvirt.errors import ConfigError, HostUnreachable
from latentvirt.hosts import Hosts
from latentvirt.master.arguments import read_arguments
from latentvirt.master.record import HostRecord
from latentvirt.master.worker import LibVirtWorker
from latentvirt.names import FileName
from latentvirt.sweep import FROZEN
from latentvirt.testing import FakeGuest, FakeHostState
from reactorthread import on_reactor, run
from stagemaster import StageMaster, close_stage, open_stage
from test_placing import BASE, URIS, Wishing, foreign
from test_transfer import qcow2

WORKERS, BUILDS = 5, 10
SIZES_MIB = (64, 512)
LATENCIES_S = (0.0, 0.002, 0.01)
PAUSE_S = 0.15
HANG_S = 0.4
LOOK_S = 0.005
THEIRS = "theirs"
WANT_STANDBY = 0.6
"""The part of the workers that have a VM stand by for them."""
COPIED = 0.3
"""The part of them whose image is copied to the hosts."""
DRAINED = 0.4
"""The part of a person's words on a host that take it out of use."""
CALLED_OFF = 0.3
"""The part of the builds that are stopped while their VM is being started."""
PLENTY_KIB, NOTHING_KIB = 6 * 1024**2, 1
STORM_S = 200.0
RETURN_S = 100.0

FAILS = (
    "createXML",
    "domain.XMLDesc",
    "domain.destroy",
    "domain.resume",
    "domain.save",
    "domain.setMetadata",
    "domain.suspend",
    "pool.createXML",
    "restoreFlags",
    "volume.delete",
    "volume.upload",
)
HANGS = (
    "createXML",
    "domain.XMLDesc",
    "domain.destroy",
    "domain.resume",
    "domain.save",
    "pool.refresh",
    "restoreFlags",
    "volume.delete",
    "volume.upload",
)


@attrs.define
class Storm:
    """Make one.

    Args:
        seed: of all that is left to chance.
        masters: how many share the hosts.
        image: that is copied there.
    """

    seed: int
    masters: int
    image: Path
    chance: random.Random = attrs.field(init=False)
    stages: list[StageMaster] = attrs.field(init=False)
    hosts: list[FakeHostState] = attrs.field(init=False)
    named: Hosts = attrs.field(init=False)
    workers: list[LibVirtWorker] = attrs.field(factory=list)
    over: bool = False

    def __attrs_post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        first = open_stage()
        self.stages = [first, *(open_stage(fake=first.fake) for _ in range(1, self.masters))]
        # The places of a host that is named by itself are each master's own.
        uris = URIS[: self.chance.randint(self.masters, len(URIS))]
        self.hosts = [first.fake.inspect(uri) for uri in uris]
        self.named = Hosts(*(Connection(uri, slots=self.chance.randint(1, 3)) for uri in uris))
        for host in self.hosts:
            host.add_file(BASE)
            host.add_folder(DEFAULT_IMAGES)
            host.guests = lambda domain: FakeGuest(says_ready=True)
            host.trouble.latency_s = self.chance.choice(LATENCIES_S)

    async def rage(self) -> None:
        """Let all workers build, in trouble, until all have built."""
        for stage in self.stages:
            await stage.hub.expect(self.named, "/images")
        troubles = defer.ensureDeferred(self._trouble())
        looking = task.LoopingCall(self._look)
        looked = looking.start(LOOK_S)
        self.workers += [self._worker(stage, number) for stage in self.stages for number in range(WORKERS)]
        await defer.gatherResults([defer.ensureDeferred(self._builds(worker)) for worker in self.workers])
        self.over = True
        await troubles
        if looking.running:
            looking.stop()
        await looked

    def _worker(self, stage: StageMaster, number: int) -> LibVirtWorker:
        worker = stage.worker(f"w{number}", None, **self._arguments())
        worker.running = True
        stage.hub.standbys.hear_of(worker)
        return worker

    def _arguments(self) -> dict[str, Any]:
        return {
            "connection": self.named,
            "base_image": Image(str(self.image)) if self.chance.random() < COPIED else BASE,
            "size": {"memory": self.chance.choice(SIZES_MIB)},
            "standby": self.chance.random() < WANT_STANDBY,
        }

    def _look(self) -> None:
        """See that nobody has what another has."""
        for record in self._records:
            in_use = [claim.slot for claim in record.claims if not claim.ending]
            assert len(set(in_use)) == len(in_use), f"one place is taken twice: {in_use}"
            most = record.connection.slots or 0
            assert len(in_use) <= most, f"more places are taken on {record.host.uri} than there are: {in_use}"
        if self.named.is_one:
            return
        for host, connection in zip(self.hosts, self.named.connections, strict=True):
            with host.lock:
                run = [
                    domain.name
                    for domain in host.domains.values()
                    if domain.state == libvirt.VIR_DOMAIN_RUNNING and domain.name.startswith("latentvirt-")
                ]
            assert len(run) <= (connection.slots or 0), f"too many run on {host.uri}: {run}"

    async def _builds(self, worker: LibVirtWorker) -> None:
        for _ in range(BUILDS):
            await self._pause(PAUSE_S)
            build = Wishing()
            if not await worker.isCompatibleWithBuild(build):
                continue
            starting = defer.ensureDeferred(worker.start_instance(build))
            starting.addErrback(
                lambda failure: failure.trap(LatentWorkerCannotSubstantiate, LatentWorkerFailedToSubstantiate)
            )
            await self._pause(PAUSE_S)
            if self.chance.random() < CALLED_OFF:
                worker._cancel_start()  # as `insubstantiate` does; Buildbot then waits for the start's end
            await starting
            await self._pause(PAUSE_S)
            await worker.stop_instance()

    async def _pause(self, most_s: float) -> None:
        await task.deferLater(reactor, self.chance.random() * most_s)

    # Trouble

    async def _trouble(self) -> None:
        troubles: list[tuple[Callable[[FakeHostState], object], int]] = [
            (lambda host: host.files[BASE].touch(), 2),
            (self._kill, 2),
            (self._fail, 3),
            (self._hang, 2),
            (lambda host: host.break_connections(), 1),
            (self._memory, 2),
            (self._somebody, 1),
            (self._drain, 1),
            (self._reconfigure, 1),
        ]
        kinds, weights = zip(*troubles, strict=True)
        while not self.over:
            await self._pause(PAUSE_S)
            (trouble,) = self.chance.choices(kinds, weights)
            trouble(self.chance.choice(self.hosts))

    def _kill(self, host: FakeHostState) -> None:
        running = host.running()
        domain = host.domain(self.chance.choice(running)) if running else None
        if domain is not None:
            domain.kill()

    def _fail(self, host: FakeHostState) -> None:
        host.trouble.fail_next(self.chance.choice(FAILS), libvirt.VIR_ERR_INTERNAL_ERROR)

    def _hang(self, host: FakeHostState) -> None:
        hang = host.trouble.hang(self.chance.choice(HANGS))
        reactor.callLater(self.chance.random() * HANG_S, hang.release)

    def _memory(self, host: FakeHostState) -> None:
        host.memory.update(free=self.chance.choice((NOTHING_KIB, PLENTY_KIB)), buffers=0, cached=0)

    def _somebody(self, host: FakeHostState) -> None:
        if host.domain(THEIRS) is None:
            memory = self.chance.choice((512, 4096))
            starting = threads.deferToThread(foreign, self.stages[0], host.uri, THEIRS, memory)
            starting.addErrback(lambda failure: failure.trap(libvirt.libvirtError))
        else:
            self._calm(host)

    def _drain(self, host: FakeHostState) -> None:
        drained = self.chance.random() < DRAINED
        for stage in self.stages:
            drain(stage, host.uri, drained=drained).addErrback(lambda failure: failure.trap(ConfigError))

    def _reconfigure(self, _: FakeHostState) -> None:
        worker = self.chance.choice(self.workers)
        worker._take_over(read_arguments(None, **self._arguments()))
        worker._announce()

    # Afterwards

    def _calm(self, host: FakeHostState) -> None:
        theirs = host.domain(THEIRS)
        if theirs is not None and theirs.active:
            theirs.kill()

    async def abate(self) -> None:
        """Let all hosts be well, wait until that is noticed, and remove what they did not let us."""
        for host in self.hosts:
            host.trouble.forgive()
            host.memory.update(free=PLENTY_KIB)
            self._calm(host)
        for stage in self.stages:
            for uri in stage.hub.records:
                await drain(stage, uri, drained=False)
        while not await self._is_clear():
            await self._pause(PAUSE_S)

    async def _is_clear(self) -> bool:
        """Remove what is left; False if a host was found to be lost meanwhile, as the storm has left it."""
        try:
            for stage in self.stages:
                for record in stage.hub.records.values():
                    await stage.hub.sweeping.sweep(record)
            # What one master removes may let another begin to make a standby.
            while any(stage.hub._background for stage in self.stages):
                await self._pause(PAUSE_S)
        except HostUnreachable:
            return False
        return all(record.resting is None for record in self._records)

    @property
    def _records(self) -> list[HostRecord]:
        return [record for stage in self.stages for record in stage.hub.records.values()]

    def taken(self) -> list[str]:
        """List the places that builds still have."""
        return [
            f"{record.host.uri} {claim.slot}"
            for record in self._records
            for claim in record.claims
            if claim not in record.standbys
        ]

    def left(self) -> list[str]:
        """List the VMs, and the files that belong to no frozen image."""
        found: list[str] = []
        for host in self.hosts:
            found += [name for name in host.running() if name != THEIRS]
            for stage in self.stages:
                names = host.listing(f"/images/latentvirt-{stage.hub.owner}")
                files = [(name, FileName.parse(name)) for name in names]
                frozen = {parsed.start for _, parsed in files if parsed is not None and parsed.kind == FROZEN}
                found += [name for name, parsed in files if parsed is not None and parsed.start not in frozen]
        return found


def weather(seed: int, masters: int, image: Path) -> None:
    """Go through one storm."""
    image.write_bytes(qcow2())
    storm = Storm(seed, masters, image)
    try:
        run(storm.rage(), STORM_S)
        run(storm.abate(), RETURN_S)
        assert on_reactor(storm.taken) == []
    finally:
        for stage in storm.stages:
            close_stage(stage)
    assert storm.left() == []


@pytest.mark.parametrize("masters", [1, 2])
def test_all_builds_end_and_nothing_is_left(masters: int, tmp_path: Path) -> None:
    """Whatever fails while builds begin and end, each ends, no host has too much, and all is gone at last."""
    weather(1, masters, tmp_path / "image.qcow2")


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("masters", [1, 2])
@pytest.mark.parametrize("seed", range(2, 17))
def test_the_same_in_many_storms(seed: int, masters: int, tmp_path: Path) -> None:
    """The same, with other hosts, workers and troubles."""
    weather(seed, masters, tmp_path / "image.qcow2")
