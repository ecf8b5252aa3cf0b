"""Places, health and tries, which outlive a worker's configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from latentvirt.claim import Claim
from latentvirt.config import Connection
from latentvirt.errors import HostError
from latentvirt.hosts import Hosts
from latentvirt.master.health import LONGEST_REST_S, REST_GROWTH
from latentvirt.master.placing import RESERVATION_S, Need
from latentvirt.master.record import FIRST_REST_S, HostRecord
from latentvirt.master.tries import REMEMBERED_BUILDS
from latentvirt.names import FileName, new_start, slot_of_domain
from latentvirt.placement import Wish
from latentvirt.planning import Plan
from latentvirt.spec import Kind, MachineSpec
from reactorthread import on_reactor, run
from stagemaster import Clock, StageMaster, close_stage, open_stage

HERE = Connection("qemu:///system", slots=2)


@pytest.fixture
def clock() -> Clock:
    """Time that stands still."""
    return Clock()


@pytest.fixture
def master(clock: Clock) -> Iterator[StageMaster]:
    """A master with a hub."""
    opened = open_stage(clock)
    yield opened
    close_stage(opened)


@pytest.fixture
def record(master: StageMaster) -> HostRecord:
    """What the hub knows of a host with two places."""
    return known(master, HERE)


def known(master: StageMaster, connection: Connection) -> HostRecord:
    """Return what the hub knows of one host."""
    return on_reactor(lambda: master.hub.know(Hosts(connection)))[0]


def _reserve(master: StageMaster, record: HostRecord, *workers: str) -> list[bool]:
    needs = [_need(record.connection, worker) for worker in workers]
    return on_reactor(lambda: [master.hub.placing.reserve(need) for need in needs])


def _need(connection: Connection, worker: str, kind: Kind = "generated", xml: str | None = None) -> Need:
    spec = MachineSpec(worker=worker, kind=kind, xml=xml)
    return Need(worker=worker, hosts=Hosts(connection), wish=Wish(), spec=spec)


def _claim(master: StageMaster, record: HostRecord, worker: str, name: str | None = None) -> Claim:
    """Take a place as the start of a worker's VM does."""
    kind: Kind = "generated" if name is None else "xml"
    xml = None if name is None else f"<domain><name>{name}</name></domain>"
    need = _need(record.connection, worker, kind, xml)
    spec = need.spec
    planned = Plan(
        spec=spec, xml="<domain/>", disks=(), has_vars=False, hindrance="a test", fingerprint="", lineage=""
    )
    claim, standby = run(master.hub.places.claim(record, need, planned, lambda line: None))
    assert standby is None
    return claim


def test_a_full_host_says_no(master: StageMaster, record: HostRecord) -> None:
    """No more workers are promised a place than there are; who has a promise keeps it."""
    assert _reserve(master, record, "a", "b", "c", "a") == [True, True, False, True]
    claim = _claim(master, record, "a")
    assert _reserve(master, record, "c", "b") == [False, True]
    wakes = master.wakes
    on_reactor(lambda: master.hub.end(record, claim))
    assert master.wakes == wakes + 1
    assert _reserve(master, record, "c") == [True]


def test_a_promise_expires(master: StageMaster, record: HostRecord, clock: Clock) -> None:
    """A promise that no start follows is taken back, and those who wait are woken."""
    assert _reserve(master, record, "a", "b") == [True, True]
    on_reactor(lambda: clock.advance(RESERVATION_S - 1))
    assert _reserve(master, record, "b", "c") == [True, False]
    wakes = master.wakes
    on_reactor(lambda: clock.advance(1))
    assert master.wakes == wakes + 1
    assert _reserve(master, record, "c") == [True]
    assert sorted(record.reserved) == ["b", "c"]


def test_a_start_under_way_keeps_its_room(master: StageMaster, record: HostRecord, clock: Clock) -> None:
    """However long a start takes to its place, as when an image is copied, nobody else is promised that."""
    need, later = _need(record.connection, "a"), _need(record.connection, "a")
    placing = master.hub.placing
    assert on_reactor(lambda: (placing.reserve(need), placing.take(need))) == (True, record)
    on_reactor(lambda: clock.advance(2 * RESERVATION_S))
    assert _reserve(master, record, "b", "c") == [True, False]
    on_reactor(lambda: placing.over(need))
    assert on_reactor(lambda: placing.reserve(later))
    on_reactor(lambda: placing.over(need))  # of a start that was called off, and ends only now
    assert _reserve(master, record, "c") == [False]


def test_without_a_limit_there_is_always_room(master: StageMaster) -> None:
    """A host without slots takes all."""
    record = known(master, Connection("qemu:///session"))
    assert _reserve(master, record, *(f"w{number}" for number in range(50))) == [True] * 50


def test_slots_are_numbered_from_the_first_free(master: StageMaster, record: HostRecord) -> None:
    """Generated domains take the lowest free place; named ones take none of the numbers."""
    hub = master.hub
    first, second, named, third = (
        _claim(master, record, "w", name) for name in (None, None, "minion1", None)
    )
    assert [claim.slot for claim in (first, second, named, third)] == [
        "slot1",
        "slot2",
        slot_of_domain("minion1"),
        "slot3",
    ]
    on_reactor(lambda: hub.end(record, second))
    assert _claim(master, record, "w").slot == "slot2"


