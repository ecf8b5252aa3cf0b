"""Real builds on thawed VMs: really new each time, and nothing left but what is frozen."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import scenes
from latentvirt.host.link import CALLS_AT_A_TIME
from masters import SUCCESS, Master
from privatelibvirt import loopback_sshd
from scenes import Fingerprint, Stage, running
from test_whole_host_trouble import KILL_AFTER

pytestmark = [pytest.mark.libvirt, pytest.mark.guest]

CLOCK_S = 1.0
TURNS = 200

# What a thawed guest could have in common with another, read by a build as its first deed.
LOOK = """
if [ -e $HOME/mark ]; then echo used before; exit 1; fi; echo mark > $HOME/mark; sync
echo "date: $(date +%s.%N)"
echo "urandom: $(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' ')"
echo "uuid: $(cat /proc/sys/kernel/random/uuid)"
"""


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A host whose QEMU is not root, shared by the tests here."""
    with scenes.stage(user="libvirt-qemu") as stage:
        yield stage


@pytest.fixture(autouse=True)
def cleared(stage: Stage) -> Iterator[None]:
    """Leave nothing of one test to the next."""
    yield
    stage.clear()


def built(master: Master) -> tuple[str, str]:
    """Run one build; return the log of its start, and its output."""
    asked = time.time()
    build = master.finished(master.force("b"), 180)
    progress = master.text(build, "start VM", "progress")
    assert build["results"] == SUCCESS, progress + master.log()[-3000:]
    output = master.text(build, "shell", "stdio")
    found = re.search(r"^date: ([\d.]+)$", output, re.MULTILINE)
    if found:
        assert asked - CLOCK_S <= float(found[1]) <= time.time() + CLOCK_S
    return progress, output


def values(output: str) -> dict[str, str]:
    """Read what a build saw, its clock left out."""
    return dict(re.findall(r"^(urandom|uuid): (\S+)$", output, re.MULTILINE))


def tier(progress: str) -> str:
    """Say how the start ended."""
    return re.findall(r"attached after [\d.]+ s \((\w+)\)", progress)[-1]


def frozen(stage: Stage) -> dict[str, str]:
    """Take the digests of what is frozen."""
    found = [Path(file) for file in stage.files()]
    starts = {file.name.split(".")[1] for file in found if ".frozen." in file.name}
    return {file.name: Fingerprint.of(file).sha256 for file in found if file.name.split(".")[1] in starts}


def only_frozen(stage: Stage, master: Master) -> None:
    """Check that no VM runs, and that no file is there but what is frozen."""
    master.wait_for(lambda: stage.domains() == [], 20, "the end of the VM")
    master.wait_for(lambda: set(frozen(stage)) == {Path(f).name for f in stage.files()}, 20, "tidiness")


@contextmanager
def reached(stage: Stage, way: str, folder: Path, given: str) -> Iterator[str]:
    """Let a worker's arguments reach the host, for as long as the context lasts.

    Args:
        stage: where the host is.
        way: ``local`` or ``ssh``.
        folder: for the SSH server's files.
        given: the arguments, for a local host.
    """
    with loopback_sshd(folder / "ssh", stage.libvirtd.socket) as sshd:
        if way == "ssh":
            given = given.replace(repr(stage.libvirtd.uri), repr(sshd.uri)) + ", masterFQDN='10.0.2.2'"
        yield given


