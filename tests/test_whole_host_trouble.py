"""What goes wrong on a host, or with the master, costs nobody else's builds and leaves nothing behind."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import scenes
from masters import EXCEPTION, RETRY, SUCCESS, Master
from scenes import Fingerprint, Stage, fast_domain, running

pytestmark = [pytest.mark.libvirt, pytest.mark.guest]

EXIT_PROMISED_S = 5
OPEN_DEADLINE_S = 10
START_DEADLINE_S = 60


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


def worker(arguments: str, name: str, *commands: str, more: str = "") -> str:
    """Write the config of one worker and its builder."""
    steps = "".join(f", {command!r}" for command in commands or ("true",))
    return f"""
c['workers'].append(LibVirtWorker({arguments}{more}))
builder({name!r}, [c['workers'][-1].name]{steps})
"""


KILL_AFTER = """
import os
from latentvirt.undertaking import Undertaking

step_of_a_start = Undertaking.step

async def killing_step(self, name, doing, note=''):
    result = await step_of_a_start(self, name, doing, note)
    if name == {step!r} and not os.path.exists('killed'):
        open('killed', 'w').close()
        os.kill(os.getpid(), 9)
    return result

Undertaking.step = killing_step
"""


@pytest.mark.parametrize("step", ["overlay", "create", "attach console and channel", "resume"])
def test_master_killed_in_a_start_removes_what_it_left_when_it_is_back(
    stage: Stage, tmp_path: Path, step: str
) -> None:
    """A master that dies in the middle of a start removes that start's VM and files after its restart."""
    config = KILL_AFTER.format(step=step) + worker(stage.given("minion1", stage.images, stage.busybox), "b")
    with running(tmp_path / "master", config) as master:
        master.force("b")
        assert master.process is not None
        master.process.wait(START_DEADLINE_S)
        left = stage.files()
        assert left, "the overlay at least is there"
        master.start()
        # Buildbot starts the build anew, on a VM of its own; what is looked for are the old one's files.
        master.wait_for(lambda: not set(left) & set(stage.files()), 30, "the sweep")
    stage.assert_nothing_left()
    stage.assert_all_gone()


@contextmanager
def killed_in_a_build(stage: Stage, folder: Path) -> Iterator[tuple[Master, int]]:
    """Kill a master in the middle of a build; tells the build's request."""
    config = worker(stage.given("minion1", stage.images, stage.debian), "b", "sleep 4")
    with running(folder, config) as master:
        request = master.force("b")
        master.wait_for(lambda: "attached after" in _progress(master, request), 90, "the build")
        master.kill()
        yield master, request


def test_master_killed_in_a_build_removes_its_vm_when_it_is_back(stage: Stage, tmp_path: Path) -> None:
    """A master that dies in the middle of a build ends that build's VM after its restart, and builds anew."""
    with killed_in_a_build(stage, tmp_path / "master") as (master, request):
        left = stage.files()
        assert stage.domains() == ["minion1"]
        master.start()
        master.wait_for(lambda: not set(left) & set(stage.files()), 30, "the sweep")
        assert master.finished(request, 120)["results"] == SUCCESS
        stage.assert_nothing_left()


def test_vm_of_an_earlier_start_is_refused_when_it_tries_to_attach(stage: Stage, tmp_path: Path) -> None:
    """A VM that outlived its master, and that nobody can end yet, gets no build of the next one's."""
    with killed_in_a_build(stage, tmp_path / "master") as (master, request):
        left = stage.files()
        stage.libvirtd.stop_signal()
        master.start()
        master.wait_for(lambda: "invalid login from user 'minion1'" in master.log(), 90, "its worker to try")
        stage.libvirtd.cont()
        master.wait_for(lambda: not set(left) & set(stage.files()), 60, "the sweep")
        build = master.finished(request, 180)
        assert build["results"] == SUCCESS
        assert build["buildid"] != master.builds(request)[0]["buildid"]
        stage.assert_nothing_left()


