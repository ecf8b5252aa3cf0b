"""Several hosts, as fakes: which of them a start goes to, and what comes of trouble on one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import libvirt
import pytest
from buildbot.config.errors import ConfigErrors
from buildbot.interfaces import (
    IRenderable,
    LatentWorkerCannotSubstantiate,
    LatentWorkerFailedToSubstantiate,
)
from buildbot.process.properties import Property
from twisted.internet import defer

from latentvirt import Flavor, Image, drain, host_states, prefer_dynamic, prefer_static, release
from latentvirt import workers as many
from latentvirt.config import Connection
from latentvirt.errors import ConfigError
from latentvirt.hosts import Hosts
from latentvirt.master.glance import HostState
from latentvirt.master.health import LEAST_FAILURES
from latentvirt.master.placing import ASK_AGAIN_S, COURTESY_S
from latentvirt.master.room import BACK_S
from latentvirt.master.tries import TRIES_OF_A_BUILD
from latentvirt.master.worker import LibVirtWorker
from latentvirt.testing import FakeGuest
from reactorthread import Heard, on_reactor, run
from stagemaster import Build, Clock, StageMaster, close_stage, open_stage

BASE = "/images/base.qcow2"
FIRST, SECOND, THIRD = URIS = tuple(f"qemu+ssh://host{number}/system" for number in (1, 2, 3))
SIZE = {"memory": 1024, "vcpus": 2}


_numbers = itertools.count(1000)


class Wishing(Build):
    """A build of a builder that asks for something."""

    def __init__(self, number: int = 0, builder: str = "b", **requires: Any) -> None:
        super().__init__(number or next(_numbers))
        self.builder, self.requires = builder, requires

    def getProperty(self, name: str, default: Any = None) -> Any:
        """Read a property."""
        return self.builder if name == "buildername" else default

    def render(self, value: Any) -> Any:
        """Render what is asked for, and the rest as it is."""
        return super().render(self.requires if IRenderable.providedBy(value) else value)


@pytest.fixture
def master() -> Iterator[StageMaster]:
    """A master on three fake hosts that have the base image."""
    opened = open_stage()
    for uri in URIS:
        opened.fake.inspect(uri).add_file(BASE)
    yield opened
    close_stage(opened)


def three(**more: Any) -> Hosts:
    """Name the three, with two places each; the second is of another region."""
    return Hosts(
        Connection(FIRST, slots=2, labels={"region": "near"}),
        Connection(SECOND, slots=2, labels={"region": "far", "cpu": "avx512"}),
        Connection(THIRD, slots=2, labels={"region": "near"}),
        **more,
    )


def workers(master: StageMaster, count: int, hosts: Hosts | None = None, **more: Any) -> list[LibVirtWorker]:
    """Configure workers that share hosts."""
    arguments = {"connection": hosts or three(), "base_image": BASE, "requires": Property("requires"), **more}
    if "flavors" not in arguments:
        arguments.setdefault("size", SIZE)
    made = []
    for number in range(count):
        worker = on_reactor(lambda number=number: master.worker(f"w{number}", None, **arguments))
        worker.running = True
        made.append(worker)
    assert made[0]._arguments is not None
    run(master.hub.expect(made[0]._arguments.hosts, "/images"))
    settle(master)
    return made


def settle(master: StageMaster) -> None:
    """Wait until the hub has nothing in the background."""

    async def nothing() -> None:
        pass

    while master.hub._background:
        run(nothing())


def may(worker: LibVirtWorker, build: Build | None = None) -> bool:
    """Ask as Buildbot does whether a build may start on a worker."""

    async def ask() -> bool:
        return bool(await worker.isCompatibleWithBuild(build or Wishing()))

    return run(ask())


def start(worker: LibVirtWorker, build: Build | None = None) -> None:
    """Start a build's VM."""

    async def go() -> None:
        await worker.start_instance(build or Wishing())

    run(go())


def stop(worker: LibVirtWorker) -> None:
    """End it."""

    async def go() -> None:
        await worker.stop_instance()

    run(go())
    settle(worker.master)


def running(master: StageMaster) -> list[int]:
    """Count the VMs on each host."""
    return [len(master.fake.inspect(uri).running()) for uri in URIS]


