"""A frozen guest on a host whose QEMUs run as a user of their own, as they do outside of tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.backends import SOMEBODY, Daemon
from contract.conftest import ONLY
from contract.test_memory import NAME, Frozen, Talk
from guests import BusyBoxGuest, busybox_guest
from latentvirt.guest import Attaching
from latentvirt.host import Host
from latentvirt.storage import Storage
from privatelibvirt import private_libvirtd
from reactorthread import run

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.skipif(ONLY is not None, reason="a libvirtd of its own has nothing to do with embed"),
]


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A libvirtd that gives the files of a domain to QEMU's user, who can reach the folder and the kernel."""
    with tempfile.TemporaryDirectory(prefix="latentvirt-contract-") as images:
        os.chmod(images, 0o755)
        guest = busybox_guest()
        copies = [Path(shutil.copy(file, images)) for file in (guest.kernel, guest.initrd)]
        for copy in copies:
            copy.chmod(0o644)
        monkeypatch.setattr("contract.backends.busybox_guest", lambda: BusyBoxGuest(*copies))
        with private_libvirtd(tmp_path, user="libvirt-qemu") as daemon:
            yield Daemon(daemon.uri, Path(images), daemon)


def test_qemus_user_can_read_a_frozen_disk_and_gets_nothing_else(
    backend: Daemon, host: Host, storage: Storage
) -> None:
    """A thaw works on a frozen disk that only root may read, and leaves the person's base image as it is."""
    base = Path(backend.images, "base.qcow2")
    base.chmod(0o644)
    os.chown(base, SOMEBODY, SOMEBODY)
    before = run(storage.image(str(base)))
    frozen = Frozen(backend, host, storage)
    frozen.save()
    status = os.stat(frozen.disk)
    assert (status.st_uid, status.st_mode & 0o777) == (0, 0o600)
    created = run(host.restore(frozen.memory, frozen.description(), name=NAME))
    talk = Talk(host, created.uuid)
    run(host.resume(created.uuid))
    talk.identify()
    talk.until(Attaching)
    run(host.destroy(created.uuid))
    after = run(storage.image(str(base)))
    assert (after.stamp, after.owner) == (before.stamp, before.owner)
