"""The kinds of libvirt that the contract holds for, each with what a test needs to do behind our back."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid as uuids
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import libvirt

from guests import busybox_guest
from latentvirt.host import Driver, LibvirtDriver
from latentvirt.names import CHANNEL_PORT, METADATA_NAMESPACE, Ownership
from latentvirt.testing import FakeDomain, FakeFile, FakeGuest, FakeLibvirt
from privatelibvirt import PrivateLibvirtd, loopback_sshd, private_libvirtd

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"

OWNER = "0123456789abcdef"
OURS = Ownership(OWNER, "slot1", "0a1b2c3d4e5f")

SOMEBODY = 12345
"""A user id that is nobody's here."""

DAEMON, STORAGE, STARTS = "daemon", "storage", "starts"
"""What a backend may be able to do: lose its connection; keep volumes; create paused domains with streams."""


class Backend:
    """One libvirt.

    Attributes:
        uri: of the host.
        driver: opens its connections; None for the real one.
        can: what it can do.
        images: an empty folder on the host.
    """

    can: frozenset[str] = frozenset()
    uri: str
    driver: Driver | None = None
    images: str

    def add_image(
        self, name: str, *, format: str = "qcow2", backing: str | None = None, folder: str = ""
    ) -> str:
        """Put an image on the host behind libvirt's back, and return its path."""
        raise NotImplementedError

    def listing(self, folder: str) -> list[str] | None:
        """Name what is in a folder; None if there is none."""
        raise NotImplementedError

    def remove_folder(self, path: str) -> None:
        """Remove a folder and what is in it, behind libvirt's back."""
        raise NotImplementedError

    def write(self, path: str) -> None:
        """Write to a file on the host."""
        raise NotImplementedError

    def give_away(self, path: str) -> None:
        """Change the owner of a file on the host."""
        raise NotImplementedError

    def same_content(self, one: str, other: str) -> bool:
        """Say whether two files on the host hold the same."""
        raise NotImplementedError

    def cut(self, path: str) -> None:
        """Cut a saved domain's file in the middle."""
        raise NotImplementedError

    def garble(self, path: str) -> None:
        """Overwrite the beginning of a saved domain's file."""
        raise NotImplementedError

    def no_room(self, path: str) -> AbstractContextManager[str]:
        """Let the disk be full, and return the path to use for a file there."""
        raise NotImplementedError

    def direct(self) -> Any:
        """Open a connection as another program would."""
        return (self.driver or LibvirtDriver()).open(self.uri)

    def define(self, xml: str) -> None:
        """Define a domain as another program would."""
        self.direct().defineXML(xml)

    def lose_connection(self) -> None:
        """Restart the daemon."""
        raise NotImplementedError


class WordGuest(FakeGuest):
    """Does what busybox-init.sh does for the words on the kernel's command line."""

    def __init__(self, words: list[str]) -> None:
        super().__init__(console=["latentvirt-busybox: up"], says_ready="channel" in words)
        self._ends = [word.partition(":")[2] for word in words if word.startswith("after=")]

    def on_boot(self) -> None:
        """Boot, and do at once what the real one does after some seconds."""
        domain = self.domain
        super().on_boot()
        for end in self._ends:
            if domain is not None:
                {"poweroff": domain.power_off, "panic": domain.panic, "fill": domain.disk_full}[end]()

    def on_channel(self, data: bytes) -> None:
        """Take the identity and say so on the console."""
        super().on_channel(data)
        if self.identity is not None:
            self.write_console(f"latentvirt-busybox: identity: {self.identity['name']}\r\n".encode())


