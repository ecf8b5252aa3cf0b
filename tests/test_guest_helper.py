"""The guest's half of the conversation, and the worker that it becomes."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HELPER = Path(__file__).resolve().parent.parent / "contrib" / "libvirt" / "guest" / "latentvirt_guest.py"
DEADLINE_S = 60
SECRET = "s3cret-of-one-start"

PB_SERVER = """
import sys
from twisted.cred import checkers, portal
from twisted.internet import reactor
from twisted.spread import pb
from zope.interface import implementer

@implementer(portal.IRealm)
class Realm:
    def requestAvatar(self, name, mind, *interfaces):
        print("login", name.decode(), flush=True)
        return pb.IPerspective, pb.Avatar(), lambda: None

checker = checkers.InMemoryUsernamePasswordDatabaseDontUse()
checker.addUser(sys.argv[1].encode(), sys.argv[2].encode())
factory = pb.PBServerFactory(portal.Portal(Realm(), [checker]))
print(reactor.listenTCP(0, factory, interface="127.0.0.1").getHost().port, flush=True)
reactor.run()
"""


@pytest.fixture(scope="module")
def guest() -> ModuleType:
    """The helper, as a module."""
    spec = importlib.util.spec_from_file_location("latentvirt_guest", HELPER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclass-like things look their module up
    spec.loader.exec_module(module)
    return module


class Host:
    """The host's end of a channel."""

    def __init__(self, end: socket.socket) -> None:
        self._file = end.makefile("rwb")
        end.settimeout(DEADLINE_S)

    def hears(self) -> dict[str, Any]:
        """Return the guest's next line."""
        said: dict[str, Any] = json.loads(self._file.readline())
        return said

    def says(self, line: bytes) -> None:
        """Send the guest a line."""
        self._file.write(line + b"\n")
        self._file.flush()


@pytest.fixture
def ends(guest: ModuleType) -> Iterator[tuple[Host, Any]]:
    """Both ends of a channel."""
    ours, its = socket.socketpair()
    with ours, its:
        yield Host(ours), guest.Channel(guest.Port(its.fileno()))


def identity(**changes: object) -> bytes:
    """Make the host's line, changed; ... leaves a key out."""
    said = {
        "latentvirt": 1,
        "say": "identity",
        "name": "minion1",
        "password": SECRET,
        "master": "10.0.2.2:9989",
        "time": 1732153000.123,
        "entropy": base64.b64encode(bytes(64)).decode(),
        "start": "0123456789ab",
        **changes,
    }
    return json.dumps({key: value for key, value in said.items() if value is not ...}).encode()


def test_the_identity_is_read_whole(guest: ModuleType) -> None:
    """The worker is called, and attaches to, what the host said."""
    heard = guest.parse_identity(identity(colour="green"))
    assert heard == ("minion1", SECRET, "10.0.2.2", 9989, 1732153000.123, bytes(64), "0123456789ab")


def test_an_identity_needs_only_name_password_and_master(guest: ModuleType) -> None:
    """A host that sends neither time nor entropy is served."""
    heard = guest.parse_identity(identity(time=..., entropy=..., start=..., master="[fd00::2]:1"))
    assert heard == ("minion1", SECRET, "fd00::2", 1, None, b"", "")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"hello", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 20_000, "not JSON"),
        (b"[1]", "not a JSON object"),
        (identity(latentvirt=2), '"latentvirt": 1 only'),
        (identity(say="goodbye"), '"identity"'),
        (identity(name=""), '"name"'),
        (identity(name=None), '"name"'),
        (identity(password=7), '"password"'),
        (identity(password=...), '"password"'),
        (identity(master="somewhere"), '"master"'),
        (identity(master="somewhere:99999"), '"master"'),
        (identity(time="noon"), '"time"'),
        (identity(time=-1), '"time"'),
        (identity(entropy="***"), '"entropy"'),
    ],
)
def test_what_is_wrong_is_said_without_the_password(guest: ModuleType, line: bytes, why: str) -> None:
    """A person reads on the console what the host got wrong, and never the password."""
    with pytest.raises(guest.HelperError, match=why) as caught:
        guest.parse_identity(line)
    assert SECRET not in str(caught.value)