def states(master: StageMaster) -> dict[str, HostState]:
    """See all hosts at a glance."""

    async def look() -> list[HostState]:
        return await host_states(master)

    return {state.uri: state for state in run(look())}


def test_builds_spread_over_hosts_until_all_are_full(master: StageMaster) -> None:
    """Each start goes where most room is left; when there is none, a build waits, and is woken by an end."""
    made = workers(master, 7)
    for number, worker in enumerate(made[:6]):
        assert may(worker)
        start(worker)
        assert sum(running(master)) == number + 1
        assert max(running(master)) - min(running(master)) <= 1
    assert not may(made[6])
    wakes = master.wakes
    stop(made[2])
    assert master.wakes > wakes
    assert may(made[6])
    start(made[6])
    assert running(master) == [2, 2, 2]


def test_a_promise_holds_its_room_before_the_start(master: StageMaster) -> None:
    """Room that Buildbot was promised for one worker's build is not promised to another's."""
    made = workers(master, 7)
    assert [may(worker) for worker in made] == [True] * 6 + [False]
    for worker in made[:6]:
        start(worker)
    assert running(master) == [2, 2, 2]


def test_a_promise_on_a_host_that_was_removed_is_not_kept(master: StageMaster) -> None:
    """A build whose worker may not use the promised host any more goes to one that it may use."""
    (worker,) = workers(master, 1, Hosts(Connection(FIRST), Connection(SECOND)))
    assert may(worker)
    placing = master.hub.placing
    (promised,) = (uri for uri, record in master.hub.records.items() if record.reserved)
    other = SECOND if promised == FIRST else FIRST
    need = worker._needs.foreseen
    taken = on_reactor(lambda: placing.take(attrs.evolve(need, hosts=Hosts(Connection(other)))))
    assert taken is not None
    assert taken.host.uri == other


def test_hosts_are_filled_one_after_the_other_if_asked_to(master: StageMaster) -> None:
    """With spread=False a host is full before the next one is used."""
    made = workers(master, 3, three(spread=False))
    for worker in made:
        start(worker)
    assert running(master) == [2, 1, 0]


def test_beaker_region_near_the_lab_comes_first(master: StageMaster) -> None:
    """Hosts of the preferred region are used as long as they have room, then the others."""
    made = workers(master, 5, three(prefer={"region": "near"}))
    for worker in made[:4]:
        start(worker)
    assert running(master) == [2, 0, 2]
    start(made[4])
    assert running(master) == [2, 1, 2]


def test_a_build_that_asks_for_a_label_gets_a_host_that_has_it(master: StageMaster) -> None:
    """A build's labels choose among hosts; while those are full it waits, although others have room."""
    made = workers(master, 3)
    wish = Wishing(labels={"cpu": "avx512"})
    for worker in made[:2]:
        assert may(worker, wish)
        start(worker, wish)
    assert running(master) == [0, 2, 0]
    assert not may(made[2], wish)
    assert may(made[2])


def test_an_impossible_wish_ends_its_build_and_nothing_else(master: StageMaster) -> None:
    """A label that no host has ends the build at once, with the nearest host named, and no worker pays."""
    worker, other = workers(master, 2)
    wish = Wishing(labels={"cpu": "sparc", "region": "near"})
    assert may(worker, wish), "or the build would wait for ever"
    with pytest.raises(LatentWorkerCannotSubstantiate, match=r"no host could ever take it"):
        start(worker, wish)
    stop(worker)
    worker.putInQuarantine()
    assert worker.quarantine_timer is None
    assert may(worker)
    assert may(other)


def test_what_a_single_host_could_never_have_does_not_wait_for_ever(master: StageMaster) -> None:
    """A VM that is larger than the only host may have ends its build, with the number that is in the way."""
    hosts = Hosts(Connection(FIRST, memory="512 MiB"))
    (worker,) = workers(master, 1, hosts, requires=None, size=Property("size"))
    assert may(worker, Wishing(memory="1 GiB"))
    with pytest.raises(LatentWorkerCannotSubstantiate, match="memory is at most 512 MiB, not 1 GiB"):
        start(worker, Wishing(memory="1 GiB"))


