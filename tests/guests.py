"""Guests for tests and the demonstration, built when first asked for and kept.

They lie in ``$LATENTVIRT_CACHE``, else ``~/.cache/latentvirt/guests``, each in a folder named after all that
it was made from; two processes that ask at once build once.
"""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import os
import re
import runpy
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import attrs

CONTRIB = Path(__file__).resolve().parent.parent / "contrib" / "libvirt"
VMBUILDER = CONTRIB / "vmbuilder"
BUSYBOX_INIT = Path(__file__).resolve().parent / "busybox-init.sh"

DEBIAN_OPTIONS = ("--release", "bookworm", "--size", "2G")
ROOT = "root=LABEL=latentvirt-root rootfstype=ext4 rw console=ttyS0 init_on_free=1 cryptomgr.notests"
INSIDE_WORKER = Path(__file__).resolve().parent / "inside_worker.py"
CLOUD_CONFIGURE = Path(__file__).resolve().parent / "cloud-configure.sh"
CLOUD_PACKAGES = (
    "cloud-init",
    "cloud-guest-utils",
    "dbus",
    "gpg",
    "netplan.io",
    "openssh-server",
)
KERNEL_PACKAGE = "linux-image-cloud-amd64"
BUSYBOX_PACKAGE = "busybox-static"
BUSYBOX_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "pvpanic_pci")
UNUSED_S = 24 * 3600
"""After how long a guest that nobody asked for is removed, once another of its kind is built."""


