"""Held VMs on a fake host: they stay, with their places, until they are released or the time is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from buildbot.interfaces import LatentWorkerFailedToSubstantiate
from twisted.internet import defer

from latentvirt.config import Connection
from latentvirt.domainxml import hold_of_mark, mark_of_hold, parse, rewrite
from latentvirt.errors import ConfigError
from latentvirt.hold import HOLD_NAMESPACE, MOST_HOLD_S, Hold, read_duration, read_why
from latentvirt.host import Host
from latentvirt.master.glance import host_states
from latentvirt.master.worker import LibVirtWorker
from latentvirt.names import Ownership
from latentvirt.testing import FakeGuest
from reactorthread import on_reactor, run, start
from stagemaster import Build, StageMaster, close_stage, open_stage
from test_worker import BASE, URI, _left, _settle, _start, _stop, _worker

XML = (
    "<domain type='kvm'><name>{}</name><memory>65536</memory><os><type>hvm</type></os>"
    "<devices><disk type='file'><source file='/images/hd'/><target dev='vda'/></disk></devices></domain>"
)
HOUR_S = 3600


@pytest.fixture
def master() -> Iterator[StageMaster]:
    """A master on a fake host with a base image."""
    opened = open_stage()
    opened.fake.inspect(URI).add_file(BASE)
    yield opened
    close_stage(opened)


def again(old: StageMaster) -> StageMaster:
    """Start the master's next process, on the same hosts and the same database."""
    real = start()

    def make() -> StageMaster:
        new = StageMaster(old.fake, real)
        new.db = old.db
        return new

    return run(on_reactor(make).begin())


def until(true: Callable[[], bool]) -> None:
    """Let the reactor go on until something is true; a test that waits in vain is ended by its timeout."""
    while not true():
        on_reactor(lambda: None)


def set_hold(master: StageMaster, name: str, hold: Hold | None) -> None:
    """Hold a VM, as another process does, or release it."""

    async def do() -> None:
        host = Host(Connection(URI), start(), driver=master.fake)
        there = await host.domain(name)
        assert there is not None
        assert there.ownership is not None
        await host.set_hold(there.uuid, hold, only=there.ownership)
        await host.close()

    run(do())


def wanted(seconds: int = HOUR_S, **more: Any) -> Hold:
    """Make a hold that ends so many seconds from now."""
    return Hold(until=int(time.time()) + seconds, by="anna@desk", why="look at the core dump", **more)


def look(master: StageMaster) -> None:
    """Let the master ask its hosts what is held, and do what follows."""
    on_reactor(master.hub.holds.see_all)
    _settle(master)


def slot(master: StageMaster, number: int) -> str:
    """Name the domain of a slot."""
    return f"latentvirt-{master.hub.owner}-slot{number}"


def may_start(worker: LibVirtWorker) -> bool:
    """Ask the worker as Buildbot does before it gives it a build."""
    return bool(run(_ask(worker)))


async def _ask(worker: LibVirtWorker) -> bool:
    need = await worker.renderWorkerProps(None)
    return worker._hub is not None and worker._hub.placing.reserve(need)


def held_start(master: StageMaster, worker: LibVirtWorker, name: str, **more: Any) -> None:
    """Run one build whose VM is held meanwhile."""
    _start(worker)
    set_hold(master, name, wanted(**more))
    _stop(worker)


# Values


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("2h", 7200), ("30 min", 1800), ("1d", 86400), ("90 s", 90), ("0.5 hours", 1800), (" 7 days ", 604800)],
)
def test_durations_are_read(written: str, seconds: int) -> None:
    """People write a duration in any of these ways."""
    assert read_duration(written, "--for") == seconds


@pytest.mark.parametrize("written", ["", "2", "h", "-1h", "0h", "2 weeks", "1h30", 7200, None, "nanh"])
def test_what_is_no_duration_is_refused(written: object) -> None:
    """A duration without a unit, or none at all, is refused, and how to write one is said."""
    with pytest.raises(ConfigError, match=r"--for=.* is not a duration.*30 min"):
        read_duration(written, "--for")


