"""`latentvirt image build`, as a person calls it: on a fake host, whose guests say what a test wants."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import libvirt
import pycdlib
import pytest
import yaml
from click.testing import CliRunner, Result
from lxml import etree

import reactorthread
from brokenoff import watched
from latentvirt.building.recipe import BUILD_PORT, GUEST_FILES, recipe
from latentvirt.building.report import Report
from latentvirt.building.workplace import RunningVM, Workplace
from latentvirt.cli import main
from latentvirt.images.root import ROOT_VARIABLE
from latentvirt.images.store import ImageStore
from latentvirt.names import METADATA_NAMESPACE, Ownership
from latentvirt.testing import FakeDomain, FakeFile, FakeGuest, FakeLibvirt

HERE = "qemu:///system"
EXAMPLES = Path(__file__).resolve().parent.parent / "docs" / "examples"
BUILT = (
    "step cloud-init has begun",
    "step looking at what is there",
    "fact worker was there",
    "step installing the guest helper",
    "fact python 3.11.2",
    "fact buildbot-worker 3.7.0",
    "step going on with cloud-init",
    "step checking what cloud-init did",
    "step cleaning",
    "done",
)
CAPACITY = 64 * 1024 * 1024
INTERRUPTED = 130

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


class LocalFiles(dict[str, FakeFile]):
    """The files of a fake host that is this machine."""

    def __contains__(self, path: object) -> bool:
        return super().__contains__(path) or os.path.exists(str(path))


class BuildGuest(FakeGuest):
    """A guest that says some lines on the port of a build, and then powers itself off, or not."""

    def __init__(
        self, *said: str, ends: bool = True, console: tuple[str, ...] = ("booting", "login:")
    ) -> None:
        super().__init__(console=console)
        self.said = said
        self.ends = ends

    def on_boot(self) -> None:
        """Boot, speak and end."""
        super().on_boot()
        assert self.domain is not None
        self.domain.port(BUILD_PORT).from_guest("".join(f"{line}\n" for line in self.said).encode())
        if self.ends:
            self.domain.power_off()


@attrs.define
class Scene:
    """A fake host, a store with one stock image, and what seeds its guests were given."""

    fake: FakeLibvirt
    store: ImageStore
    guest: Callable[[], FakeGuest] = attrs.field(default=lambda: BuildGuest(*BUILT))
    seeds: list[dict[str, Any]] = attrs.field(factory=list)
    disks: list[dict[str, Any]] = attrs.field(factory=list)

    def begin(self, domain: FakeDomain) -> FakeGuest:
        """Make a guest, and look at the disks that it has."""
        root = etree.fromstring(domain.live or "")
        paths = [disk.get("file", "") for disk in root.iterfind("devices/disk/source")]
        self.disks.append(info(Path(paths[0])))
        self.seeds.append(read_seed(Path(paths[1]).read_bytes()))
        return self.guest()

    def build(self, *arguments: str) -> Result:
        """Call the command."""
        return CliRunner().invoke(main, ["image", "build", *arguments, "-c", HERE], obj=self.fake)

    @property
    def left(self) -> list[str]:
        """Name what is left: files under way, and domains."""
        return [path.name for path in self.store.scratch().iterdir()] + self.fake.inspect(HERE).running()


def info(image: Path) -> dict[str, Any]:
    """Ask qemu-img."""
    said = subprocess.run(["qemu-img", "info", "-U", "--output=json", image], capture_output=True, check=True)
    told: dict[str, Any] = json.loads(said.stdout)
    return told


def read_seed(image: bytes) -> dict[str, Any]:
    """Read the files of a seed."""
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(image))
    found = {}
    for name in ("user-data", "meta-data"):
        data = io.BytesIO()
        iso.get_file_from_iso_fp(data, rr_path=f"/{name}")
        found[name] = yaml.safe_load(data.getvalue())
    return found


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Set it up."""
    reactorthread.start()
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "images"))
    store = ImageStore()
    stock = store.scratch() / "stock"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", stock, str(CAPACITY)], check=True)
    store.publish(stock, name="debian-12", arch="x86_64", kind="stock", format="qcow2", source={"url": "x"})
    fake = FakeLibvirt()
    made = Scene(fake, store)
    host = fake.inspect(HERE)
    host.files = LocalFiles()
    host.guests = made.begin
    return made


