"""The guest helper lets the root file system fill a disk that is larger than its image was.

Partition table and file system are real, in plain files; the kernel, which would tell of them, is the tests'.
"""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest

from guests import CONTRIB, VMBUILDER

HELPER = CONTRIB / "guest" / "latentvirt_guest.py"
MIB = 1024**2
SECTOR = 512
IMAGE, LARGER = 64 * MIB, 192 * MIB
ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"

KERNEL = r"""#!/bin/sh
# Makes the partition's file as large as the table says, as the kernel does with the partition.
sectors=$(sfdisk --dump "$4" | sed -n "s,^$4$3 :.*size= *\([0-9]*\).*,\1,p")
exec truncate --size "$((sectors * 512))" "$4$3"
"""

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool, path="/usr/sbin:/sbin:/usr/bin:/bin") for tool in ("sfdisk", "mke2fs")),
    reason="sfdisk or mke2fs is not installed",
)


@pytest.fixture(scope="module")
def guest() -> ModuleType:
    """The helper, as a module."""
    spec = importlib.util.spec_from_file_location("latentvirt_guest_growing", HELPER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@attrs.define
class Machine:
    """A VM's disk in a file, its partitions in files beside it, and a kernel that tells of them.

    Args:
        folder: for all of it.
        linux: the helper's view of it.
        programs: a folder of programs that come before the real ones.
    """

    folder: Path
    linux: Any
    programs: Path

    @property
    def disk(self) -> Path:
        """The disk."""
        return self.folder / "vda"

    @property
    def root(self) -> Path:
        """The root partition's file."""
        return self.folder / "vda1"

    def partitions(self) -> dict[str, tuple[int, int]]:
        """Read the table: where each partition begins and how long it is, in sectors."""
        said = subprocess.run(["sfdisk", "--json", self.disk], capture_output=True, check=True).stdout
        table = json.loads(said)["partitiontable"]["partitions"]
        return {Path(one["node"]).name: (one["start"], one["size"]) for one in table}

    def tell(self, *, kind: str = "ext4", source: str = "/dev/vda1", number: str = "254:1") -> None:
        """Tell of the disk and its partitions as the kernel would.

        Args:
            kind: of the root file system.
            source: what is mounted.
            number: the root file system's device, as the mounts have it.
        """
        block = self.folder / "devices" / "vda"
        for name, numbers in self.partitions().items():
            (block / name).mkdir(parents=True)
            told = {"partition": name.removeprefix("vda"), "start": numbers[0], "size": numbers[1]}
            for what, value in told.items():
                (block / name / what).write_text(f"{value}\n")
        self.tell_size()
        (block / "queue").mkdir()
        (self.folder / "blocks").mkdir(exist_ok=True)
        (self.folder / "blocks" / "254:1").symlink_to(block / "vda1")
        (self.folder / "mounts").write_text(
            "20 25 0:19 / /sys rw,nosuid - sysfs sysfs rw\n"
            f"25 1 {number} / / rw,relatime shared:1 - {kind} {source} rw\n"
            "30 25 254:15 / /boot/efi rw,relatime shared:2 - vfat /dev/vda15 rw\n"
        )

    def tell_size(self) -> None:
        """Tell how large the disk is."""
        (self.folder / "devices" / "vda" / "size").write_text(f"{self.disk.stat().st_size // SECTOR}\n")

    def program(self, name: str, script: str) -> None:
        """Put a program in the place of a real one."""
        (self.programs / name).write_text(script)
        (self.programs / name).chmod(0o755)


@pytest.fixture
def machine(guest: ModuleType, tmp_path: Path) -> Machine:
    """A VM of latentvirt's, as its helper sees it; without a disk."""
    made = Machine(tmp_path, guest.Linux(), tmp_path / "programs")
    made.programs.mkdir()
    made.program("partx", KERNEL)
    port = tmp_path / "ports" / "vport1p1"
    port.mkdir(parents=True)
    (port / "name").write_text(f"{guest.PORT_NAME}\n")
    linux = made.linux
    linux.path = f"{made.programs}:{linux.path}"
    linux._ports, linux._blocks = str(tmp_path / "ports"), str(tmp_path / "blocks")
    linux._mounts, linux._dev = str(tmp_path / "mounts"), str(tmp_path)
    return made


def vmbuilders(disk: Path) -> None:
    """Partition a disk as contrib/libvirt/vmbuilder does."""
    boot_sectors = runpy.run_path(str(VMBUILDER))["boot_sectors"]
    with disk.open("r+b") as file:
        file.write(boot_sectors(b"\xeb" * SECTOR, b"core" * 5000, IMAGE // SECTOR, b"sign"))


def clouds(disk: Path) -> None:
    """Partition a disk as distributions do: the root last, though it is the first of the table."""
    table = f"label: gpt\n1: start=32768, name=root\n14: start=2048, size=6144\n15: start=8192, type={ESP}\n"
    subprocess.run(["sfdisk", "--quiet", disk], input=table.encode(), check=True)


def larger(machine: Machine, partition: Callable[[Path], None], size: int = LARGER) -> None:
    """Make an image's disk, with a file system on the root, and then the disk larger."""
    with machine.disk.open("wb") as file:
        file.truncate(IMAGE)
    partition(machine.disk)
    with machine.root.open("wb") as file:
        file.truncate(machine.partitions()["vda1"][1] * SECTOR)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", machine.root], check=True)
    with machine.disk.open("r+b") as file:
        file.truncate(size)


def capacity(root: Path) -> int:
    """Say how large a file system is, in bytes."""
    said = subprocess.run(["dumpe2fs", "-h", root], capture_output=True, text=True, check=True).stdout
    blocks, size = (re.search(rf"^{what}: +(\d+)$", said, re.M) for what in ("Block count", "Block size"))
    assert blocks is not None
    assert size is not None
    return int(blocks[1]) * int(size[1])


@pytest.mark.parametrize("partition", [vmbuilders, clouds])
def test_the_root_fills_a_larger_disk(
    guest: ModuleType,
    machine: Machine,
    capsys: pytest.CaptureFixture[str],
    partition: Callable[[Path], None],
) -> None:
    """A build in a VM whose disk is larger than its image has all of it, and can still boot again."""
    larger(machine, partition)
    before, boot = machine.partitions(), machine.disk.read_bytes()[:440]
    machine.tell()
    guest.grow_root(machine.linux)
    assert capsys.readouterr().out == "latentvirt: the root file system fills the disk now\n"
    assert LARGER - MIB < capacity(machine.root) + before["vda1"][0] * SECTOR <= LARGER
    after = machine.partitions()
    assert after.pop("vda1")[0] == before.pop("vda1")[0]
    assert after == before
    assert machine.disk.read_bytes()[:440] == boot
    subprocess.run(["sfdisk", "--quiet", "--verify", machine.disk], check=True)
    subprocess.run(["e2fsck", "-fn", machine.root], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("kind", "wanted"), [("xfs", "xfs_growfs /"), ("btrfs", "btrfs filesystem resize max /")]
)
def test_other_file_systems_grow_too(
    guest: ModuleType, machine: Machine, capsys: pytest.CaptureFixture[str], kind: str, wanted: str
) -> None:
    """Enterprise Linux, Fedora and openSUSE have other file systems, each with a program of its own."""
    larger(machine, clouds)
    null = "1:3"
    machine.tell(kind=kind, source="/dev/null", number="0:31" if kind == "btrfs" else "254:1")
    (machine.folder / "blocks" / null).symlink_to(machine.folder / "blocks" / "254:1")
    done = machine.folder / "done"
    machine.program(wanted.split()[0], f'#!/bin/sh\necho "${{0##*/}} $*" >>{done}\n')
    guest.grow_root(machine.linux)
    assert "fills the disk now" in capsys.readouterr().out
    assert done.read_text() == f"{wanted}\n"
    assert machine.root.stat().st_size > LARGER - 32 * MIB


def two(disk: Path) -> None:
    """Partition a disk so that something lies behind the root."""
    table = b"label: gpt\n1: start=2048, size=65536\n2: start=67584, size=4096\n"
    subprocess.run(["sfdisk", "--quiet", disk], input=table, check=True)


@pytest.mark.parametrize(
    ("partition", "size", "kind"),
    [
        (vmbuilders, IMAGE, "ext4"),
        (clouds, IMAGE, "ext4"),
        (clouds, IMAGE + MIB, "ext4"),
        (two, LARGER, "ext4"),
        (clouds, LARGER, "overlay"),
    ],
)
def test_where_there_is_nothing_to_grow_no_program_is_run(
    guest: ModuleType,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    partition: Callable[[Path], None],
    size: int,
    kind: str,
) -> None:
    """A boot with a disk of the image's size costs no time for it, nor one whose root cannot grow."""
    larger(machine, partition, size)
    machine.tell(kind=kind)
    monkeypatch.setattr(guest.subprocess, "run", None)
    guest.grow_root(machine.linux)
    assert capsys.readouterr().out == ""


def test_a_disk_without_partitions_is_left_alone(
    guest: ModuleType, machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file system on the whole disk is not taken for a partition."""
    larger(machine, vmbuilders)
    machine.tell()
    (machine.folder / "blocks" / "254:1").unlink()
    (machine.folder / "blocks" / "254:1").symlink_to(machine.folder / "devices" / "vda")
    monkeypatch.setattr(guest.subprocess, "run", None)
    guest.grow_root(machine.linux)
    assert capsys.readouterr().out == ""


def test_what_is_no_vm_of_latentvirts_is_never_touched(guest: ModuleType, machine: Machine) -> None:
    """Somebody who runs the helper on a machine of their own keeps their partitions as they are."""
    larger(machine, clouds)
    machine.tell()
    shutil.rmtree(machine.folder / "ports")
    before = machine.disk.read_bytes()
    guest.grow_root(machine.linux)
    assert machine.disk.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "script", "why"),
    [
        ("sfdisk", None, "No such file or directory: 'sfdisk'"),
        ("sfdisk", "echo no luck; exit 1", "sfdisk: no luck"),
        ("resize2fs", "echo two; echo lines; exit 1", "resize2fs: two lines"),
    ],
)
def test_a_root_that_does_not_grow_is_told_and_survived(
    guest: ModuleType,
    machine: Machine,
    capsys: pytest.CaptureFixture[str],
    name: str,
    script: str | None,
    why: str,
) -> None:
    """A program that is missing or fails is named on the console, and the worker attaches all the same."""
    larger(machine, clouds)
    machine.tell()
    if script is None:
        machine.linux.path = str(machine.programs)
    else:
        machine.program(name, f"#!/bin/sh\n{script}\n")
    guest.grow_root(machine.linux)
    told = capsys.readouterr().out
    assert told.startswith("latentvirt: the root file system did not grow: ")
    assert why in told


def test_a_machine_that_says_nothing_of_its_root_is_survived(
    guest: ModuleType, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without /proc the worker attaches all the same."""
    guest.grow_root(machine.linux)
    assert "did not grow" in capsys.readouterr().out
