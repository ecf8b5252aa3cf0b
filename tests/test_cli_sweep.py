"""`latentvirt sweep`, as a person calls it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import libvirt
import pytest
from click.testing import CliRunner, Result

import reactorthread
from contract.backends import domain_xml, open_backend
from latentvirt.cli import main
from latentvirt.config import Connection
from latentvirt.domainxml import Layer
from latentvirt.host import Host
from latentvirt.names import FileName, Lease, Ownership, directory_name
from latentvirt.storage import open_storage
from latentvirt.testing import FakeLibvirt
from reactorthread import run
from test_cli_hosts import run as shell

URI = "qemu+ssh://one/system"
IMAGES = "/images"
GONE, LIVES, SILENT = "0" * 16, "1" * 16, "c" * 16
HOUR_S = 3600


def name(kind: str, target: str) -> FileName:
    """Name a file of the one start that each owner has."""
    return FileName("slot1", "0a1b2c3d4e5f", kind, target)


def settle_in(host: Host, images: str, owner: str, until: float | None) -> None:
    """Let an owner have a VM, a frozen image, and a lease."""
    storage = open_storage(host, owner, images)

    async def begin() -> None:
        await storage.prepare()
        overlay = await storage.create_overlay(
            name("overlay", "vda"), Layer(f"{images}/base.qcow2", "qcow2"), 1 << 20
        )
        await storage.create_empty(name("memory", "ram"))
        await storage.create_empty(name("frozen", "0123"))
        if until is not None:
            await storage.create_empty(Lease(int(until)))
        marked = Ownership(owner, "slot1", "0a1b2c3d4e5f")
        await host.create(domain_xml(f"vm-{owner}", disk=overlay, marked=marked), name=f"vm-{owner}")

    run(begin())


@pytest.fixture
def fake() -> FakeLibvirt:
    """A host with things of a master that is gone, of one that lives, and of one that says nothing."""
    reactorthread.start()
    made = FakeLibvirt()
    made.inspect(URI).add_file(f"{IMAGES}/base.qcow2")
    host = Host(Connection(URI), reactorthread.start(), driver=made)
    settle_in(host, IMAGES, GONE, time.time() - HOUR_S)
    settle_in(host, IMAGES, LIVES, time.time() + HOUR_S)
    settle_in(host, IMAGES, SILENT, None)
    run(host.close())
    made.open(URI).createXML(domain_xml("persons", marked=None), 0)
    return made


def sweep(fake: FakeLibvirt, *arguments: str) -> Result:
    """Run the command on the fake host."""
    return CliRunner().invoke(main, ["sweep", "-c", URI, *arguments], obj=fake)


def left(fake: FakeLibvirt) -> tuple[list[str], list[str]]:
    """The VMs, and the owners with files."""
    state = fake.inspect(URI)
    owners = [owner for owner in (GONE, LIVES, SILENT) if state.listing(f"{IMAGES}/{directory_name(owner)}")]
    return state.running(), owners


ALL = (sorted(["persons", *(f"vm-{owner}" for owner in (GONE, LIVES, SILENT))]), [GONE, LIVES, SILENT])
ONE_LESS = (sorted(["persons", *(f"vm-{owner}" for owner in (LIVES, SILENT))]), [LIVES, SILENT])


def test_a_dry_run_removes_nothing(fake: FakeLibvirt) -> None:
    """What would be removed is told, with what stays and why, and nothing is touched."""
    told = sweep(fake, "--dry-run", "--json")
    assert told.exit_code == 0, told.output
    rows = json.loads(told.stdout)
    assert [(row["owner"], row["vms"], row["files"]) for row in rows] == [
        (owner, 1, 3) for owner in (GONE, LIVES, SILENT)
    ]
    assert rows[0]["done"] == "would be removed"
    assert "claims it" in rows[1]["done"]
    assert "--owner" in rows[2]["done"]
    assert left(fake) == ALL


def test_only_what_nobody_claims_is_removed(fake: FakeLibvirt) -> None:
    """VMs, overlays and frozen images of the master that is gone go, and nobody else's."""
    told = sweep(fake)
    assert told.exit_code == 0, told.output
    assert left(fake) == ONE_LESS
    lines = told.stdout.splitlines()
    assert lines[0].split() == ["HOST", "OWNER", "UNTIL", "VMS", "FILES", "DONE"]
    assert lines[1].endswith("removed")
    assert [row["owner"] for row in json.loads(sweep(fake, "--json").stdout)] == [LIVES, SILENT]


def test_an_owner_that_says_nothing_goes_when_named(fake: FakeLibvirt) -> None:
    """What nobody says the time of is removed for whoever names its owner, and nothing else is."""
    assert sweep(fake, "--owner", SILENT).exit_code == 0
    assert left(fake)[1] == [GONE, LIVES]


def test_an_owners_id_may_be_written_in_capitals(fake: FakeLibvirt) -> None:
    """An id that somebody wrote down in capitals names the same owner."""
    assert sweep(fake, "--owner", SILENT.upper()).exit_code == 0
    assert left(fake)[1] == [GONE, LIVES]