def test_nobody_holds_a_vm_for_ever() -> None:
    """A duration that is too long is refused, and the longest is named."""
    assert read_duration("168h", "--for") == MOST_HOLD_S
    with pytest.raises(ConfigError, match="7 days at most"):
        read_duration("8d", "--for")


@pytest.mark.parametrize("why", ["", "  ", "two\nlines", "a bell \a", "x" * 201])
def test_a_reason_is_a_line(why: str) -> None:
    """What would not fit into a list of VMs is refused."""
    with pytest.raises(ConfigError):
        read_why(why)


@pytest.mark.parametrize(
    "mark", ["", "<hold/>", "<hold until='soon'/>", "<hold until='-1'/>", "<hold until='99999999999999'/>"]
)
def test_what_we_never_write_holds_nothing(mark: str) -> None:
    """A hold without an end, which somebody made by hand, is none."""
    assert hold_of_mark(mark) is None


def test_a_start_is_not_born_held() -> None:
    """A hold that a description was saved with, or that a person copied, is not the new start's."""
    xml = f"<domain><metadata><h:hold xmlns:h='{HOLD_NAMESPACE}' until='9'/><other/></metadata></domain>"
    made = rewrite(xml, ownership=Ownership("0" * 16, "slot1", "0" * 12), overlays=[], name="a")
    marks = [child.tag for child in parse(made).iterfind("metadata/*")]
    assert f"{{{HOLD_NAMESPACE}}}hold" not in marks
    assert "other" in marks
    assert hold_of_mark(mark_of_hold(wanted())) is not None


# The end of a build


def test_a_held_vm_outlives_its_build_and_keeps_its_place(master: StageMaster) -> None:
    """A held VM runs on with its disk after its build; the next gets another place; released, it goes."""
    worker = _worker(master, "minion1", None)
    held_start(master, worker, slot(master, 1))
    running, files = _left(master)
    assert running == [slot(master, 1)]
    assert len(files) == 1
    _start(worker)
    assert _left(master)[0] == [slot(master, 1), slot(master, 2)]
    _stop(worker)
    look(master)
    assert _left(master)[0] == [slot(master, 1)]
    set_hold(master, slot(master, 1), None)
    look(master)
    assert _left(master) == ([], [])
    _start(worker)
    assert _left(master)[0] == [slot(master, 1)]
    _stop(worker)


def test_a_hold_ends_when_the_time_is_up(master: StageMaster) -> None:
    """When the time of a hold is up, the VM goes by itself, and those who wait for room are woken."""
    worker = _worker(master, "minion1", None)
    held_start(master, worker, slot(master, 1))
    set_hold(master, slot(master, 1), wanted(-1))
    wakes = master.wakes
    look(master)
    assert _left(master) == ([], [])
    assert master.wakes > wakes


def test_a_hold_that_is_over_holds_nothing(master: StageMaster) -> None:
    """A VM whose hold ran out during its build is ended with it."""
    held_start(master, _worker(master, "minion1", None), slot(master, 1), seconds=-1)
    assert _left(master) == ([], [])


def test_a_held_vm_that_ends_by_itself_frees_its_place(master: StageMaster) -> None:
    """When the guest of a held VM powers itself off, its files go, and its place is free."""
    held_start(master, _worker(master, "minion1", None), slot(master, 1))
    domain = master.fake.inspect(URI).domain(slot(master, 1))
    assert domain is not None
    domain.power_off()
    look(master)
    assert _left(master) == ([], [])
    assert run(_states(master))[0].held == ()


def test_a_held_vm_takes_room(master: StageMaster) -> None:
    """On a host with two places builds have the other one until the held VM is released."""
    connection = Connection(URI, slots=2)
    one, two, three = (
        _worker(master, name, None, uri=None, connection=connection) for name in ("one", "two", "three")
    )
    held_start(master, one, slot(master, 1))
    assert may_start(two)
    _start(two)
    assert not may_start(three)
    (state,) = run(_states(master))
    assert (state.builds, state.slots, [held.domain for held in state.held]) == (1, 2, [slot(master, 1)])
    set_hold(master, slot(master, 1), None)
    look(master)
    assert may_start(three)
    _stop(two)


