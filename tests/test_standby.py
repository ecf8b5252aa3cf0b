"""Standbys on a fake host: how many there are, who gets them, and when they give way."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import libvirt
import pytest
from buildbot.interfaces import LatentWorkerFailedToSubstantiate
from twisted.internet import defer

from latentvirt import prefer_ready
from latentvirt.config import Connection
from latentvirt.domainxml import GuestMark, guest_of
from latentvirt.hosts import Hosts
from latentvirt.machine import Machine
from latentvirt.master import places
from latentvirt.master.record import HostRecord
from latentvirt.master.worker import LibVirtWorker
from latentvirt.placement import STANDBY_FITS
from latentvirt.testing import FakeGuest
from latentvirt.testing.domain import FakeDomain
from latentvirt.testing.trouble import connection_lost
from reactorthread import on_reactor, run
from stagemaster import Build, StageMaster, close_stage, open_stage
from test_worker import BASE, URI, _settle, _start, _stop

LATENCY_S = 0.02
NAMED = (
    "<domain type='kvm'><name>{}</name><memory>65536</memory><os><type>hvm</type></os>"
    "<devices>{}</devices></domain>"
)
DISK = "<disk type='file'><source file='/images/hd'/><target dev='vda'/></disk>"


def freezing() -> StageMaster:
    """Start a master on a fake host with a base image, whose guests can be frozen."""
    opened = open_stage()
    host = opened.fake.inspect(URI)
    host.add_file(BASE)
    host.guests = lambda domain: FakeGuest(says_ready=True)
    return opened


@pytest.fixture
def master() -> Iterator[StageMaster]:
    """A master whose guests can be frozen, for as long as the test lasts."""
    opened = freezing()
    yield opened
    close_stage(opened)


def a_worker(master: StageMaster, name: str, **kwargs: Any) -> LibVirtWorker:
    """Configure a worker that is running and idle."""
    arguments = {"uri": URI, "base_image": BASE, "size": {"memory": 64}, **kwargs}
    worker = on_reactor(lambda: master.worker(name, None, **arguments))
    worker.running = True
    on_reactor(lambda: master.hub.standbys.hear_of(worker))
    return worker


def tend(master: StageMaster, worker: LibVirtWorker) -> HostRecord:
    """See to the standbys of a worker's host, and wait until that is done."""
    record = on_reactor(lambda: master.hub.know(_hosts(worker)))[0]
    on_reactor(lambda: master.hub.standbys.tend(record))
    _settle(master)
    return record


def _hosts(worker: LibVirtWorker) -> Hosts:
    assert worker._arguments is not None
    return worker._arguments.hosts


def built(worker: LibVirtWorker) -> str:
    """Run one build's VM, and return the log of its start."""
    master: StageMaster = worker.master
    before = len(master.data.updates.text)
    attach(worker)
    text = master.data.updates.text[before:]
    _stop(worker)
    return text


def attach(worker: LibVirtWorker) -> None:
    """Start one build's VM, and wait until its guest attaches: it may have been frozen before."""
    updates = worker.master.data.updates
    before = len(updates.text)
    _start(worker, Build(len(updates.written) + 1))
    until(lambda: "guest attaches" in updates.text[before:])


def until(true: Callable[[], bool]) -> None:
    """Let the reactor go on until something is true; a test that waits in vain is ended by its timeout."""
    while not true():
        on_reactor(lambda: None)


def untold(master: StageMaster) -> list[FakeDomain]:
    """List the VMs that nobody has told who they are."""
    host = master.fake.inspect(URI)
    found = [host.domain(name) for name in host.running()]
    return [
        domain for domain in found if domain is not None and domain.guest and domain.guest.identity is None
    ]


def paused(master: StageMaster) -> int:
    """Count the VMs that wait, once none of them rehearses any more."""
    until(lambda: all(domain.state == libvirt.VIR_DOMAIN_PAUSED for domain in untold(master)))
    return len(untold(master))


class Rehearsing(FakeGuest):
    """A guest that notes its rehearsals.

    Args:
        answers: whether it comes to the end of one.
    """

    def __init__(self, *, answers: bool = True) -> None:
        super().__init__(says_ready=True, can=("freeze", "rehearse") if answers else ("freeze",))
        self.rehearsals: list[dict[str, Any]] = []

    def on_channel(self, data: bytes) -> None:
        """Note what it is to rehearse."""
        said = json.loads(data)
        if said["say"] == "rehearse":
            self.rehearsals.append(said)
            if "rehearse" not in self.can:
                return
        super().on_channel(data)