def test_an_identity_shows_no_password(guest: ModuleType) -> None:
    """A traceback or log line that shows the identity is safe to publish."""
    assert SECRET not in repr(guest.parse_identity(identity()))


def test_ready_is_said_until_the_identity_comes(guest: ModuleType, ends: tuple[Host, Any]) -> None:
    """A host that connects late hears from the guest all the same."""
    host, channel = ends
    assert guest.wait_for_identity(channel, guest.Linux(), 0.001) is None
    host.says(identity())
    assert guest.wait_for_identity(channel, guest.Linux(), None).name == "minion1"
    for _ in range(2):
        said = host.hears()
        assert said == {"latentvirt": 1, "say": "ready", "helper": guest.VERSION, "system": "linux"}


@pytest.mark.parametrize("line", [b"rubbish", b"x" * 200_000], ids=["rubbish", "too long"])
def test_a_bad_line_is_answered_and_forgiven(
    guest: ModuleType, ends: tuple[Host, Any], line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that says something wrong is told so once, and may still say it right."""
    host, channel = ends
    pieces = [line[start : start + 50_000] for start in range(0, len(line), 50_000)]
    pieces += [b"\n" + identity() + b"\n"]
    monkeypatch.setattr(channel._port, "read", lambda timeout_s: pieces.pop(0))
    assert guest.wait_for_identity(channel, guest.Linux(), None).name == "minion1"
    assert host.hears()["say"] == "ready"
    error = host.hears()
    assert error["say"] == "error"
    assert error["why"]
    channel.say(say="attaching")
    assert host.hears() == {"latentvirt": 1, "say": "attaching"}


def test_a_host_that_left_in_the_middle_of_a_line_is_forgotten(
    guest: ModuleType, ends: tuple[Host, Any]
) -> None:
    """The next host starts with a clean line."""
    _, channel = ends
    pieces: list[bytes | None] = [identity()[:40], None, identity(name="second") + b"\n"]
    channel._port.read = lambda timeout_s: pieces.pop(0)
    assert guest.wait_for_identity(channel, guest.Linux(), None).name == "second"


def test_waiting_without_a_host_costs_next_to_nothing(guest: ModuleType) -> None:
    """A guest that nobody talks to leaves its processor to others."""
    master, slave = os.openpty()
    tty.setraw(slave)
    os.close(master)
    port = guest.Port(slave)
    reads = 0
    until = time.monotonic() + 10 * guest.IDLE_S
    while time.monotonic() < until:
        assert port.read(1.0) is None
        reads += 1
    assert port.write(b"anybody?\n") == 0
    port.close()
    assert reads <= 11


class Recorder:
    """A system that only notes what is done to it."""

    def __init__(self) -> None:
        self.done: list[tuple[str, object]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda value: self.done.append((name, value))


def test_a_clock_that_is_right_is_left_alone(guest: ModuleType) -> None:
    """Files made before the attach keep their order of times."""
    system = Recorder()
    guest.settle(system, guest.Identity("n", "p", "h", 1, time.time() + 0.1))
    assert [name for name, _ in system.done] == ["set_hostname"]


def test_a_stale_clock_and_repeated_randomness_are_put_right(guest: ModuleType) -> None:
    """Two VMs thawed from one memory image have today's time and different random numbers."""
    system = Recorder()
    guest.settle(system, guest.Identity("n", "p", "h", 1, 1732153000.0, b"entropy"))
    assert system.done == [("set_clock", 1732153000.0), ("add_entropy", b"entropy"), ("set_hostname", "n")]


def test_a_system_that_refuses_is_no_reason_not_to_attach(
    guest: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the clock cannot be set the worker attaches, and the console says so."""

    class Refusing(guest.System):  # type: ignore[name-defined, misc]
        def set_clock(self, now: float) -> None:
            raise PermissionError("not allowed")

        add_entropy = set_hostname = set_clock

    guest.settle(Refusing(), guest.Identity("n", "p", "h", 1, 1.0, b"e"))
    assert capsys.readouterr().out.count("not allowed") == 3


def write_config(folder: Path, **said: object) -> str:
    """Write a worker.json and return its path."""
    path = folder / "worker.json"
    path.write_text(json.dumps(said))
    return str(path)


def test_no_configuration_means_wait_for_the_host(guest: ModuleType, tmp_path: Path) -> None:
    """An image needs no file to be told its identity, and builds do not run as root."""
    config = guest.read_config(str(tmp_path / "none.json"), guest.Linux())
    assert (config.static, config.user) == (False, "buildbot")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"master": "m:1"}, '"password"'),
        ({"password": SECRET}, '"master"'),
        ({"password": SECRET, "master": "m"}, '"master"'),
        ({"password": SECRET, "master": "m:1", "name": 3}, '"name"'),
    ],
)
def test_half_a_static_identity_is_refused(
    guest: ModuleType, tmp_path: Path, said: dict[str, object], why: str
) -> None:
    """A person who forgot a line of worker.json reads on the console which."""
    with pytest.raises(guest.HelperError, match=why) as caught:
        guest.read_config(write_config(tmp_path, **said), guest.Linux())
    assert SECRET not in str(caught.value)


def test_the_name_may_come_from_dhcp(guest: ModuleType, tmp_path: Path) -> None:
    """A network that names its guests names its workers."""
    (tmp_path / "2").write_text("# private\nADDRESS=10.0.2.15\nHOSTNAME=minion7.farm.example\n")
    system = guest.Linux()
    system._leases = str(tmp_path)
    path = write_config(tmp_path, name=None, password=SECRET, master="m:9989")
    assert guest.static_identity(guest.read_config(path, system), system).name == "minion7"


def test_a_guest_without_a_port_does_not_wait_for_one(
    guest: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a host that knows nothing of channels the static identity is used at once."""
    system = guest.Linux()
    system._ports = system._devices = str(tmp_path)
    assert guest.open_channel(system, wait=False) is None
    assert "no virtio-serial port" in capsys.readouterr().out


def test_the_port_is_known_by_its_name(guest: ModuleType, tmp_path: Path) -> None:
    """A guest with other ports, for an agent say, talks on the right one."""
    for port, name in (("vport0p1", "org.qemu.guest_agent.0"), ("vport0p2", guest.PORT_NAME)):
        (tmp_path / port).mkdir()
        (tmp_path / port / "name").write_text(f"{name}\n")
    system = guest.Linux()
    system._ports = str(tmp_path)
    assert system.port_path() == "/dev/vport0p2"


@pytest.fixture
def pb_server() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server that lets one worker log in and says when, and its port."""
    # A host's name has no underscore, so the helper leaves this machine's as it is.
    command = [sys.executable, "-c", PB_SERVER, "minion_1", SECRET]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server, int(server.stdout.readline())
        finally:
            server.terminate()


def test_the_helper_becomes_a_worker(pb_server: tuple[subprocess.Popen[str], int], tmp_path: Path) -> None:
    """A real worker logs in with the channel's password, which is in no file, output or argument."""
    server, port = pb_server
    basedir = tmp_path / "worker"
    master_end, slave = os.openpty()
    tty.setraw(slave)
    config = write_config(tmp_path, user=None, basedir=str(basedir))
    command = [sys.executable, str(HELPER), "--config", config, "--port", os.ttyname(slave)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as helper,
        os.fdopen(master_end, "r+b", buffering=0) as channel,
    ):
        try:
            heard = b""
            while b'"ready"' not in heard:
                heard += os.read(master_end, 4096)
            channel.write(
                identity(name="minion_1", master=f"127.0.0.1:{port}", time=..., entropy=...) + b"\n"
            )
            assert server.stdout is not None
            assert server.stdout.readline() == "login minion_1\n"
            while b'"attaching"' not in heard:
                heard += os.read(master_end, 4096)
            arguments = Path(f"/proc/{helper.pid}/cmdline").read_bytes()
        finally:
            helper.terminate()
        assert helper.stdout is not None
        output = helper.stdout.read()
    os.close(slave)
    assert helper.returncode == 0
    assert "attaching as minion_1" in output
    assert "minion_1, start 0123456789ab" in (basedir / "info" / "host").read_text()
    left = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert SECRET.encode() not in left + arguments + output.encode()
