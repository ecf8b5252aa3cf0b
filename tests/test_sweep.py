"""What a sweep removes, and what it must not touch (on the fake)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from contract.backends import domain_xml
from latentvirt.config import Connection
from latentvirt.errors import HostError
from latentvirt.host import Host
from latentvirt.names import FileName, Lease, Ownership, directory_name
from latentvirt.storage import open_storage
from latentvirt.sweep import Swept, sweep
from latentvirt.testing import FakeLibvirt
from reactorthread import run, start

OWNER, OTHER = "0123456789abcdef", "f" * 16
DEAD, ALIVE = "0a1b2c3d4e5f", "aaaaaaaaaaaa"
MINE, THEIRS = f"/images/{directory_name(OWNER)}", f"/images/{directory_name(OTHER)}"


@pytest.fixture
def fake() -> FakeLibvirt:
    """A fake libvirt."""
    return FakeLibvirt()


@pytest.fixture
def host(fake: FakeLibvirt) -> Iterator[Host]:
    """A host on it."""
    opened = Host(Connection("qemu:///system"), start(), driver=fake)
    yield opened
    run(opened.close())


def _start(host: Host, name: str, owner: str | None, start_id: str) -> str:
    marked = Ownership(owner, "slot1", start_id) if owner else None
    return run(host.create(domain_xml(name, marked=marked), name=name)).uuid


def _overlay(start_id: str) -> str:
    return str(FileName("slot1", start_id, "overlay", "vda"))


def test_only_this_owners_dead_things_go(fake: FakeLibvirt, host: Host) -> None:
    """A sweep ends and deletes what its own owner's dead starts left, and nothing else, whatever its name."""
    _start(host, "mine-dead", OWNER, DEAD)
    _start(host, "mine-alive", OWNER, ALIVE)
    _start(host, "theirs", OTHER, DEAD)
    _start(host, f"latentvirt-{OWNER}-slot9", None, DEAD)
    mine_to_stay = ["notes.txt", f"{_overlay(DEAD)}.bak", f"x{DEAD}", _overlay(ALIVE), str(Lease(5))]
    mine_to_go = [str(FileName("slot1", DEAD, kind, "x")) for kind in ("vars", "disk", "memory")]
    for name in (_overlay(DEAD), *mine_to_go, *mine_to_stay):
        fake.inspector.add_file(f"{MINE}/{name}")
    for path in (f"{THEIRS}/{_overlay(DEAD)}", f"/images/{_overlay(DEAD)}", "/images/base.qcow2"):
        fake.inspector.add_file(path)
    swept = run(sweep(host, OWNER, ["/images"], {ALIVE}.__contains__))
    assert swept.domains == ("mine-dead",)
    assert sorted(swept.files) == sorted([_overlay(DEAD), *mine_to_go])
    assert fake.inspector.running() == sorted([f"latentvirt-{OWNER}-slot9", "mine-alive", "theirs"])
    assert fake.inspector.listing(MINE) == sorted(mine_to_stay)
    assert fake.inspector.listing(THEIRS) == [_overlay(DEAD)]
    assert fake.inspector.listing("/images") == sorted([_overlay(DEAD), "base.qcow2"])


def test_a_clean_host_is_reported_as_such(host: Host) -> None:
    """A sweep that finds nothing says so."""
    swept = run(sweep(host, OWNER, [], lambda start_id: False))
    assert swept == Swept((), ())
    assert not swept


def test_a_definition_with_our_mark_stays(fake: FakeLibvirt, host: Host) -> None:
    """A persistent definition into which somebody copied our mark is not touched."""
    fake.inspector.define(domain_xml("copied", marked=Ownership(OWNER, "slot1", DEAD)))
    assert not run(sweep(host, OWNER, [], lambda start_id: False))
    assert fake.inspector.domain("copied") is not None


def test_a_start_that_took_the_uuid_meanwhile_is_spared(fake: FakeLibvirt, host: Host) -> None:
    """A predefined domain that was started anew between the sweep's look and its blow goes on."""
    uuid = _start(host, "minion1", OWNER, DEAD)
    old = fake.inspector.domains[uuid]

    def restart() -> None:
        old.destroy()
        somebody = fake.open("qemu:///system")
        marked = Ownership(OWNER, "slot1", ALIVE)
        somebody.createXML(domain_xml("minion1", uuid=uuid, marked=marked), 0)

    def living(start_id: str) -> bool:
        if start_id == DEAD:
            restart()
        return start_id == ALIVE

    run(sweep(host, OWNER, [], living))
    assert fake.inspector.running() == ["minion1"]


def test_a_sweep_that_the_host_refuses_goes_on_next_time(fake: FakeLibvirt, host: Host) -> None:
    """What a sweep could not remove is removed by the next one."""
    _start(host, "mine-dead", OWNER, DEAD)
    fake.inspector.trouble.fail_next("domain.destroy", 9)
    with pytest.raises(HostError):
        run(sweep(host, OWNER, [], lambda start_id: False))
    assert run(sweep(host, OWNER, [], lambda start_id: False)).domains == ("mine-dead",)


def test_things_of_a_rebooted_host_are_found(fake: FakeLibvirt, host: Host) -> None:
    """After a reboot of the host, when no pool is left, the files of dead starts are found and deleted."""
    fake.inspector.folders.add("/images")
    storage = open_storage(host, OWNER, "/images")
    run(storage.prepare())
    run(storage.create_empty(FileName("slot1", DEAD, "vars", "nvram")))
    fake.inspector.reboot()
    fake.inspector.settle()
    assert run(sweep(host, OWNER, ["/images"], lambda start_id: False)).files == (f"slot1.{DEAD}.vars.nvram",)
    assert fake.inspector.listing(MINE) == []
