"""Where it all happens: a libvirtd of our own, images, a real master, and the peers' workers on it."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from stockimage import Image

from benching.figures import GUEST_ATTACHES
from benching.processors import Usage
from benching.rawqemu import RawMachine, command_of_libvirt
from latentvirt.guest import Identity
from latentvirt.master.arguments import OURS
from latentvirt.names import slot_of_domain
from masters import RETRY, Master
from privatelibvirt import PrivateLibvirtd, private_libvirtd

LIB = Path(__file__).resolve().parent.parent
HOST_SEEN_BY_GUESTS = "10.0.2.2"
MEMORY_MIB = 512

EVENT_S = 600.0
QUIET_S = 0.5
QUIET_SHARE = 0.1
"""All is quiet when our processes use less than this share of a processor for `QUIET_S`."""
QUIET_WITHIN_S = 600.0
LONGEST_PREFIX = "lv-b-"
"""QEMU's sockets lie below our folder, and a socket's path holds 107 bytes."""

HAS_TIERS = "start" in OURS
"""Whether this latentvirt can thaw."""

HELPER_FOLDER = "/etc/latentvirt"
PREPARATION_LOG = ("start VM", "progress")

DOMAIN = """<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{image.kernel}</kernel>
    <initrd>{image.initrd}</initrd>
    <cmdline>{image.cmdline} {words}</cmdline>
  </os>
  <features><acpi/></features>
  <on_crash>destroy</on_crash>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{disk}'/>{chain}
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='user'><model type='virtio'/></interface>
    <serial type='pty'/>{channel}
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <memballoon model='none'/>
  </devices>
</domain>"""

EMULATED = "no_timer_check"
"""On a busy machine emulated timers are late, and kernels that check them at boot panic."""

CHANNEL = """
    <channel type='unix'><target type='virtio' name='org.latentvirt.worker.0'/></channel>"""

LAYER = """
      <backingStore type='file'><format type='qcow2'/><source file='{path}'/>{below}</backingStore>"""

CONFIG_HEAD = """
import sys
sys.path.insert(0, {lib!r})
from benching.stopwatch import Stopwatch, tell_of_guests, timed
from latentvirt.master.run import Run
tell_of_guests(Run)
c['services'] = [Stopwatch()]
InTree, Ours, Plain = timed(worker.LibVirtWorker), timed(LibVirtWorker), worker.Worker
"""


def domain(name: str, image: Image, disk: Path, *, channel: bool = False, chain: Sequence[Path] = ()) -> str:
    """Describe a domain; all peers have the same, but for a word that the guest's kernel passes over.

    Without that word a build of one tier's worker could take what was frozen, or stands by, for another's.

    Args:
        name: of the domain.
        image: what it boots.
        disk: path of its disk.
        channel: whether it has the port over which it learns who it is; latentvirt adds that by itself.
        chain: what the disk stands on, nearest first, where it is to be written out.
    """
    store = "<backingStore/>" if chain else ""
    for path in reversed(chain):
        store = LAYER.format(path=path, below=store)
    return DOMAIN.format(
        name=name,
        memory=MEMORY_MIB,
        image=image,
        words=f"latentvirt.bench={name} {EMULATED}",
        disk=disk,
        chain=store,
        channel=CHANNEL if channel else "",
    )


@attrs.frozen
class Event:
    """What the master told.

    Args:
        name: ``requested``, ``starting``, ``started``, ``attaching``, ``attached``, ``detached``, ``built``.
        at: monotonic seconds.
        said: the whole of it.
    """

    name: str
    at: float
    said: dict[str, Any]


class Line:
    """The line to the stopwatch in the master."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._rest = b""
        self._events: list[Event] = []

    def request(self, builders: Sequence[str]) -> None:
        """Have builds asked for, and forget what was before."""
        self._receive(0.0)
        self._events.clear()
        self._socket.sendall(json.dumps({"request": builders}).encode() + b"\n")

    def wait(self, name: str, seconds: float = EVENT_S, **which: object) -> Event:
        """Wait for an event, and return it; each is returned once.

        Args:
            name: of the event.
            seconds: how long to wait.
            which: what else it must say.
        """
        until = time.monotonic() + seconds
        while True:
            for event in self._events:
                if event.name == name and which.items() <= event.said.items():
                    self._events.remove(event)
                    return event
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no {name} of {which} within {seconds:.0f} s")
            self._receive(left)

    def told(self, name: str, **which: object) -> Event | None:
        """Return an event that was told already; None if there is none."""
        try:
            return self.wait(name, 0.0, **which)
        except TimeoutError:
            return None

    def wait_built(self, builder: str) -> tuple[Event, list[Event]]:
        """Wait until a build that was asked for is done; returns it, and those that were tried before it."""
        failed = []
        while True:
            built = self.wait("built", builder=builder)
            if built.said["results"] != RETRY:
                return built, failed
            failed.append(built)

    def _receive(self, seconds: float) -> None:
        self._socket.settimeout(seconds)
        try:
            data = self._socket.recv(1 << 16)
        except (TimeoutError, BlockingIOError):
            return
        if not data:
            raise RuntimeError("the benchmark's master has ended")
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            self._events.append(Event(said["event"], said["at"], said))

    def close(self) -> None:
        """End."""
        self._socket.close()


