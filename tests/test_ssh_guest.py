"""ssh to a real guest with strict checking, by keys that it told: booted, thawed, and with a stable key."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from twisted.internet import reactor

from guests import DebianGuest, ssh_image
from latentvirt.claim import Claim
from latentvirt.config import Connection
from latentvirt.frozen import FrozenStore
from latentvirt.host import Host
from latentvirt.hostkeys import PrivateKey
from latentvirt.master.stablekeys import stable_key
from latentvirt.names import new_owner, slot_of_domain
from latentvirt.spec import MachineSpec, StartMode
from latentvirt.storage import open_storage
from planned import PlannedMachine
from privatelibvirt import PrivateLibvirtd, private_libvirtd
from reactorthread import run, start
from scenes import fast_domain
from test_machine import Ear

pytestmark = [pytest.mark.libvirt, pytest.mark.guest, pytest.mark.soak, pytest.mark.timeout(900)]

NAME = "rebuilt"
SPACE = 4 << 30
BOOT_S = 240.0
POLL_S = 0.5
INTERFACE = (
    "<interface type='network'><mac address='52:54:00:1b:b0:01'/><source network='buildbot-network'/>"
    "<model type='virtio'/></interface>"
)
COMMAND = "import sys; from latentvirt.cli import main; main()"


@attrs.frozen
class Scene:
    """A host with a network, and an image with an SSH server.

    Args:
        libvirtd: the host.
        folder: of images there.
        guest: the image's.
        key: that root is let in with.
    """

    libvirtd: PrivateLibvirtd
    folder: Path
    guest: DebianGuest
    key: Path

    def latentvirt(self, *words: str) -> list[str]:
        """Write a command on this host."""
        return [sys.executable, "-c", COMMAND, *words, "-c", self.libvirtd.uri]

    def known_hosts(self, ear: Ear) -> str:
        """Ask for what is known until it has an address, and return it."""
        deadline = time.monotonic() + BOOT_S
        while time.monotonic() < deadline:
            done = subprocess.run(self.latentvirt("known-hosts"), capture_output=True, text=True, check=True)
            if "192.168.174." in done.stdout:
                return done.stdout
            time.sleep(POLL_S)
        console = "\n".join([*ear.steps, *ear.lines.all][-60:])
        raise AssertionError(f"no address of the guest came up: {done.stdout}\n{console}")

    def connect(self, *options: str, address: str) -> str:
        """Log in by plain ssh, as soon as the guest's server listens, and return what a command printed."""
        options = ("-F", "none", "-i", str(self.key), "-o", "BatchMode=yes", *options)
        command = self.libvirtd.sandbox.inside(["ssh", *options, f"root@{address}", "cat", "/etc/hostname"])
        deadline = time.monotonic() + BOOT_S
        while True:
            done = subprocess.run(command, capture_output=True, text=True)
            # Whatever is wrong with the key is final; a server that is just starting is not.
            if done.returncode == 0 or "verification failed" in done.stderr:
                break
            assert time.monotonic() < deadline, done.stderr
            time.sleep(POLL_S)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """A libvirtd with a network, in namespaces of its own."""
    guest, key = ssh_image()
    with tempfile.TemporaryDirectory(prefix="lv-ssh-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)
        images = folder / "images"
        images.mkdir()
        shutil.copyfile(guest.disk, images / "base")
        copies = {name: images / getattr(guest, name).name for name in ("kernel", "initrd")}
        for name, copy in copies.items():
            # libvirt changes the owner of a kernel that it boots: not of the one that other tests use.
            shutil.copyfile(getattr(guest, name), copy)
        own_key = folder / "key"
        shutil.copyfile(key, own_key)
        own_key.chmod(0o600)
        with private_libvirtd(folder / "libvirtd", netns=True, network=True) as daemon:
            yield Scene(daemon, images, attrs.evolve(guest, disk=images / "base", **copies), own_key)


class Farm:
    """One owner's starts of one VM."""

    def __init__(self, scene: Scene) -> None:
        self.host = Host(Connection(scene.libvirtd.uri), start())
        self.owner = new_owner()
        self.storage = open_storage(self.host, self.owner, str(scene.folder))
        self.store = FrozenStore(self.storage, reactor.seconds, SPACE)  # type: ignore[attr-defined]
        xml = fast_domain(NAME, scene.folder / "disk", scene.guest)
        # The whole system, not only the helper.
        xml = xml.replace(scene.guest.fast_cmdline, scene.guest.cmdline)
        self._xml = xml.replace("<interface type='user'><model type='virtio'/></interface>", INTERFACE)
        self._base = str(scene.folder / "base")
        self.ear = Ear()

    def rebuild(self, mode: StartMode, key: PrivateKey | None = None) -> PlannedMachine:
        """Start the VM anew."""
        self.ear = Ear()
        machine = PlannedMachine(
            host=self.host,
            storage=self.storage,
            spec=MachineSpec(worker="minion1", kind="xml", xml=self._xml, base_image=self._base, start=mode),
            claim=Claim(self.owner, slot_of_domain(NAME)),
            listener=self.ear,
            frozen=self.store,
            ssh_host_key=key,
            now=time.time,
        )
        run(machine.start(), BOOT_S)
        return machine


def test_ssh_connects_by_known_keys_after_each_rebuild(scene: Scene, tmp_path: Path) -> None:
    """Each rebuilt VM has other keys, and ssh that trusts only `latentvirt known-hosts` gets into each.

    Booted, frozen and thawed, thawed again, and thawed with a stable key; keys of the VM before are no good.
    In each the worker's own process draws other random numbers, for itself and for TLS.
    """
    farm = Farm(scene)
    drawn: list[str] = []
    stable = stable_key(str(tmp_path), "minion1")
    seen: list[set[str]] = []
    file = tmp_path / "known_hosts"
    strict = ("-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={file}")
    try:
        for mode, key in (("boot", None), ("auto", None), ("auto", None), ("auto", stable)):
            machine = farm.rebuild(mode, key)
            try:
                lines = scene.known_hosts(farm.ear)
                names, _, _ = lines.partition(" ")
                assert names.split(",")[:2] == [NAME, "minion1"]
                address = names.split(",")[2]
                if seen:
                    with pytest.raises(AssertionError, match="verification failed"):
                        scene.connect(*strict, address=address)  # with the lines of the VM before
                file.write_text(lines)
                assert scene.connect(*strict, address=address)
                (inside,) = [line for line in farm.ear.lines.all if "inside: " in line]
                drawn += inside.partition("inside: ")[2].split()
                seen.append({line.partition(" ")[2] for line in lines.splitlines()})
                if key is not None:
                    assert seen[-1] == {str(stable.public)}
                    check_vm_ssh(scene)
            finally:
                run(machine.stop())
        assert [name for name, _ in farm.ear.tiers.all] == ["thaw"]
        assert len(drawn) == len(set(drawn)) == 2 * len(seen)
        assert not any(one & other for number, one in enumerate(seen) for other in seen[:number])
    finally:
        run(farm.host.close())


def check_vm_ssh(scene: Scene) -> None:
    """`latentvirt vm ssh` gets in as well, and passes on what the command there says."""
    words = ("vm", "ssh", "minion1", "--user", "root")
    command = [*scene.latentvirt(*words), "--", "-F", "none", "-i", str(scene.key), "id -u; exit 3"]
    deadline = time.monotonic() + BOOT_S
    while True:
        done = subprocess.run(scene.libvirtd.sandbox.inside(command), capture_output=True, text=True)
        # A server that reads its new key begins anew, and listens to nobody for a moment.
        if "Connection refused" not in done.stderr or time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    assert (done.returncode, done.stdout) == (3, "0\n"), done.stderr