async def _states(master: StageMaster) -> Any:
    return await host_states(master)


def test_a_worker_whose_domain_is_held_waits_and_others_go_on(
    master: StageMaster, caplog: pytest.LogCaptureFixture
) -> None:
    """A domain of a person's own name cannot be started twice: its worker waits, the log says for what."""
    given = {"size": None, "hd_image": "/images/hd"}
    one = _worker(master, "one", None, xml=XML.format("first"), **given)
    two = _worker(master, "two", None, xml=XML.format("second"), **given)
    held_start(master, one, "first")
    caplog.clear()
    assert not may_start(one)
    assert not may_start(one)
    (said,) = [message for message in caplog.messages if "starts no other VM" in message]
    assert "worker one starts no other VM: the VM first on" in said
    assert "by anna@desk: look at the core dump" in said
    with pytest.raises(LatentWorkerFailedToSubstantiate, match="look at the core dump"):
        _start(one)  # Buildbot does not always ask before
    _stop(one)
    assert may_start(two)
    _start(two)
    assert _left(master)[0] == ["first", "second"]
    _stop(two)
    set_hold(master, "first", None)
    look(master)
    assert may_start(one)


def test_a_guest_that_knows_the_password_is_no_new_guest(master: StageMaster) -> None:
    """A held guest that knows the configured password would pass for the next one: its worker waits."""
    master.fake.inspect(URI).guests = lambda domain: FakeGuest(can=())
    knows, told = _worker(master, "knows", "static"), _worker(master, "told", "static")
    held_start(master, knows, slot(master, 1))
    assert not may_start(knows)
    later = again(master)
    knows_later = _worker(later, "knows", "static")
    assert may_start(knows_later)  # nobody has looked yet
    with pytest.raises(LatentWorkerFailedToSubstantiate, match="look at the core dump"):
        _start(knows_later)
    assert not may_start(knows_later)
    close_stage(later)
    master.fake.inspect(URI).guests = lambda domain: FakeGuest(says_ready=True, can=())
    before = len(master.data.updates.text)
    _start(told)
    until(lambda: "guest attaches" in master.data.updates.text[before:])
    set_hold(master, slot(master, 2), wanted())
    _stop(told)
    assert may_start(told)


# Restarts, and hosts that go away


def test_a_hold_survives_the_master(master: StageMaster) -> None:
    """The master's next process finds what is held, takes no such place, and ends it when it is released."""
    worker = _worker(master, "minion1", None)
    held_start(master, worker, slot(master, 1))
    close_stage(master)
    assert _left(master)[0] == [slot(master, 1)]
    later = again(master)
    worker = _worker(later, "minion1", None)
    assert worker._arguments is not None
    run(later.hub.expect(worker._arguments.hosts, "/images"))
    _settle(later)
    assert [held.domain for held in run(_states(later))[0].held] == [slot(master, 1)]
    _start(worker)
    assert _left(later)[0] == [slot(later, 1), slot(later, 2)]
    _stop(worker)
    set_hold(later, slot(later, 1), None)
    look(later)
    assert _left(later) == ([], [])
    close_stage(later)


def test_a_hold_that_ran_out_while_no_master_ran(master: StageMaster) -> None:
    """What is held no more when the master is back goes at once."""
    held_start(master, _worker(master, "minion1", None), slot(master, 1))
    close_stage(master)
    set_hold(master, slot(master, 1), wanted(-1))
    later = again(master)
    worker = _worker(later, "minion1", None)
    assert worker._arguments is not None
    run(later.hub.expect(worker._arguments.hosts, "/images"))
    _settle(later)
    assert _left(later) == ([], [])
    close_stage(later)


def test_the_first_build_after_a_restart_gets_no_held_place(master: StageMaster) -> None:
    """Before the new process has swept, too, no start ends a held VM, or goes over the limit."""
    one = {"uri": None, "connection": Connection(URI, slots=1)}
    held_start(master, _worker(master, "minion1", None, **one), slot(master, 1))
    later = again(master)
    worker = _worker(later, "minion1", None, **one)
    assert may_start(worker)
    with pytest.raises(LatentWorkerFailedToSubstantiate, match="VMs that are held have the room"):
        _start(worker)
    assert not may_start(worker)
    assert _left(later)[0] == [slot(later, 1)]
    close_stage(later)