@attrs.define
class Stage:
    """Where the peers run.

    Args:
        folder: of the benchmark's own, for everything.
        libvirtd: the host.
        master: a real one.
        images: the images measured, by name; their files lie in `folder`.
    """

    folder: Path
    libvirtd: PrivateLibvirtd
    master: Master
    images: dict[str, Image]
    line: Line | None = None
    _config: list[str] = attrs.field(factory=list)

    @property
    def disks(self) -> Path:
        """The person's image folder."""
        return self.folder / "images"

    # Workers

    def add_ours(self, name: str, image: Image, **arguments: object) -> None:
        """Add a worker of latentvirt's, and its builder of the same name."""
        disk = self.disks / f"{name}.disk"
        self._add(
            name,
            f"Ours({name!r}, None, Connection({self.libvirtd.uri!r}), {str(disk)!r}, {str(image.disk)!r}, "
            f"xml={domain(name, image, disk)!r}, **{arguments!r})",
        )

    def add_in_tree(self, name: str, image: Image) -> None:
        """Add Buildbot's own worker, wired by hand as it requires.

        Its domain is predefined, and its disk is the path at which the worker makes its clone. It tells the
        guest nothing, so that the guest's name and password are in the image.
        """
        password = secrets.token_hex(16)
        base = self.disks / f"{name}.base"
        with_identity(image, base, self.identity(name, password))
        disk = self.disks / f"{name}.disk"
        xml = self.folder / f"{name}.xml"
        xml.write_text(domain(name, image, disk))
        self.libvirtd.virsh("define", str(xml))
        self._add(
            name,
            f"InTree({name!r}, {password!r}, hd_image={str(disk)!r}, base_image={str(base)!r}, "
            f"uri={self.libvirtd.uri!r}, masterFQDN='{HOST_SEEN_BY_GUESTS}', build_wait_timeout=0)",
        )

    def add_plain(self, name: str) -> Identity:
        """Add a worker that somebody else starts; returns who its guest is to be."""
        identity = self.identity(name, secrets.token_hex(16))
        self._add(name, f"Plain({name!r}, {identity.password!r})")
        return identity

    def identity(self, name: str, password: str) -> Identity:
        """Say who a guest is to be."""
        return Identity(name=name, password=password, master=f"{HOST_SEEN_BY_GUESTS}:{self.master.pb_port}")

    def _add(self, name: str, expression: str) -> None:
        self._config.append(f"c['workers'].append({expression})\nbuilder({name!r}, [{name!r}], 'true')\n")

    def begin(self) -> Line:
        """Start the master with the workers added."""
        self.master.config = CONFIG_HEAD.format(lib=str(LIB)) + "".join(self._config)
        self.master.start()
        self.line = Line(self.master.folder / "stopwatch")
        return self.line

    # Peers

    def raw_command(self, name: str, image: Image, disk: Path, *chain: Path) -> list[str]:
        """Ask libvirt how it would call QEMU for the peers' domain.

        Args:
            name: of the machine; its sockets lie in a folder of that name.
            image: what it boots.
            disk: path of its overlay.
            chain: what the overlay stands on.
        """
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        xml = folder / "xml"
        xml.write_text(domain(name, image, disk, channel=True, chain=chain))
        return command_of_libvirt(
            self.libvirtd.virsh("domxml-to-native", "qemu-argv", "--xml", str(xml)), folder
        )

    def raw_machine(self, command: list[str], identity: Identity, memory: Path | None = None) -> RawMachine:
        """Make a machine of such a command."""
        return RawMachine(command, self.folder / identity.name, identity, memory)

    def preparation(self, built: Event) -> str:
        """Return what a build's page says of the start of its VM."""
        return self.master.text({"buildid": built.said["build"]}, *PREPARATION_LOG)

    def memory_bytes(self, name: str) -> int:
        """Return the size of the memory image that latentvirt has made for a worker."""
        (file,) = self.disks.glob(f"latentvirt-*/{slot_of_domain(name)}.*.memory.*")
        return file.stat().st_size

    def waits_paused(self, name: str) -> bool:
        """Whether a domain is there, paused."""
        return name in self.libvirtd.virsh("list", "--name", "--state-paused").split()

    # Quiet

    def wait_quiet(self) -> None:
        """Wait until nothing of ours is busy any more: VMs gone, standbys made."""
        until = time.monotonic() + QUIET_WITHIN_S
        while True:
            before = Usage.now().ours
            time.sleep(QUIET_S)
            if Usage.now().ours - before < QUIET_SHARE * QUIET_S and not self._running():
                return
            if time.monotonic() > until:
                raise RuntimeError(f"not quiet after {QUIET_WITHIN_S:.0f} s\n{self.master.log()[-4000:]}")

    def _running(self) -> bool:
        return bool(self.libvirtd.virsh("list", "--name", "--state-running").split())