def rehearsals(master: StageMaster) -> list[dict[str, Any]]:
    """List what the VMs that are there were told to rehearse."""
    return [told for domain in untold(master) for told in domain.guest.rehearsals]  # type: ignore[union-attr]


def test_as_many_stand_by_as_idle_workers_ask_for(master: StageMaster) -> None:
    """Each idle worker that asks for it has a VM that waits, whichever build comes first."""
    workers = [a_worker(master, name, standby=True) for name in ("a", "b")]
    a_worker(master, "c")
    tend(master, workers[0])
    assert paused(master) == 2
    assert "tier standby" in built(workers[1])
    _settle(master)
    assert paused(master) == 2


def test_a_standby_is_known_by_the_worker_that_has_it(master: StageMaster) -> None:
    """A VM that stands by has no worker's name; that of its build's worker is noted when it takes it."""
    asking = a_worker(master, "asking", standby=True)
    tend(master, asking)
    (waiting,) = untold(master)
    assert guest_of(waiting.live or "") is None
    attach(asking)
    until(lambda: guest_of(waiting.live or "") == GuestMark("asking"))
    _stop(asking)


def test_any_worker_takes_the_standby_that_fits(master: StageMaster) -> None:
    """A standby belongs to no worker: one that did not ask for it takes it if its VM would be the same."""
    asking = a_worker(master, "asking", standby=True)
    other = a_worker(master, "other")
    larger = a_worker(master, "larger", size={"memory": 128})
    tend(master, asking)
    assert "tier freeze" in built(larger)
    assert "tier standby" in built(other)


def test_a_domain_of_a_persons_own_name_stands_by_for_its_worker_only(master: StageMaster) -> None:
    """Two workers whose domains differ in nothing but the name never get each other's."""
    asking = a_worker(master, "one", xml=NAMED.format("one", DISK), size=None, standby=True)
    other = a_worker(master, "two", xml=NAMED.format("two", DISK), size=None)
    tend(master, asking)
    assert paused(master) == 1
    assert "tier standby" not in built(other)
    assert "tier standby" in built(asking)


def test_standbys_give_way_where_memory_is_short(master: StageMaster) -> None:
    """A build whose VM would not fit beside the standbys gets their room."""
    asking = a_worker(master, "asking", standby=True)
    larger = a_worker(master, "larger", size={"memory": 1024})
    tend(master, asking)
    assert paused(master) == 1
    host = master.fake.inspect(URI)
    host.memory.update(free=1, buffers=0, cached=0)
    attach(larger)
    assert paused(master) == 0
    _stop(larger)


@pytest.mark.parametrize(
    "what", [{"size": {"memory": 128}}, {"size": None, "xml": NAMED.format("other", DISK)}]
)
def test_standbys_give_way_to_builds_where_places_are_few(master: StageMaster, what: dict[str, Any]) -> None:
    """On a host with one place a build that needs another VM, of whatever name, takes the standby's place."""
    connection = Connection(URI, slots=1)
    asking = a_worker(master, "asking", uri=None, connection=connection, standby=True)
    other = a_worker(master, "other", uri=None, connection=connection, **what)
    tend(master, asking)
    assert paused(master) == 1
    attach(other)
    assert (paused(master), len(master.fake.inspect(URI).running())) == (0, 1)
    _stop(other)


def test_a_build_waits_for_a_place_that_a_standby_is_just_leaving(master: StageMaster) -> None:
    """A build that needs the room of a VM that is just being ended waits for that, and the master goes on."""
    connection = Connection(URI, slots=1)
    asking = a_worker(master, "asking", uri=None, connection=connection, standby=True)
    other = a_worker(master, "other", uri=None, connection=connection, size={"memory": 128})
    record = tend(master, asking)
    assert paused(master) == 1
    hang = master.fake.inspect(URI).trouble.hang("domain.destroy")
    on_reactor(lambda: master.hub.standbys.forget(asking))
    on_reactor(lambda: master.hub.standbys.tend(record))
    hang.entered.acquire()
    starting = on_reactor(lambda: defer.ensureDeferred(other.start_instance(Build())))
    until(lambda: "describe: " in master.data.updates.text)
    assert on_reactor(lambda: (starting.called, len(record.claims))) == (False, 1)
    hang.release()
    # It is frozen first, and is not there while it is.
    until(lambda: "guest attaches" in master.data.updates.text)
    assert (len(record.claims), len(master.fake.inspect(URI).running())) == (1, 1)
    _stop(other)


