"""A host with much to do at once: how many connections it gets, and what it is asked (on the fake)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet import defer

from latentvirt.config import Connection
from latentvirt.errors import HostUnreachable
from latentvirt.host import Deadlines, Host
from latentvirt.host.further import MOST_CONNECTIONS
from latentvirt.host.link import CALLS_AT_A_TIME
from latentvirt.names import pool_name
from latentvirt.storage import Storage, open_storage
from latentvirt.testing import FakeLibvirt
from reactorthread import Heard, on_reactor, run, start

URI = "qemu:///system"
UUID = "6f2c9f0e-58f2-4e3b-9d8e-0d6f4c1f7a21"
XML = f"<domain type='qemu'><name>guest</name><uuid>{UUID}</uuid><memory>1024</memory><devices/></domain>"
LONG = Deadlines(open=60, call=60, create=60, storage=60)
OWNER = "0123456789abcdef"
PATIENCE_S = 60
MORE_THAN_ALL = MOST_CONNECTIONS * CALLS_AT_A_TIME + 3


@pytest.fixture
def fake() -> FakeLibvirt:
    """A fake libvirt."""
    return FakeLibvirt()


@pytest.fixture
def host(fake: FakeLibvirt) -> Iterator[Host]:
    """A host of it, with an open connection."""
    made = Host(Connection(URI), start(), driver=fake, deadlines=LONG)
    run(made.open())
    yield made
    run(made.close())


class Busy:
    """So many calls that hang, and how they come out."""

    def __init__(self, fake: FakeLibvirt, host: Host, count: int) -> None:
        self.hang = fake.inspector.trouble.hang("getInfo")
        self._waiting = on_reactor(lambda: [defer.ensureDeferred(host.node()) for _ in range(count)])

    def until_under_way(self, count: int) -> None:
        """Wait until so many are under way."""
        for _ in range(count):
            assert self.hang.entered.acquire(timeout=PATIENCE_S)

    def outcomes(self) -> list[tuple[bool, Any]]:
        """Wait for all."""

        async def wait() -> Any:
            return await defer.DeferredList(self._waiting, consumeErrors=True)

        return run(wait())  # type: ignore[no-any-return]

    def end(self) -> None:
        """Let them go on; all of them come out well."""
        self.hang.release()
        assert all(good for good, _ in self.outcomes())


def opens(fake: FakeLibvirt) -> int:
    """How many connections there have been."""
    return fake.inspector.trouble.calls.count("open")


def closings(fake: FakeLibvirt) -> Heard[str]:
    """Hear of connections that are closed."""
    closed = Heard[str]()
    for _ in range(MOST_CONNECTIONS):
        fake.inspector.trouble.before_next("close", lambda: closed("closed"))
    return closed


def test_few_calls_share_a_connection(fake: FakeLibvirt, host: Host) -> None:
    """As many calls as one connection takes do not open another."""
    busy = Busy(fake, host, CALLS_AT_A_TIME)
    busy.until_under_way(CALLS_AT_A_TIME)
    busy.end()
    assert opens(fake) == 1


def test_many_calls_get_more_connections_up_to_a_limit(fake: FakeLibvirt, host: Host) -> None:
    """While calls wait further connections are opened, but not more than the host's daemon has use for."""
    busy = Busy(fake, host, MORE_THAN_ALL)
    busy.until_under_way(MOST_CONNECTIONS * CALLS_AT_A_TIME)
    assert not busy.hang.entered.acquire(timeout=0.2)
    busy.end()
    assert opens(fake) == MOST_CONNECTIONS


def test_without_more_connections_the_calls_wait(fake: FakeLibvirt, host: Host) -> None:
    """A host that lets nobody in any more serves its calls over the connection that there is."""
    fake.inspector.reachable = False
    tried = Heard[str]()
    fake.inspector.trouble.before_next("open", lambda: tried("open"))
    busy = Busy(fake, host, MORE_THAN_ALL)
    busy.until_under_way(CALLS_AT_A_TIME)
    tried.until(lambda all: bool(all))
    busy.end()
    assert opens(fake) == 2


def test_drivers_in_our_process_have_one_connection(fake: FakeLibvirt) -> None:
    """Libvirt's embedded driver is opened once, however much there is to do."""
    uri = "qemu:///embed?root=/srv/vms"
    host = Host(Connection(uri), start(), driver=fake, deadlines=LONG)
    trouble = fake.inspect(uri).trouble
    hang = trouble.hang("getInfo")
    waiting = on_reactor(lambda: [defer.ensureDeferred(host.node()) for _ in range(MORE_THAN_ALL)])

    async def wait() -> Any:
        return await defer.gatherResults(waiting)

    for _ in range(CALLS_AT_A_TIME):
        assert hang.entered.acquire(timeout=PATIENCE_S)
    hang.release()
    run(wait())
    assert trouble.calls.count("open") == 1
    run(host.close())