PREDEFINED = """
<domain type='kvm'><name>{}</name><memory unit='MiB'>{}</memory><os><type>hvm</type></os><devices>
<disk type='file'><driver type='qcow2'/><source file='/images/hd'/><target dev='vda'/></disk>
</devices></domain>
"""


def test_a_predefined_domain_waits_for_room_of_its_own_size(master: StageMaster) -> None:
    """How large it is, its host says: its build waits until there is room, and no try of it is used up."""
    host = master.fake.inspect(FIRST)
    host.define(PREDEFINED.format("w0", 2048))
    hosts = Hosts(Connection(FIRST, memory="2304 MiB"))
    (large,) = workers(master, 1, hosts, size=None, hd_image="/images/hd", requires=None)
    other = master.worker("other", None, connection=hosts, base_image=BASE, size={"memory": "512 MiB"})
    other.running = True
    start(other)
    build = Wishing()
    assert may(large, build), "nobody knows its size yet"
    for _ in range(TRIES_OF_A_BUILD + 2):
        with pytest.raises(LatentWorkerFailedToSubstantiate, match="no room now for a domain of its size"):
            start(large, build)
    assert not may(large, build)
    assert host.trouble.calls.count("createXML") == 1, "no VM was made in vain"
    stop(other)
    assert may(large, build)
    start(large, build)
    assert host.running() == ["w0"]


def test_a_predefined_domain_that_can_never_fit_ends_its_build(master: StageMaster) -> None:
    """It is told with the domain's own size, not with one that nobody has written."""
    master.fake.inspect(FIRST).define(PREDEFINED.format("w0", 2048))
    hosts = Hosts(Connection(FIRST, memory="1536 MiB"))
    (large,) = workers(master, 1, hosts, size=None, hd_image="/images/hd", requires=None)
    with pytest.raises(LatentWorkerCannotSubstantiate, match="memory is at most 1536 MiB, not 2 GiB"):
        start(large)


def test_a_small_predefined_domain_runs_where_there_is_little_memory(master: StageMaster) -> None:
    """A host that gives its VMs less than a domain of ours has by default is good for a smaller one."""
    master.fake.inspect(FIRST).define(PREDEFINED.format("w0", 256))
    hosts = Hosts(Connection(FIRST, memory=512))
    (small,) = workers(master, 1, hosts, size=None, hd_image="/images/hd", requires=None)
    assert may(small)
    start(small)
    assert running(master) == [1, 0, 0]


def test_a_renderable_that_raises_ends_its_build_and_blocks_no_other(master: StageMaster) -> None:
    """A build whose renderable fails is started and ends, naming worker, argument and error."""

    class Failing(Wishing):
        """A build for which a renderable raises."""

        def render(self, value: Any) -> Any:
            """Fail where there is something to render."""
            return defer.fail(KeyError("windows")) if IRenderable.providedBy(value) else super().render(value)

    (worker,) = workers(master, 1, requires=Property("requires"))
    assert may(worker, Failing())
    said = "worker w0: requires could not be rendered for this build: KeyError\\('windows'\\).*look at"
    with pytest.raises(LatentWorkerCannotSubstantiate, match=said):
        start(worker, Failing())
    stop(worker)
    assert may(worker)


def test_a_start_that_fails_on_one_host_goes_on_on_the_next(master: StageMaster) -> None:
    """Hosts that cannot be reached, or refuse, cost a build nothing but time; the page says what happened."""
    made = workers(master, 2)
    master.fake.inspect(FIRST).reachable = False
    master.fake.inspect(FIRST).break_connections()
    master.fake.inspect(THIRD).trouble.fail_next("createXML", libvirt.VIR_ERR_INTERNAL_ERROR, "no such luck")
    start(made[0])
    assert running(master) == [0, 1, 0]
    stop(made[0])
    text = master.data.updates.text
    assert "no such luck" in text or "host1" in text
    assert "looking for another host" in text
    start(made[1])
    assert running(master)[0] == 0