def digest(path: Path) -> str:
    """Compute a file's digest."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_stock_image_becomes_a_built_one(scene: Scene) -> None:
    """What is published stands alone and says what it is made of; the stock image is as before."""
    stock = scene.store.find("debian-12", "x86_64", "stock")
    assert stock is not None
    before = digest(scene.store.path_of(stock))
    told = scene.build("debian-12")
    assert told.exit_code == 0, told.stderr
    built = scene.store.find("debian-12", "x86_64", "built")
    assert built is not None
    image = info(scene.store.path_of(built))
    assert (image["format"], image["virtual-size"]) == ("qcow2", CAPACITY)
    assert "backing-filename" not in image
    assert built.source["facts"] == {"python": "3.11.2", "buildbot-worker": "3.7.0", "worker": "was there"}
    assert built.source["of"] == "debian-12"
    assert built.source["built_from"]["digest"] == stock.digest
    assert built.digest == digest(scene.store.path_of(built))
    assert told.stdout.splitlines()[-1] == str(scene.store.path_of(built))
    assert "installing the guest helper" in told.stderr
    assert digest(scene.store.path_of(stock)) == before
    assert scene.left == []


def test_a_file_is_built_from_under_a_name(scene: Scene, tmp_path: Path) -> None:
    """An image that no catalogue knows is named by its path; its name is the file's unless one is given."""
    image = tmp_path / "Mine.raw"
    image.write_bytes(bytes(CAPACITY))
    assert scene.build(str(image)).exit_code == 0
    assert scene.build(str(image), "--name", "other").exit_code == 0
    assert {entry.name for entry in scene.store.entries()} == {"debian-12", "mine", "other"}


def test_a_codename_will_do(scene: Scene) -> None:
    """Who says bookworm gets what is made of debian-12, under that name."""
    assert scene.build("bookworm").exit_code == 0
    assert scene.store.find("debian-12", "x86_64", "built") is not None


def test_the_disk_is_as_large_as_asked_for_and_never_smaller_than_the_image(scene: Scene) -> None:
    """--disk makes the image's disk larger; one that is too small changes nothing."""
    assert scene.build("debian-12", "--disk", "1 GiB").exit_code == 0
    assert scene.build("debian-12", "--disk", "1 MiB").exit_code == 0
    assert [disk["virtual-size"] for disk in scene.disks] == [1024**3, CAPACITY]


def test_a_persons_data_are_told_to_the_guest_with_ours(scene: Scene, tmp_path: Path) -> None:
    """Packages, files and commands of a person's own come after ours, in one configuration."""
    (tmp_path / "user").write_text(
        "#cloud-config\npackages: [git]\nruncmd: [[touch, /x]]\nwrite_files: [{path: /y, content: z}]\n"
    )
    (tmp_path / "meta").write_text("local-hostname: mine\n")
    told = scene.build(
        "debian-12", "--user-data", str(tmp_path / "user"), "--meta-data", str(tmp_path / "meta")
    )
    assert told.exit_code == 0, told.stderr
    (seed,) = scene.seeds
    assert seed["user-data"]["packages"] == ["git"]
    assert seed["user-data"]["runcmd"][-2:] == [
        ["sh", "/var/lib/latentvirt-build/build", "prepare"],
        ["touch", "/x"],
    ]
    files = {file["path"]: file["content"] for file in seed["user-data"]["write_files"]}
    assert files["/y"] == "z"
    assert files["/usr/lib/latentvirt/latentvirt_guest.py"].startswith("#!/usr/bin/env python3")
    assert seed["meta-data"]["local-hostname"] == "mine"
    assert seed["meta-data"]["instance-id"].startswith("latentvirt-build-")


def test_each_build_is_a_first_boot_for_cloud_init(scene: Scene) -> None:
    """An image in which cloud-init has run already can be built from: no two builds are one instance."""
    scene.build("debian-12")
    scene.build("debian-12")
    first, second = (seed["meta-data"]["instance-id"] for seed in scene.seeds)
    assert first != second


# Failing


def test_a_build_that_fails_publishes_nothing_and_shows_the_log(scene: Scene) -> None:
    """The reason, the last lines of cloud-init's log and the host are told; nothing is left."""
    scene.guest = lambda: BuildGuest(
        "step installing buildbot-worker",
        "log E: Unable to locate package buildbot-worker",
        "failed cloud-init says: scripts_user failed",
        "over",
    )
    told = scene.build("debian-12")
    assert told.exit_code == 1
    assert "  E: Unable to locate package buildbot-worker" in told.stderr
    assert f"[host {HERE}, domain latentvirt-build-debian-12-" in told.stderr
    assert "the guest failed: cloud-init says: scripts_user failed" in told.stderr
    assert scene.store.find("debian-12", "x86_64", "built") is None
    assert scene.left == []