def test_a_standby_that_cannot_be_woken_costs_its_build_no_more_than_another_vm(
    master: StageMaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a host with one place, too, the build gets a VM as soon as the one that stood by is gone."""
    monkeypatch.setattr(places, "PATIENCE_WITH_AN_END_S", 3600.0)
    worker = a_worker(master, "a", uri=None, connection=Connection(URI, slots=1), standby=True)
    record = tend(master, worker)
    trouble = master.fake.inspect(URI).trouble
    until(lambda: trouble.calls[-1] == "domain.suspend")  # else its rehearsal would be what fails
    assert paused(master) == 1
    trouble.fail_next("domain.resume", libvirt.VIR_ERR_INTERNAL_ERROR)
    before = len(master.data.updates.text)
    attach(worker)
    assert "the VM that stood by is of no use" in master.data.updates.text[before:]
    assert (len(record.claims), len(master.fake.inspect(URI).running())) == (1, 1)
    _stop(worker)


def test_a_standby_ends_when_its_base_image_is_replaced(master: StageMaster) -> None:
    """No build ever runs on a standby of an older image; it is given up and made anew."""
    worker = a_worker(master, "a", standby=True)
    tend(master, worker)
    (old,) = master.fake.inspect(URI).running()
    before = master.fake.inspect(URI).domain(old)
    host = master.fake.inspect(URI)
    host.files[BASE].touch()
    text = built(worker)
    assert "tier standby" not in text
    _settle(master)
    after = master.fake.inspect(URI).domain(old)
    assert after is not before


def test_a_standby_that_fails_is_replaced(master: StageMaster) -> None:
    """A VM that ends while it stands by is noticed, and another is made."""
    worker = a_worker(master, "a", standby=True)
    tend(master, worker)
    (name,) = master.fake.inspect(URI).running()
    domain = master.fake.inspect(URI).domain(name)
    assert domain is not None
    domain.kill()
    until(lambda: paused(master) == 1)
    tend(master, worker)
    assert paused(master) == 1
    assert master.fake.inspect(URI).domain(name) is not domain
    assert "tier standby" in built(worker)


def test_a_fault_of_ours_keeps_no_place(master: StageMaster, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody has foreseen while a standby is made costs that standby, and no place on the host."""
    asked: list[Machine] = []

    async def broken(machine: Machine) -> None:
        asked.append(machine)
        raise RuntimeError("never thought of")

    monkeypatch.setattr(Machine, "hold", broken)
    worker = a_worker(master, "a", standby=True)
    built(worker)
    record = tend(master, worker)
    assert asked
    assert (record.claims, record.standbys) == ([], [])


def test_a_vm_rehearses_before_it_stands_by(master: StageMaster) -> None:
    """A standby has the right time, random numbers of its own, and attached once, before a build takes it."""
    master.fake.inspect(URI).guests = lambda domain: Rehearsing()
    worker = a_worker(master, "a", standby=True)
    tend(master, worker)
    until(lambda: len(rehearsals(master)) == 1)
    assert paused(master) == 1
    (told,) = rehearsals(master)
    assert len(base64.b64decode(told["entropy"])) == 64
    assert told["time"] > 0
    assert not {"name", "password", "master"} & told.keys()
    assert "tier standby" in built(worker)


def test_a_build_does_not_wait_for_the_end_of_a_rehearsal(master: StageMaster) -> None:
    """A standby can be taken as soon as it was thawed, in the middle of its rehearsal as well."""
    master.fake.inspect(URI).guests = lambda domain: Rehearsing(answers=False)
    worker = a_worker(master, "a", standby=True)
    tend(master, worker)
    until(lambda: len(rehearsals(master)) == 1)
    (domain,) = untold(master)
    assert domain.state == libvirt.VIR_DOMAIN_RUNNING
    assert "tier standby" in built(worker)
    assert domain.guest is not None
    assert domain.guest.identity is not None


def test_a_guest_that_cannot_rehearse_stands_by_all_the_same(master: StageMaster) -> None:
    """An image with an older helper has standbys as before."""
    master.fake.inspect(URI).guests = lambda domain: FakeGuest(says_ready=True, can=("freeze",))
    worker = a_worker(master, "a", standby=True)
    tend(master, worker)
    assert paused(master) == 1
    assert "tier standby" in built(worker)


def test_a_frozen_image_whose_guest_is_mute_is_gone_before_a_build_meets_it(
    master: StageMaster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A guest that does not answer at its rehearsal costs a build nothing; its image is made anew."""
    guests: list[FakeGuest] = []

    def guest(domain: FakeDomain) -> FakeGuest:
        # Only the first one is not waited for: on a slow machine a good one needs its time.
        monkeypatch.setattr("latentvirt.rehearsing.REHEARSE_S", 60.0 if guests else 0.1)
        guests.append(FakeGuest(says_ready=True, mute_after_thaw=not guests))
        return guests[-1]

    master.fake.inspect(URI).guests = guest
    worker = a_worker(master, "a", standby=True)
    tend(master, worker)
    until(lambda: len(guests) == 2)
    until(lambda: paused(master) == 1)
    assert "the thawed guest did not answer within" in caplog.text
    assert "tier standby" in built(worker)


def test_a_master_that_stops_in_a_rehearsal_leaves_nothing_of_it() -> None:
    """Who stops the master does not wait for a guest that rehearses."""
    master = open_stage()
    host = master.fake.inspect(URI)
    host.add_file(BASE)
    host.guests = lambda domain: Rehearsing(answers=False)
    tend(master, a_worker(master, "a", standby=True))
    until(lambda: len(rehearsals(master)) == 1)
    close_stage(master)
    assert host.running() == []


def test_nothing_is_left_of_a_standby_when_the_master_stops() -> None:
    """A master that stops ends its standbys, and keeps what is frozen."""
    master = freezing()
    host = master.fake.inspect(URI)
    tend(master, a_worker(master, "a", standby=True))
    assert paused(master) == 1
    folder = f"/images/latentvirt-{master.hub.owner}"
    close_stage(master)
    assert host.running() == []
    kinds = {name.split(".")[2] for name in host.listing(folder) if not name.startswith("lease.")}
    assert kinds == {"frozen", "memory", "overlay"}
    assert len([name for name in host.listing(folder) if ".overlay." in name]) == 1


def test_all_vms_that_stand_by_end_when_the_master_stops() -> None:
    """A stopping master ends each of several VMs that wait on a host, not every second one."""
    master = freezing()
    host = master.fake.inspect(URI)
    workers = [a_worker(master, name, standby=True) for name in ("a", "b", "c")]
    tend(master, workers[0])
    until(lambda: paused(master) == len(workers))
    close_stage(master)
    assert host.running() == []


def test_a_master_that_stops_right_after_a_build_leaves_nothing_of_it() -> None:
    """The VM of a build that has just ended is ended as well before the master goes."""
    master = open_stage()
    host = master.fake.inspect(URI)
    host.add_file(BASE)
    worker = a_worker(master, "a", start="boot")
    _start(worker)
    folder = f"/images/latentvirt-{master.hub.owner}"
    assert [name for name in host.listing(folder) if ".overlay." in name]
    host.trouble.latency_s = LATENCY_S

    async def stop() -> None:
        await worker.stop_instance()
        await master.stopService()

    run(stop())
    assert host.running() == []
    assert folder not in host.folders


def test_what_was_frozen_goes_when_the_host_was_lost_over_it(master: StageMaster) -> None:
    """An image over which the host was lost is removed once there is a new one, although its end failed."""
    worker = a_worker(master, "a")
    built(worker)
    host = master.fake.inspect(URI)
    folder = f"/images/latentvirt-{master.hub.owner}"
    (old,) = {name.split(".")[1] for name in host.listing(folder) if ".frozen." in name}
    host.trouble.before_next("restoreFlags", host.break_connections)
    host.trouble.fail_next("restoreFlags", connection_lost())
    for _ in range(2):
        host.trouble.fail_next("open", libvirt.VIR_ERR_SYSTEM_ERROR)
    with pytest.raises(LatentWorkerFailedToSubstantiate):
        _start(worker, Build(50))
    _settle(master)
    record = on_reactor(lambda: master.hub.records[URI])
    on_reactor(lambda: setattr(record, "resting", None))
    assert "tier freeze" in built(worker)
    assert old not in {name.split(".")[1] for name in host.listing(folder) if not name.startswith("lease.")}


def test_a_host_that_was_lost_over_a_standby_gets_one_when_it_is_back(master: StageMaster) -> None:
    """A standby that libvirtd's restart met in the making is made anew at once, not a minute later."""
    built(a_worker(master, "a"))
    worker = a_worker(master, "b", standby=True)
    host = master.fake.inspect(URI)
    record = on_reactor(lambda: master.hub.know(_hosts(worker)))[0]
    on_reactor(lambda: setattr(record, "rest_s", 0.01))
    host.trouble.before_next("restoreFlags", host.break_connections)
    host.trouble.fail_next("restoreFlags", connection_lost())
    tend(master, worker)
    until(lambda: on_reactor(lambda: worker.readiness()) == STANDBY_FITS)
    _settle(master)
    assert len(untold(master)) == 1


def test_a_build_prefers_the_worker_that_can_begin_soonest(master: StageMaster) -> None:
    """With prefer_ready builds go to a worker with a standby, else to one with a frozen image."""

    class Candidate:
        """Buildbot's WorkerForBuilder, as far as it matters."""

        def __init__(self, worker: LibVirtWorker) -> None:
            self.worker = worker

    ready = a_worker(master, "ready", standby=True)
    warm = a_worker(master, "warm", size={"memory": 128})
    cold = a_worker(master, "cold", size={"memory": 256})
    built(warm)
    tend(master, ready)
    candidates = [Candidate(worker) for worker in (cold, warm, ready)]

    def chosen(of: list[Candidate]) -> LibVirtWorker:
        return on_reactor(lambda: prefer_ready(None, of, None)).worker  # type: ignore[no-any-return]

    assert chosen(candidates) is ready
    assert chosen(candidates[:2]) is warm
    assert chosen(candidates[:1]) is cold
    assert prefer_ready(None, [], None) is None


def test_builds_that_are_to_boot_are_not_drawn_to_what_they_do_not_take(master: StageMaster) -> None:
    """With start='boot' neither a standby nor a frozen image counts for the choice of a worker or a host."""
    boots = a_worker(master, "boots", start="boot")
    built(boots)
    tend(master, a_worker(master, "ready", standby=True))
    built(a_worker(master, "warm"))
    assert on_reactor(lambda: boots.readiness()) == 0


def test_slots_are_frozen_ahead_when_the_host_is_idle(
    master: StageMaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once one build has frozen its VM, an idle host freezes as many places as there are workers."""
    monkeypatch.setattr("latentvirt.master.standbys.AHEAD_AFTER_S", 0.0)
    workers = [a_worker(master, name) for name in ("a", "b")]
    built(workers[0])
    tend(master, workers[0])
    names = master.fake.inspect(URI).listing(f"/images/latentvirt-{master.hub.owner}")
    assert {name.split(".")[0] for name in names if ".frozen." in name} == {"slot1", "slot2"}
    assert master.fake.inspect(URI).running() == []


def test_back_to_back_builds_thaw_in_the_place_that_is_just_being_freed(master: StageMaster) -> None:
    """A build that follows at once on another waits for its place, rather than to boot beside it."""
    worker = a_worker(master, "a")
    built(worker)
    for _ in range(3):
        assert "tier thaw" in built(worker)
    _start(worker)
    hang = master.fake.inspect(URI).trouble.hang("domain.destroy")

    async def stop() -> None:
        await worker.stop_instance()

    run(stop())
    assert hang.entered.acquire(timeout=60)
    starting: list[bool] = []

    async def start() -> None:
        starting.append(bool(await worker.start_instance(Build(99))))

    on_reactor(lambda: defer.ensureDeferred(start()))
    hang.release()
    until(lambda: bool(starting))
    assert master.data.updates.text.rindex("tier thaw") > master.data.updates.text.rindex("tier freeze")
    _stop(worker)
