"""Guests for tests and the demonstration, built when first asked for and kept.

They lie in ``$LATENTVIRT_CACHE``, else ``~/.cache/latentvirt/guests``, each in a folder named after all that
it was made from; two processes that ask at once build once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import attrs

CONTRIB = Path(__file__).resolve().parent.parent / "contrib" / "libvirt"
VMBUILDER = CONTRIB / "vmbuilder"
BUSYBOX_INIT = Path(__file__).resolve().parent / "busybox-init.sh"

DEBIAN_OPTIONS = ("--release", "bookworm", "--size", "2G")
ROOT = "root=LABEL=latentvirt-root rootfstype=ext4 rw console=ttyS0"
KERNEL_PACKAGE = "linux-image-cloud-amd64"
BUSYBOX = Path("/bin/busybox")
BUSYBOX_MODULES = (
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio-rng",
    "pvpanic-pci",
)


@attrs.frozen
class DebianGuest:
    """A Debian with buildbot-worker and the guest helper.

    Args:
        disk: qcow2 image, read-only; boots by itself.
        kernel: of a direct kernel boot.
        initrd: of a direct kernel boot.
        cmdline: kernel arguments of a direct kernel boot of the whole system.
        fast_cmdline: the same with only the helper running, as process 1's child, and the addresses of
            user-mode networking; attaches in half the time.
    """

    disk: Path
    kernel: Path
    initrd: Path
    cmdline: str = f"{ROOT} quiet loglevel=4"
    fast_cmdline: str = f"{ROOT} quiet loglevel=4 init=/usr/lib/latentvirt/fastinit"


@attrs.frozen
class BusyBoxGuest:
    """A kernel and a RAM disk that are up in two seconds; busybox-init.sh says which arguments they take."""

    kernel: Path
    initrd: Path
    cmdline: str = "console=ttyS0 quiet"


def cache_folder() -> Path:
    """Return the folder that guests are kept in."""
    said = os.environ.get("LATENTVIRT_CACHE")
    return Path(said) if said else Path.home() / ".cache" / "latentvirt" / "guests"


def cached(name: str, inputs: list[bytes], build: Callable[[Path], None]) -> Path:
    """Return a folder that `build` has filled from these inputs, once.

    Args:
        name: begins the folder's name.
        inputs: all that the outcome depends on.
        build: fills an empty folder; called under a lock, its folder is used only if it returns.
    """
    digest = hashlib.sha256()
    for part in inputs:
        digest.update(hashlib.sha256(part).digest())
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"{name}-{digest.hexdigest()[:16]}"
    with open(cache / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            new = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache))
            try:
                build(new)
                new.chmod(0o755)
                new.rename(folder)
            finally:
                shutil.rmtree(new, ignore_errors=True)
    return folder


def debian_image() -> DebianGuest:
    """Return the Debian guest, building it (about 50 s) if its inputs changed."""
    sources = [VMBUILDER, *sorted(file for file in (CONTRIB / "guest").rglob("*") if file.suffix != ".md")]
    inputs = [file.read_bytes() for file in sources if file.is_file() and "__pycache__" not in file.parts]

    def build(folder: Path) -> None:
        output = folder / "debian.qcow2"
        subprocess.run([VMBUILDER, *DEBIAN_OPTIONS, "--output", output], check=True)
        for file in folder.iterdir():
            file.chmod(0o444)

    folder = cached("debian", [*inputs, " ".join(DEBIAN_OPTIONS).encode()], build)
    disk = folder / "debian.qcow2"
    return DebianGuest(disk, folder / "debian.qcow2.vmlinuz", folder / "debian.qcow2.initrd")