def test_an_earlier_build_stays_when_a_later_one_fails(scene: Scene) -> None:
    """Builds of the name go on from the image that is good."""
    scene.build("debian-12")
    good = scene.store.find("debian-12", "x86_64", "built")
    scene.guest = lambda: BuildGuest("failed no reason")
    assert scene.build("debian-12").exit_code == 1
    assert scene.store.find("debian-12", "x86_64", "built") == good


def test_a_guest_that_says_nothing_is_asked_about_cloud_init(scene: Scene) -> None:
    """An image without cloud-init, which just ends, leads to that question and its console's last lines."""
    scene.guest = lambda: BuildGuest(console=("no bootable device",))
    told = scene.build("debian-12")
    assert told.exit_code == 1
    assert "  no bootable device" in told.stderr
    assert "the guest was not done, and the guest powered itself off" in told.stderr
    assert "is cloud-init in the image" in told.stderr


def test_a_guest_that_takes_too_long_is_ended(scene: Scene) -> None:
    """After --timeout the VM is gone, and the message says what it did last, and what can be done."""
    scene.guest = lambda: BuildGuest("step installing buildbot-worker", ends=False)
    told = scene.build("debian-12", "--timeout", "0.02")
    assert told.exit_code == 1
    assert "not done in time; the last that it said was: installing buildbot-worker" in told.stderr
    assert "--timeout" in told.stderr
    assert scene.left == []


def test_a_full_disk_is_named(scene: Scene) -> None:
    """A VM that stands still since the disk is full is explained, before its time is up."""

    class Filling(BuildGuest):
        def on_boot(self) -> None:
            super().on_boot()
            assert self.domain is not None
            self.domain.disk_full()

    scene.guest = lambda: Filling("step cloud-init has begun", ends=False)
    told = scene.build("debian-12")
    assert told.exit_code == 1
    assert "no space" in told.stderr.lower()
    assert scene.left == []


def test_a_vm_that_failed_can_be_kept(scene: Scene) -> None:
    """--keep-on-failure says how to look at the VM, where its files are, and no later build removes them."""
    scene.guest = lambda: BuildGuest("failed no reason", "over", ends=False)
    told = scene.build("debian-12", "--keep-on-failure")
    assert told.exit_code == 1
    name = next(iter(scene.fake.inspect(HERE).running()))
    assert f"virsh -c '{HERE}' console {name}" in told.stderr
    (folder,) = scene.store.scratch().iterdir()
    assert str(folder) in told.stderr
    assert "login:" in (folder / "console.log").read_text()
    scene.guest = lambda: BuildGuest(*BUILT)
    assert scene.build("debian-12").exit_code == 0
    assert scene.left == [folder.name, name]
    assert "keep" in scene.seeds[0]["user-data"]["write_files"][-1]["content"]


