"""The worker class against Buildbot's contract, on a fake host."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import libvirt
import pytest
from buildbot.config.errors import ConfigErrors
from buildbot.interfaces import (
    IRenderable,
    LatentWorkerCannotSubstantiate,
    LatentWorkerFailedToSubstantiate,
)
from buildbot.process.properties import Property
from buildbot.worker.protocols.base import Connection as PBConnection
from twisted.internet import defer

from latentvirt.config import Connection
from latentvirt.master import goodbye, steplog
from latentvirt.master.tries import TRIES_OF_A_BUILD
from latentvirt.master.worker import LibVirtWorker
from latentvirt.testing import FakeGuest
from reactorthread import on_reactor, run
from stagemaster import Build, StageMaster, close_stage, open_stage

URI = "qemu+ssh://vmhost/system"
BASE = "/images/base.qcow2"


@pytest.fixture
def master() -> Iterator[StageMaster]:
    """A master on a fake host with a base image."""
    opened = open_stage()
    opened.fake.inspect(URI).add_file(BASE)
    yield opened
    close_stage(opened)


@pytest.fixture
def worker(master: StageMaster) -> LibVirtWorker:
    """A worker whose VMs are generated."""
    return _worker(master, "minion1")


def _worker(master: StageMaster, name: str, password: str | None = "static", **kwargs: Any) -> LibVirtWorker:
    arguments = {"uri": URI, "base_image": BASE, "size": {"memory": 64}, **kwargs}
    return on_reactor(lambda: master.worker(name, password, **arguments))


def _start(worker: LibVirtWorker, build: Build | None = None) -> bool:
    async def go() -> bool:
        return bool(await worker.start_instance(build or Build()))

    return run(go())


def _stop(worker: LibVirtWorker) -> None:
    async def go() -> None:
        await worker.stop_instance()

    run(go())
    _settle(worker.master)


def _settle(master: StageMaster) -> None:
    async def nothing() -> None:
        pass

    while master.hub._background:
        run(nothing())


def _left(master: StageMaster) -> tuple[list[str], list[str]]:
    host = master.fake.inspect(URI)
    files = host.listing(f"/images/latentvirt-{master.hub.owner}")
    return host.running(), [name for name in files if not name.startswith("lease.")]


def _good(worker: LibVirtWorker) -> str:
    return str(on_reactor(lambda: worker._gate.getRenderingFor(None)))


def test_a_start_and_a_stop(master: StageMaster, worker: LibVirtWorker) -> None:
    """A start runs a VM of this owner; a stop leaves nothing; both go twice."""
    for _ in range(2):
        assert _start(worker)
        assert _left(master)[0] == [f"latentvirt-{master.hub.owner}-slot1"]
        assert on_reactor(worker.check_instance) == (True, "")
        _stop(worker)
        _stop(worker)
        assert _left(master) == ([], [])


class Nothing(Build):
    """A build that lacks what an argument is rendered from."""

    def render(self, value: Any) -> Any:
        """Render a renderable to nothing."""
        return defer.succeed(None if IRenderable.providedBy(value) else value)


def test_a_base_image_that_renders_to_nothing_is_an_error(master: StageMaster) -> None:
    """A build without the property that names its base image never runs on the person's own disk."""
    worker = _worker(master, "minion1", hd_image="/images/precious", base_image=Property("image"), size=None)
    with pytest.raises(LatentWorkerCannotSubstantiate, match="base_image is empty for this build"):
        _start(worker, Nothing())
    assert _left(master) == ([], [])


