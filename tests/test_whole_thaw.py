"""Real builds on thawed VMs: really new each time, and nothing left but what is frozen."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import scenes
from masters import SUCCESS, Master
from privatelibvirt import loopback_sshd
from scenes import Fingerprint, Stage, running

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

# The same in the worker's own process, which was frozen with all that it had imported.
LOOK_INSIDE = """
import random, ssl
print("random:", random.random())
print("ssl:", ssl.RAND_bytes(16).hex())
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


@pytest.mark.parametrize("way", ["local", pytest.param("ssh", marks=pytest.mark.soak)])
def test_builds_on_thawed_vms_have_nothing_in_common(stage: Stage, tmp_path: Path, way: str) -> None:
    """Builds are thawed from the first one on, each with its own randomness and the right time."""
    base = Fingerprint.of(stage.base)
    with loopback_sshd(tmp_path / "ssh", stage.libvirtd.socket) as sshd:
        given = stage.given("minion1", stage.images, stage.debian, start="auto")
        if way == "ssh":
            given = given.replace(repr(stage.libvirtd.uri), repr(sshd.uri)) + ", masterFQDN='10.0.2.2'"
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
