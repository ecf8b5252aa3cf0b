"""Freeze and thaw on a real libvirt, here and over ssh, with a guest whose helper is a few lines of shell."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from twisted.internet import defer, reactor

import scenes
from latentvirt import tiers
from latentvirt.claim import Claim
from latentvirt.config import Connection
from latentvirt.errors import CannotThaw
from latentvirt.frozen import FrozenStore
from latentvirt.host import Host
from latentvirt.names import FileName, new_owner, slot_of_domain
from latentvirt.spec import MachineSpec, StartMode
from latentvirt.storage import open_storage
from latentvirt.sweep import sweep
from planned import PlannedMachine
from privatelibvirt import loopback_sshd
from reactorthread import Heard, run, start
from scenes import Fingerprint, Stage, fast_domain
from test_machine import Ear

pytestmark = pytest.mark.libvirt

SPACE = 1 << 30
SAYS = "latentvirt-busybox: "
SHORT_ANSWER_S = 2.0


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A host of the tests' own, whose QEMU is not root."""
    with scenes.stage(blank=True, user="libvirt-qemu") as stage:
        yield stage


@pytest.fixture(scope="module")
def ssh_uri(stage: Stage) -> Iterator[str]:
    """The same host, by ssh."""
    with loopback_sshd(stage.images.parent / "ssh", stage.libvirtd.socket) as sshd:
        yield sshd.uri


class Scene:
    """One owner on a host.

    Args:
        stage: the host.
        uri: how it is reached.
        folder: where its images are.
    """

    def __init__(self, stage: Stage, uri: str, folder: Path) -> None:
        self.stage = stage
        self.folder = folder
        self.owner = new_owner()
        self.connection = Connection(uri)
        self.host = Host(self.connection, start())
        self.storage = open_storage(self.host, self.owner, str(folder))
        self.store = FrozenStore(self.storage, reactor.seconds, SPACE)  # type: ignore[attr-defined]
        self.ear = Ear()
        self.base = folder / "base_image"

    def machine(self, *words: str, name: str = "minion1", mode: StartMode = "auto") -> PlannedMachine:
        """Make a machine, with an ear of its own."""
        xml = fast_domain(name, self.folder / name, self.stage.busybox, "lv.channel", *words)
        self.ear = Ear()
        return PlannedMachine(
            host=self.host,
            storage=self.storage,
            spec=MachineSpec(
                worker=name,
                kind="xml",
                xml=xml,
                base_image=str(self.base),
                start=mode,
            ),
            claim=Claim(self.owner, slot_of_domain(name)),
            listener=self.ear,
            frozen=self.store,
        )

    def told(self) -> str:
        """Wait until the guest has taken its identity, and return which start it belongs to."""
        lines = self.ear.lines.until(lambda lines: any(f"{SAYS}start: " in line for line in lines))
        return next(line for line in lines if f"{SAYS}start: " in line).partition("start: ")[2].strip()

    def build(self, machine: PlannedMachine) -> list[str]:
        """Start a machine, wait for its guest to be told who it is, stop it, and return its tiers."""
        run(machine.start())
        try:
            self.told()
        finally:
            run(machine.stop())
        return [name for name, _ in self.ear.tiers.all]

    def kept(self) -> list[FileName]:
        """List what lies in our directory, leases left out."""
        found = [FileName.parse(Path(file).name) for file in self.stage.files() if self.owner in file]
        assert None not in found
        return [name for name in found if name is not None]

    def file(self, kind: str, domain: str = "minion1") -> Path:
        """Find the one file of a kind that a domain has in our directory."""
        slot = slot_of_domain(domain)
        (name,) = [name for name in self.kept() if (name.kind, name.slot) == (kind, slot)]
        return Path(self.storage.directory) / str(name)


def kinds(scene: Scene) -> list[str]:
    """Say of which kinds the files in our directory are."""
    return sorted(name.kind for name in scene.kept())


FROZEN = ["frozen", "memory", "overlay"]


@pytest.fixture(params=["local", pytest.param("ssh", marks=pytest.mark.soak)])
def scene(request: pytest.FixtureRequest, stage: Stage) -> Iterator[Scene]:
    """An owner without any image."""
    uri = stage.libvirtd.uri if request.param == "local" else request.getfixturevalue("ssh_uri")
    scene = Scene(stage, uri, stage.images)
    yield scene
    run(scene.host.close())
    stage.clear()