def test_a_host_that_lacks_the_image_is_passed_over(master: StageMaster) -> None:
    """A base image that one host does not have is no reason to fail while another has it."""
    for uri in (FIRST, THIRD):
        del master.fake.inspect(uri).files[BASE]
    made = workers(master, 2)
    for worker in made:
        start(worker)
    assert running(master) == [0, 2, 0]


def test_where_no_host_works_the_build_says_so(master: StageMaster) -> None:
    """If all hosts fail, the build ends with the last one's error, and may be tried again."""
    (worker,) = workers(master, 1)
    for uri in URIS:
        master.fake.inspect(uri).trouble.fail_next("createXML", libvirt.VIR_ERR_INTERNAL_ERROR, "no luck")
    with pytest.raises(LatentWorkerFailedToSubstantiate, match="no luck"):
        start(worker)
    assert running(master) == [0, 0, 0]


def foreign(master: StageMaster, uri: str, name: str, memory_mib: int, owner: str = "") -> None:
    """Start a domain of somebody else's."""
    mark = (
        f"<metadata><lv:vm xmlns:lv='urn:latentvirt:vm:1' owner='{owner}' slot='slot1' start='{'0' * 12}'/>"
        "</metadata>"
        if owner
        else ""
    )
    xml = (
        f"<domain type='kvm'><name>{name}</name>{mark}<memory unit='MiB'>{memory_mib}</memory>"
        "<vcpu>1</vcpu><os><type>hvm</type></os></domain>"
    )
    master.fake.open(uri).createXML(xml)


def test_starts_that_move_on_do_not_crowd_one_host(master: StageMaster) -> None:
    """Of two starts that fail on one host, another with one place takes one; the other waits for its turn."""
    made = workers(master, 2, Hosts(Connection(FIRST, slots=2), Connection(SECOND, slots=1)))
    on_reactor(lambda: drain(master, SECOND))
    builds = [Wishing(), Wishing()]
    assert [may(worker, build) for worker, build in zip(made, builds, strict=True)] == [True, True]
    on_reactor(lambda: drain(master, SECOND, drained=False))
    for _ in builds:
        master.fake.inspect(FIRST).trouble.fail_next("createXML", libvirt.VIR_ERR_INTERNAL_ERROR)

    async def both() -> list[tuple[bool, object]]:
        starting = [worker.start_instance(build) for worker, build in zip(made, builds, strict=True)]
        return list(await defer.DeferredList(starting, consumeErrors=True))

    assert sorted(good for good, _ in run(both())) == [False, True]
    assert master.fake.inspect(SECOND).trouble.calls.count("createXML") == 1


def test_a_persons_own_vms_are_respected(master: StageMaster) -> None:
    """Memory that other domains have is not given to builds, and is, once they have ended."""
    made = workers(master, 2, Hosts(Connection(FIRST, memory="4 GiB"), Connection(SECOND, memory="3 GiB")))
    foreign(master, FIRST, "theirs", 3584)
    run(master.hub.records[FIRST].room.look())
    for worker in made:
        start(worker)
    assert running(master) == [1, 2, 0]


def test_beaker_local_disk_requirements_choose_a_host_that_has_it(master: StageMaster) -> None:
    """VMs are given no more disk together than a host has for them, and a wish for more ends its build."""
    flavors = [Flavor("small", disk="10 GiB"), Flavor("large", disk="50 GiB")]
    hosts = Hosts(
        Connection(FIRST, disk="60 GiB"), Connection(SECOND, disk="20 GiB", labels={"region": "far"})
    )
    made = workers(master, 4, hosts, flavors=flavors)
    start(made[0], Wishing(disk="50 GiB"))
    assert running(master) == [1, 0, 0]
    for worker in made[1:]:
        start(worker, Wishing(disk="10 GiB"))
    assert running(master) == [2, 2, 0]
    stop(made[0])
    with pytest.raises(LatentWorkerCannotSubstantiate, match="disk is at most 20 GiB, not 50 GiB"):
        start(made[0], Wishing(disk="50 GiB", labels={"region": "far"}))