class Fake(Backend):
    """Ours."""

    can = frozenset({DAEMON, STORAGE, STARTS})
    uri = "qemu:///system"
    images = "/images"

    def __init__(self) -> None:
        self.fake = FakeLibvirt()
        self.driver = self.fake
        self.host = self.fake.inspector
        self.host.add_folder(self.images)
        self.host.networks.update({"default": "192.168.122.1", "bare": None})
        self.host.guests = _words_of

    def add_image(
        self, name: str, *, format: str = "qcow2", backing: str | None = None, folder: str = ""
    ) -> str:
        """Put an image there."""
        path = f"{folder or self.images}/{name}"
        self.host.files.pop(path, None)
        self.host.add_file(
            path,
            FakeFile(
                format=format,
                capacity=1024**2,
                backing=backing,
                backing_format="qcow2" if backing else None,
            ),
        )
        return path

    def listing(self, folder: str) -> list[str] | None:
        """Name what is there."""
        return self.host.listing(folder) if folder in self.host.folders else None

    def remove_folder(self, path: str) -> None:
        """Remove it."""
        for name in self.host.listing(path):
            del self.host.files[f"{path}/{name}"]
        self.host.folders.discard(path)

    def write(self, path: str) -> None:
        """Be written to."""
        self.host.files[path].touch()

    def give_away(self, path: str) -> None:
        """Change the owner."""
        self.host.files[path].touch(modified=False)

    def same_content(self, one: str, other: str) -> bool:
        """Compare what the fake knows of content."""
        first, second = (self.host.files[path] for path in (one, other))
        return (first.format, first.length, first.save) == (second.format, second.length, second.save)

    def cut(self, path: str) -> None:
        """Cut it in two."""
        self.host.files[path].truncate(self.host.files[path].length // 2)

    def garble(self, path: str) -> None:
        """Garble it."""
        self.host.files[path].corrupt()

    @contextmanager
    def no_room(self, path: str) -> Iterator[str]:
        """Fill the disk."""
        self.host.full = True
        yield path
        self.host.full = False

    def define(self, xml: str) -> None:
        """Define a domain."""
        self.host.define(xml)

    def lose_connection(self) -> None:
        """Restart the daemon."""
        self.host.restart_daemon()


def _words_of(domain: FakeDomain) -> FakeGuest:
    text = domain.live or ""
    return WordGuest(text.partition("<cmdline>")[2].partition("</cmdline>")[0].split())


class Real(Backend):
    """A libvirt that sees this machine's files."""

    def __init__(self, uri: str, images: Path) -> None:
        self.uri = uri
        self.images = str(images)

    def add_image(
        self, name: str, *, format: str = "qcow2", backing: str | None = None, folder: str = ""
    ) -> str:
        """Make an image."""
        path = Path(folder or self.images) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        on = [] if backing is None else ["-b", backing, "-F", "qcow2"]
        subprocess.run(["qemu-img", "create", "-q", "-f", format, *on, str(path), "1M"], check=True)
        return str(path)

    def listing(self, folder: str) -> list[str] | None:
        """Name what is there."""
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else None

    def remove_folder(self, path: str) -> None:
        """Remove it."""
        shutil.rmtree(path)

    def write(self, path: str) -> None:
        """Append to it."""
        with open(path, "ab") as file:
            file.write(b"more" * 1024)

    def give_away(self, path: str) -> None:
        """Change its owner."""
        os.chown(path, SOMEBODY, SOMEBODY)

    def same_content(self, one: str, other: str) -> bool:
        """Compare them."""
        return Path(one).read_bytes() == Path(other).read_bytes()

    def cut(self, path: str) -> None:
        """Cut it in two."""
        os.truncate(path, os.stat(path).st_size // 2)

    def garble(self, path: str) -> None:
        """Overwrite what says that it is a saved domain."""
        with open(path, "r+b") as file:
            file.write(b"garbled")

    @contextmanager
    def no_room(self, path: str) -> Iterator[str]:
        """Name the file that is always full."""
        yield "/dev/full"


class Daemon(Real):
    """A private libvirtd with real QEMU, directly or through ssh."""

    can = frozenset({DAEMON, STORAGE, STARTS})

    def __init__(self, uri: str, images: Path, daemon: PrivateLibvirtd) -> None:
        super().__init__(uri, images)
        self._daemon = daemon

    def lose_connection(self) -> None:
        """Restart the daemon."""
        self._daemon.restart()


class Embed(Real):
    """QEMU's driver in this very process: no daemon, no storage driver."""

    can = frozenset({STARTS})


class InMemory(Real):
    """libvirt's own fake: it has no flag to create a domain paused, no streams and no directories."""


def domain_xml(
    name: str, words: str = "", *, uuid: str = "", disk: str | None = None, marked: Ownership | None = OURS
) -> str:
    """Describe a small domain that boots the busybox guest.

    Args:
        name: its name.
        words: for busybox-init.sh, which the fake's guests understand as well.
        uuid: a random one unless given.
        disk: a qcow2 image.
        marked: what its metadata says; None for nothing of ours.
    """
    guest = busybox_guest() if os.path.exists("/usr/bin/apt-cache") else None
    kernel, initrd = (guest.kernel, guest.initrd) if guest else ("/vmlinuz", "/initrd")
    mark = (
        f"<metadata><latentvirt:vm xmlns:latentvirt={quoteattr(METADATA_NAMESPACE)} owner='{marked.owner}' "
        f"slot='{marked.slot}' start='{marked.start}'/></metadata>"
        if marked
        else ""
    )
    disk_xml = (
        f"<disk type='file'><driver name='qemu' type='qcow2'/><source file={quoteattr(disk)}/>"
        "<target dev='vda' bus='virtio'/></disk>"
        if disk
        else ""
    )
    return (
        f"<domain type='qemu' xmlns:qemu={quoteattr(QEMU_NAMESPACE)}><name>{name}</name>"
        f"<uuid>{uuid or uuids.uuid4()}</uuid>{mark}"
        "<memory unit='MiB'>128</memory><os><type arch='x86_64' machine='q35'>hvm</type>"
        f"<kernel>{kernel}</kernel><initrd>{initrd}</initrd>"
        f"<cmdline>console=ttyS0 quiet panic=0 {words}</cmdline></os>"
        f"<on_poweroff>destroy</on_poweroff><on_crash>destroy</on_crash><devices>{disk_xml}"
        "<controller type='usb' model='none'/><serial type='pty'/>"
        f"<channel type='unix'><target type='virtio' name='{CHANNEL_PORT}'/></channel>"
        "<memballoon model='none'/></devices>"
        # The guest's kernel has the driver of the PCI panic device only, for which libvirt 9 has no word.
        "<qemu:commandline><qemu:arg value='-device'/><qemu:arg value='pvpanic-pci,addr=0x1d'/>"
        "</qemu:commandline></domain>"
    )


@contextmanager
def open_backend(name: str, tmp: Path) -> Iterator[Backend]:
    """Make a backend for as long as the context lasts.

    Args:
        name: one of `NAMES`.
        tmp: an empty folder.
    """
    if name == "fake":
        yield Fake()
        return
    with tempfile.TemporaryDirectory(prefix="latentvirt-contract-") as images:
        if name == "memory":
            yield InMemory("test:///default", Path(images))
        elif name == "embed":
            # QEMU's monitor is a socket below it, and a socket's path holds 107 bytes at most.
            with tempfile.TemporaryDirectory(prefix="lv-") as root:
                (Path(root) / "etc").mkdir()
                (Path(root) / "etc" / "qemu.conf").write_text(
                    'user = "root"\ngroup = "root"\nstdio_handler = "file"\nnamespaces = []\n'
                    'cgroup_controllers = []\nsecurity_driver = "none"\n'
                )
                yield Embed(f"qemu:///embed?root={root}", Path(images))
        elif name == "daemon":
            with private_libvirtd(tmp) as daemon:
                yield Daemon(daemon.uri, Path(images), daemon)
        else:
            with private_libvirtd(tmp) as daemon, loopback_sshd(tmp, daemon.socket) as sshd:
                yield Daemon(sshd.uri, Path(images), daemon)


NAMES = ("fake", "memory", "daemon", "ssh", "embed")
REAL = ("daemon", "ssh", "embed")


def is_missing(error: libvirt.libvirtError) -> bool:
    """Whether libvirt says that there is no such domain."""
    return bool(error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN)
