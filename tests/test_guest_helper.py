"""The guest's half of the conversation, and the worker that it becomes."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import random
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


def never() -> None:
    """Be asked to prepare for a freeze by a host that never asks."""
    raise AssertionError("nobody asked for it")


FREEZE = b'{"latentvirt": 1, "say": "freeze"}'
REHEARSE = b'{"latentvirt": 1, "say": "rehearse"}'
PREPARED: Any = {"freeze": (lambda _: None, "frozen")}
"""A guest that has nothing to do to be frozen."""


PUBLIC = f"ssh-ed25519 {'A' * 68}"
PRIVATE = f"-----BEGIN OPENSSH PRIVATE KEY-----\n{'B' * 70}\nCCC=\n-----END OPENSSH PRIVATE KEY-----\n"


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
    heard = guest.parse_identity(guest.read_line(identity(colour="green", thawed=True, renew=["ssh", "x"])))
    start = ("minion1", SECRET, "10.0.2.2", 9989, 1732153000.123, bytes(64), "0123456789ab")
    assert heard == (*start, True, ("ssh",), None)


def test_an_identity_needs_only_name_password_and_master(guest: ModuleType) -> None:
    """A host that sends neither time nor entropy is served."""
    line = identity(time=..., entropy=..., start=..., master="[fd00::2]:1")
    heard = guest.parse_identity(guest.read_line(line))
    assert heard == ("minion1", SECRET, "fd00::2", 1, None, b"", "", False, None, None)


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
        (identity(renew="ssh"), '"renew"'),
        (identity(ssh_host_key="key"), '"ssh_host_key"'),
        (identity(ssh_host_key={"private": PRIVATE, "public": PUBLIC + "\nmore"}), '"ssh_host_key"'),
        (identity(ssh_host_key={"private": SECRET, "public": PUBLIC}), '"ssh_host_key"'),
    ],
)
def test_what_is_wrong_is_said_without_the_password(guest: ModuleType, line: bytes, why: str) -> None:
    """A person reads on the console what the host got wrong, and never the password."""
    with pytest.raises(guest.HelperError, match=why) as caught:
        guest.parse_identity(guest.read_line(line))
    assert SECRET not in str(caught.value)


def test_an_identity_shows_no_password(guest: ModuleType) -> None:
    """A traceback or log line that shows the identity is safe to publish."""
    assert SECRET not in repr(guest.parse_identity(guest.read_line(identity())))


def test_ready_is_said_until_the_identity_comes(guest: ModuleType, ends: tuple[Host, Any]) -> None:
    """A host that connects late hears from the guest all the same."""
    host, channel = ends
    assert guest.wait_for_identity(channel, guest.Linux(), 0.001, {}) is None
    host.says(identity())
    assert guest.wait_for_identity(channel, guest.Linux(), None, {}).name == "minion1"
    for _ in range(2):
        said = host.hears()
        assert (said["say"], said["helper"], said["system"]) == ("ready", guest.VERSION, "linux")
        assert said["can"] == ["freeze", "rehearse"]


@pytest.mark.parametrize("line", [b"rubbish", b"x" * 200_000], ids=["rubbish", "too long"])
def test_a_bad_line_is_answered_and_forgiven(
    guest: ModuleType, ends: tuple[Host, Any], line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that says something wrong is told so once, and may still say it right."""
    host, channel = ends
    pieces = [line[start : start + 50_000] for start in range(0, len(line), 50_000)]
    pieces += [b"\n" + identity() + b"\n"]
    monkeypatch.setattr(channel._port, "read", lambda timeout_s: pieces.pop(0))
    assert guest.wait_for_identity(channel, guest.Linux(), None, {}).name == "minion1"
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
    assert guest.wait_for_identity(channel, guest.Linux(), None, {}).name == "second"


class Clock:
    """A clock that only reading moves, and a port that never has anything new but what is given."""

    def __init__(self, *reads: bytes | None) -> None:
        self.now = 0.0
        self.said: list[tuple[float, str]] = []
        self.idle_s = 0.0
        self._reads = list(reads)

    def __call__(self) -> float:
        """Tell the time."""
        return self.now

    def read(self, timeout_s: float) -> bytes | None:
        """Return what comes next; when there is nothing more, let time pass."""
        if self._reads:
            return self._reads.pop(0)
        self.now += timeout_s
        return b""

    def write(self, data: bytes) -> int:
        """Note who said what, and when."""
        self.said += [(self.now, json.loads(line)["say"]) for line in data.splitlines()]
        return len(data)


