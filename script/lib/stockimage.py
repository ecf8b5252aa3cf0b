"""The stock guest: a plain Debian with buildbot-worker and the guest helper, as a person makes it by hand.

Nothing of it is tuned, so that what latentvirt's own image gains, and what thawing gains without it, shows.
It has no boot loader: it boots by its own kernel and initial RAM disk, which lie beside it.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import attrs

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from guests import CONTRIB, VMBUILDER, cached, debian_image  # noqa: E402

HELPER = CONTRIB / "guest" / "latentvirt_guest.py"
SERVICE = CONTRIB / "guest" / "latentvirt-guest.service"
RELEASE = "bookworm"
PACKAGES = ("systemd", "udev", "iproute2", "buildbot-worker", "linux-image-cloud-amd64")
DISK_SIZE = "2G"

NETWORK = "[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n"

# What contrib/libvirt/guest/README.md tells, and a network, which Debian leaves to the person.
INSTALL = """set -eu
install -d /var/lib/latentvirt
useradd --system --create-home --shell /bin/bash buildbot 2>/dev/null || usermod --shell /bin/bash buildbot
systemctl enable latentvirt-guest.service systemd-networkd.service
systemctl disable buildbot-worker.service
echo stock >/etc/hostname
"""


@attrs.frozen
class Image:
    """A guest's disk, and how it boots by a kernel of its own.

    Args:
        name: ``stock`` or ``tuned``.
        disk: qcow2 image, read-only.
        kernel: the image's own.
        initrd: the image's own.
        cmdline: for the kernel.
        offset: where in the disk the root file system begins, in bytes.
    """

    name: str
    disk: Path
    kernel: Path
    initrd: Path
    cmdline: str
    offset: int = 0


def stock_image() -> Image:
    """Return the stock image, building it (about two minutes) if its inputs changed."""
    inputs = [HELPER.read_bytes(), SERVICE.read_bytes(), Path(__file__).read_bytes()]
    folder = cached("stock", inputs, build_stock)
    return Image(
        name="stock",
        disk=folder / "stock.qcow2",
        kernel=folder / "vmlinuz",
        initrd=folder / "initrd",
        cmdline="root=/dev/vda rw console=ttyS0 quiet init=/lib/systemd/systemd",
    )


def tuned_image() -> Image:
    """Return vmbuilder's default image, building it (about a minute) if its inputs changed."""
    vmbuilder = vmbuilder_module()
    disk = debian_image().disk
    return Image(
        name="tuned",
        disk=disk,
        kernel=disk.with_name(disk.name + ".vmlinuz"),
        initrd=disk.with_name(disk.name + ".initrd"),
        cmdline=f"{vmbuilder.ROOT_ARGUMENTS} {vmbuilder.DEFAULT_ARGUMENTS}",
        offset=vmbuilder.FIRST_SECTOR * vmbuilder.SECTOR,
    )


IMAGES = {"stock": stock_image, "tuned": tuned_image}


def vmbuilder_module() -> ModuleType:
    """Load the program vmbuilder, which knows this machine's sources of packages."""
    loader = SourceFileLoader("vmbuilder", str(VMBUILDER))
    spec = importlib.util.spec_from_loader("vmbuilder", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["vmbuilder"] = module
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def build_stock(folder: Path) -> None:
    """Fill a folder with the disk, its kernel and its initial RAM disk; takes root."""
    with tempfile.TemporaryDirectory(prefix="latentvirt-stock-") as temporary:
        work = Path(temporary)
        tree = work / "tree"
        subprocess.run(bootstrap_command(work, tree), check=True)
        shutil.copyfile(next(tree.glob("boot/vmlinuz-*")), folder / "vmlinuz")
        shutil.copyfile(next(tree.glob("boot/initrd.img-*")), folder / "initrd")
        raw = work / "disk.raw"
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, raw, DISK_SIZE], check=True)
        subprocess.run(
            ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, folder / "stock.qcow2"], check=True
        )
    for file in folder.iterdir():
        file.chmod(0o444)


def bootstrap_command(work: Path, tree: Path) -> list[str]:
    """Make mmdebstrap's command, and the files that it reads.

    Args:
        work: folder for those files.
        tree: folder that is to hold the system.
    """
    vmbuilder = vmbuilder_module()
    chosen = vmbuilder.select_sources(vmbuilder.read_sources(Path("/etc/apt")), "debian", RELEASE)
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    texts = {
        "sources.list": "".join(f"{line}\n" for source in chosen for line in source.lines()),
        "apt.conf": vmbuilder.apt_options(dump),
        "dhcp.network": NETWORK,
        "install": INSTALL,
    }
    for name, text in texts.items():
        (work / name).write_text(text)
    target = {
        HELPER: "/usr/lib/latentvirt/latentvirt_guest.py",
        SERVICE: "/etc/systemd/system/latentvirt-guest.service",
        work / "dhcp.network": "/etc/systemd/network/dhcp.network",
        work / "install": "/tmp/install",
    }
    return [
        "mmdebstrap",
        "--variant=minbase",
        "--mode=root",
        "--architectures=amd64",
        "--format=directory",
        f"--include={','.join(PACKAGES)}",
        f"--aptopt={work / 'apt.conf'}",
        '--customize-hook=mkdir -p "$1/usr/lib/latentvirt"',
        *(f"--customize-hook=upload {file} {place}" for file, place in target.items()),
        '--customize-hook=chmod 755 "$1/usr/lib/latentvirt/latentvirt_guest.py"',
        '--customize-hook=chroot "$1" sh /tmp/install',
        '--customize-hook=rm "$1/tmp/install" "$1/etc/apt/apt.conf.d/99mmdebstrap"',
        RELEASE,
        str(tree),
        str(work / "sources.list"),
    ]