@pytest.mark.parametrize("way", ["local", pytest.param("ssh", marks=pytest.mark.soak)])
def test_builds_on_thawed_vms_have_nothing_in_common(stage: Stage, tmp_path: Path, way: str) -> None:
    """Builds are thawed from the first one on, each with its own randomness and the right time."""
    base = Fingerprint.of(stage.base)
    arguments = stage.given("minion1", stage.images, stage.debian, start="auto")
    with reached(stage, way, tmp_path, arguments) as given:
        config = f"c['workers'].append(LibVirtWorker({given}))\nbuilder('b', ['minion1'], {LOOK!r})"
        seen: list[dict[str, str]] = []
        with running(tmp_path / "master", config) as master:
            progress, output = built(master)
            assert "tier freeze" in progress
            assert tier(progress) == "thaw"
            seen.append(values(output))
            only_frozen(stage, master)
            images = frozen(stage)
            for _ in range(2):
                progress, output = built(master)
                assert "save memory" not in progress
                assert tier(progress) == "thaw"
                seen.append(values(output))
            only_frozen(stage, master)
        for key in ("urandom", "uuid"):
            assert len({look[key] for look in seen}) == len(seen)
        assert frozen(stage) == images
        assert Fingerprint.of(stage.base) == base


def starts(files: list[str]) -> set[str]:
    """Name the starts that files belong to."""
    return {Path(file).name.split(".")[1] for file in files}


@pytest.mark.parametrize(
    ("step", "standby", "way"),
    [
        pytest.param("guest prepares", False, "local", marks=pytest.mark.soak),
        pytest.param("make the memory file", False, "local", marks=pytest.mark.soak),
        ("save memory", False, "local"),
        pytest.param("save memory", False, "ssh", marks=pytest.mark.soak),
        pytest.param("publish the frozen image", False, "local", marks=pytest.mark.soak),
        ("restore", False, "local"),
        pytest.param("restore", False, "ssh", marks=pytest.mark.soak),
        pytest.param("save memory", True, "local", marks=pytest.mark.soak),
        ("attach console and channel", True, "local"),
        pytest.param("pause", True, "local", marks=pytest.mark.soak),
        pytest.param("pause", True, "ssh", marks=pytest.mark.soak),
    ],
)
def test_master_killed_while_it_freezes_thaws_or_stands_by(
    stage: Stage, tmp_path: Path, step: str, standby: bool, way: str
) -> None:
    """A master that dies in a freeze, a thaw or a standby leaves only whole images after its return."""
    arguments = stage.given("minion1", stage.images, stage.busybox, "lv.channel", start="auto")
    with reached(stage, way, tmp_path, f"{arguments}, standby={standby}") as given:
        _killed_after(step, standby, stage, tmp_path, given)


def _killed_after(step: str, standby: bool, stage: Stage, tmp_path: Path, given: str) -> None:
    worker = f"c['workers'].append(LibVirtWorker({given}))\nbuilder('b', ['minion1'], 'true')"
    with running(tmp_path / "master", KILL_AFTER.format(step=step) + worker) as master:
        if not standby:
            master.force("b")
        assert master.process is not None
        master.process.wait(60)
        left = stage.files()
        whole = {Path(file).name.split(".")[1] for file in left if ".frozen." in file}
        assert bool(whole) == (step in ("publish the frozen image", "restore", "pause"))
        half = starts(left) - whole
        assert half or step == "publish the frozen image"
        master.start()
        master.wait_for(lambda: not half & starts(stage.files()), 40, f"the sweep of {half}")
        assert whole <= starts(stage.files())
        # What is whole is used: the build that comes back goes on from it.
        if whole:
            if standby:
                master.force("b")
            master.wait_for(lambda: re.search("tier (thaw|standby)", _tiers(master)), 60, "a thaw")
    assert set(frozen(stage)) == {Path(file).name for file in stage.files()}


def _tiers(master: Master) -> str:
    builds = master.rest("builds")["builds"]
    return "".join(master.text(build, "start VM", "progress") for build in builds)


@pytest.mark.soak
@pytest.mark.parametrize("way", ["local", "ssh"])
def test_libvirtd_restarted_while_a_vm_stands_by(stage: Stage, tmp_path: Path, way: str) -> None:
    """A build after libvirtd was restarted finds a standby made anew, or does without."""
    arguments = stage.given("minion1", stage.images, stage.debian, start="auto")
    with reached(stage, way, tmp_path, f"{arguments}, standby=True") as given:
        _restarted_while_one_stands_by(stage, tmp_path, given)