def test_who_is_later_gives_way(master: StageMaster) -> None:
    """If others take the last room just before, the VM does not run there: another host has it, or none."""
    made = workers(master, 2, Hosts(Connection(FIRST, slots=1), Connection(SECOND, slots=1)))

    def others_are_quicker(uri: str) -> None:
        foreign(master, uri, "theirs", 64, owner="f" * 16)

    host = master.fake.inspect(FIRST)
    host.trouble.before_next("createXML", lambda: others_are_quicker(FIRST))
    start(made[0])
    assert (running(master), host.running()) == ([1, 1, 0], ["theirs"])
    stop(made[0])
    start(made[0])
    assert "others were quicker" in master.data.updates.text
    second = master.fake.inspect(SECOND)
    for _ in range(TRIES_OF_A_BUILD + 2):
        with pytest.raises(LatentWorkerFailedToSubstantiate, match="no host has room"):
            start(made[1], Wishing(7))
    assert len(second.running()) == 1


@pytest.fixture
def timed() -> Iterator[StageMaster]:
    """A master whose time the test lets pass, on a fake host that has the base image."""
    opened = open_stage(Clock())
    opened.fake.inspect(FIRST).add_file(BASE)
    yield opened
    close_stage(opened)


def comes_and_goes(master: StageMaster) -> None:
    """Let another master begin a VM on the first host and give it up, seen by us."""
    foreign(master, FIRST, "theirs", 64, owner="f" * 16)
    run(master.hub.records[FIRST].room.look())
    theirs_goes(master)


def theirs_goes(master: StageMaster) -> None:
    """End the other master's VM, and wait until we have heard of it."""
    before = states(master)[FIRST].memory_used_mib
    master.fake.open(FIRST).lookupByName("theirs").destroy()
    while states(master)[FIRST].memory_used_mib == before:
        pass


def test_masters_take_turns_on_a_full_host(timed: StageMaster) -> None:
    """What a VM leaves of a full host is for a moment another master's that has tried; then it is ours."""
    one, other = workers(timed, 2, Hosts(Connection(FIRST, slots=1, memory="4 GiB")))
    start(one)
    comes_and_goes(timed)
    stop(one)
    assert not may(other)
    assert "another master has its turn" in states(timed)[FIRST].why_not
    wakes = timed.wakes
    on_reactor(lambda: timed.reactor.advance(COURTESY_S))
    assert timed.wakes > wakes
    assert may(other)
    start(other)
    stop(other)
    assert may(one), "nobody else has tried since"


def test_builds_that_wait_for_hosts_that_are_out_of_use_are_told_of(
    timed: StageMaster, caplog: pytest.LogCaptureFixture
) -> None:
    """The master's log says once which hosts a build waits for and why; full ones need no words."""
    hosts = Hosts(*(Connection(uri, slots=1) for uri in URIS))
    one, other = workers(timed, 2, hosts, requires=None)

    def waits(worker: LibVirtWorker = other) -> list[str]:
        caplog.clear()
        for _ in range(2):
            on_reactor(lambda: timed.reactor.advance(ASK_AGAIN_S))
            assert not may(worker, Wishing(builder="fedora"))
        return [message for message in caplog.messages if "wait" in message]

    for uri in URIS[1:]:
        on_reactor(lambda uri=uri: drain(timed, uri))
    start(one)
    assert waits() == []
    on_reactor(lambda: drain(timed, FIRST))
    named = "; ".join(f"{uri}: it is being drained" for uri in URIS)
    assert waits() == [f"builds of fedora wait, for no host that could take them is in use: {named}"]
    assert waits() == []


def test_each_place_that_is_freed_gives_others_their_whole_turn(timed: StageMaster) -> None:
    """A place that is freed during another master's turn is theirs for as long as the first was."""
    one, two, other = workers(timed, 3, Hosts(Connection(FIRST, slots=2, memory="8 GiB")))
    start(one)
    start(two)
    comes_and_goes(timed)
    stop(one)
    on_reactor(lambda: timed.reactor.advance(COURTESY_S / 2))
    foreign(timed, FIRST, "theirs", 64, owner="f" * 16)
    run(timed.hub.records[FIRST].room.look())
    stop(two)
    on_reactor(lambda: timed.reactor.advance(COURTESY_S / 2))
    assert not may(other)
    on_reactor(lambda: timed.reactor.advance(COURTESY_S / 2))
    assert may(other)