def test_a_living_masters_things_stay_even_when_named(fake: FakeLibvirt) -> None:
    """Nobody can take a running master's VMs away by a slip."""
    told = sweep(fake, "--owner", LIVES)
    assert "claims it" in told.stdout
    assert left(fake) == ALL


def test_a_living_masters_vm_is_known_by_its_disk(fake: FakeLibvirt) -> None:
    """When libvirt has forgotten the directory, a VM that runs from it still leads to its claim."""
    person = fake.open(URI)
    for pool in person.listAllStoragePools(0):
        pool.destroy()
    told = sweep(fake, "--owner", LIVES)
    assert "claims it" in told.stdout
    assert left(fake) == ALL


def test_a_sweep_that_breaks_off_is_gone_on_with(fake: FakeLibvirt) -> None:
    """What the host did not let us remove is named, and the next sweep removes it."""
    fake.inspect(URI).trouble.fail_next("volume.delete", libvirt.VIR_ERR_OPERATION_FAILED)
    told = sweep(fake)
    assert told.exit_code == 1
    assert URI in told.stderr
    assert GONE in left(fake)[1]
    assert sweep(fake).exit_code == 0
    assert left(fake) == ONE_LESS


def test_what_others_put_into_a_directory_stays_and_hinders_nothing(fake: FakeLibvirt) -> None:
    """A file of somebody else in a dead owner's directory is named as what stays; all else goes."""
    state, theirs = fake.inspect(URI), f"{IMAGES}/{directory_name(GONE)}"
    state.add_file(f"{theirs}/notes.txt")
    told = sweep(fake, "--owner", GONE, "--owner", SILENT, "--json")
    assert told.exit_code == 0, told.output
    done = {row["owner"]: row["done"] for row in json.loads(told.stdout)}
    assert theirs in done[GONE]
    assert done[SILENT] == "removed"
    assert state.listing(theirs) == ["notes.txt"]
    assert left(fake) == (sorted(["persons", f"vm-{LIVES}"]), [GONE, LIVES])


def test_one_owner_that_cannot_be_cleared_hinders_no_other(fake: FakeLibvirt) -> None:
    """Where the host refuses to remove one owner's things, the others' go, and both are told."""
    fake.inspect(URI).trouble.fail_next("volume.delete", libvirt.VIR_ERR_OPERATION_FAILED)
    told = sweep(fake, "--owner", GONE, "--owner", SILENT, "--json")
    assert told.exit_code == 1
    done = {row["owner"]: row["done"] for row in json.loads(told.stdout)}
    assert done == {GONE: "not all removed", SILENT: "removed"}
    assert left(fake)[1] == [GONE, LIVES]


def test_directories_that_were_removed_by_hand_hinder_nothing(fake: FakeLibvirt) -> None:
    """Where somebody removed directories whose pools still run, one sweep is enough for what is left."""
    state = fake.inspect(URI)
    for owner in (LIVES, SILENT):
        folder = f"{IMAGES}/{directory_name(owner)}"
        for file in state.listing(folder):
            del state.files[f"{folder}/{file}"]
        state.folders.remove(folder)
    told = sweep(fake, "--json")
    assert told.exit_code == 0, told.output
    assert {row["owner"]: row["done"] for row in json.loads(told.stdout)}[GONE] == "removed"
    assert left(fake)[1] == []


def test_a_directory_that_libvirt_does_not_know_is_looked_for(fake: FakeLibvirt) -> None:
    """After a host was booted, owner and folder lead to what is on its disk."""
    fake.inspect(URI).reboot()
    fake.inspect(URI).settle()
    assert json.loads(sweep(fake, "--json").stdout) == []
    assert sweep(fake, "--owner", GONE, "--folder", IMAGES).exit_code == 0
    assert left(fake) == ([], [LIVES, SILENT])


def test_a_wrong_command_line_is_refused(fake: FakeLibvirt) -> None:
    """No owner's id, a relative folder, and one without an owner are refused before anything is asked."""
    relative = ("--owner", GONE, "--folder", "images")
    for arguments in (("--owner", "me"), ("--owner", "G" * 16), ("--folder", IMAGES), relative):
        assert sweep(fake, *arguments).exit_code == 2
    assert left(fake) == ALL


@pytest.mark.libvirt
def test_a_real_host_is_swept(tmp_path: Path) -> None:
    """On a real libvirt a dead master's VM, files and directory go, and a living one's do not."""
    with open_backend("daemon", tmp_path) as backend:
        backend.add_image("base.qcow2")
        host = Host(Connection(backend.uri), reactorthread.start(), driver=backend.driver)
        settle_in(host, backend.images, GONE, time.time() - HOUR_S)
        settle_in(host, backend.images, LIVES, time.time() + HOUR_S)
        shell(backend, "sweep")
        assert backend.listing(f"{backend.images}/{directory_name(GONE)}") is None
        assert len(backend.listing(f"{backend.images}/{directory_name(LIVES)}") or []) == 4
        assert [view.name for view in run(host.domains())] == [f"vm-{LIVES}"]
        run(host.close())