def _progress(master: Master, request: int) -> str:
    return "".join(master.text(build, "start VM", "progress") for build in master.builds(request))


def test_libvirtd_restarted_in_a_build_does_not_hurt_it(stage: Stage, tmp_path: Path) -> None:
    """A build goes on while its host's libvirtd is restarted, and its VM is ended afterwards."""
    config = worker(stage.given("minion1", stage.images, stage.debian), "b", "sleep 8")
    with running(tmp_path / "master", config) as master:
        request = master.force("b")
        master.wait_for(lambda: "attached after" in _progress(master, request), 90, "the build")
        stage.libvirtd.restart()
        build = master.finished(request, 60)
        assert build["results"] == SUCCESS
        assert len(master.builds(request)) == 1
        stage.assert_nothing_left()
    stage.assert_all_gone()


@contextmanager
def mute_daemon(path: Path) -> Iterator[str]:
    """Accept connections and never say a word."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    held: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                held.append(listener.accept()[0])
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"qemu+unix:///system?socket={path}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in held:
            connection.close()


def test_mute_daemon_costs_only_its_own_builds(stage: Stage, tmp_path: Path) -> None:
    """A daemon that accepts and stays mute: its build is tried again, others go on, the master exits soon."""
    with mute_daemon(stage.images.parent / "mute") as uri:
        xml = fast_domain("mute1", stage.images / "mute1", stage.busybox)
        config = (
            f"c['workers'].append(LibVirtWorker('mute1', 'x', {uri!r}, xml={xml!r}))\n"
            "builder('mute', ['mute1'], 'true')\n"
        ) + worker(stage.given("minion1", stage.images, stage.debian), "b")
        with running(tmp_path / "master", config) as master:
            mute = master.force("mute")
            good = master.force("b")
            assert master.first_end(mute, OPEN_DEADLINE_S + 10)["results"] == RETRY
            assert "did not answer" in _progress(master, mute)
            assert master.finished(good, 90)["results"] == SUCCESS
            assert master.terminate() < EXIT_PROMISED_S
    stage.assert_nothing_left()


def test_stopped_daemon_costs_only_its_own_builds(stage: Stage, tmp_path: Path) -> None:
    """Libvirtd under SIGSTOP: its build is tried again, another host's goes on, the master exits soon."""
    with scenes.stage() as other:
        config = worker(stage.given("minion1", stage.images, stage.busybox), "stopped") + worker(
            other.given("minion2", other.images, other.debian), "b"
        )
        with running(tmp_path / "master", config) as master:
            master.wait_for(lambda: list(stage.images.glob("latentvirt-*/lease.*")), 20, "a first connection")
            stage.libvirtd.stop_signal()
            stopped = master.force("stopped")
            good = master.force("b")
            assert master.first_end(stopped, 30)["results"] == RETRY
            assert master.finished(good, 90)["results"] == SUCCESS
            assert master.terminate() < EXIT_PROMISED_S
        stage.libvirtd.cont()
        other.assert_nothing_left()
        stage.assert_nothing_left()


@pytest.mark.soak
def test_daemon_stopped_in_a_build_does_not_hurt_it_while_its_guest_answers(
    stage: Stage, tmp_path: Path
) -> None:
    """A build goes on when only its host's libvirtd is mute, since its guest lives; the VM is ended later."""
    config = worker(stage.given("minion1", stage.images, stage.debian), "b", "sleep 25")
    with running(tmp_path / "master", config) as master:
        request = master.force("b")
        master.wait_for(lambda: "attached after" in _progress(master, request), 90, "the build")
        stage.libvirtd.stop_signal()
        build = master.finished(request, 90)
        assert build["results"] == SUCCESS
        stage.libvirtd.cont()
        stage.assert_nothing_left(seconds=60)