@attrs.frozen
class DebianGuest:
    """A Debian with buildbot-worker and the guest helper.

    Args:
        disk: qcow2 image, read-only; boots by itself, or with its own kernel and RAM disk beside it.
        kernel: for a direct kernel boot; the busybox guest's.
        initrd: for a direct kernel boot; the busybox guest's, which finds the root two seconds sooner than
            the image's own.
        cmdline: kernel arguments of a direct kernel boot of the whole system.
        fast_cmdline: the same with only the helper running, as process 1's child, and the addresses of
            user-mode networking; attaches in a third of the time.
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
            for other in cache.glob(f"{name}-*"):
                if other.stat().st_mtime < time.time() - UNUSED_S:
                    shutil.rmtree(other, ignore_errors=True)
        os.utime(folder)
    return folder


def debian_image() -> DebianGuest:
    """Return the Debian guest, building it (about 50 s) if its inputs changed."""
    files = [VMBUILDER, *sorted((*CONTRIB.glob("image/*"), *CONTRIB.glob("guest/latentvirt*")))]
    inputs = [file.read_bytes() for file in files]

    def build(folder: Path) -> None:
        output = folder / "debian.qcow2"
        subprocess.run([VMBUILDER, *DEBIAN_OPTIONS, "--output", output], check=True)
        for file in folder.iterdir():
            file.chmod(0o444)

    folder = cached("debian", [*inputs, " ".join(DEBIAN_OPTIONS).encode()], build)
    direct = busybox_guest()
    return DebianGuest(folder / "debian.qcow2", direct.kernel, direct.initrd)


def ssh_image() -> tuple[DebianGuest, Path]:
    """Return the Debian guest with an SSH server, built if its inputs changed, and root's private key.

    Its worker's process says what random numbers it draws (inside_worker.py).
    """
    files = [
        VMBUILDER,
        INSIDE_WORKER,
        *sorted((*CONTRIB.glob("image/*"), *CONTRIB.glob("guest/latentvirt*"))),
    ]

    def build(folder: Path) -> None:
        key = folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        builder = runpy.run_path(str(VMBUILDER))
        load = folder / "inside_worker.pth"
        load.write_text(f"import {INSIDE_WORKER.stem}\n")
        for file in (INSIDE_WORKER, load):
            builder["FILES"][f"/usr/lib/python3/dist-packages/{file.name}"] = file
        builder["FILES"]["/root/.ssh/authorized_keys"] = key.with_suffix(".pub")
        output = folder / "debian.qcow2"
        if builder["main"]([*DEBIAN_OPTIONS, "--package", "openssh-server", "--output", str(output)]):
            raise RuntimeError("vmbuilder failed")
        output.chmod(0o444)

    folder = cached("ssh", [file.read_bytes() for file in files], build)
    direct = busybox_guest()
    return DebianGuest(folder / "debian.qcow2", direct.kernel, direct.initrd), folder / "key"


def cloud_image() -> Path:
    """Return a Debian like those that distributions publish, building it (a minute) if its inputs changed.

    It is a qcow2 image that has cloud-init, which waits to be told what to do, and buildbot-worker, but
    nothing of latentvirt's.
    """
    early = sorted(CONTRIB.glob("image/initramfs*"))
    inputs = [file.read_bytes() for file in (VMBUILDER, CLOUD_CONFIGURE, *early)]

    def build(folder: Path) -> None:
        builder = runpy.run_path(str(VMBUILDER))
        builder["FILES"].clear()
        builder["FILES"]["/tmp/latentvirt-configure"] = CLOUD_CONFIGURE
        output = folder / "cloud.qcow2"
        packages = [word for package in CLOUD_PACKAGES for word in ("--package", package)]
        if builder["main"]([*DEBIAN_OPTIONS, *packages, "--output", str(output)]):
            raise RuntimeError("vmbuilder failed")
        for file in folder.iterdir():
            file.chmod(0o444)

    words = " ".join((*DEBIAN_OPTIONS, *CLOUD_PACKAGES)).encode()
    return cached("cloud", [*inputs, words], build) / "cloud.qcow2"


def busybox_guest() -> BusyBoxGuest:
    """Return the busybox guest, building it (a few seconds, a download of 30 MB) if its inputs changed."""

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="latentvirt-busybox-") as temporary:
            tree = Path(temporary)
            for package in (_newest(KERNEL_PACKAGE), BUSYBOX_PACKAGE):
                _unpack(package, tree)
            shutil.copyfile(next(tree.glob("boot/vmlinuz-*")), folder / "vmlinuz")
            files = {"init": BUSYBOX_INIT.read_bytes(), "bin/busybox": (tree / "bin/busybox").read_bytes()}
            for number, (name, data) in enumerate(_modules_in_order(tree)):
                files[f"modules/{number:02}-{name}.ko"] = data
            (folder / "initrd").write_bytes(cpio(files))

    folder = cached("busybox", [BUSYBOX_INIT.read_bytes(), Path(__file__).read_bytes()], build)
    return BusyBoxGuest(folder / "vmlinuz", folder / "initrd")


def cpio(files: dict[str, bytes]) -> bytes:
    """Pack executable files, and the folders that they need, as the kernel wants its RAM disk."""
    folders = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    entries = [(name, 0o040755, b"") for name in sorted(folders)]
    entries += [(name, 0o100755, data) for name, data in files.items()]
    entries.append(("TRAILER!!!", 0, b""))
    packed = bytearray()
    for number, (name, mode, data) in enumerate(entries, 1):
        numbers = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        packed += b"070701" + b"".join(b"%08X" % value for value in numbers) + name.encode() + b"\0"
        packed += bytes(-len(packed) % 4) + data
        packed += bytes(-len(packed) % 4)
    return bytes(packed)


def _newest(metapackage: str) -> str:
    """Name the package that a metapackage stands for now."""
    command = ["apt-cache", "--no-recommends", "depends", metapackage]
    depends = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Depends: (linux-image-\S+)", depends)
    if not found:
        raise RuntimeError(f"apt knows no {metapackage}; run: apt-get update")
    return found[1]


def _unpack(package: str, tree: Path) -> None:
    """Fetch a package and unpack it, without installing it."""
    with tempfile.TemporaryDirectory(prefix="latentvirt-deb-") as folder:
        # As root, apt wants to become a user who could not write into our folder.
        subprocess.run(
            ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package], cwd=folder, check=True
        )
        for deb in Path(folder).glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", deb, tree], check=True)


def _modules_in_order(tree: Path) -> list[tuple[str, bytes]]:
    """Find the modules wanted and what they need, each after all that it needs."""
    found = tree.glob("lib/modules/**/*.ko*")
    files = {file.name.partition(".")[0].replace("-", "_"): file for file in found}
    order: dict[str, bytes] = {}

    def add(name: str) -> None:
        data = files[name].read_bytes()
        if files[name].suffix == ".xz":
            data = lzma.decompress(data)
        needs = re.search(rb"\0depends=([^\0]+)\0", data)
        for needed in needs[1].decode().split(",") if needs else []:
            add(needed.replace("-", "_"))
        order.setdefault(name, data)

    for module in BUSYBOX_MODULES:
        add(module)
    return list(order.items())