def test_a_leftover_that_somebody_holds_is_spared(master: StageMaster) -> None:
    """A VM that the host did not let us end, and that was held afterwards, keeps its place."""
    worker = _worker(master, "minion1", None)
    _start(worker)
    master.fake.inspect(URI).trouble.fail_next("domain.destroy", 9)
    _stop(worker)
    assert _left(master)[0] == [slot(master, 1)]
    set_hold(master, slot(master, 1), wanted())
    with pytest.raises(LatentWorkerFailedToSubstantiate, match="latentvirt vm release"):
        _start(worker)
    _stop(worker)
    _start(worker)
    assert _left(master)[0] == [slot(master, 1), slot(master, 2)]
    _stop(worker)


def test_a_hold_on_a_host_that_went_away_is_reported_not_lost(
    master: StageMaster, caplog: pytest.LogCaptureFixture
) -> None:
    """While the host is away the hold is in doubt, and said to be; it ends only when the host says so."""
    held_start(master, _worker(master, "minion1", None), slot(master, 1))
    host = master.fake.inspect(URI)
    host.reachable = False
    host.break_connections()
    host.settle()
    look(master)
    (held,) = run(_states(master))[0].held
    assert held.domain == slot(master, 1)
    assert held.in_doubt
    said = [message for message in caplog.messages if "does not tell whether that is still so" in message]
    assert len(said) == 1
    assert slot(master, 1) in said[0]
    host.reachable = True
    (record,) = master.hub.records.values()
    until(lambda: record.resting is None)
    look(master)
    (held,) = run(_states(master))[0].held
    assert not held.in_doubt
    assert host.running() == [slot(master, 1)]
    host.reboot()
    host.settle()
    until(lambda: not _held_now(master))


def _held_now(master: StageMaster) -> Any:
    on_reactor(master.hub.holds.see_all)
    return on_reactor(lambda: master.hub.holds.on(next(iter(master.hub.records.values()))))


def test_a_build_that_ended_while_its_host_was_away(master: StageMaster) -> None:
    """A VM whose build ended while nobody could ask its host is found to be held once it is back."""
    worker = _worker(master, "minion1", None)
    _start(worker)
    set_hold(master, slot(master, 1), wanted())
    host = master.fake.inspect(URI)
    host.reachable = False
    host.break_connections()
    host.settle()
    _stop(worker)
    host.reachable = True
    (record,) = master.hub.records.values()
    until(lambda: record.resting is None and bool(on_reactor(lambda: master.hub.holds.on(record))))
    _settle(master)
    assert host.running() == [slot(master, 1)]


@pytest.mark.parametrize("rehearses", [False, True])
def test_a_standby_that_is_held_stays(master: StageMaster, rehearses: bool) -> None:
    """A standby that the master would give up is kept if somebody holds it, even while it rehearses."""
    master.fake.inspect(URI).guests = lambda domain: FakeGuest(says_ready=True, mute_after_thaw=rehearses)
    worker = _worker(master, "minion1", None, standby=True)
    worker.running = True
    on_reactor(lambda: master.hub.standbys.hear_of(worker))
    assert worker._arguments is not None
    hosts = worker._arguments.hosts
    (record,) = on_reactor(lambda: master.hub.know(hosts))
    on_reactor(lambda: master.hub.standbys.tend(record))
    _settle(master)
    (name,) = master.fake.inspect(URI).running()
    set_hold(master, name, wanted())
    run(master.hub.standbys.end_all(record))
    assert master.fake.inspect(URI).running() == [name]
    assert (len(record.standbys), len(record.claims)) == (0, 1)


