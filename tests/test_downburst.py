"""What teuthology's document on downburst VMs promises, row by row, on a fake host.

Hosts named by ``uri_aliases`` are in test_aliases.py, and a key that is new after each rebuild, by which ssh
connects, in test_ssh_guest.py.
"""

from __future__ import annotations

import json
import os

import pytest
from buildbot.plugins import util
from click.testing import CliRunner

from latentvirt.cli import main
from latentvirt.config import Connection, Image
from latentvirt.images.store import ImageStore
from stagemaster import StageMaster
from test_named_images import FOLDER, URI, Wanting, copies, master, put, start, stop, store, worker_of

__all__ = ["master", "store"]

OS = Image(
    os_type=util.Property("os_type", default="ubuntu"),
    os_version=util.Property("os_version", default="22.04"),
)


def files_of_starts(master: StageMaster) -> list[str]:
    """List the files on the host that belong to a VM, leases left out."""
    paths = master.fake.inspect(URI).files
    return sorted(path for path in paths if f"{FOLDER}/latentvirt-" in path and ".overlay." in path)


def test_a_vm_says_which_host_it_resides_on(master: StageMaster, store: ImageStore) -> None:
    """Of each VM one can tell the machine that it runs on: the field vpshost."""
    put(store, "debian-12")
    worker = worker_of(master, "debian-12")
    start(worker)
    told = CliRunner().invoke(main, ["vm", "list", "-c", URI, "--json"], obj=master.fake)
    assert [vm["host"] for vm in json.loads(told.stdout)] == [URI]
    stop(worker)


def test_there_are_fixed_slots(master: StageMaster, store: ImageStore) -> None:
    """A host has numbered places for VMs, and one VM after the other has the same."""
    put(store, "debian-12")
    host = Connection(URI, slots=1)
    one = worker_of(master, "debian-12", uri=None, connection=host)
    names = set()
    for _ in range(2):
        start(one)
        names |= set(master.fake.inspect(URI).running())
        stop(one)
    assert len(names) == 1
    assert names.pop().endswith("-slot1")


def test_locking_installs_a_new_image(master: StageMaster, store: ImageStore) -> None:
    """Each time that a machine is taken its disk is new, and the image is as it was."""
    put(store, "debian-12")
    worker = worker_of(master, "debian-12")
    disks = []
    for _ in range(2):
        start(worker)
        disks += files_of_starts(master)
        stop(worker)
    assert len(set(disks)) == 2


def test_unlocking_destroys_the_image(master: StageMaster, store: ImageStore) -> None:
    """When a machine is given back, its VM and its disk are gone."""
    put(store, "debian-12")
    worker = worker_of(master, "debian-12")
    start(worker)
    assert files_of_starts(master)
    stop(worker)
    assert files_of_starts(master) == []
    assert master.fake.inspect(URI).running() == []


@pytest.mark.parametrize(
    ("wish", "name"),
    [
        ({}, "ubuntu-22.04"),
        ({"os_type": "debian", "os_version": "12"}, "debian-12"),
        ({"os_version": "24.04"}, "ubuntu-24.04"),
    ],
)
def test_os_type_and_os_version_choose_the_image(
    master: StageMaster, store: ImageStore, wish: dict[str, str], name: str
) -> None:
    """A user says which system, and who says nothing gets the one that was chosen for all."""
    names = ("ubuntu-22.04", "ubuntu-24.04", "debian-12")
    images = {known: put(store, known, number) for number, known in enumerate(names)}
    worker = worker_of(master, OS)
    start(worker, Wanting(**wish))
    assert copies(master) == {images[name].digest}
    stop(worker)


def test_no_program_has_to_be_found_on_the_path(
    master: StageMaster, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start runs no program of the master's machine, so none has to be looked for."""
    put(store, "debian-12")
    worker = worker_of(master, "debian-12")
    monkeypatch.setitem(os.environ, "PATH", "")
    start(worker)
    stop(worker)
