"""What goes wrong in a guest, before and after it attaches, ends its build soon and says why."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import scenes
from masters import CANCELLED, RETRY, Master
from scenes import Stage, running

pytestmark = [pytest.mark.libvirt, pytest.mark.guest]

PROMISED_S = 15
BUSYBOX_UP_S = 30
"""How long a busybox guest may take to be up on a loaded machine; its trouble begins afterwards."""


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A host, shared by the tests here."""
    with scenes.stage() as stage:
        yield stage


@pytest.fixture(autouse=True)
def cleared(stage: Stage) -> Iterator[None]:
    """Leave nothing of one test to the next."""
    yield
    stage.clear()


def worker(arguments: str, *commands: str, more: str = "") -> str:
    """Write the config of one worker and its builder."""
    steps = "".join(f", {command!r}" for command in commands or ("true",))
    return f"""
    c['workers'].append(LibVirtWorker({arguments}{more}))
    builder('b', [c['workers'][-1].name]{steps})
    """


def start_log(master: Master, build: dict[str, object]) -> str:
    """Return how a build's VM started."""
    return master.text(build, "start VM", "progress")


@pytest.mark.parametrize(
    ("trouble", "place", "said"),
    [
        ("panic", "images", "crashed"),
        ("poweroff", "images", "powered itself off"),
        ("fill", "small", "disk is full"),
    ],
)
def test_trouble_before_it_attaches_is_told_with_the_console(
    stage: Stage, tmp_path: Path, trouble: str, place: str, said: str
) -> None:
    """A guest that fails while it boots ends its build with a sentence that says so, and its console."""
    arguments = stage.given("minion1", getattr(stage, place), stage.busybox, f"after=1:{trouble}")
    with running(tmp_path / "master", worker(arguments)) as master:
        build = master.first_end(master.force("b"), BUSYBOX_UP_S + PROMISED_S)
        assert build["results"] == RETRY
        assert said in start_log(master, build)
        assert "latentvirt-busybox: up" in master.text(build, "start VM", "console")
        assert "The console's last lines" in start_log(master, build)
    stage.assert_nothing_left()
    stage.assert_all_gone()


@pytest.mark.parametrize(
    ("command", "place", "said"),
    [
        ("echo c > /proc/sysrq-trigger", "images", "crashed"),
        pytest.param("echo o > /proc/sysrq-trigger", "images", "powered itself off", marks=pytest.mark.soak),
        ("cat /dev/zero > $HOME/fill; sync; sleep 600", "small", "disk is full"),
    ],
)
def test_trouble_after_it_attached_ends_the_build_and_is_told(
    stage: Stage, tmp_path: Path, command: str, place: str, said: str
) -> None:
    """A guest that fails in the middle of a build ends that build within 15 s, and the page says why."""
    arguments = stage.given("minion1", getattr(stage, place), stage.debian)
    with running(tmp_path / "master", worker(arguments, command)) as master:
        request = master.force("b")
        attached = master.wait_for(
            lambda: [
                build
                for build in master.builds(request)
                if build["complete"] or any(step["name"] == "shell" for step in master.steps(build))
            ],
            90,
            "the build's own step",
        )
        assert "attached after" in start_log(master, attached[0])
        began = time.monotonic()
        build = master.first_end(request, 60)
        took = time.monotonic() - began
        assert build["results"] == RETRY
        assert said in master.text(build, "VM lost", "progress"), master.log()[-3000:]
        assert took < PROMISED_S + 10, "the fill takes a while itself; the promise holds from its end"
    stage.assert_nothing_left()
    stage.assert_all_gone()


def test_guest_that_never_attaches_is_given_up(stage: Stage, tmp_path: Path) -> None:
    """A VM whose worker never comes is ended after missing_timeout, and its build is tried again."""
    arguments = stage.given("minion1", stage.images, stage.busybox)
    config = worker(arguments, more=", missing_timeout=6")
    with running(tmp_path / "master", config) as master:
        build = master.first_end(master.force("b"), 60)
        assert build["results"] == RETRY
        assert "did not attach" in start_log(master, build)
    stage.assert_nothing_left()


def test_cancelled_start_leaves_nothing(stage: Stage, tmp_path: Path) -> None:
    """A build that is cancelled while its VM starts is cancelled at once, and nothing is left of the VM."""
    arguments = stage.given("minion1", stage.images, stage.busybox)
    with running(tmp_path / "master", worker(arguments)) as master:
        request = master.force("b")
        master.wait_for(stage.domains, 30, "the domain")
        master.stop_build(master.builds(request)[0])
        build = master.finished(request, 20)
        assert build["results"] == CANCELLED
        stage.assert_nothing_left()


def test_guest_is_told_who_it_is_by_a_one_time_password(stage: Stage, tmp_path: Path) -> None:
    """A guest that asks is told its worker's name, and the configured password is good no more."""
    arguments = stage.given("minion1", stage.images, stage.busybox, "channel")
    with running(tmp_path / "master", worker(arguments)) as master:
        request = master.force("b")
        console = master.wait_for(
            lambda: [
                text
                for build in master.builds(request)
                if "minion1" in (text := master.text(build, "start VM", "console"))
            ],
            60,
            "the guest to be told its name",
        )
        assert "sekrit" not in console[0]
        assert login(master, "minion1", "sekrit") == "UnauthorizedLogin"


def test_vm_of_an_earlier_start_cannot_attach(stage: Stage, tmp_path: Path) -> None:
    """A leftover VM that knows the configured password does not get in when no start waits for it."""
    arguments = stage.given("minion1", stage.images, stage.busybox)
    with running(tmp_path / "master", worker(arguments)) as master:
        assert login(master, "minion1", "sekrit") == "UnauthorizedLogin"


def login(master: Master, name: str, password: str) -> str:
    """Try to log in as a worker does, and say what came of it."""
    script = (
        "import sys\n"
        "from twisted.cred.credentials import UsernamePassword\n"
        "from twisted.internet import reactor\n"
        "from twisted.spread import pb\n"
        "factory = pb.PBClientFactory()\n"
        "def over(result):\n"
        "    print(str(getattr(result, 'type', 'let in')).split('.')[-1].rstrip(\"'>\"))\n"
        "    reactor.stop()\n"
        "done = factory.login(UsernamePassword(sys.argv[2].encode(), sys.argv[3].encode()), pb.Root())\n"
        "done.addBoth(over)\n"
        "reactor.connectTCP('127.0.0.1', int(sys.argv[1]), factory)\n"
        "reactor.callLater(20, reactor.stop)\n"
        "reactor.run()\n"
    )
    command = [sys.executable, "-c", script, str(master.pb_port), name, password]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()