def test_what_a_held_vm_was_thawed_from_stays_below_it(master: StageMaster) -> None:
    """After a restart the image below a held VM is kept, whatever becomes of it, until the VM is gone."""
    master.fake.inspect(URI).guests = lambda domain: FakeGuest(says_ready=True)
    worker = _worker(master, "minion1", None)
    before = len(master.data.updates.text)
    _start(worker)
    until(lambda: "guest attaches" in master.data.updates.text[before:])
    set_hold(master, slot(master, 1), wanted())
    _stop(worker)
    close_stage(master)
    later = again(master)
    worker = _worker(later, "minion1", None)
    assert worker._arguments is not None
    run(later.hub.expect(worker._arguments.hosts, "/images"))
    _settle(later)
    (record,) = later.hub.records.values()
    store = run(later.hub.frozen(record, "/images"))
    (image,) = store._images.values()
    run(store.discard(image))
    run(later.hub.sweeping.sweep(record))
    files = _left(later)[1]
    assert any(image.start in name for name in files)
    set_hold(later, slot(later, 1), None)
    look(later)
    run(later.hub.sweeping.sweep(record))
    assert _left(later) == ([], [])
    close_stage(later)


def test_a_hold_goes_with_a_vm_that_is_frozen_meanwhile(master: StageMaster) -> None:
    """Who holds a VM that is just about to be frozen holds the one that is thawed from it."""
    host = master.fake.inspect(URI)
    host.guests = lambda domain: FakeGuest(says_ready=True)
    worker = _worker(master, "minion1", None)
    before = len(master.data.updates.text)
    pausing = host.trouble.hang("domain.suspend")
    _start(worker)
    assert pausing.entered.acquire(timeout=60)
    set_hold(master, slot(master, 1), wanted())
    pausing.release()
    until(lambda: "guest attaches" in master.data.updates.text[before:])
    _stop(worker)
    assert _left(master)[0] == [slot(master, 1)]


# hold_on_failure


def failed_build(master: StageMaster, worker: LibVirtWorker) -> None:
    """Let a build fail on a worker's VM, which stops then, as Buildbot does."""
    build = Build()
    build.number, build.builder, build.results = 7, type("Builder", (), {"name": "b"}), 2  # type: ignore[attr-defined]
    _start(worker, build)
    run_ = worker._run
    assert run_ is not None

    def fail() -> None:
        run_.holding = defer.ensureDeferred(worker._hold(run_, build, HOUR_S))

    on_reactor(fail)
    _stop(worker)


def test_the_vm_of_a_failed_build_is_held_and_the_page_says_how_to_get_in(master: StageMaster) -> None:
    """A person reads in the build's page which commands open the VM, and until when it is there."""
    worker = _worker(master, "minion1", None, hold_on_failure="1h")
    failed_build(master, worker)
    assert _left(master)[0] == [slot(master, 1)]
    until(lambda: "let it go" in master.data.updates.text)
    for command in ("console", "ssh", "release"):
        assert f"latentvirt vm {command} {slot(master, 1)} -c '{URI}'" in master.data.updates.text
    assert "by worker minion1: build 7 of b failed" in master.data.updates.text
    (held,) = run(_states(master))[0].held
    assert abs(held.until - time.time() - HOUR_S) < HOUR_S / 2


def test_a_failure_makes_no_hold_shorter(master: StageMaster) -> None:
    """Who has held a VM for longer keeps it for as long as that."""
    worker = _worker(master, "minion1", None, hold_on_failure="1h")
    _start(worker)
    longer = wanted(24 * HOUR_S)
    set_hold(master, slot(master, 1), longer)
    assert worker._run is not None
    assert run(worker._run.machine.hold_until(wanted(HOUR_S))) == longer
    assert run(worker._run.machine.hold_until(attrs.evolve(longer, until=longer.until + 1))) != longer
    _stop(worker)


def test_a_vm_that_cannot_be_held_is_told_of(master: StageMaster) -> None:
    """Where the host does not let a failed build's VM be held, the page says so, and the VM ends."""
    worker = _worker(master, "minion1", None, hold_on_failure="1h")
    master.fake.inspect(URI).trouble.fail_next("domain.setMetadata", 9)
    failed_build(master, worker)
    until(lambda: "the VM could not be held" in master.data.updates.text)
    assert _left(master) == ([], [])