def test_no_turn_is_given_up_on_a_host_that_has_room(timed: StageMaster) -> None:
    """Where there is room for another master's VM beside ours, ours waits for nobody."""
    one, other = workers(timed, 2, Hosts(Connection(FIRST, slots=2, memory="8 GiB")))
    start(one)
    comes_and_goes(timed)
    stop(one)
    assert may(other)


def test_who_has_had_no_turn_gives_none_up(timed: StageMaster) -> None:
    """A master whose VM gave way to another's takes the place as soon as that one leaves it."""
    one, other = workers(timed, 2, Hosts(Connection(FIRST, slots=1, memory="4 GiB")))
    host = timed.fake.inspect(FIRST)
    host.trouble.before_next("createXML", lambda: foreign(timed, FIRST, "theirs", 64, owner="f" * 16))
    with pytest.raises(LatentWorkerFailedToSubstantiate, match="others were quicker"):
        start(one)
    settle(timed)
    theirs_goes(timed)
    assert may(other)


@pytest.mark.parametrize("returns", [True, False])
def test_a_vm_that_is_frozen_keeps_its_room(timed: StageMaster, returns: bool) -> None:
    """The room of another master's VM that is saved is not taken before it can have been thawed."""
    (worker,) = workers(timed, 1, Hosts(Connection(FIRST, slots=1, memory="4 GiB")))
    foreign(timed, FIRST, "theirs", 64, owner="f" * 16)
    room = timed.hub.records[FIRST].room
    run(room.look())
    theirs = timed.fake.open(FIRST)
    theirs.lookupByName("theirs").saveFlags("/images/theirs.mem", None, 0)
    while not room._saved:
        on_reactor(lambda: None)
    run(room.look())
    assert not may(worker)
    if returns:
        theirs.restoreFlags("/images/theirs.mem", None, 0)
        while room._saved:
            on_reactor(lambda: None)
    on_reactor(lambda: timed.reactor.advance(BACK_S))
    assert may(worker) is not returns


def test_a_drained_host_gets_no_new_builds_and_keeps_its_own(master: StageMaster) -> None:
    """Drained by config or by a program, a host finishes its builds and gets none until it is taken back."""
    made = workers(
        master, 4, Hosts(Connection(FIRST, slots=2, drain=True), Connection(SECOND), Connection(THIRD))
    )
    start(made[0])
    start(made[1])
    assert running(master) == [0, 1, 1]

    async def change(drained: bool) -> None:
        await drain(master, SECOND, drained=drained)

    run(change(True))
    start(made[2])
    assert running(master) == [0, 1, 2]
    assert {uri: state.drained for uri, state in states(master).items()} == {
        FIRST: True,
        SECOND: True,
        THIRD: False,
    }
    run(change(False))
    start(made[3])
    assert running(master) == [0, 2, 2]

    async def wrong() -> None:
        await drain(master, "qemu+ssh://nowhere/system")

    with pytest.raises(ConfigError, match="names the host 'qemu"):
        run(wrong())


def test_a_host_where_starts_fail_far_more_often_is_quarantined(master: StageMaster) -> None:
    """A host that fails start after start is left alone, reported, and used again when a person says so."""
    (worker,) = workers(master, 1, Hosts(Connection(FIRST, labels={"rack": "1"}), Connection(SECOND)))
    wish = Wishing(labels={"rack": "1"})
    record = master.hub.records[FIRST]
    host = master.fake.inspect(FIRST)
    for number in range(LEAST_FAILURES):
        record.held.clear()
        host.trouble.fail_next("createXML", libvirt.VIR_ERR_INTERNAL_ERROR, "bad disk")
        with pytest.raises(LatentWorkerFailedToSubstantiate):
            start(worker, Wishing(number, labels={"rack": "1"}))
    record.held.clear()
    state = states(master)[FIRST]
    assert state.quarantined
    assert "bad disk" in state.why_not
    assert not may(worker, wish)

    async def let_out() -> None:
        await release(master, FIRST)

    run(let_out())
    assert may(worker, wish)