def test_connections_that_nobody_needs_are_closed(
    fake: FakeLibvirt, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Further connections go after a while without calls, the first one stays, and more may come later."""
    monkeypatch.setattr("latentvirt.host.further.IDLE_S", 0.05)
    closed = closings(fake)
    busy = Busy(fake, host, MORE_THAN_ALL)
    busy.until_under_way(MOST_CONNECTIONS * CALLS_AT_A_TIME)
    busy.end()
    closed.until(lambda said: len(said) == MOST_CONNECTIONS - 1)
    assert run(host.domains()) == []
    assert opens(fake) == MOST_CONNECTIONS
    again = Busy(fake, host, MORE_THAN_ALL)
    again.end()
    run(host.close())
    assert fake.inspector.connections == []


def test_a_domain_keeps_the_connection_that_made_it(
    fake: FakeLibvirt, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection over which a VM was made stays as long as the VM, with its console."""
    monkeypatch.setattr("latentvirt.host.further.IDLE_S", 0.05)
    closed = closings(fake)
    busy = Busy(fake, host, MOST_CONNECTIONS * CALLS_AT_A_TIME - 1)
    busy.until_under_way(MOST_CONNECTIONS * CALLS_AT_A_TIME - 1)
    created = run(host.create(XML, name="guest"))  # over the last one, where there is a place
    busy.end()
    closed.until(lambda said: len(said) == MOST_CONNECTIONS - 2)
    run(host.resume(created.uuid))
    run(host.destroy(created.uuid))
    closed.until(lambda said: len(said) == MOST_CONNECTIONS - 1)


def test_all_connections_break_together(fake: FakeLibvirt, host: Host) -> None:
    """When one of a host's connections breaks, the calls over all fail, and the next one opens anew."""
    busy = Busy(fake, host, MORE_THAN_ALL)
    busy.until_under_way(MOST_CONNECTIONS * CALLS_AT_A_TIME)
    fake.inspector.break_connections()
    assert all(isinstance(failure.value, HostUnreachable) for _, failure in busy.outcomes())
    busy.hang.release()
    assert run(host.domains()) == []
    assert opens(fake) == MOST_CONNECTIONS + 1
    assert len(fake.inspector.connections) == 1


def asked(fake: FakeLibvirt, doing: Any) -> list[str]:
    """What libvirt was asked while something was done."""
    before = len(fake.inspector.trouble.calls)
    run(doing)
    return fake.inspector.trouble.calls[before:]


def test_a_domain_that_was_made_is_not_looked_for(fake: FakeLibvirt, host: Host) -> None:
    """What is done with a VM that we made costs one call each; after a break it is found again."""
    created = run(host.create(XML, name="guest"))
    assert asked(fake, host.resume(created.uuid)) == ["domain.resume"]
    fake.inspector.break_connections()
    fake.inspector.settle()
    assert asked(fake, host.pause(created.uuid))[-2:] == ["lookupByUUIDString", "domain.suspend"]
    assert asked(fake, host.destroy(created.uuid))[-1] == "domain.destroy"
    assert fake.inspector.running() == []


@pytest.fixture
def storage(fake: FakeLibvirt, host: Host) -> Storage:
    """Our directory in a folder with one image, which is in no pool."""
    fake.inspector.add_file("/images/base.qcow2")
    made = open_storage(host, OWNER, "/images")
    run(made.prepare())
    return made


def test_starts_that_look_at_one_image_share_a_look(fake: FakeLibvirt, storage: Storage) -> None:
    """A base image is looked at once for all starts that ask at the same time, and anew for a later one."""

    async def looks() -> Any:
        return await defer.gatherResults(
            [defer.ensureDeferred(storage.image("/images/base.qcow2")) for _ in range(10)]
        )

    calls = asked(fake, looks())
    assert calls.count("volume.XMLDesc") == 1
    assert "listAllStoragePools" not in calls
    assert asked(fake, looks()).count("volume.XMLDesc") == 1
    assert [pool for pool in fake.inspector.pools if pool.endswith("look")] == []


def test_an_image_in_a_persons_pool_is_looked_at_there(fake: FakeLibvirt, storage: Storage) -> None:
    """Where the person has a pool over the image folder, no other is made over it."""
    person = fake.open(URI)
    person.storagePoolCreateXML(
        "<pool type='dir'><name>images</name><target><path>/images</path></target></pool>", 0
    )
    fake.inspector.add_file("/images/late.qcow2")
    run(storage.image("/images/late.qcow2"))
    assert sorted(fake.inspector.pools) == sorted(["images", pool_name(OWNER, "/images")])