def test_an_image_that_qemu_may_not_read_is_explained(scene: Scene, tmp_path: Path) -> None:
    """The message names the folder in the way, where libvirt only says that permission is denied."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    image = closed / "image.raw"
    image.write_bytes(bytes(CAPACITY))
    host = scene.fake.inspect(HERE)
    host.trouble.fail_next("createXML", libvirt.VIR_ERR_INTERNAL_ERROR, "Permission denied")
    told = scene.build(str(image))
    assert told.exit_code == 1
    assert re.search(r"probably because /\S* \(owner \S+ mode 0700\) cannot be passed", told.stderr)
    assert "Permission denied" in told.stderr
    assert scene.left == []


# Refused


def test_what_cannot_be_right_is_refused_before_anything_boots(scene: Scene, tmp_path: Path) -> None:
    """Each comes with a way out, and no VM is started for it."""
    backed, text = tmp_path / "backed.qcow2", tmp_path / "text"
    base = scene.store.path_of(scene.store.entries()[0])
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", backed], check=True)
    power = tmp_path / "power"
    power.write_text("#cloud-config\npower_state: {mode: reboot}\n")
    text.write_text("packages: [git]\n")
    command, content = tmp_path / "command", tmp_path / "content"
    command.write_text("#cloud-config\nruncmd:\n  - make\n  - true\n")
    content.write_text("#cloud-config\nwrite_files: [{path: /x, content: yes}]\n")
    for arguments, what in (
        (("debian-99",), "there is no image 'debian-99'"),
        (("noble",), "latentvirt image pull ubuntu-24.04"),
        (("debian-12", "--name", "Not a name"), "name="),
        ((str(backed),), "stands on another"),
        ((str(tmp_path / "none.qcow2"),), "No such file"),
        (("debian-12", "--user-data", str(power)), "power_state"),
        (("debian-12", "--user-data", str(text)), "#cloud-config"),
        (("debian-12", "--user-data", str(command)), "runcmd in the user-data has True, which is no command"),
        (("debian-12", "--user-data", str(content)), "has the content True, which is no text"),
        (("debian-12", "--memory", "much"), "memory"),
        (("debian-12", "--disk", "much"), "disk"),
    ):
        told = scene.build(*arguments)
        wrong = {"--memory", "--disk"} & set(arguments)
        assert told.exit_code == (2 if wrong else 1), arguments
        assert what in told.stderr
        assert "What to do" in told.stderr
    assert scene.seeds == []
    assert scene.left == []


@pytest.mark.parametrize(
    ("image", "said"),
    [("ubuntu-24.04", "latentvirt image pull ubuntu-24.04"), ("./nothere", "./nothere cannot be looked at")],
)
def test_an_image_that_is_not_there_is_told_first(scene: Scene, image: str, said: str) -> None:
    """What is missing is said also where libvirt does not run, and no lock is left for it."""
    scene.fake.inspect(HERE).reachable = False
    told = scene.build(image)
    assert (told.exit_code, said in told.stderr) == (1, True), told.stderr
    assert "libvirt" not in told.stderr.replace("latentvirt", "")
    locks = scene.store.root / "locks"
    assert not locks.exists() or not any("build" in lock.name for lock in locks.iterdir())


def test_another_machine_is_refused(scene: Scene) -> None:
    """The disk has to be read here when the VM has ended, so a host elsewhere is refused at once."""
    told = CliRunner().invoke(
        main, ["image", "build", "debian-12", "-c", "qemu+ssh://far/system"], obj=scene.fake
    )
    assert told.exit_code == 1
    assert "not surely this machine" in told.stderr


def test_a_name_that_is_no_alias_is_said_to_be_none(scene: Scene) -> None:
    """An unknown name of a libvirt is told with what to do, as by all commands."""
    told = CliRunner().invoke(main, ["image", "build", "debian-12", "-c", "nolab"], obj=scene.fake)
    assert told.exit_code == 1
    assert "'nolab' is no URI, and uri_aliases in" in told.stderr
    assert "add 'nolab=qemu+ssh://user@host/system'" in told.stderr


# Broken off


def test_what_a_killed_build_left_is_removed_by_the_next(scene: Scene) -> None:
    """VM and files of a process that was killed are gone after the next build; those of others are not."""
    ownership = Ownership("0123456789abcdef", "build-x", "0a1b2c3d4e5f")
    uuid = "3e2fe534-d55e-5c79-9930-058a490ea7fa"
    scene.guest = FakeGuest
    dead, elsewhere = (Workplace.make(scene.store.scratch()) for _ in range(2))
    dead.note(RunningVM(HERE, uuid, ownership))
    elsewhere.note(RunningVM("qemu:///session", uuid, ownership))
    dead._lock.close()
    elsewhere._lock.close()
    lives = Workplace.make(scene.store.scratch())
    host = scene.fake.inspect(HERE)
    guests, host.guests = host.guests, lambda domain: FakeGuest()
    mark = "owner='0123456789abcdef' slot='build-x' start='0a1b2c3d4e5f'"
    scene.fake.open(HERE).createXML(
        f"<domain type='qemu'><name>left</name><uuid>{uuid}</uuid><metadata>"
        f"<l:vm xmlns:l='{METADATA_NAMESPACE}' {mark}/></metadata><memory>1</memory><vcpu>1</vcpu>"
        "<os><type>hvm</type></os><devices/></domain>",
        0,
    )
    host.guests = guests
    scene.guest = lambda: BuildGuest(*BUILT)
    told = scene.build("debian-12")
    assert told.exit_code == 0, told.stderr
    assert sorted(scene.left) == sorted([elsewhere.path.name, lives.path.name])
    assert "--connect 'qemu:///session'" in told.stderr


BROKEN_OFF = """
import sys, threading
sys.path[:0] = {paths!r}
import test_image_build as here
from latentvirt.cli import main
from latentvirt.testing import FakeLibvirt

fake = FakeLibvirt()
host = fake.inspect(here.HERE)
host.files = here.LocalFiles()

class Guest(here.BuildGuest):
    def on_boot(self):
        super().on_boot()
        self.write_console(b"unpacking git\\r\\n")
        print("booted", flush=True)

def gone():
    print("left:", host.running(), flush=True)