def test_the_state_of_hosts_at_a_glance(master: StageMaster) -> None:
    """What each host has, and what of it is used, is told as plain values."""
    host = master.fake.inspect(FIRST)
    host.guests = lambda domain: FakeGuest(says_ready=True)
    made = workers(master, 1, Hosts(Connection(FIRST, slots=2, labels={"a": "b"}), Connection(SECOND)))
    start(made[0], Wishing(labels={"a": "b"}))
    state = states(master)[FIRST]
    assert (state.uri, state.labels, state.arch, state.connected) == (FIRST, {"a": "b"}, "x86_64", True)
    assert (state.slots, state.builds, state.why_not, state.last_error) == (2, 1, "", "")
    assert (state.memory_mib, state.memory_used_mib) == (int(16 * 1024 * 0.9), 1024)
    assert (state.vcpus, state.vcpus_used) == (32, 2)


def test_the_build_that_waits_longest_is_not_overtaken_for_ever(master: StageMaster) -> None:
    """Small builds do not keep a large one waiting: room that comes free is kept for it."""
    flavors = [Flavor("small", memory="1 GiB"), Flavor("large", memory="4 GiB")]
    hosts = Hosts(Connection(FIRST, memory="4 GiB"), Connection(SECOND, memory="2 GiB"))
    made = workers(master, 7, hosts, flavors=flavors)
    small = Wishing(builder="small")
    large = Wishing(builder="large", memory="4 GiB")
    for worker in made[:6]:
        assert may(worker, small)
        start(worker, Wishing(builder="small"))
    assert running(master) == [4, 2, 0]
    assert not may(made[6], large)
    on_first = [w for w in made[:6] if w._run is not None and w._run.record.host.uri == FIRST]
    for worker in on_first[:3]:
        stop(worker)
        assert not may(worker, small), "the room that came free is kept"
    stop(on_first[3])
    assert may(made[6], large)


def test_an_image_of_the_masters_gets_to_each_host_once(master: StageMaster, tmp_path: Path) -> None:
    """A base image on the master is copied to each host that a build goes to, and no oftener."""
    image = tmp_path / "debian.raw"
    image.write_bytes(b"\0" * 1024 * 1024)
    for uri in URIS:
        master.fake.inspect(uri).add_folder("/var/lib/libvirt/images")
    made = workers(master, 6, base_image=Image(str(image), format="raw"))
    for worker in made:
        start(worker)
    assert running(master) == [2, 2, 2]
    for uri in URIS:
        host = master.fake.inspect(uri)
        assert host.trouble.calls.count("volume.upload") == 1
        copies = host.listing("/var/lib/libvirt/images/latentvirt-images")
        assert len([name for name in copies if name.endswith(".ready")]) == 1
        assert len(host.listing(f"/var/lib/libvirt/images/latentvirt-{master.hub.owner}")) >= 2
    stop(made[0])
    assert "copying debian.raw" in master.data.updates.text


class Candidate:
    """Buildbot's WorkerForBuilder, as far as it matters."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker


class Static:
    """A worker that is a machine of its own."""

    conn = "connected"


def test_beaker_dynamic_resources_are_favoured_if_asked_for(master: StageMaster) -> None:
    """A builder's VMs come before its static workers, or after them, and it does with what there is."""
    ours, static = Candidate(workers(master, 1)[0]), Candidate(Static())
    both = [static, ours]
    assert on_reactor(lambda: prefer_dynamic(None, both, None)) is ours
    assert on_reactor(lambda: prefer_static(None, both, None)) is static
    assert on_reactor(lambda: prefer_dynamic(None, [static], None)) is static
    assert on_reactor(lambda: prefer_static(None, [ours], None)) is ours
    assert prefer_dynamic(None, [], None) is None


def test_downburst_a_vm_tells_which_host_it_is_on(master: StageMaster) -> None:
    """The page of a build names the host that its VM resides on."""
    (worker,) = workers(master, 1)
    start(worker, Wishing(labels={"cpu": "avx512"}))
    stop(worker)
    assert f"starting a VM for w0 on {SECOND} (slot " in master.data.updates.text


def test_downburst_many_slots_are_named_by_number() -> None:
    """Workers that differ in their numbers only are made at once, and share their hosts."""
    made = many("vps", 12, three(), password=None, base_image=BASE, size=SIZE)
    assert [worker.name for worker in made][:2] == ["vps001", "vps002"]
    assert len({worker.name for worker in made}) == 12