def test_the_first_start_freezes_and_the_next_ones_thaw(scene: Scene) -> None:
    """The first build boots, is frozen and goes on; the next ones thaw, each as a start of its own."""
    base = Fingerprint.of(scene.base)
    assert scene.build(scene.machine()) == ["freeze", "thaw"]
    first = scene.told()
    assert kinds(scene) == FROZEN
    before = {kind: Fingerprint.of(scene.file(kind)).sha256 for kind in ("memory", "overlay")}
    assert scene.build(scene.machine()) == ["thaw"]
    assert scene.told() != first
    assert kinds(scene) == FROZEN
    assert {kind: Fingerprint.of(scene.file(kind)).sha256 for kind in before} == before
    assert {scene.file(kind).stat().st_mode & 0o777 for kind in FROZEN} == {0o600}
    assert Fingerprint.of(scene.base) == base
    assert scene.stage.domains() == []


def test_images_outlive_the_master_and_the_sweep(scene: Scene) -> None:
    """A master that comes back thaws what an earlier process of it has frozen; its sweep leaves it alone."""
    scene.build(scene.machine())
    swept = run(sweep(scene.host, scene.owner, [str(scene.folder)], lambda start: False))
    assert not swept
    scene.store = FrozenStore(scene.storage, reactor.seconds, SPACE)  # type: ignore[attr-defined]
    assert scene.build(scene.machine()) == ["thaw"]


def test_a_host_that_was_restarted_thaws_what_is_on_its_disk(scene: Scene) -> None:
    """After a host's reboot its domains and pools are gone, its files are there, and builds thaw."""
    machine = scene.machine()
    steps = Heard[str]()
    scene.ear.on_step = steps
    run(machine.start())
    # Not sooner: an image whose guest ends before it has answered is of no use.
    steps.until(lambda steps: "guest attaches" in steps)
    scene.stage.libvirtd.clear()
    for pool in scene.stage.libvirtd.virsh("pool-list", "--all", "--name").split():
        scene.stage.libvirtd.virsh("pool-destroy", pool)
    scene.stage.libvirtd.restart()
    run(machine.stop())
    assert scene.build(scene.machine()) == ["thaw"]
    assert kinds(scene) == FROZEN


def test_a_replaced_base_image_is_used_at_once(scene: Scene) -> None:
    """A build after the base image was replaced boots the new one; what was frozen of the old one goes."""
    scene.build(scene.machine())
    old = scene.file("memory")
    new = scene.folder / "new"
    shutil.copyfile(scene.base, new)
    os.replace(new, scene.base)
    assert scene.build(scene.machine()) == ["freeze", "thaw"]
    assert not old.exists()
    assert kinds(scene) == FROZEN


