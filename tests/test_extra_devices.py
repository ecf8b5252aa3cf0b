"""Extra disks and network cards: made, seen by a real guest, gone; thawed ones know nothing of each other."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

import scenes
from latentvirt.devices import Disk, Nic, read_disks, read_nics
from latentvirt.domainxml import files_of_disks, parse
from latentvirt.names import FileName, slot_of_number
from latentvirt.sizes import Size
from latentvirt.spec import Kind, StartMode
from planned import PlannedMachine
from reactorthread import run
from scenes import Stage, fast_domain
from test_thaw import SAYS, Scene

pytestmark = pytest.mark.libvirt

MAC = "52:54:00:ab:cd:ef"
DISKS = read_disks([Disk("10 MiB", serial="data0"), Disk("20 MiB", format="raw")])
NICS = read_nics([Nic("user", mac=MAC), Nic("user")])
SECTORS_PER_MIB = 2048


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A host whose QEMU is not root."""
    with scenes.stage(blank=True, user="libvirt-qemu") as stage:
        yield stage


@pytest.fixture
def scene(stage: Stage) -> Iterator[Scene]:
    """An owner without any image."""
    scene = Scene(stage, stage.libvirtd.uri, stage.images)
    yield scene
    run(scene.host.close())
    stage.clear()


def machine(scene: Scene, mode: StartMode = "auto") -> PlannedMachine:
    """Make a machine with extra devices, whose guest looks at them."""
    made = scene.machine("devices", mode=mode)
    made.spec = attrs.evolve(made.spec, disks=DISKS, networks=NICS)
    return made


def seen(scene: Scene, mark: str) -> tuple[dict[str, tuple[int, str, str]], list[str]]:
    """Wait until the guest has looked at its devices; return its disks and its network cards."""
    end = f"{SAYS}devices seen: {mark}"
    lines = scene.ear.lines.until(lambda lines: any(end in line for line in lines))
    text = "\n".join(lines)
    disks = {
        name: (int(size), serial, begins.rstrip("."))
        for name, size, serial, begins in re.findall(rf"disk of {mark}: (\S+) (\d+) (\S+) (\S+)", text)
    }
    return disks, re.findall(rf"card of {mark}: (\S+)", text)


@pytest.mark.guest
def test_extra_disks_and_network_cards_are_seen_inside_the_guest(scene: Scene) -> None:
    """The guest sees each disk empty, with its size and serial, and each card with its address."""
    booted = machine(scene, "boot")
    run(booted.start())
    disks, cards = seen(scene, "boot")
    assert disks == {
        "vdb": (10 * SECTORS_PER_MIB, "data0", ""),
        "vdc": (20 * SECTORS_PER_MIB, "extra1", ""),
    }
    assert cards[1] == MAC
    assert len(set(cards)) == len(cards) == 1 + len(NICS)
    made = {name.target: name.kind for name in scene.kept()}
    assert made == {"vda": "overlay", "vdb": "disk", "vdc": "disk"}
    run(booted.stop())
    assert scene.kept() == []
    assert sorted(path.name for path in scene.folder.glob("minion*")) == []


@pytest.mark.guest
def test_what_one_thawed_guest_writes_to_an_extra_disk_the_next_does_not_see(scene: Scene) -> None:
    """Each thawed guest finds its disks as they were at the freeze, and its cards unchanged."""
    looks = []
    for tiers in (["freeze", "thaw"], ["thaw"], ["thaw"]):
        started = machine(scene)
        run(started.start())
        start = scene.told()
        looks.append(seen(scene, start))
        run(started.stop())
        assert [name for name, _ in scene.ear.tiers.all] == tiers
    assert looks[0] == looks[1] == looks[2]
    disks, cards = looks[0]
    assert disks == {
        "vdb": (10 * SECTORS_PER_MIB, "data0", "boot"),
        "vdc": (20 * SECTORS_PER_MIB, "extra1", "boot"),
    }
    assert cards[1] == MAC
    assert sorted(name.kind for name in scene.kept()) == ["disk", "disk", "frozen", "memory", "overlay"]