def _restarted_while_one_stands_by(stage: Stage, tmp_path: Path, given: str) -> None:
    config = f"c['workers'].append(LibVirtWorker({given}))\nbuilder('b', ['minion1'], {LOOK!r})"

    def stands_by() -> bool:
        return "minion1" in stage.libvirtd.virsh("list", "--state-paused", "--name").split()

    with running(tmp_path / "master", config) as master:
        built(master)
        master.wait_for(stands_by, 60, "a standby")
        stage.libvirtd.restart()
        progress, _ = built(master)
        assert tier(progress) in ("standby", "thaw")
        master.wait_for(stands_by, 60, "another standby")
        progress, _ = built(master)
        assert tier(progress) in ("standby", "thaw")
    assert stage.domains() == []
    assert set(frozen(stage)) == {Path(file).name for file in stage.files()}


@pytest.mark.soak
def test_a_base_image_replaced_between_builds(stage: Stage, tmp_path: Path) -> None:
    """The build after a new base image was published runs on it, although an older one is frozen."""
    given = stage.given("minion1", stage.images, stage.debian, start="auto")
    config = f"c['workers'].append(LibVirtWorker({given}))\nbuilder('b', ['minion1'], {LOOK!r})"
    with running(tmp_path / "master", config) as master:
        built(master)
        old = frozen(stage)
        new = stage.images / "new"
        shutil.copyfile(stage.base, new)
        new.chmod(0o644)
        os.replace(new, stage.base)
        progress, _ = built(master)
        assert "tier freeze" in progress
        only_frozen(stage, master)
        assert not set(frozen(stage)) & set(old)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_two_hundred_builds_in_a_row_on_one_slot(stage: Stage, tmp_path: Path) -> None:
    """Two hundred thawed builds differ in password and randomness, and leave host and master as they were."""
    base = Fingerprint.of(stage.base)
    given = stage.given("minion1", stage.images, stage.debian, start="auto")
    config = f"""
import hashlib
from latentvirt.guest import Identity
identities = Identity.__init__

def noting(self, **said):
    with open('passwords', 'a') as file:
        print(hashlib.sha256(said['password'].encode()).hexdigest(), file=file)
    identities(self, **said)

Identity.__init__ = noting
c['workers'].append(LibVirtWorker({given}))
builder('b', ['minion1'], {LOOK!r})
"""
    with running(tmp_path / "master", config) as master:
        built(master)
        only_frozen(stage, master)
        images = frozen(stage)
        seen: list[dict[str, str]] = []
        settled = (0, 0, 0)
        for number in range(TURNS):
            progress, output = built(master)
            assert tier(progress) == "thaw"
            seen.append(values(output))
            if number == TURNS // 4:
                settled = held(master)
        only_frozen(stage, master)
        assert frozen(stage) == images
        threads, files, memory = held(master)
        # A host's threads are begun when as many calls are under way at once for the first time.
        assert threads < settled[0] + CALLS_AT_A_TIME
        assert files <= settled[1] + 2  # two requests of ours may be open
        assert memory <= settled[2] * 1.1
        passwords = (master.folder / "passwords").read_text().split()
    assert len(set(passwords)) == len(passwords) >= TURNS
    for key in ("urandom", "uuid"):
        assert len({look[key] for look in seen}) == TURNS
    assert Fingerprint.of(stage.base) == base


def held(master: Master) -> tuple[int, int, int]:
    """Count the master's threads, its open files, and the KiB of its memory."""
    folder = Path(f"/proc/{master.pid}")
    status = (folder / "status").read_text()
    numbers = {
        key: int(re.findall(rf"^{key}:\s+(\d+)", status, re.MULTILINE)[0]) for key in ("Threads", "VmRSS")
    }
    return numbers["Threads"], len(list((folder / "fd").iterdir())), numbers["VmRSS"]