def _truncate(memory: Path) -> None:
    os.truncate(memory, memory.stat().st_size // 2)


def _truncate_in_secret(memory: Path) -> None:
    """Corrupt what comes after the header, so that no time and no length shows it."""
    status = memory.stat()
    with memory.open("r+b") as file:
        file.seek(status.st_size // 8)
        file.write(bytes(status.st_size - file.tell()))
    os.utime(memory, ns=(status.st_atime_ns, status.st_mtime_ns))


def _spoil_header(memory: Path) -> None:
    """Corrupt libvirt's header, so that no time and no length shows it."""
    status = memory.stat()
    with memory.open("r+b") as file:
        file.write(b"nonsense" * 8)
    os.utime(memory, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "spoil",
    [
        _truncate,
        _spoil_header,
        pytest.param(_truncate_in_secret, marks=pytest.mark.soak),
        pytest.param(Path.unlink, marks=pytest.mark.soak),
    ],
)
def test_an_image_that_is_of_no_use_is_replaced_within_the_build(
    scene: Scene, spoil: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build whose frozen image is spoiled boots at once, says why, and freezes a new one."""
    monkeypatch.setattr(tiers, "ANSWER_S", SHORT_ANSWER_S)
    scene.build(scene.machine())
    spoiled = scene.file("memory")
    spoil(spoiled)  # type: ignore[operator]
    monkeypatch.undo()
    assert scene.build(scene.machine()) == ["thaw", "boot", "freeze", "thaw"]
    reasons = [why for name, why in scene.ear.tiers.all if name == "boot"]
    assert "was discarded" in reasons[0]
    assert not spoiled.exists()
    assert kinds(scene) == FROZEN


def test_a_guest_that_is_mute_after_the_thaw_boots(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that does not answer after a thaw is replaced by one that boots; the next build only boots."""
    monkeypatch.setattr(tiers, "ANSWER_S", SHORT_ANSWER_S)
    machine = scene.machine("lv.mute-after-thaw")
    assert scene.build(machine) == ["freeze", "thaw", "boot", "freeze", "thaw", "boot", "boot"]
    assert kinds(scene) == []
    assert scene.build(scene.machine("lv.mute-after-thaw")) == ["boot"]
    assert scene.stage.domains() == []


def test_a_full_disk_does_not_end_the_build_that_was_to_be_frozen(stage: Stage) -> None:
    """Where a frozen image does not fit, the build goes on in the VM that was to be frozen, and says so."""
    shutil.copyfile(stage.base, stage.small / "base_image")
    scene = Scene(stage, stage.libvirtd.uri, stage.small)
    machine = scene.machine()
    assert scene.build(machine)[0] == "freeze"
    assert scene.ear.tiers.all[-1][0] == "boot"
    assert "could not be frozen" in scene.ear.tiers.all[-1][1]
    assert kinds(scene) == []
    assert scene.build(scene.machine()) == ["boot"]
    run(scene.host.close())
    stage.clear()


def test_two_starts_that_freeze_at_once(scene: Scene) -> None:
    """Two VMs that are frozen at the same time do not disturb each other."""
    one, ear_of_one = scene.machine(name="minion1"), scene.ear
    two, ear_of_two = scene.machine(name="minion2"), scene.ear

    async def both() -> None:
        for good, failure in await defer.DeferredList(
            [defer.ensureDeferred(machine.start()) for machine in (one, two)], consumeErrors=True
        ):
            assert good, failure

    run(both())
    for ear in (ear_of_one, ear_of_two):
        scene.ear = ear
        scene.told()
    run(one.stop())
    run(two.stop())
    assert kinds(scene) == sorted(FROZEN * 2)
    assert scene.build(scene.machine(name="minion2")) == ["thaw"]


def test_a_standby_waits_paused_and_goes_on_for_a_build(scene: Scene) -> None:
    """A VM that stands by has rehearsed, runs nothing until a build takes it, and is gone when given up."""
    machine = scene.machine()
    run(machine.hold())
    scene.ear.lines.until(lambda lines: any(f"{SAYS}rehearsed" in line for line in lines))
    while "pause" not in scene.ear.steps:
        run(scene.host.memory())
    assert scene.stage.libvirtd.virsh("domstate", "minion1").strip() == "paused"
    assert not any(f"{SAYS}start" in line for line in scene.ear.lines.all)
    assert machine.machine is not None
    woken = scene.ear = Ear()
    run(machine.machine.wake(woken, machine.machine.identify))
    scene.told()
    assert [name for name, _ in woken.tiers.all] == ["standby"]
    run(machine.stop())
    given_up = scene.machine()
    run(given_up.hold())
    run(given_up.stop())
    assert scene.stage.domains() == []
    assert kinds(scene) == FROZEN


def test_what_is_over_the_limit_goes_the_least_used_first(scene: Scene) -> None:
    """Frozen images take no more room than they may; the one that was not used for the longest time goes."""
    scene.build(scene.machine(name="minion1"))
    scene.build(scene.machine(name="minion2"))
    scene.build(scene.machine(name="minion1"))
    size = scene.file("memory").stat().st_blocks * 512
    scene.store.most_bytes = 2 * size + size // 2
    assert scene.build(scene.machine(name="minion3")) == ["freeze", "thaw"]
    slots = {name.slot for name in scene.kept()}
    assert slots == {slot_of_domain("minion1"), slot_of_domain("minion3")}


def test_only_thawing_is_an_error_where_a_vm_can_only_boot(scene: Scene) -> None:
    """With start='thaw' a VM that cannot be frozen is refused, with the reason."""
    machine = scene.machine(mode="thaw")
    machine.spec = attrs.evolve(machine.spec, identity="static")
    with pytest.raises(CannotThaw, match="identity='static'"):
        run(machine.start())
    assert kinds(scene) == []
