"""A private libvirtd, an image folder and a real master: the stage of the whole tests."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import attrs

from guests import BusyBoxGuest, DebianGuest, busybox_guest, debian_image
from masters import Master
from privatelibvirt import PrivateLibvirtd, private_libvirtd

SMALL_BYTES = 24 * 1024 * 1024

Guest = TypeVar("Guest", BusyBoxGuest, DebianGuest)

FAST_DOMAIN = """<domain type='qemu'>
  <name>{name}</name>
  <!-- a comment of the person's -->
  <memory unit='MiB'>512</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>{cmdline}</cmdline>
  </os>
  <features><acpi/></features>
  <on_crash>destroy</on_crash>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{disk}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='user'><model type='virtio'/></interface>
    <serial type='pty'/>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <panic model='isa'/>
    <memballoon model='none'/>
  </devices>
</domain>"""


def fast_domain(name: str, disk: Path, guest: DebianGuest | BusyBoxGuest | None, *words: str) -> str:
    """Describe a domain that boots a guest by its kernel, as a person would.

    Args:
        name: of the domain.
        disk: path of its disk, which need not exist.
        guest: what boots.
        words: more of them for the kernel's command line.
    """
    assert guest is not None, "the stage was set blank"
    cmdline = guest.fast_cmdline if isinstance(guest, DebianGuest) else guest.cmdline
    return FAST_DOMAIN.format(
        name=name,
        disk=disk,
        kernel=guest.kernel,
        initrd=guest.initrd,
        cmdline=" ".join((cmdline, *words)),
    )


COPIES = "latentvirt-images"
"""The directory in an image folder that images are copied into."""


@attrs.frozen
class Fingerprint:
    """What of a file must be the same afterwards."""

    sha256: str
    owner: tuple[int, int]
    mode: int

    @classmethod
    def of(cls, path: Path) -> Fingerprint:
        """Take it of a file."""
        status = path.stat()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(digest, (status.st_uid, status.st_gid), status.st_mode)


@attrs.define
class Stage:
    """A libvirtd, and a folder of images on its host.

    Args:
        libvirtd: the host.
        images: the person's folder.
        base: the base image in it.
        small: a folder on a file system of its own, which is soon full.
        busybox: a guest that needs no disk.
        debian: the guest that the base image holds; None if that is blank.
    """

    libvirtd: PrivateLibvirtd
    images: Path
    base: Path
    small: Path
    busybox: BusyBoxGuest
    debian: DebianGuest | None

    def given(
        self,
        name: str,
        folder: Path,
        guest: DebianGuest | BusyBoxGuest | None,
        *words: str,
        start: str = "boot",
    ) -> str:
        """Write the arguments of a worker whose domain is given as XML, for a master's config."""
        disk = folder / name
        return (
            f"{name!r}, 'sekrit', Connection({self.libvirtd.uri!r}), {str(disk)!r}, {str(self.base)!r}, "
            f"xml={fast_domain(name, disk, guest, *words)!r}, start={start!r}"
        )

    def domains(self) -> list[str]:
        """Name the domains that run."""
        return self.libvirtd.virsh("list", "--name").split()

    def files(self) -> list[str]:
        """List what lies in the directories that latentvirt made, leases left out."""
        found = [*self.images.glob("latentvirt-*/*"), *self.small.glob("latentvirt-*/*")]
        return sorted(str(file) for file in found if not file.name.startswith("lease."))

    def loose(self) -> list[str]:
        """List the files of ours that belong to no frozen image and are no copied one: those are kept."""
        files = [file for file in self.files() if Path(file).parent.name != COPIES]
        kept = {Path(file).name.split(".")[1] for file in files if ".frozen." in file}
        return [file for file in files if Path(file).name.split(".")[1] not in kept]

    def assert_nothing_left(self, *foreign: str, seconds: float = 20) -> None:
        """Check that no domain is left, and no file of ours but what is frozen, once there was time for it.

        Args:
            foreign: names of the domains that must run still.
            seconds: how long to wait.
        """
        deadline = time.monotonic() + seconds
        while (self.domains(), self.loose()) != (sorted(foreign), []) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert self.domains() == sorted(foreign)
        assert self.loose() == []

    def clear(self) -> None:
        """Remove whatever a test has left, so that the next one starts on a clean stage."""
        self.libvirtd.clear()
        for pool in self.libvirtd.virsh("pool-list", "--all", "--name").split():
            self.libvirtd.virsh("pool-destroy", pool)
        for place in (self.images, self.small):
            for left in place.glob("latentvirt-*"):
                shutil.rmtree(left)

    def assert_all_gone(self) -> None:
        """Check that after the end of the master not even directory and pool are left, images apart."""
        if self.files():
            assert self.loose() == []
            return
        assert [*self.images.glob("latentvirt-*"), *self.small.glob("latentvirt-*")] == []
        assert self.libvirtd.virsh("pool-list", "--all", "--name").split() == []


@contextmanager
def stage(*, user: str = "root", blank: bool = False) -> Iterator[Stage]:
    """Set the stage, for as long as the context lasts.

    Args:
        user: whom QEMU runs as.
        blank: whether a blank disk will do for a base image, since only the busybox guest is needed.
    """
    # Not below pytest's own folder, which is closed to all but its user: QEMU's must pass.
    with tempfile.TemporaryDirectory(prefix="lv-stage-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)
        images = folder / "images"
        images.mkdir()
        # libvirt labels a kernel while a guest runs from it; one that is shared would be another test's, too.
        busybox = _own(busybox_guest(), images)
        debian = None if blank else _own(debian_image(), images)
        base = images / "base_image"
        if debian is None:
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", base, "64M"], check=True)
        else:
            shutil.copyfile(debian.disk, base)
        base.chmod(0o644)
        small = folder / "small"
        small.mkdir()
        # Before the libvirtd, whose namespace sees what is mounted by then.
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_BYTES}", "small", small], check=True)
        try:
            small.chmod(0o755)
            with private_libvirtd(folder, user=user) as libvirtd:
                yield Stage(libvirtd, images, base, small, busybox, debian)
        finally:
            subprocess.run(["umount", small], check=True)


def _own(guest: Guest, folder: Path) -> Guest:
    """Give a guest a kernel and a RAM disk of its own."""
    copies = {
        what: Path(shutil.copyfile(getattr(guest, what), folder / f"{type(guest).__name__}-{what}"))
        for what in ("kernel", "initrd")
    }
    return attrs.evolve(guest, **copies)


@contextmanager
def running(folder: Path, config: str, **more: object) -> Iterator[Master]:
    """Run a master for as long as the context lasts."""
    master = Master(folder, config, **more)  # type: ignore[arg-type]
    try:
        yield master.start()
    finally:
        master.close()