@pytest.fixture
def hurried(guest: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make what talks on a port in a time of its own."""

    def make(*reads: bytes | None) -> tuple[Clock, Any]:
        clock = Clock(*reads)
        monkeypatch.setattr(guest.time, "monotonic", clock)
        return clock, guest.Channel(clock)

    return make


def test_a_guest_prepares_for_the_freeze_and_is_silent(guest: ModuleType, hurried: Any) -> None:
    """A memory image is taken of a guest that has prepared, and in whose output nothing is half said."""
    clock, channel = hurried(FREEZE + b"\n")
    prepared: list[float] = []
    asked = {"freeze": (lambda _: prepared.append(clock.now), "frozen")}
    heard = guest.wait_for_identity(channel, guest.Linux(), 4, asked, clock)
    assert heard is None
    assert prepared == [0.0]
    said = [(0.0, "ready"), (0.0, "frozen")]
    assert clock.said[:2] == said
    assert clock.said[2] == (guest.FREEZE_QUIET_S, "ready")


def test_a_frozen_guest_has_its_whole_time_again(guest: ModuleType, hurried: Any) -> None:
    """An image with a static identity as well does not use it while its host makes a memory image of it."""
    clock, channel = hurried(FREEZE + b"\n")
    assert guest.wait_for_identity(channel, guest.Linux(), 4, PREPARED, clock) is None
    assert clock.now == 4 + guest.FREEZE_QUIET_S


@pytest.mark.parametrize("between", [[], [None], [None, b""], [b""]], ids=["none", "gone", "back", "quiet"])
def test_a_thawed_guest_hears_the_first_line(guest: ModuleType, hurried: Any, between: list[Any]) -> None:
    """Whether the channel's other end was seen to close or not, the identity after a thaw is not lost."""
    clock, channel = hurried(FREEZE + b"\n", *between, identity(thawed=True) + b"\n")
    heard = guest.wait_for_identity(channel, guest.Linux(), None, PREPARED, clock)
    assert (heard.name, heard.thawed) == ("minion1", True)
    assert [said for _, said in clock.said] == ["ready", "frozen"]


def test_a_guest_may_be_frozen_again(guest: ModuleType, hurried: Any) -> None:
    """A host whose first attempt at a memory image failed may ask for another."""
    clock, channel = hurried(FREEZE + b"\n", FREEZE + b"\n", identity() + b"\n")
    assert guest.wait_for_identity(channel, guest.Linux(), None, PREPARED, clock).name == "minion1"
    assert [said for _, said in clock.said] == ["ready", "frozen", "frozen"]


def test_a_system_that_cannot_be_made_new_refuses_the_freeze(guest: ModuleType, hurried: Any) -> None:
    """Where the kernel's random numbers cannot be stirred, no host makes two VMs of one memory."""
    clock, channel = hurried(FREEZE + b"\n", identity() + b"\n")
    assert guest.wait_for_identity(channel, guest.FreeBSD(), None, {}, clock).name == "minion1"
    assert [said for _, said in clock.said] == ["ready", "error"]


def test_a_rehearsal_that_cannot_be_read_is_answered_and_forgiven(guest: ModuleType, hurried: Any) -> None:
    """A host that asks wrongly for a rehearsal is told so, and the guest takes its identity all the same."""
    clock, channel = hurried(REHEARSE + b"\n", identity() + b"\n")

    def refuse(said: dict[str, Any]) -> None:
        guest.parse_news({**said, "time": "noon"})

    asked = {"rehearse": (refuse, "rehearsed")}
    assert guest.wait_for_identity(channel, guest.Linux(), None, asked, clock).name == "minion1"
    assert [said for _, said in clock.said] == ["ready", "error"]


def test_a_failure_to_prepare_is_told_and_survived(
    guest: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """A guest that cannot make its memory small is frozen with a large one, and the console says why."""

    class Refusing(guest.System):  # type: ignore[name-defined, misc]
        def prepare_freeze(self) -> None:
            raise PermissionError("read-only")

    guest.prepare_freeze(Refusing(), guest.Generators())
    assert "read-only" in capsys.readouterr().out


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


def settle(guest: ModuleType, system: Any, *fields: Any, generators: Any = None) -> None:
    """Put a system right for an identity that continues with these fields."""
    who = guest.Identity("n", "p", "h", 1, *fields)
    guest.settle(system, who, generators or guest.Generators(), guest.RENEWED)


def test_a_clock_that_is_right_is_left_alone(guest: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files made before the attach keep their order of times."""
    monkeypatch.setattr(guest.time, "time", lambda: 1732153000.0)
    system = Recorder()
    settle(guest, system, 1732153000.0 + 0.04)
    assert [name for name, _ in system.done] == ["set_hostname"]


def test_a_stale_clock_and_repeated_randomness_are_put_right(guest: ModuleType) -> None:
    """Two VMs thawed from one memory image have today's time and different random numbers."""
    system = Recorder()
    settle(guest, system, 1732153000.0, b"entropy")
    assert system.done == [("set_clock", 1732153000.0), ("add_entropy", b"entropy"), ("set_hostname", "n")]


def test_a_thawed_guest_renews_what_others_have_too(guest: ModuleType) -> None:
    """SSH host keys and the lease are made anew after a thaw, or what the host says instead."""
    system = Recorder()
    settle(guest, system, None, b"", "", True)
    settle(guest, system, None, b"", "", True, ("machine-id",))
    settle(guest, system, None, b"", "", False, ("machine-id",))
    assert [value for name, value in system.done if name == "renew"] == ["ssh", "dhcp", "machine-id"]


def test_every_random_number_generator_is_seeded_anew(
    guest: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers thawed from one memory image draw different numbers, whichever module drew them."""
    import ssl

    stirred: list[bytes] = []
    monkeypatch.setattr(ssl, "RAND_add", lambda data, credit: stirred.append(data))
    private = random.Random()
    generators = guest.Generators()
    generators.find()
    states = [(random.getstate(), private.getstate())]
    drawn = []
    for _ in range(2):
        random.setstate(states[0][0])
        private.setstate(states[0][1])
        settle(guest, Recorder(), None, b"entropy", generators=generators)
        drawn.append((random.random(), private.random()))
    assert drawn[0][0] != drawn[1][0]
    assert drawn[0][1] != drawn[1][1]
    assert len(set(stirred)) == 2


def test_a_system_that_refuses_is_no_reason_not_to_attach(
    guest: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the clock cannot be set the worker attaches, and the console says so."""

    class Refusing(guest.System):  # type: ignore[name-defined, misc]
        def set_clock(self, now: float) -> None:
            raise PermissionError("not allowed")

        add_entropy = set_hostname = renew = set_clock

    settle(guest, Refusing(), 1.0, b"e", "", True)
    assert capsys.readouterr().out.count("not allowed") == 5


def test_systemd_learns_that_the_worker_is_loaded(
    guest: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an image starts after the helper is not kept waiting, and builds cannot speak for the helper."""
    guest.Linux().tell_loaded()  # not started by systemd
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service_manager:
        service_manager.bind(str(tmp_path / "notify"))
        service_manager.settimeout(DEADLINE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        guest.Linux().tell_loaded()
        assert service_manager.recv(100) == b"READY=1"
    assert "NOTIFY_SOCKET" not in os.environ


@pytest.fixture
def linux(guest: ModuleType, tmp_path: Path) -> Any:
    """A Linux all of whose paths are in a folder of the test's own."""
    system = guest.Linux()
    system.ssh = str(tmp_path)
    system._sshd_pid = str(tmp_path / "sshd.pid")
    system._machine_ids = (str(tmp_path / "machine-id"), str(tmp_path / "dbus"))
    system._leases = str(tmp_path / "leases")
    system._drop_caches = str(tmp_path / "drop_caches")
    system._systemd = str(tmp_path / "systemd")
    system._cards = str(tmp_path / "net")
    return system


def test_a_guest_is_frozen_when_it_has_booted(
    linux: Any, guest: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A memory image is taken after the end of the boot, and without what only fills it."""
    (tmp_path / "systemd").mkdir()
    asked: list[list[str]] = []
    monkeypatch.setattr(guest.subprocess, "run", lambda command, **_: asked.append(command))
    monkeypatch.setattr(guest, "DROP_PAUSE_S", 0.0)
    guest.prepare_freeze(linux, guest.Generators())
    assert asked == [["systemctl", "is-system-running", "--wait"]]
    assert (tmp_path / "drop_caches").read_text() == "3"


def test_a_boot_without_end_is_frozen_all_the_same(
    linux: Any,
    guest: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A service that never starts, and a network that never comes, do not keep a guest from its freeze."""
    (tmp_path / "systemd").mkdir()
    (tmp_path / "net" / "eth0").mkdir(parents=True)
    monkeypatch.setattr(guest, "BOOT_WAIT_S", 0.0)
    monkeypatch.setattr(guest, "DROP_PAUSE_S", 0.0)
    monkeypatch.setattr(linux, "_has_route", lambda: False)

    def endless(command: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(command, 0)

    monkeypatch.setattr(guest.subprocess, "run", endless)
    guest.prepare_freeze(linux, guest.Generators())
    told = capsys.readouterr().out
    assert "before the end of the boot" in told
    assert "no network" in told
    assert (tmp_path / "drop_caches").exists()


def test_new_host_keys_of_the_kinds_that_there_were(linux: Any, tmp_path: Path) -> None:
    """After a thaw no old host key is left, not for a moment, and ssh to the guest works as before."""
    (tmp_path / "ssh_host_ed25519_key").write_text("old")
    (tmp_path / "ssh_host_ed25519_key.pub").write_text("old")
    linux.renew("ssh")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "ssh_host_ed25519_key",
        "ssh_host_ed25519_key.pub",
    ]
    assert (tmp_path / "ssh_host_ed25519_key").read_text().startswith("-----BEGIN OPENSSH PRIVATE KEY")
    assert (tmp_path / "ssh_host_ed25519_key.pub").read_text().startswith("ssh-ed25519 ")


def test_the_slow_kind_of_host_key_delays_nobody(linux: Any, tmp_path: Path) -> None:
    """An RSA key is made in the background; the old one is away at once."""
    key = tmp_path / "ssh_host_rsa_key"
    key.write_text("old")
    linux.renew("ssh")
    linux.run_errands()
    assert not key.exists() or key.read_text() != "old"
    deadline = time.monotonic() + DEADLINE_S
    while not key.with_suffix(".pub").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_guest_without_host_keys_gets_none(linux: Any, tmp_path: Path) -> None:
    """An image without an SSH server is not given what it never had."""
    linux.renew("ssh")
    assert list(tmp_path.iterdir()) == []


def test_the_host_is_told_the_host_keys_that_an_ssh_server_has(linux: Any, tmp_path: Path) -> None:
    """The public keys are told without their comments; one without its private half, or with none, is not."""
    assert linux.host_keys() == []
    for kind in ("ecdsa", "ed25519", "rsa"):
        (tmp_path / f"ssh_host_{kind}_key").write_text("private")
        (tmp_path / f"ssh_host_{kind}_key.pub").write_text(f"{kind} AAAA{kind} root@image\n")
    (tmp_path / "ssh_host_ecdsa_key").unlink()
    (tmp_path / "ssh_host_rsa_key.pub").unlink()
    (tmp_path / "ssh_host_ed25519_key-cert.pub").write_text("a certificate")
    assert linux.host_keys() == ["ed25519 AAAAed25519"]


def test_an_ssh_server_without_a_key_gets_one(
    guest: ModuleType, linux: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A VM of an image without host keys has one of its own; one that has any, or no server, gets none."""
    monkeypatch.setattr(linux, "path", str(tmp_path / "bin"))
    guest.make_missing_host_key(linux)
    assert linux.host_keys() == []
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sshd").write_text("")
    (tmp_path / "bin" / "sshd").chmod(0o755)
    guest.make_missing_host_key(linux)
    (made,) = linux.host_keys()
    assert made.startswith("ssh-ed25519 ")
    guest.make_missing_host_key(linux)
    assert linux.host_keys() == [made]


def test_a_host_key_from_the_host_is_the_only_one(guest: ModuleType, linux: Any, tmp_path: Path) -> None:
    """A VM that is given its worker's host key has that, thawed or not, and none of the image's."""
    for kind in ("ed25519", "rsa"):
        (tmp_path / f"ssh_host_{kind}_key").write_text("the image's")
        (tmp_path / f"ssh_host_{kind}_key.pub").write_text(f"{kind} theimages")
    who = guest.parse_identity(guest.read_line(identity(ssh_host_key={"private": PRIVATE, "public": PUBLIC})))
    assert "BEGIN" not in repr(who)
    for thawed in (False, True):
        linux.set_hostname = lambda name: None
        guest.settle(linux, who._replace(time=None, entropy=b"", thawed=thawed), guest.Generators(), ("ssh",))
        assert linux.host_keys() == [PUBLIC]
        assert sorted(file.name for file in tmp_path.iterdir()) == [
            "ssh_host_ed25519_key",
            "ssh_host_ed25519_key.pub",
        ]
        assert (tmp_path / "ssh_host_ed25519_key").read_text() == PRIVATE
        assert (tmp_path / "ssh_host_ed25519_key").stat().st_mode & 0o777 == 0o600


def test_the_machine_id_is_made_anew_where_it_is(linux: Any, tmp_path: Path) -> None:
    """The new machine-id is the same in both places, and a link stays one."""
    first, second = tmp_path / "machine-id", tmp_path / "dbus"
    first.write_text(f"{'0' * 32}\n")
    second.symlink_to(first)
    linux.renew("machine-id")
    assert second.is_symlink()
    text = first.read_text()
    assert text != f"{'0' * 32}\n"
    assert len(text) == 33
    assert int(text, 16) > 0


def test_a_guest_without_a_lease_leaves_its_network_alone(
    linux: Any, guest: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network with fixed addresses is not touched by a thaw."""
    monkeypatch.setattr(guest.subprocess, "run", never)
    linux.renew("dhcp")


def test_what_to_renew_can_be_configured(guest: ModuleType, tmp_path: Path) -> None:
    """An image that wants a machine-id for each VM says so in worker.json; nonsense there is refused."""
    path = write_config(tmp_path, renew=["machine-id", "ssh"])
    assert guest.read_config(path, guest.Linux()).renew == ("ssh", "machine-id")
    path = write_config(tmp_path, renew="all")
    with pytest.raises(guest.HelperError, match='"renew" must be a list'):
        guest.read_config(path, guest.Linux())


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


def test_the_worker_connects_when_there_is_a_route(
    guest: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose network comes late connects as soon as it is there, and tries as well without one."""
    assert guest.has_route("127.0.0.1", 9989)
    assert guest.has_route("master.example", 9989)
    assert not guest.has_route("255.255.255.255", 9989)  # refused, as an address without a route is
    clock = Clock()
    monkeypatch.setattr(guest.time, "monotonic", clock)
    monkeypatch.setattr(guest.time, "sleep", clock.read)
    who = guest.Identity("n", "p", "10.0.2.2", 9989)
    answers = [False, False, True]
    monkeypatch.setattr(guest, "has_route", lambda host, port: answers.pop(0))
    guest.wait_for_route(who)
    assert answers == []
    assert clock.now == 2 * guest.ROUTE_POLL_S
    monkeypatch.setattr(guest, "has_route", lambda host, port: False)
    guest.wait_for_route(who)
    assert clock.now < 2 * guest.ROUTE_WAIT_S


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


@pytest.mark.parametrize("rehearses", [False, True], ids=["at once", "after a rehearsal"])
def test_the_helper_becomes_a_worker(
    guest: ModuleType, pb_server: tuple[subprocess.Popen[str], int], tmp_path: Path, rehearses: bool
) -> None:
    """A real worker logs in with the channel's password, which is in no file, output or argument.

    A rehearsal before that attaches as well, and leaves nothing behind.
    """
    server, port = pb_server
    basedir = tmp_path / "worker"
    master_end, slave = os.openpty()
    tty.setraw(slave)
    config = write_config(tmp_path, user=None, basedir=str(basedir))
    command = [sys.executable, str(HELPER), "--config", config, "--port", os.ttyname(slave)]
    before = set(os.listdir(guest.Linux.scratch))
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as helper,
        os.fdopen(master_end, "r+b", buffering=0) as channel,
    ):
        try:
            heard = b""
            while b'"ready"' not in heard:
                heard += os.read(master_end, 4096)
            if rehearses:
                channel.write(REHEARSE + b"\n")
                while b'"rehearsed"' not in heard:
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
    assert "rehearsal" not in output
    assert set(os.listdir(guest.Linux.scratch)) <= before
    assert "rehearsal" not in os.listdir(basedir)
    assert "CPUs" in (basedir / "info" / "host").read_text()
    left = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert SECRET.encode() not in left + arguments + output.encode()