@pytest.mark.guest
@pytest.mark.soak
def test_other_extra_disks_are_another_vm_to_freeze(scene: Scene) -> None:
    """A guest that was frozen with other disks or cards is not thawed for a build that wants these."""
    assert scene.build(machine(scene)) == ["freeze", "thaw"]
    larger = machine(scene)
    larger.spec = attrs.evolve(larger.spec, disks=read_disks([Disk("11 MiB", serial="data0"), DISKS[1]]))
    assert scene.build(larger) == ["freeze", "thaw"]
    other = machine(scene)
    other.spec = attrs.evolve(other.spec, networks=read_nics([Nic("user")]))
    assert scene.build(other) == ["freeze", "thaw"]


@pytest.mark.guest
@pytest.mark.soak
def test_a_frozen_guest_without_its_extra_disk_is_not_thawed(scene: Scene) -> None:
    """When somebody deletes the extra disk of a frozen guest, the next build boots, and freezes a new one."""
    scene.build(machine(scene))
    lost = next(name for name in scene.kept() if name.kind == "disk")
    (Path(scene.storage.directory) / str(lost)).unlink()
    assert scene.build(machine(scene)) == ["thaw", "boot", "freeze", "thaw"]
    assert lost not in scene.kept()


def test_a_generated_domain_has_them_on_every_bus(scene: Scene) -> None:
    """A generated VM starts with disks of each bus beside its own, and its cards keep their addresses."""
    disks = read_disks([Disk("1 MiB", bus=bus, count=2) for bus in ("virtio", "scsi", "sata")])
    macs = []
    for _ in range(2):
        made = scene.machine(mode="boot")
        made.claim.slot = slot_of_number(1)
        made.spec = attrs.evolve(
            made.spec,
            kind="generated",
            xml=None,
            size=Size(memory=64),
            disks=disks,
            networks=read_nics(["user", Nic("user", model="e1000e")]),
        )
        run(made.start())
        live = scene.stage.libvirtd.virsh("dumpxml", scene.stage.domains()[0])
        root = parse(live)
        targets = {disk.find("target").get("dev"): disk for disk in root.findall("devices/disk")}
        assert list(targets) == ["vda", "vdb", "vdc", "sda", "sdb", "sdc", "sdd"]
        assert targets["sda"].find("target").get("bus") == "scsi"
        assert targets["sdc"].find("target").get("bus") == "sata"
        assert targets["sdd"].findtext("serial") == "extra5"
        macs.append([mac.get("address") for mac in root.findall("devices/interface/mac")])
        assert all(FileName.parse(Path(files[0]).name) in scene.kept() for _, files in files_of_disks(live))
        run(made.stop())
        assert scene.kept() == []
    assert macs[0] == macs[1]
    assert len(set(macs[0])) == 3


def test_a_predefined_domain_has_them_and_its_definition_stays(scene: Scene) -> None:
    """A domain that a person has defined starts with extra devices, and is defined afterwards as before."""
    virsh = scene.stage.libvirtd.virsh
    described = scene.folder / "minion1.xml"
    described.write_text(fast_domain("minion1", scene.folder / "minion1", scene.stage.busybox))
    virsh("define", str(described))
    before = virsh("dumpxml", "minion1")
    made = machine(scene, "boot")
    made.spec = attrs.evolve(made.spec, kind="predefined", xml=None)
    run(made.start())
    live = parse(virsh("dumpxml", "minion1"))
    assert [serial.text for serial in live.findall("devices/disk/serial")] == ["data0", "extra1"]
    assert len(live.findall("devices/interface")) == 1 + len(NICS)
    run(made.stop())
    assert virsh("dumpxml", "minion1") == before
    assert scene.kept() == []
    virsh("undefine", "minion1")


@pytest.mark.parametrize("kind", ["generated", "xml"])
def test_the_root_disk_grows_and_never_shrinks(scene: Scene, kind: Kind) -> None:
    """A VM's system disk is as large as its size asks for, and at least as large as the image."""
    for asked, expected in (("100 MiB", 100), ("10 MiB", 64), (None, 64)):
        made = scene.machine(mode="boot")
        made.spec = attrs.evolve(made.spec, kind=kind, size=Size(memory=64, disk=asked))
        run(made.start())
        (name,) = scene.kept()
        info = subprocess.run(
            ["qemu-img", "info", "-U", f"{scene.storage.directory}/{name}"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert f"virtual size: {expected} MiB" in info
        run(made.stop())