import atexit
atexit.register(gone)
host.guests = lambda domain: Guest("step waiting", ends=False)
main(["image", "build", "debian-12", "-c", here.HERE], obj=fake)
"""


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, INTERRUPTED), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_build_that_is_broken_off_leaves_nothing_that_stays(
    scene: Scene, number: signal.Signals, status: int
) -> None:
    """Ctrl-C and SIGTERM end the VM and remove the files; after kill -9 the next build removes them."""
    paths = [str(Path(__file__).parent)]
    process = subprocess.Popen(
        [sys.executable, "-c", BROKEN_OFF.format(paths=paths)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with watched(process):
        assert process.stdout.readline() == "booted\n"
        process.send_signal(number)
        rest = process.stdout.read()
    assert process.returncode == status
    if number is signal.SIGKILL:
        assert len(scene.left) == 1
        assert scene.build("debian-12").exit_code == 0
    else:
        assert rest == "left: []\n"
    assert scene.left == []


# What is told


def test_a_terminal_shows_the_step_and_the_last_line_of_the_console(scene: Scene) -> None:
    """On a terminal there is one live line, which says what is done and what the guest wrote last."""
    waiting = BROKEN_OFF.replace("step waiting", "step going on").format(paths=[str(Path(__file__).parent)])
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", waiting], stdout=subprocess.PIPE, stderr=follower, env=environment
    )
    os.close(follower)
    seen = b""
    until = time.monotonic() + reactorthread.PATIENCE_S
    while b"going on  unpacking git" not in seen and time.monotonic() < until:
        seen += os.read(leader, 4096)
    process.send_signal(signal.SIGINT)
    with watched(process):
        process.communicate()
    os.close(leader)
    assert b"going on  unpacking git" in seen


def test_a_pipe_gets_a_line_for_each_step(scene: Scene) -> None:
    """Each step comes once, with the seconds since the beginning, and no control characters."""
    told = scene.build("debian-12")
    steps = [re.sub(r"^ *\d+ s  ", "", line) for line in told.stderr.splitlines()]
    assert steps == [
        "looking at debian-12",
        "booting",
        "cloud-init has begun",
        "looking at what is there",
        "installing the guest helper",
        "going on with cloud-init",
        "checking what cloud-init did",
        "cleaning",
        "flattening the disk",
        "publishing",
    ]
    assert "\x1b" not in told.stderr


def test_the_transcript_is_what_the_command_says(scene: Scene) -> None:
    """The command answers as the documentation shows, but for seconds, sizes and digests."""
    shown = (EXAMPLES / "latentvirt-image-build.txt").read_text()
    said = ""
    for command in re.findall(r"^\$ latentvirt image build (.*)$", shown, re.MULTILINE):
        told = scene.build(*shlex.split(command))
        said += f"$ latentvirt image build {command}\n{told.stderr}{told.stdout}"
    said = said.replace(str(scene.store.root), "/var/lib/latentvirt/images")
    varying = r" *\d+ s  |\d+ MiB|/blobs/[0-9a-f]+"
    assert re.sub(varying, "*", said) == re.sub(varying, "*", shown)
    assert said


# What the guest says, and what it is told


def test_a_guest_is_believed_about_itself_only() -> None:
    """Whatever bytes come on the port, nothing but its lines is taken, and control characters are none."""
    heard: list[str] = []
    report = Report(heard.append)
    report.feed(b"step one\nst")
    report.feed(b"ep t\x1b[31mwo\r\nnonsense\n\xff\xfe\n" + b"x" * 100_000)
    assert heard == ["one", "t [31mwo"]
    assert (report.failed, report.done) == (None, False)
    report.feed(b"\nfailed\ndone\n")
    assert report.failed == "it does not say why"


def test_the_helper_in_the_package_is_the_one_of_contrib() -> None:
    """An image built by this command has the same helper as one that vmbuilder makes."""
    contrib = Path(__file__).resolve().parent.parent / "contrib" / "libvirt" / "guest"
    files = {file["path"]: file["content"] for file in recipe(instance="x").user_data["write_files"]}
    for path, name in (
        ("/usr/lib/latentvirt/latentvirt_guest.py", "latentvirt_guest.py"),
        ("/etc/systemd/system/latentvirt-guest.service", "latentvirt-guest.service"),
    ):
        assert files[path] == (contrib / name).read_text()


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_guests_program_is_one_that_shells_understand(shell: str) -> None:
    """Distributions have different shells as sh; none finds fault with it before it runs."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not here")
    subprocess.run([shell, "-n", GUEST_FILES / "build"], check=True)