def parts_of(log: str) -> dict[str, float]:
    """Read ``part: seconds s`` from the log of a start; parts that come more than once are added up."""
    parts: dict[str, float] = {}
    for name, seconds in re.findall(r"^([a-z][a-z ]*): (\d+\.\d+) s\b", log, re.MULTILINE):
        if name != GUEST_ATTACHES:
            parts[name] = parts.get(name, 0.0) + float(seconds)
    return parts


def tiers_of(log: str) -> list[str]:
    """Read from the log of a start which tiers it tried."""
    return re.findall(r"^tier (\w+):", log, re.MULTILINE)


def with_identity(image: Image, target: Path, identity: Identity) -> None:
    """Copy an image with a static identity in it, for a worker that tells its guests none.

    Args:
        image: what to copy.
        target: path of the copy.
        identity: what to put in.
    """
    said = {"name": identity.name, "password": identity.password, "master": identity.master}
    with tempfile.TemporaryDirectory(prefix="latentvirt-bench-", dir=target.parent) as temporary:
        raw, file = Path(temporary) / "raw", Path(temporary) / "worker.json"
        file.write_text(json.dumps(said) + "\n")
        subprocess.run(["qemu-img", "convert", "-O", "raw", image.disk, raw], check=True)
        disk = f"{raw}?offset={image.offset}"
        _debugfs(disk, f"mkdir {HELPER_FOLDER}\nwrite {file} {HELPER_FOLDER}/worker.json\n")
        # debugfs ends well whatever became of its commands.
        if file.read_text() not in _debugfs(disk, f"cat {HELPER_FOLDER}/worker.json\n"):
            raise RuntimeError(f"the guest's configuration could not be written into {target}")
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, target], check=True)


def _debugfs(disk: str, commands: str) -> str:
    run = ["debugfs", "-w", "-f", "-", disk]
    return subprocess.run(run, input=commands, capture_output=True, text=True, check=True).stdout


def overlay(base: Path, target: Path) -> None:
    """Make an overlay, in the place of one that is there."""
    target.unlink(missing_ok=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, target], check=True)


@contextmanager
def open_stage(images: dict[str, Image]) -> Iterator[Stage]:
    """Set the stage, for as long as the context lasts.

    Args:
        images: what is measured, by name.
    """
    # Else a master and QEMUs would be left.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix=LONGEST_PREFIX) as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)
        disks = folder / "images"
        disks.mkdir()
        copies = {}
        for name, image in images.items():
            # libvirt labels a kernel while a guest runs from it; the cache's is others', too.
            files = {
                what: Path(shutil.copyfile(getattr(image, what), disks / f"{name}.{what}"))
                for what in ("disk", "kernel", "initrd")
            }
            copies[name] = attrs.evolve(image, **files)
        with private_libvirtd(folder) as libvirtd:
            master = Master(folder / "master", "")
            stage = Stage(folder, libvirtd, master, copies)
            try:
                yield stage
            finally:
                if stage.line is not None:
                    stage.line.close()
                master.close()