def test_a_vm_that_went_with_its_host_is_no_fault_of_the_guests(master: StageMaster) -> None:
    """A host that crashed and is back at once, without its VMs, costs no worker its place in Buildbot."""
    (worker,) = workers(master, 1, Hosts(Connection(FIRST), Connection(SECOND)))
    start(worker)
    master.fake.inspect(FIRST).reboot()
    while on_reactor(worker.check_instance)[0]:
        on_reactor(lambda: None)
    assert "is back without the VM" in on_reactor(worker.check_instance)[1]
    stop(worker)
    on_reactor(worker.putInQuarantine)
    assert worker.quarantine_timer is None
    start(worker)
    assert running(master) == [0, 1, 0]


def test_workers_are_named_by_text() -> None:
    """What a name cannot begin with is refused, and does not become part of one."""
    with pytest.raises(ConfigErrors, match="names cannot begin with that"):
        many(None, 2, three(), password=None)  # type: ignore[arg-type]


def test_starts_on_one_host_look_things_up_together(master: StageMaster) -> None:
    """What six starts need to know of their host is asked once or twice, not six times."""
    made = workers(master, 6, Hosts(Connection(FIRST, slots=6), Connection(SECOND, slots=6), spread=False))
    host, record = master.fake.inspect(FIRST), master.hub.records[FIRST]
    image, room = host.trouble.hang("storageVolLookupByPath"), host.trouble.hang("getAllDomainStats")
    before = len(host.trouble.calls)
    started = Heard[Any]()

    async def all_of_them() -> None:
        starting = [worker.start_instance(Wishing()) for worker in made]
        await defer.gatherResults(starting)

    on_reactor(lambda: defer.ensureDeferred(all_of_them()).addBoth(started))
    while not any(
        len(flight.waiting) == len(made) for flight in on_reactor(record.plans._flights.copy).values()
    ):
        pass
    image.release()
    while len(host.running()) < len(made):
        pass
    room.release()
    assert started.until(bool) == [None]
    asked = host.trouble.calls[before:]
    assert asked.count("volume.XMLDesc") == 1
    assert asked.count("getAllDomainStats") <= 3
    assert asked.count("domain.resume") == len(made)


def test_a_domain_of_the_same_uuid_that_ran_before_is_not_taken_for_this_one(master: StageMaster) -> None:
    """Where others were quicker, a predefined domain gives way, although there was room for its last run."""
    host = master.fake.inspect(FIRST)
    host.define(PREDEFINED.format("w0", 64))
    hosts = Hosts(Connection(FIRST, slots=1, memory="4 GiB"))
    (worker,) = workers(master, 1, hosts, size=None, hd_image="/images/hd", requires=None)
    start(worker)
    assert host.running() == ["w0"]
    stop(worker)
    assert [use.name for use in master.hub.records[FIRST].room._listed] == ["w0"]
    host.trouble.before_next("createXML", lambda: foreign(master, FIRST, "theirs", 64, owner="f" * 16))
    with pytest.raises(LatentWorkerFailedToSubstantiate, match="others were quicker"):
        start(worker)
    assert host.running() == ["theirs"]


def test_a_vm_that_is_frozen_keeps_its_room_although_its_end_was_seen_before(timed: StageMaster) -> None:
    """A look may miss a VM that was saved before that is heard; its room is kept all the same."""
    (worker,) = workers(timed, 1, Hosts(Connection(FIRST, slots=1, memory="4 GiB")))
    foreign(timed, FIRST, "theirs", 64, owner="f" * 16)
    timed.fake.inspect(FIRST).settle()
    on_reactor(lambda: None)
    settle(timed)
    room = timed.hub.records[FIRST].room
    run(room.look())
    on_reactor(lambda: room._note(()))
    assert may(worker)
    timed.fake.open(FIRST).lookupByName("theirs").saveFlags("/images/theirs.mem", None, 0)
    while not room._saved:
        on_reactor(lambda: None)
    on_reactor(lambda: timed.hub.records[FIRST].withdraw(worker.name))
    assert not may(worker)