def test_a_changed_limit_holds_at_once(master: StageMaster, record: HostRecord) -> None:
    """A reconfig that changes a host's slots keeps its connection and its VMs."""
    _claim(master, record, "a")
    run(master.hub.expect(Hosts(Connection(HERE.uri, slots=1)), None))
    assert known(master, HERE) is record
    assert _reserve(master, record, "b") == [False]


def test_tries_are_counted_per_request(master: StageMaster) -> None:
    """Each build request has a count of its own, and only so many are remembered."""
    hub = master.hub
    assert [hub.tries.count(request) for request in (1, 1, 2, 1)] == [1, 2, 1, 3]
    for request in range(10, 10 + REMEMBERED_BUILDS):
        hub.tries.count(request)
    assert hub.tries.count(1) == 1


def test_a_host_that_failed_rests_and_is_tried(master: StageMaster, record: HostRecord, clock: Clock) -> None:
    """A host that failed says no, longer each time, and wakes the queue once it answers again."""
    host = master.fake.inspector
    host.reachable = False
    on_reactor(lambda: master.hub.failed(record, HostError("gone", host=HERE.uri)))
    assert _reserve(master, record, "a") == [False]
    on_reactor(lambda: clock.advance(FIRST_REST_S))
    second = FIRST_REST_S * REST_GROWTH
    while record.rest_s <= second:
        run(_nothing())
    assert _reserve(master, record, "a") == [False]
    host.reachable = True
    on_reactor(lambda: clock.advance(second - 0.5))
    assert host.trouble.calls.count("open") == 1
    wakes = master.wakes
    on_reactor(lambda: clock.advance(0.5))
    while record.resting is not None:
        run(_nothing())
    assert master.wakes == wakes + 1
    assert _reserve(master, record, "a") == [True]
    on_reactor(lambda: master.hub.health.worked(record, "a"))
    assert record.rest_s == FIRST_REST_S


def test_the_return_of_a_host_is_noticed_soon(
    master: StageMaster, record: HostRecord, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """However long a host was away, it is tried again within half as long once more, and half a minute."""

    def rests() -> list[Any]:
        return [entry.args[1] for entry in caplog.records if "rests for" in entry.msg and entry.args]

    host = master.fake.inspector
    host.reachable = False
    on_reactor(lambda: master.hub.failed(record, HostError("gone", host=HERE.uri)))
    away = 0.0
    while away < 10 * LONGEST_REST_S:
        tried, rest = len(rests()), rests()[-1]
        assert rest <= min(away / 2 + FIRST_REST_S, LONGEST_REST_S)
        on_reactor(lambda rest=rest: clock.advance(rest))
        while len(rests()) == tried:
            run(_nothing())
        away += rest
    host.reachable = True
    on_reactor(lambda: clock.advance(rests()[-1]))
    while record.resting is not None:
        run(_nothing())
    assert _reserve(master, record, "a") == [True]


def test_a_worker_whose_start_was_refused_waits_alone(
    master: StageMaster, record: HostRecord, clock: Clock
) -> None:
    """A host that answers but failed one worker's start is there for the others, and soon for it again."""
    on_reactor(lambda: master.hub.health.refused(record, "a", HostError("no")))
    assert _reserve(master, record, "a") == [False]
    assert _reserve(master, record, "b") == [True]
    wakes = master.wakes
    on_reactor(lambda: clock.advance(FIRST_REST_S))
    assert master.wakes == wakes + 1
    assert _reserve(master, record, "a") == [True]
    on_reactor(lambda: master.hub.health.refused(record, "a", HostError("no")))
    on_reactor(lambda: clock.advance(FIRST_REST_S))
    assert _reserve(master, record, "a") == [False]


async def _nothing() -> None:
    pass


def test_what_an_earlier_process_left_is_swept_at_start(master: StageMaster) -> None:
    """When a worker announces its host, leftovers of this owner go, those of living starts stay."""
    hub, host = master.hub, master.fake.inspector
    folder = f"/images/latentvirt-{hub.owner}"
    record = known(master, Connection("qemu:///session"))
    living = _claim(master, record, "w").begin()
    dead = str(FileName("slot1", new_start(), "overlay", "vda"))
    host.add_file(f"{folder}/{dead}")
    alive = FileName("slot1", living.start, "overlay", "vda")
    master.fake.inspect("qemu:///session").add_file(f"{folder}/{alive}")
    run(hub.expect(Hosts(HERE), "/images"))
    while hub._background:
        run(_nothing())
    assert dead not in host.listing(folder)
    assert [name for name in host.listing(folder) if not name.startswith("lease.")] == []
    assert host.listing(folder) != []


def test_folders_are_remembered_across_processes(master: StageMaster) -> None:
    """A folder that only renderables named is swept by the next process, too."""
    record = known(master, HERE)
    run(master.hub.storage(record, "/rendered"))
    assert master.db.state.values["places"] == [(HERE.uri, "/rendered")]


def test_a_stopping_master_tidies_up_and_waits_for_no_dead_host(clock: Clock) -> None:
    """At the master's end an empty directory goes, and a mute host costs nothing."""
    master = open_stage(clock)
    master.fake.inspector.folders.add("/images")
    record = known(master, HERE)
    storage = run(master.hub.storage(record, "/images"))
    while master.hub._background:
        run(_nothing())
    assert storage.directory in master.fake.inspector.folders
    mute = known(master, Connection("qemu:///session"))
    hang = master.fake.inspect(mute.host.uri).trouble.hang("open")
    close_stage(master)
    assert storage.directory not in master.fake.inspector.folders
    hang.release()
