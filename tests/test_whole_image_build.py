"""From a cloud image, as distributions publish them, to builds on it: for real, with cloud-init and QEMU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import scenes
from guests import cloud_image, debian_image
from latentvirt.images.root import ROOT_VARIABLE
from latentvirt.images.store import Entry, ImageStore
from masters import SUCCESS
from scenes import Fingerprint, Stage, running

pytestmark = [pytest.mark.libvirt, pytest.mark.guest, pytest.mark.soak, pytest.mark.timeout(1500)]

BUILD_MINUTES = 20
COMMAND = "from latentvirt.cli import main; main()"

USER_DATA = """#cloud-config
write_files:
  - path: /etc/made-by-a-person
    content: made
runcmd:
  - [touch, /home/buildbot/ready]
"""

LOOK = (
    "test -e $HOME/ready && test -e /etc/made-by-a-person",
    "test ! -e /var/lib/latentvirt-build && test ! -e /etc/systemd/system/latentvirt-build.service",
    "test -e /etc/cloud/cloud-init.disabled && test ! -e /run/cloud-init/result.json",
    "test $(stat -c %U $HOME) = buildbot",
    # An id and a key of this VM's own: the image has none.
    "test -s /etc/machine-id",
    "for i in $(seq 60); do [ -s /etc/ssh/ssh_host_ed25519_key.pub ] && exit; sleep 1; done; exit 1",
)
LARGER_MIB = 4096
"""A disk twice as large as the image."""
HAS_ALL = f"df / && test $(df --output=size --block-size=1M / | tail -n 1) -gt {LARGER_MIB * 7 // 8}"


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A host of the test's own, whose QEMU has a user of its own."""
    with scenes.stage(user="libvirt-qemu", blank=True) as stage:
        yield stage


def put_stock(stage: Stage) -> tuple[ImageStore, Entry]:
    """Put the cloud image into a store that the host's QEMU can reach."""
    store = ImageStore(stage.images / "store")
    copy = store.scratch() / "copy"
    shutil.copyfile(cloud_image(), copy)
    entry = store.publish(
        copy, name="debian-12", arch="x86_64", kind="stock", format="qcow2", source={"url": "this test"}
    )
    return store, entry


def image_build(stage: Stage, store: ImageStore, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call the command, as a person does."""
    command = ["image", "build", "debian-12", "-c", stage.libvirtd.uri, "--memory", "768", "--vcpus", "1"]
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *command, "--timeout", str(BUILD_MINUTES), *arguments],
        env={**os.environ, ROOT_VARIABLE: str(store.root)},
        capture_output=True,
        text=True,
    )


def put_other(store: ImageStore) -> None:
    """Put an image of another version beside it, which nobody has prepared as the first one."""
    copy = store.scratch() / "copy"
    shutil.copyfile(debian_image().disk, copy)
    store.publish(
        copy, name="debian-13", arch="x86_64", kind="built", format="qcow2", source={"url": "this test"}
    )


def test_a_cloud_image_is_built_and_workers_attach_from_it(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One command makes a base image of a stock one, without a network, and a build finds it clean.

    All of a disk that is larger than the image is there for the build. A master.cfg names the image, or lets
    a build's property choose between it and another.
    """
    store, stock = put_stock(stage)
    before = Fingerprint.of(store.path_of(stock))
    (tmp_path / "user-data").write_text(USER_DATA)
    told = image_build(stage, store, "--user-data", str(tmp_path / "user-data"))
    assert told.returncode == 0, told.stderr
    assert "installing the guest helper" in told.stderr
    built = store.find("debian-12", "x86_64", "built")
    assert built is not None
    assert built.source["facts"]["worker"] == "was there"
    assert Fingerprint.of(store.path_of(stock)) == before
    assert list(store.scratch().iterdir()) == []
    assert stage.domains() == []
    put_other(store)
    monkeypatch.setenv(ROOT_VARIABLE, str(store.root))
    config = f"""
    from latentvirt import Image
    connection = Connection({stage.libvirtd.uri!r}, images={str(stage.images)!r})
    size = Size(memory=600, disk={LARGER_MIB})
    c['workers'].append(LibVirtWorker(
        'minion1', None, connection, base_image='debian-12', size=size, start='boot'))
    builder('b', ['minion1'], *{(*LOOK, HAS_ALL)!r})
    c['workers'].append(LibVirtWorker(
        'minion2', None, connection, size=size, start='boot',
        base_image=Image(os_type='debian', os_version=util.Property('os_version'))))
    builder('chosen', ['minion2'], util.Interpolate(
        'if [ %(prop:os_version)s = 12 ]; then test -e /etc/made-by-a-person; '
        'else test ! -e /etc/made-by-a-person; fi'))
    """
    with running(tmp_path / "master", config) as master:
        for builder, wish in (("b", {}), ("chosen", {"os_version": "13"}), ("chosen", {"os_version": "12"})):
            build = master.finished(master.force(builder, **wish), 600)
            progress = master.text(build, "start VM", "progress")
            assert build["results"] == SUCCESS, progress + master.log()[-3000:]
        stage.assert_nothing_left()


def test_a_command_that_fails_in_the_guest_fails_the_build(stage: Stage, tmp_path: Path) -> None:
    """Where a person's own command fails, its output is shown, and nothing is published."""
    store, _ = put_stock(stage)
    (tmp_path / "user-data").write_text("#cloud-config\nruncmd:\n  - ls /no/such/thing\n  - touch /never\n")
    told = image_build(stage, store, "--user-data", str(tmp_path / "user-data"))
    assert told.returncode == 1
    assert "cannot access '/no/such/thing'" in told.stderr
    assert "the guest failed: cloud-init says:" in told.stderr
    assert store.find("debian-12", "x86_64", "built") is None
    assert list(store.scratch().iterdir()) == []
    assert stage.domains() == []


def test_workers_of_a_stock_image_that_nobody_prepared(stage: Stage, tmp_path: Path) -> None:
    """cloud-init makes a worker of a stock image, with what a person adds; the next build thaws it.

    Both have all of a disk that is larger than the image.
    """
    _, stock = put_stock(stage)
    image = stage.images / "store" / "blobs" / f"{stock.digest}.qcow2"
    file = {"path": "/etc/made-by-a-person", "content": "made"}
    added = {"write_files": [file], "runcmd": ["touch /srv/ready"]}
    config = f"""
    from latentvirt import Connection, Image
    c['workers'].append(LibVirtWorker(
        'minion1', None, Connection({stage.libvirtd.uri!r}, images={str(stage.images)!r}),
        base_image=Image({str(image)!r}), size=Size(memory=768, disk={LARGER_MIB}),
        cloud_init={added!r}))
    builder('b', ['minion1'], 'test -e /srv/ready && test -e /etc/made-by-a-person', {HAS_ALL!r})
    """
    with running(tmp_path / "master", config) as master:
        for tier in ("freeze", "thaw"):
            build = master.finished(master.force("b"), BUILD_MINUTES * 60)
            progress = master.text(build, "start VM", "progress")
            assert build["results"] == SUCCESS, progress + master.log()[-3000:]
            assert f"tier {tier}" in progress
        stage.assert_nothing_left()