def test_missing_base_image_is_said_and_final(stage: Stage, tmp_path: Path) -> None:
    """A base image that is not there ends the build at once, with its path."""
    arguments = stage.given("minion1", stage.images, stage.busybox).replace("base_image", "no_such_image")
    with running(tmp_path / "master", worker(arguments, "b")) as master:
        request = master.force("b")
        assert master.finished(request, 30)["results"] == EXCEPTION
        assert "no_such_image is not there" in _progress(master, request)
    stage.assert_all_gone()


def test_base_image_that_qemu_cannot_read_is_said_with_its_mode(tmp_path: Path) -> None:
    """Where QEMU's own user may not read the base image, the build says which part of its path is closed."""
    with scenes.stage(user="libvirt-qemu", blank=True) as stage:
        stage.base.chmod(0o600)
        before = Fingerprint.of(stage.base)
        config = worker(stage.given("minion1", stage.images, stage.busybox), "b")
        with running(tmp_path / "master", config) as master:
            request = master.force("b")
            assert master.finished(request, 40)["results"] == EXCEPTION
            assert f"{stage.base} (owner 0:0 mode 0600) cannot be read" in _progress(master, request)
        stage.assert_nothing_left()
        stage.assert_all_gone()
        assert Fingerprint.of(stage.base) == before


def test_foreign_domain_of_our_name_is_left_alone(stage: Stage, tmp_path: Path) -> None:
    """A running domain that is not ours keeps running, and the build says that the name is taken."""
    foreign = tmp_path / "foreign.xml"
    foreign.write_text(fast_domain("minion1", stage.base, stage.busybox))
    stage.libvirtd.virsh("create", str(foreign))
    arguments = stage.given("minion1", stage.images, stage.busybox)
    with running(tmp_path / "master", worker(arguments, "b")) as master:
        request = master.force("b")
        assert master.finished(request, 30)["results"] == EXCEPTION
        assert "not ours; it was left alone" in _progress(master, request)
    stage.assert_nothing_left("minion1")


def test_two_masters_on_one_host_do_not_meet(stage: Stage, tmp_path: Path) -> None:
    """Two masters with the same worker names on one host have their own VMs, and sweep only their own."""
    config = f"""
c['workers'].append(LibVirtWorker(
    'minion1', 'sekrit', {stage.libvirtd.uri!r}, base_image={str(stage.base)!r}, size=Size(memory=256)))
builder('b', ['minion1'], 'true')
"""
    with running(tmp_path / "one", config) as one, running(tmp_path / "two", config) as two:
        one.force("b")
        one.wait_for(lambda: len(stage.domains()) == 1, 30, "the first master's VM")
        two.force("b")
        two.wait_for(lambda: len(stage.domains()) == 2, 30, "the second master's VM")
        files = stage.files()
        one.kill()
        one.start()
        one.wait_for(lambda: len(set(files) & set(stage.files())) == 1, 30, "the first one's sweep")
        one.terminate()
        assert len(stage.domains()) == 1, "the second master's VM is still there"
    stage.assert_nothing_left()
    stage.assert_all_gone()


@pytest.mark.soak
def test_changed_argument_holds_from_the_next_start_on(stage: Stage, tmp_path: Path) -> None:
    """A reconfig does not disturb a running build, and its new arguments hold for the next one."""
    before = worker(stage.given("minion1", stage.images, stage.debian), "b", "sleep 3; cat /proc/cmdline")
    after = worker(
        stage.given("minion1", stage.images, stage.debian, "changed"), "b", "sleep 3; cat /proc/cmdline"
    )
    with running(tmp_path / "master", before) as master:
        first = master.force("b")
        master.wait_for(lambda: "attached after" in _progress(master, first), 90, "the build")
        master.reconfigure(after)
        build = master.finished(first, 60)
        assert build["results"] == SUCCESS
        assert len(master.builds(first)) == 1
        assert " changed" not in master.text(build, "shell")
        build = master.finished(master.force("b"), 90)
        assert build["results"] == SUCCESS
        assert " changed" in master.text(build, "shell")
    stage.assert_nothing_left()
