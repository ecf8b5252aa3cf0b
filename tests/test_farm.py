"""Whatever happens to a farm of hosts, in whatever order, what is promised of it holds (on fakes)."""

from __future__ import annotations

from typing import Any

import libvirt
import pytest
from buildbot.interfaces import LatentWorkerFailedToSubstantiate
from buildbot.process.properties import Property
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from latentvirt import Flavor, drain
from latentvirt.config import Connection
from latentvirt.hosts import Hosts
from latentvirt.master.health import LONGEST_REST_S, QUARANTINE_S
from latentvirt.master.looking import LOOK_AGAIN_S
from latentvirt.master.worker import LibVirtWorker
from reactorthread import on_reactor, run
from stagemaster import Clock, close_stage, open_stage
from test_placing import BASE, URIS, Wishing, foreign, may, settle, start, stop

SLOTS, MEMORY_MIB, WORKERS = 2, 4096, 7
SIZES = {"small": 1024, "large": 3072}
STEPS, RUNS, LONG_RUNS = 40, 8, 60

hosts = st.sampled_from(URIS)


class Farm(RuleBasedStateMachine):
    """Builds start and end on three hosts, which die, return, are drained, and run others' VMs as well."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.master = open_stage(self.clock)
        for uri in URIS:
            self.master.fake.inspect(uri).add_file(BASE)
        flavors = [Flavor(name, memory=memory) for name, memory in SIZES.items()]
        named = Hosts(*(Connection(uri, slots=SLOTS, memory=MEMORY_MIB, vcpus=64) for uri in URIS))
        self.idle: list[LibVirtWorker] = []
        self.busy: dict[LibVirtWorker, str] = {}
        for number in range(WORKERS):
            worker = on_reactor(lambda number=number: self._worker(number, named, flavors))
            self.idle.append(worker)
        run(self.master.hub.expect(named, "/images"))
        settle(self.master)
        self.dead: set[str] = set()
        self.lost: set[LibVirtWorker] = set()
        """Those whose VM is gone, and whose build has not ended yet: their places are still taken."""
        self.theirs = 0
        self.drained: set[str] = set()

    def _worker(self, number: int, named: Hosts, flavors: list[Flavor]) -> LibVirtWorker:
        requires = Property("requires")
        worker = self.master.worker(
            f"w{number}", None, connection=named, base_image=BASE, flavors=flavors, requires=requires
        )
        worker.running = True
        return worker

    def _room(self, uri: str) -> tuple[int, int]:
        """Say how many places and how much memory is taken on a host, as it says itself."""
        memory = slots = 0
        for _, stats in self.master.fake.open(uri).getAllDomainStats():
            memory += stats["balloon.maximum"] // 1024
        for name in self.master.fake.inspect(uri).running():
            slots += name.startswith("latentvirt-")
        return slots, memory

    @rule(size=st.sampled_from(sorted(SIZES)))
    @precondition(lambda self: self.idle)
    def a_build_wants_a_vm(self, size: str) -> None:
        """Buildbot asks a worker, and starts the build if it may."""
        worker = self.idle[0]
        build = Wishing(builder=size, memory=SIZES[size])
        fits = [
            uri
            for uri in URIS
            if uri not in self.dead | {self.busy[worker] for worker in self.lost}
            and not self.master.hub.records[uri].why_not(worker.name, self.clock.seconds())
            and self._room(uri)[0] < SLOTS
            and self._room(uri)[1] + SIZES[size] <= MEMORY_MIB
        ]
        if not may(worker, build):
            waiting = self.master.hub.placing._waiting
            assert not fits or len(waiting) > 1, f"it could be on {fits}"
            return
        try:
            start(worker, build)
        except LatentWorkerFailedToSubstantiate:
            stop(worker)
            return
        assert worker._run is not None
        uri = worker._run.record.host.uri
        assert uri not in self.dead | self.drained
        self.idle.remove(worker)
        self.busy[worker] = uri

    @rule(which=st.integers(0, WORKERS))
    @precondition(lambda self: self.busy)
    def a_build_ends(self, which: int) -> None:
        """Its VM is ended, wherever it is, whether it is still there or not."""
        worker = list(self.busy)[which % len(self.busy)]
        del self.busy[worker]
        self.lost.discard(worker)
        stop(worker)
        self.idle.append(worker)

    @rule(uri=hosts)
    def a_host_dies(self, uri: str) -> None:
        """It is gone with all that ran there."""
        host = self.master.fake.inspect(uri)
        self.dead.add(uri)
        self.lost |= {worker for worker, where in self.busy.items() if where == uri}
        host.reachable = False
        host.reboot()
        settle(self.master)
        self._notice(uri)

    @rule(uri=hosts)
    def a_host_returns(self, uri: str) -> None:
        """It can be reached again; that is found out in time."""
        self.master.fake.inspect(uri).reachable = True
        self.dead.discard(uri)

    @rule(uri=hosts, drained=st.booleans())
    def a_host_is_drained_or_taken_back(self, uri: str, drained: bool) -> None:
        """A person takes it out of use, or back."""

        async def change() -> None:
            await drain(self.master, uri, drained=drained)

        run(change())
        (self.drained.add if drained else self.drained.discard)(uri)

    @rule(uri=hosts)
    def a_start_fails_there(self, uri: str) -> None:
        """The next domain on a host cannot be let run."""
        self.master.fake.inspect(uri).trouble.fail_next("domain.resume", libvirt.VIR_ERR_INTERNAL_ERROR)

    @rule(uri=hosts, memory=st.sampled_from([512, 2048]))
    def somebody_starts_a_vm_of_their_own(self, uri: str, memory: int) -> None:
        """Another program uses the host, within what it may have."""
        if uri not in self.dead and self._room(uri)[1] + memory <= MEMORY_MIB:
            self.theirs += 1
            foreign(self.master, uri, f"theirs{self.theirs}", memory)
            self._notice(uri)

    @rule(uri=hosts)
    def somebody_ends_theirs(self, uri: str) -> None:
        """Their VMs end."""
        host = self.master.fake.inspect(uri)
        for domain in [domain for domain in host.domains.values() if domain.name.startswith("theirs")]:
            domain.kill()
        self._notice(uri)

    def _notice(self, uri: str) -> None:
        self.master.fake.inspect(uri).settle()
        on_reactor(lambda: self.clock.advance(LOOK_AGAIN_S))
        settle(self.master)

    @rule(seconds=st.sampled_from([1.0, 10.0, LONGEST_REST_S]))
    def time_passes(self, seconds: float) -> None:
        """Pauses end, and hosts are tried again."""
        on_reactor(lambda: self.clock.advance(seconds))
        settle(self.master)

    @invariant()
    def no_host_has_more_than_it_may(self) -> None:
        """What runs never takes more than there is."""
        for uri in set(URIS) - self.dead:
            slots, memory = self._room(uri)
            assert slots <= SLOTS
            assert memory <= MEMORY_MIB

    @invariant()
    def each_build_has_a_vm_of_its_own(self) -> None:
        """Two builds never share a place, and nobody has one without a build."""
        runs = [worker._run for worker in self.busy if worker._run is not None]
        places = [(run.record.host.uri, run.claim.slot) for run in runs]
        assert len(set(places)) == len(places)
        taken = sum(len(record.claims) for record in self.master.hub.records.values())
        assert taken == len(places)

    @invariant()
    def what_is_taken_is_known(self) -> None:
        """What a host is thought to have in use is what its places and promises add up to."""
        now = self.master.reactor.seconds()
        for record in self.master.hub.records.values():
            assert record.used(now) == record._add_up()

    def teardown(self) -> None:
        """When all builds have ended and all hosts are back, nothing is left, and every build could start."""
        for uri in URIS:
            self.a_host_returns(uri)
            self.a_host_is_drained_or_taken_back(uri, False)
            self.master.fake.inspect(uri).trouble.forgive()
            self.somebody_ends_theirs(uri)
        while self.busy:
            self.a_build_ends(0)
        for _ in range(3):
            self.time_passes(QUARANTINE_S)
        for worker in self.idle[: SLOTS * len(URIS)]:
            assert may(worker, Wishing(builder="small", memory=SIZES["small"]))
            start(worker, Wishing(builder="small", memory=SIZES["small"]))
        for worker in self.idle:
            stop(worker)
        for uri in URIS:
            host = self.master.fake.inspect(uri)
            assert host.running() == []
            left = host.listing(f"/images/latentvirt-{self.master.hub.owner}")
            assert [name for name in left if not name.startswith("lease.")] == []
        close_stage(self.master)


class LongFarm(Farm):
    """The same for longer."""


Farm.TestCase.settings = settings(max_examples=RUNS, stateful_step_count=STEPS)
LongFarm.TestCase.settings = settings(Farm.TestCase.settings, max_examples=LONG_RUNS)
TestFarm: Any = Farm.TestCase
TestLongFarm: Any = pytest.mark.timeout(1200)(pytest.mark.soak(LongFarm.TestCase))
