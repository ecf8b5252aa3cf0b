"""`ssh_host_key='stable'`: one SSH host key for all VMs of a worker."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from buildbot.interfaces import LatentWorkerCannotSubstantiate

from latentvirt.errors import ConfigError
from latentvirt.master.arguments import read_arguments
from latentvirt.master.stablekeys import FOLDER, stable_key
from latentvirt.master.worker import LibVirtWorker
from latentvirt.testing import FakeGuest
from reactorthread import on_reactor, run
from stagemaster import Build, StageMaster, close_stage, open_stage

URI = "qemu+ssh://vmhost/system"


def test_a_key_is_made_once_and_is_nobody_elses_to_read(tmp_path: Path) -> None:
    """A worker has the same key each time, another worker another; only the master's user can read them."""
    key = stable_key(str(tmp_path), "minion1")
    assert stable_key(str(tmp_path), "minion1") == key
    assert stable_key(str(tmp_path), "minion2").public != key.public
    file = tmp_path / FOLDER / "minion1"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert "PRIVATE" not in repr(key)


def test_openssh_takes_the_key(tmp_path: Path) -> None:
    """OpenSSH reads the private key, and finds the public one in it that we say; the guest's helper, too."""
    key = stable_key(str(tmp_path), "minion1")
    file = tmp_path / FOLDER / "minion1"
    said = subprocess.run(["ssh-keygen", "-y", "-f", file], capture_output=True, text=True, check=True)
    assert said.stdout.split()[:2] == str(key.public).split()
    assert file.with_suffix(".pub").read_text().split() == str(key.public).split()


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", ".."])
def test_a_workers_name_is_no_path(tmp_path: Path, name: str) -> None:
    """A key lies in the folder for keys, whatever the worker is called."""
    (tmp_path / "master").mkdir()
    if name == "..":
        with pytest.raises(ConfigError):
            stable_key(str(tmp_path / "master"), name)
    else:
        stable_key(str(tmp_path / "master"), name)
    assert {file.parent for file in tmp_path.rglob("*") if file.is_file()} <= {tmp_path / "master" / FOLDER}


def test_a_key_that_is_damaged_is_said_so_without_showing_it(tmp_path: Path) -> None:
    """A key file that holds something else is named with a way out, and never quoted."""
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "minion1").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0")
    with pytest.raises(ConfigError, match="it is no ed25519 key") as caught:
        stable_key(str(tmp_path), "minion1")
    assert "c2VjcmV0" not in str(caught.value)
    assert "remove" in str(caught.value)


def test_it_needs_the_channel() -> None:
    """Where no private key can be handed over, `buildbot checkconfig` says so."""
    for identity in ("static", "metadata"):
        with pytest.raises(ConfigError, match="the channel"):
            read_arguments("pass", URI, ssh_host_key="stable", identity=identity)
    with pytest.raises(ConfigError, match="ssh_host_key='fixed' is none of reported, stable"):
        read_arguments("pass", URI, ssh_host_key="fixed")


@pytest.fixture
def master(tmp_path: Path) -> Iterator[StageMaster]:
    """A master on a fake host with a base image."""
    opened = open_stage()
    opened.basedir = str(tmp_path)
    opened.fake.inspect(URI).add_file("/images/base.qcow2")
    yield opened
    close_stage(opened)


def _worker(master: StageMaster, **kwargs: Any) -> LibVirtWorker:
    arguments = {"uri": URI, "base_image": "/images/base.qcow2", "size": {"memory": 64}, **kwargs}
    return on_reactor(lambda: master.worker("minion1", **arguments))


def _told(master: StageMaster, worker: LibVirtWorker) -> dict[str, Any]:
    """Start the worker's VM, and return what its guest is told."""
    guest = FakeGuest(says_ready=True, can=())
    master.fake.inspect(URI).guests = lambda domain: guest

    async def start() -> None:
        await worker.start_instance(Build())

    run(start())
    while guest.identity is None:
        on_reactor(lambda: None)

    async def stop() -> None:
        await worker.stop_instance()

    run(stop())
    return guest.identity


def test_all_vms_of_a_worker_are_given_its_key(master: StageMaster) -> None:
    """Each start hands over the same key, with the identity; without the argument none does."""
    assert "ssh_host_key" not in _told(master, _worker(master))
    worker = _worker(master, ssh_host_key="stable")
    first, second = _told(master, worker), _told(master, worker)
    assert first["ssh_host_key"] == second["ssh_host_key"]
    assert first["ssh_host_key"]["public"] == str(stable_key(str(master.basedir), "minion1").public)


def test_a_guest_that_prints_its_key_shows_it_to_nobody(master: StageMaster) -> None:
    """What a guest writes of its private key to its console is not in the build's page."""
    worker = _worker(master, ssh_host_key="stable")
    private = stable_key(str(master.basedir), "minion1").private.replace("\n", "\r\n").encode()

    class Chatty(FakeGuest):
        def on_channel(self, data: bytes) -> None:
            self.write_console(data.replace(b"\\n", b" ") + private + b"the end\r\n")

    master.fake.inspect(URI).guests = lambda domain: Chatty(says_ready=True, can=())

    async def start() -> None:
        await worker.start_instance(Build())

    run(start())
    while "the end" not in master.data.updates.text:
        on_reactor(lambda: None)
    shown = master.data.updates.text
    assert "<redacted>" in shown
    assert not [line for line in private.decode().split() if len(line) > 20 and line in shown]

    async def stop() -> None:
        await worker.stop_instance()

    run(stop())


def test_a_key_that_cannot_be_kept_ends_the_build_with_the_reason(master: StageMaster) -> None:
    """A base directory that takes no key is the configuration's fault, and said in the build's page."""
    (Path(master.basedir) / FOLDER).write_text("in the way")
    with pytest.raises(LatentWorkerCannotSubstantiate, match="SSH host key of worker 'minion1'"):
        _told(master, _worker(master, ssh_host_key="stable"))