def test_a_slow_resolver_holds_up_no_start_that_need_not_ask_it(
    master: StageMaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where masterFQDN says what guests are told, the machine's own name is not looked for on the reactor."""
    asked = []
    monkeypatch.setattr("socket.getfqdn", lambda: asked.append(1) or "slow.example")
    told = _worker(master, "told", identity="metadata", masterFQDN="buildmaster.example")
    assert _start(told)
    assert asked == []
    _stop(told)


def test_a_stop_without_a_start(worker: LibVirtWorker) -> None:
    """Buildbot stops workers that it never started."""
    _stop(worker)


def test_a_connection_whose_end_was_told_already_is_not_waited_for(
    worker: LibVirtWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that dies while its worker attaches does not keep the master from exiting."""

    class Ended(PBConnection):
        def loseConnection(self) -> None:
            pass  # there is nothing left to lose

    monkeypatch.setattr(goodbye, "GOODBYE_S", 0.1)

    async def over() -> None:
        worker.conn = Ended(worker.name)
        worker.conn.notifyDisconnected()
        await worker._soft_disconnect(stopping_service=True)  # as a stopping master does

    run(over())
    assert worker.conn is None


def test_the_gate(master: StageMaster, worker: LibVirtWorker) -> None:
    """Nobody gets in before a start, then the static password, then the one-time one alone, then nobody."""
    guest = FakeGuest(can=())
    master.fake.inspect(URI).guests = lambda domain: guest
    assert _good(worker) != "static"
    assert _good(worker) != _good(worker)
    _start(worker)
    assert _good(worker) == "static"
    guest.says_ready = True
    guest.on_boot()
    while guest.identity is None:
        on_reactor(lambda: None)
    assert _good(worker) == guest.identity["password"] != "static"
    _stop(worker)
    assert _good(worker) not in ("static", guest.identity["password"])


def test_without_a_password_only_the_one_time_one_is_good(master: StageMaster) -> None:
    """A worker without a static password lets nobody in before its guest was told who it is."""
    worker = _worker(master, "minion2", None)
    _start(worker)
    assert _good(worker) != _good(worker)
    _stop(worker)


def test_a_hosts_fault_is_tried_again_and_no_quarantine(master: StageMaster, worker: LibVirtWorker) -> None:
    """A refusal by libvirt retries the build, and leaves the worker out of quarantine."""
    master.fake.inspect(URI).trouble.fail_next("createXML", libvirt.VIR_ERR_INTERNAL_ERROR)
    with pytest.raises(LatentWorkerFailedToSubstantiate, match="could not create the domain"):
        _start(worker)
    _stop(worker)
    on_reactor(worker.putInQuarantine)
    assert worker.quarantine_timer is None
    _settle(master)
    assert _left(master) == ([], [])
    assert "could not create the domain" in master.data.updates.text


def test_a_configurations_fault_is_final(master: StageMaster) -> None:
    """A base image that is not there ends the build for good, and is no reason for quarantine."""
    worker = _worker(master, "minion3", base_image="/images/missing.qcow2")
    with pytest.raises(LatentWorkerCannotSubstantiate, match=r"missing\.qcow2 is not there"):
        _start(worker)
    _stop(worker)
    on_reactor(worker.putInQuarantine)
    assert worker.quarantine_timer is None


def test_a_home_that_is_too_long_for_sockets_is_final(master: StageMaster, worker: LibVirtWorker) -> None:
    """Where libvirt has too long a path for sockets, the build ends for good and says what to shorten."""
    said = "internal error: UNIX socket path '/home/long/.config/libvirt/qemu/channel/target/x' too long"
    host = master.fake.inspect(URI)
    host.trouble.fail_next("createXML", libvirt.VIR_ERR_INTERNAL_ERROR, said)
    with pytest.raises(
        LatentWorkerCannotSubstantiate, match=r"too long a path .*/home/long.*XDG_CONFIG_HOME"
    ):
        _start(worker)
    _stop(worker)
    on_reactor(worker.putInQuarantine)
    assert worker.quarantine_timer is None
    assert _left(master) == ([], [])


def test_a_guests_fault_is_quarantined(master: StageMaster, worker: LibVirtWorker) -> None:
    """A guest that powers itself off before it attaches is its worker's fault, and check_instance says so."""
    _start(worker)
    domain = master.fake.inspect(URI).domain(f"latentvirt-{master.hub.owner}-slot1")
    assert domain is not None
    domain.power_off()
    while on_reactor(worker.check_instance)[0]:
        pass
    good, why = on_reactor(worker.check_instance)
    assert not good
    assert "powered itself off" in why
    _stop(worker)
    on_reactor(worker.putInQuarantine)
    assert worker.quarantine_timer is not None
    on_reactor(worker.quarantine_timer.cancel)


def test_a_build_is_tried_so_often_and_no_more(master: StageMaster, worker: LibVirtWorker) -> None:
    """A build whose VM never comes up ends after five tries; another build is not concerned."""
    trouble = master.fake.inspect(URI).trouble
    for _ in range(TRIES_OF_A_BUILD):
        trouble.fail_next("createXML", libvirt.VIR_ERR_INTERNAL_ERROR)
        with pytest.raises(LatentWorkerFailedToSubstantiate):
            _start(worker, Build(7))
        _stop(worker)
        _settle(master)
    with pytest.raises(LatentWorkerCannotSubstantiate, match="5 times"):
        _start(worker, Build(7))
    _stop(worker)
    assert _start(worker, Build(8))
    _stop(worker)


def test_a_cancelled_start_returns_soon_and_is_undone(master: StageMaster, worker: LibVirtWorker) -> None:
    """A start that is called off while libvirt hangs returns, and what it made goes once libvirt answers."""
    hang = master.fake.inspect(URI).trouble.hang("createXML")
    starting = on_reactor(lambda: defer.ensureDeferred(worker.start_instance(Build())))
    assert hang.entered.acquire(timeout=60)
    on_reactor(worker._cancel_start)

    async def outcome() -> None:
        await starting

    with pytest.raises(LatentWorkerFailedToSubstantiate, match="called off"):
        run(outcome())
    hang.release()
    _stop(worker)
    _settle(master)
    assert _left(master) == ([], [])


class Late(Build):
    """A build whose properties are rendered when the test wants it."""

    def __init__(self) -> None:
        super().__init__(1)
        self.asked: defer.Deferred[None] = defer.Deferred()
        self.rendered: defer.Deferred[str] = defer.Deferred()

    def render(self, value: Any) -> Any:
        """Render a renderable later."""
        if not IRenderable.providedBy(value):
            return super().render(value)
        self.asked.callback(None)
        return self.rendered


class Soon(Build):
    """One whose properties are rendered at once."""

    def render(self, value: Any) -> Any:
        """Render a renderable to the base image."""
        return defer.succeed(BASE) if IRenderable.providedBy(value) else super().render(value)


def test_a_start_that_was_given_up_leaves_the_next_ones_vm_alone(
    master: StageMaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes on of a cancelled start never takes the place of the VM that its worker has by then."""
    worker = _worker(master, "minion1", base_image=Property("image"))
    forget, forgotten = worker._forget, threading.Event()
    monkeypatch.setattr(worker, "_forget", lambda run: (forget(run), forgotten.set()))
    late = Late()
    starting = on_reactor(lambda: defer.ensureDeferred(worker.start_instance(late)))

    async def outcome(waiting: defer.Deferred[Any]) -> None:
        await waiting

    run(outcome(late.asked))
    on_reactor(worker._cancel_start)
    with pytest.raises(LatentWorkerFailedToSubstantiate, match="called off"):
        run(outcome(starting))
    assert _start(worker, Soon(2))
    on_reactor(lambda: late.rendered.callback(BASE))
    assert forgotten.wait(60)
    _settle(master)
    assert len(_left(master)[0]) == 1
    assert on_reactor(worker.check_instance) == (True, "")
    _stop(worker)
    assert _left(master) == ([], [])


def test_a_slow_database_holds_up_no_end_of_a_start(
    master: StageMaster, worker: LibVirtWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that fails while the database does not answer ends all the same, so that a master can exit."""
    monkeypatch.setattr(steplog, "DATABASE_S", 0.01)
    slow: defer.Deferred[Any] = defer.Deferred()
    monkeypatch.setattr(master.data.updates, "addStep", lambda **_: slow)
    master.fake.inspect(URI).trouble.fail_next("createXML", libvirt.VIR_ERR_INTERNAL_ERROR)
    with pytest.raises(LatentWorkerFailedToSubstantiate, match="could not create the domain"):
        _start(worker)
    _stop(worker)
    assert _left(master) == ([], [])
    on_reactor(lambda: slow.callback((1, 1, "start VM")))
    assert "could not create the domain" in master.data.updates.text


def test_compatible_only_where_there_is_room(master: StageMaster) -> None:
    """A worker says no to a build as long as its host is full."""
    connection = Connection(URI, slots=1)
    first, second = (
        _worker(master, name, uri=None, connection=connection) for name in ("minion1", "minion2")
    )

    async def compatible(worker: LibVirtWorker) -> bool:
        return bool(await worker.isCompatibleWithBuild(Build()))

    assert run(compatible(first))
    assert not run(compatible(second))
    _start(first)
    assert not run(compatible(second))
    _stop(first)
    assert run(compatible(second))


def test_the_page_tells_the_start(master: StageMaster, worker: LibVirtWorker) -> None:
    """The build's page shows the steps of the start and the guest's console."""
    _start(worker)
    while "booting" not in worker._run.machine._tiers.ears.tail(9):  # type: ignore[union-attr]
        on_reactor(lambda: None)
    _stop(worker)

    async def written() -> str:
        return str(master.data.updates.text)

    while "booting" not in run(written()):
        pass
    assert "hoverlay: " in run(written())
    assert "static" not in run(written())


def test_one_vm_serves_one_build_unless_told_otherwise() -> None:
    """Two builders with builds for one worker do not get the same VM, unless a person wants that."""
    host = {"connection": "test:///default", "base_image": "/images/base"}
    assert LibVirtWorker("minion1", "x", **host).max_builds == 1
    assert LibVirtWorker("minion1", "x", max_builds=2, **host).max_builds == 2


@pytest.mark.parametrize("path", ["/images/a\0b", "/images/a\nb", "/images/\udcff"])
def test_paths_that_no_host_has_are_told_at_once(path: str) -> None:
    """A path with characters that cannot be right is an error when master.cfg is read."""
    with pytest.raises(ConfigErrors, match="characters that no path"):
        LibVirtWorker("minion1", "x", connection="test:///default", base_image=path)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"missing_timeout": "600"}, "missing_timeout='600' is not a number of seconds"),
        ({"missing_timeout": -1}, "missing_timeout=-1 is not a number of seconds"),
        ({"check_instance_interval": -1}, "check_instance_interval=-1"),
        ({"build_wait_timeout": "0"}, "build_wait_timeout='0'"),
        ({"network": lambda: "x"}, "network has "),
        ({"network": "a\0b"}, "network=.* is no name"),
        ({"allow_shared": [1]}, "allow_shared=.* is not a list of names"),
        ({"hold_on_failure": 7200}, "hold_on_failure=7200 is not a duration"),
        ({"hold_on_failure": "30d"}, "hold_on_failure='30d' is longer than a VM is held"),
        (
            {"hold_on_failure": "2h", "build_wait_timeout": 60},
            "build_wait_timeout=60 gives it to the next one",
        ),
    ],
)
def test_values_that_would_fail_at_the_first_start_are_told_at_once(
    wrong: dict[str, object], says: str
) -> None:
    """What could only fail later, with a traceback in the log, is an error when master.cfg is read."""
    with pytest.raises(ConfigErrors, match=says):
        LibVirtWorker("minion1", "x", connection="test:///default", base_image="/images/base", **wrong)
