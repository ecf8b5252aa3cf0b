"""contrib/libvirt/qemu, called by a real libvirtd for a real guest."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from guests import busybox_guest
from privatelibvirt import PrivateLibvirtd, private_libvirtd

HOOK = Path(__file__).parent.parent / "contrib" / "libvirt" / "qemu"
DEADLINE = 120.0
POLL = 0.1
# A person's base image: theirs, closed to writing, readable for the hypervisor.
OWNER, MODE = 1234, 0o444
UUID = "6c617465-6e74-7669-7274-00000000c10e"

pytestmark = pytest.mark.libvirt


@attrs.frozen
class Farm:
    """A libvirtd with the hook installed, and build-vm defined on the clone of a base image."""

    daemon: PrivateLibvirtd
    root: Path
    base: Path
    clone: Path
    console: Path

    def define(self, *, clone: Path, words: str = "") -> None:
        """Define build-vm with a disk and words for its kernel."""
        xml = self.root / "build-vm.xml"
        xml.write_text(
            f"""<domain type='qemu'><name>build-vm</name>
            <uuid>{UUID}</uuid><memory unit='MiB'>192</memory>
            <os><type arch='x86_64' machine='q35'>hvm</type><kernel>{self.root}/vmlinuz</kernel>
            <initrd>{self.root}/initrd</initrd><cmdline>console=ttyS0 quiet {words}</cmdline></os>
            <devices><serial type='file'><source path='{self.console}'/></serial>
            <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
            <source file='{clone}'/><backingStore type='file'><format type='qcow2'/>
            <source file='{self.base}'><seclabel model='dac' relabel='no'/></source>
            <backingStore/></backingStore><target dev='vda' bus='virtio'/></disk></devices></domain>"""
        )
        self.daemon.virsh("define", str(xml))

    def said(self, text: str) -> str:
        """Return what follows a text on the console, once its line is whole."""

        def line() -> str | None:
            lines = self.console.read_text(errors="replace").splitlines(keepends=True)
            found = [one for one in lines if text in one and one.endswith("\n")]
            return found[-1].partition(text)[2].strip() if found else None

        return until(line)

    def start(self) -> None:
        """Start build-vm, its console empty."""
        self.console.unlink(missing_ok=True)
        self.daemon.virsh("start", "build-vm")

    def base_now(self) -> tuple[object, ...]:
        """Return what must never change of the base image."""
        status = self.base.stat()
        digest = hashlib.sha256(self.base.read_bytes()).hexdigest()
        return status.st_uid, status.st_gid, status.st_mode, digest


def until(condition: Callable[[], str | None]) -> str:
    """Wait for a condition to hold something."""
    deadline = time.monotonic() + DEADLINE
    while (found := condition()) is None:
        assert time.monotonic() < deadline, "it never came"
        time.sleep(POLL)
    return found


@pytest.fixture(scope="module", params=["hooks/qemu", "hooks/qemu.d/latentvirt"])
def farm(request: pytest.FixtureRequest) -> Iterator[Farm]:
    """A libvirtd whose QEMUs are nobody's in particular, with the hook in one of its two places."""
    # Not in pytest's folder, which is closed to QEMU's user.
    root = Path(tempfile.mkdtemp(prefix="latentvirt-hook-"))
    root.chmod(0o755)
    try:
        guest = busybox_guest()
        shutil.copyfile(guest.kernel, root / "vmlinuz")
        shutil.copyfile(guest.initrd, root / "initrd")
        images = root / "images"
        images.mkdir()
        base = images / "base.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(base), "8M"], check=True)
        base.chmod(MODE)
        os.chown(base, OWNER, OWNER)
        with private_libvirtd(root, user="libvirt-qemu") as daemon:
            hook = daemon.etc / request.param
            hook.parent.mkdir(exist_ok=True)
            shutil.copy(HOOK, hook)
            (daemon.etc / "latentvirt-hook.ini").write_text(
                f"[build-vm]\nfolder = {images}\nbase = base.qcow2\nclone = clone.qcow2\n"
            )
            daemon.restart()  # libvirtd looks for hooks when it starts
            yield Farm(daemon, root, base, images / "clone.qcow2", root / "console.log")
    finally:
        shutil.rmtree(root)


def test_each_start_has_a_disk_of_its_own(farm: Farm) -> None:
    """A guest's write is gone at its next start, the clone with the VM, and the base is as it was."""
    before = farm.base_now()
    farm.define(clone=farm.clone, words="mark=dirty")
    for _ in range(2):
        assert not farm.clone.exists()
        farm.start()
        assert farm.clone.exists()
        assert "dirty" not in farm.said("disk begins: ")
        assert "dirty" in farm.said("disk marked: ")
        farm.daemon.virsh("destroy", "build-vm")
        assert not farm.clone.exists()
    assert farm.base_now() == before


@pytest.mark.parametrize("way", ["poweroff", "kill"])
def test_the_clone_is_gone_however_the_vm_ends(farm: Farm, way: str) -> None:
    """A guest that powers itself off and a QEMU that is killed leave no clone behind."""
    farm.define(clone=farm.clone, words="after=0:poweroff" if way == "poweroff" else "")
    farm.start()
    if way == "kill":
        os.kill(farm.daemon.qemu_pid("build-vm"), signal.SIGKILL)
    until(lambda: None if farm.clone.exists() else "gone")


def test_a_hook_that_refuses_stops_the_start(farm: Farm) -> None:
    """If the domain's disk is not the clone, libvirt does not start it and shows the hook's own words."""
    other = farm.clone.with_name("other.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(other), "8M"], check=True)
    farm.define(clone=other)
    with pytest.raises(RuntimeError, match=r"no disk of the domain is .*What to do"):
        farm.start()
    assert farm.daemon.virsh("domstate", "build-vm").strip() == "shut off"
    assert not farm.clone.exists()
    other.unlink()


def test_a_crash_of_libvirt_and_guest_does_not_stop_the_next_start(farm: Farm) -> None:
    """After libvirtd and QEMU were killed, the domain starts again, on a new disk."""
    farm.define(clone=farm.clone, words="mark=dirty")
    farm.start()
    assert "dirty" in farm.said("disk marked: ")
    qemu = farm.daemon.qemu_pid("build-vm")
    farm.daemon.kill()
    os.kill(qemu, signal.SIGKILL)
    farm.daemon.start()
    until(lambda: "off" if farm.daemon.virsh("domstate", "build-vm").strip() == "shut off" else None)
    farm.start()
    assert "dirty" not in farm.said("disk begins: ")
    farm.daemon.virsh("destroy", "build-vm")
    assert not farm.clone.exists()


def test_saved_memory_does_not_meet_a_new_disk(farm: Farm) -> None:
    """A managed save of the VM is not restored, and dropping it is all that the person has to do."""
    farm.define(clone=farm.clone)
    farm.start()
    farm.said("disk begins: ")
    farm.daemon.virsh("managedsave", "build-vm")
    with pytest.raises(RuntimeError, match="managedsave-remove build-vm"):
        farm.start()
    farm.daemon.virsh("managedsave-remove", "build-vm")
    farm.start()
    farm.daemon.virsh("destroy", "build-vm")
    assert not farm.clone.exists()
