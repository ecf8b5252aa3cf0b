"""`latentvirt hosts` and `latentvirt vm`, as a person calls them."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import attrs
import libvirt
import pytest
from click.testing import CliRunner, Result

import reactorthread
from brokenoff import watched
from contract.backends import Backend, domain_xml, open_backend
from latentvirt.cli import main, progress
from latentvirt.names import GUEST_NAMESPACE, METADATA_NAMESPACE, Ownership
from latentvirt.testing import FakeLibvirt

LEAVE = b"\x1d"
"""Ctrl and ], as a terminal sends them."""

EXAMPLES = Path(__file__).resolve().parent.parent / "docs" / "examples"
HERE, THERE = "qemu+ssh://one/system", "qemu+ssh://two/system"
OURS = Ownership("0123456789abcdef", "slot1", "0a1b2c3d4e5f")
MASTER_CFG = """
from buildbot.plugins import schedulers, util
from latentvirt import Connection, Hosts, LibVirtWorker
c = BuildmasterConfig = {}
c['workers'] = [
    LibVirtWorker('a', 'pass', Hosts(Connection('qemu+ssh://one/system'), Connection('qemu+ssh://two/system')),
                  base_image='/images/base', size={'memory': 512}),
    LibVirtWorker('b', 'pass', 'qemu+ssh://one/system', base_image='/images/base'),
]
c['builders'] = [util.BuilderConfig(name='x', workernames=['a', 'b'], factory=util.BuildFactory())]
c['schedulers'] = [schedulers.ForceScheduler(name='force', builderNames=['x'])]
c['protocols'] = {'pb': {'port': 0}}
"""

STATIC_ONLY = """
from buildbot.plugins import schedulers, util, worker
c = BuildmasterConfig = {}
c['workers'] = [worker.Worker('a', 'pass')]
c['builders'] = [util.BuilderConfig(name='x', workernames=['a'], factory=util.BuildFactory())]
c['schedulers'] = [schedulers.ForceScheduler(name='force', builderNames=['x'])]
c['protocols'] = {'pb': {'port': 0}}
"""


@pytest.fixture
def fake() -> FakeLibvirt:
    """Two hosts, with one VM of latentvirt's and one of a person's on the first."""
    reactorthread.start()
    made = FakeLibvirt()
    mark = (
        f"<metadata><l:vm xmlns:l='{METADATA_NAMESPACE}' owner='{OURS.owner}' slot='{OURS.slot}' "
        f"start='{OURS.start}'/><g:guest xmlns:g='{GUEST_NAMESPACE}' worker='minion1'/></metadata>"
    )
    disk = (
        "<disk type='file'><driver type='qcow2'/><source file='/images/o.vda'/><backingStore type='file'>"
        "<format type='qcow2'/><source file='/images/base'/><backingStore/></backingStore>"
        "<target dev='vda'/></disk>"
    )
    add(made, HERE, "ours", mark, disk)
    add(made, HERE, "theirs")
    made.inspect(THERE)
    return made


def add(fake: FakeLibvirt, uri: str, name: str, mark: str = "", disk: str = "") -> None:
    """Let a VM run on a host."""
    host = fake.inspect(uri)
    host.add_file("/images/o.vda")
    host.add_file("/images/base")
    uuid = uuid5(NAMESPACE_URL, name)
    fake.open(uri).createXML(
        f"<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid>{mark}"
        "<memory unit='MiB'>256</memory><vcpu>2</vcpu>"
        f"<os><type>hvm</type></os><devices>{disk}</devices></domain>",
        0,
    )


def command(fake: FakeLibvirt, *arguments: str) -> Result:
    """Run it, on fake hosts."""
    return CliRunner().invoke(main, arguments, obj=fake)


def both(*arguments: str) -> tuple[str, ...]:
    """Add the two hosts to a command."""
    return (*arguments, "-c", HERE, "-c", THERE)


def transcript(fake: FakeLibvirt, commands: list[str]) -> str:
    """Run commands on the fake hosts, and write down what they say as a terminal would show it."""
    said = ""
    for line in commands:
        result = command(fake, *shlex.split(line))
        said += f"$ latentvirt {line}\n{result.stdout}{result.stderr}"
    return said


def test_the_transcript_is_what_the_commands_say(fake: FakeLibvirt) -> None:
    """The commands answer as the documentation shows."""
    shown = (EXAMPLES / "latentvirt-vm.txt").read_text()
    commands = re.findall(r"^\$ latentvirt (.*)$", shown, re.MULTILINE)
    assert len(commands) > 3
    assert transcript(fake, commands) == shown


def test_all_hosts_are_seen(fake: FakeLibvirt) -> None:
    """Each host's versions, size and VMs are in one list."""
    told = command(fake, *both("hosts", "--json"))
    assert told.exit_code == 0, told.stderr
    first, second = json.loads(told.stdout)
    assert (first["uri"], first["vms"], first["others"]) == (HERE, 1, 1)
    assert (second["uri"], second["vms"], second["others"]) == (THERE, 0, 0)
    assert (first["held"], second["held"]) == (0, 0)
    assert {"libvirt", "qemu", "arch", "kvm", "cpus", "memory_mib", "memory_free_mib"} <= first.keys()
    lines = command(fake, *both("hosts")).stdout.splitlines()
    assert lines[0].split()[:3] == ["HOST", "LIBVIRT", "QEMU"]
    assert [line.split()[0] for line in lines[1:]] == [HERE, THERE]


def test_a_host_that_is_down_does_not_hide_the_others(fake: FakeLibvirt) -> None:
    """What answers is shown, what does not is named with a way out, and the exit status says so."""
    fake.inspect(THERE).reachable = False
    for arguments in (("hosts",), ("vm", "list")):
        told = command(fake, *both(*arguments))
        assert told.exit_code == 1
        assert HERE in told.stdout
        assert THERE not in told.stdout
        assert f"try: virsh -c '{THERE}' list" in told.stderr
    first, second = json.loads(command(fake, *both("hosts", "--json")).stdout)
    assert "error" not in first
    assert "could not connect" in second["error"]


def test_a_name_cannot_play_with_a_terminal(fake: FakeLibvirt) -> None:
    """What turns or hides text on a terminal is shown as an escape, and nothing vanishes in a pipe."""
    add(fake, HERE, "up\u202edown\x9b31m")
    told = command(fake, "vm", "list", "--all", "-c", HERE)
    assert "up\\u202edown\\x9b31m" in told.stdout
    assert not {"\u202e", "\x9b"} & set(told.output)
    told = command(fake, "vm", "show", "de\x1b[31mb", "-c", HERE)
    assert "de\\x1b[31mb" in told.stderr
    told = command(fake, "vm", "destroy", "up\u202edown\x9b31m", "-c", HERE)
    assert "\u202e" not in told.stderr


def test_latentvirts_vms_are_listed(fake: FakeLibvirt) -> None:
    """Whose each VM is, is told; a person's own are there only on request."""
    (row,) = json.loads(command(fake, *both("vm", "list", "--json")).stdout)
    assert row.pop("uuid")
    assert row == {
        "host": HERE,
        "name": "ours",
        "worker": "minion1",
        "state": "running",
        "memory_mib": 256,
        "vcpus": 2,
        **attrs.asdict(OURS),
        "held": None,
    }
    told = command(fake, *both("vm", "list"))
    assert "theirs" not in told.stdout
    assert told.stdout.splitlines()[1].split()[:4] == [HERE, "ours", "minion1", "running"]
    names = {
        row["name"]: row["owner"]
        for row in json.loads(command(fake, *both("vm", "list", "--all", "--json")).stdout)
    }
    assert names == {"ours": OURS.owner, "theirs": None}


def test_a_vm_is_shown_with_what_its_disks_stand_on(fake: FakeLibvirt) -> None:
    """A person sees which files a VM has."""
    told = json.loads(command(fake, *both("vm", "show", "ours", "--json")).stdout)
    assert told["disks"] == [{"target": "vda", "files": ["/images/o.vda", "/images/base"]}]
    lines = command(fake, *both("vm", "show", "ours")).stdout.splitlines()
    assert "name: ours" in lines
    assert "disk vda: /images/o.vda over /images/base" in lines


def test_a_vm_is_ended(fake: FakeLibvirt) -> None:
    """A VM of latentvirt's ends at once, and no other."""
    told = command(fake, *both("vm", "destroy", "ours"))
    assert (told.exit_code, told.stdout) == (0, f"ended ours on {HERE}\n")
    assert fake.inspect(HERE).running() == ["theirs"]


@pytest.mark.parametrize("what", ["show", "destroy"])
def test_a_vm_that_is_not_there_is_named(fake: FakeLibvirt, what: str) -> None:
    """A name that no host has is refused, and a host that did not answer is named: it may be there."""
    fake.inspect(THERE).reachable = False
    told = command(fake, *both("vm", what, "nobody"))
    assert told.exit_code == 1
    assert "no VM of the name 'nobody'" in told.stderr
    assert f"virsh -c '{THERE}'" in told.stderr
    assert f"runs on {HERE}." in told.stderr
    assert re.search(rf"latentvirt vm list --all -c '?{re.escape(HERE)}'?$", told.stderr.strip())


@pytest.mark.parametrize("what", ["show", "ssh"])
def test_a_vm_on_hosts_of_which_none_answers_may_be_there(
    fake: FakeLibvirt, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no host answers nobody claims to know of a VM; a name that is no alias is said to be none."""
    monkeypatch.setattr("latentvirt.cli.ssh.shutil.which", lambda _: "/usr/bin/ssh")
    fake.inspect(HERE).reachable = False
    told = command(fake, "vm", what, "ours", "-c", HERE, "-c", "nolab")
    assert told.exit_code == 1
    assert "'nolab' is no URI, and uri_aliases" in told.stderr
    assert "no host answered" in told.stderr
    assert "runs on" not in told.stderr


def test_a_persons_vm_is_not_ended(fake: FakeLibvirt) -> None:
    """What is not latentvirt's is left alone, and it is said how else to end it."""
    told = command(fake, *both("vm", "destroy", "theirs"))
    assert told.exit_code == 1
    assert f"virsh -c '{HERE}' destroy 'theirs'" in told.stderr
    assert fake.inspect(HERE).running() == ["ours", "theirs"]


def test_a_name_on_two_hosts_is_not_guessed(fake: FakeLibvirt) -> None:
    """Where two hosts have a VM of one name, none is ended until one host is named."""
    add(fake, THERE, "theirs")
    add(fake, HERE, "third")
    told = command(fake, *both("vm", "destroy", "theirs"))
    assert told.exit_code == 1
    assert f"theirs on {HERE}, theirs on {THERE}" in told.stderr
    assert "--connect" in told.stderr


def test_the_hosts_of_a_master_are_asked(fake: FakeLibvirt, tmp_path: Path) -> None:
    """With a master.cfg, or the master's directory, all hosts that its workers name are asked, each once."""
    (tmp_path / "master.cfg").write_text(MASTER_CFG)
    for path in (tmp_path, tmp_path / "master.cfg"):
        told = command(fake, "hosts", "--json", "--config", str(path))
        assert told.exit_code == 0, told.stderr
        assert [row["uri"] for row in json.loads(told.stdout)] == [HERE, THERE]


def test_what_a_master_cfg_prints_is_no_answer(fake: FakeLibvirt, tmp_path: Path) -> None:
    """A program can read the JSON of a command whose master.cfg prints something; a person sees that, too."""
    (tmp_path / "master.cfg").write_text(f"print('noise')\n{MASTER_CFG}")
    told = command(fake, "hosts", "--json", "--config", str(tmp_path))
    assert [row["uri"] for row in json.loads(told.stdout)] == [HERE, THERE]
    assert "noise" in told.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("c = BuildmasterConfig = {'workers': [1]}", "buildbot checkconfig"),
        ("raise OSError('no')", "no"),
        (MASTER_CFG.replace("size={", "sizes={"), "sizes"),
        (STATIC_ONLY, "no worker in"),
        ("import sys; sys.exit(0)", "it ends with exit(0)"),
        ("exit('enough')", "it ends with exit('enough')"),
    ],
)
def test_a_bad_master_cfg_is_refused(fake: FakeLibvirt, tmp_path: Path, text: str, said: str) -> None:
    """A master.cfg that cannot be used is named, with the way to look at it."""
    (tmp_path / "master.cfg").write_text(text)
    told = command(fake, "hosts", "--config", str(tmp_path))
    assert told.exit_code == 1, told.output
    assert str(tmp_path / "master.cfg") in told.stderr
    assert said in told.stderr


def test_without_options_it_is_as_for_virsh(fake: FakeLibvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    """LIBVIRT_DEFAULT_URI names the host; else it is the system's for root and the session's for others."""
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", THERE)
    assert json.loads(command(fake, "hosts", "--json").stdout)[0]["uri"] == THERE
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI")
    for user, uri in ((0, "qemu:///system"), (1000, "qemu:///session")):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        assert json.loads(command(fake, "hosts", "--json").stdout)[0]["uri"] == uri


def test_a_bad_uri_is_refused_before_anything_is_asked(fake: FakeLibvirt) -> None:
    """A URI that cannot be one is a wrong command line, and an empty one is said to be empty."""
    told = command(fake, "hosts", "-c", "")
    assert told.exit_code == 2
    assert "connection URI '' is empty" in told.stderr
    assert command(fake, "hosts", "-c", "/x").exit_code == 2


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("hosts",), 1),
        (("vm", "show", "ours"), 1),
        (("doctor",), 1),
        (("image", "push", "/images/base", "--folder", "/images"), 1),
        (("image", "build", "/images/base"), 1),
    ],
)
def test_an_embedded_root_that_is_not_there_is_named(
    fake: FakeLibvirt, tmp_path: Path, words: tuple[str, ...], status: int
) -> None:
    """A mistake in the path of a root is told, instead of a libvirt without VMs being made there."""
    root = tmp_path / "embed"
    told = command(fake, *words, "-c", f"qemu:///embed?root={root}")
    assert told.exit_code == status
    assert f"there is no folder {root}, which is named as the root" in told.output
    assert fake.inspect(f"qemu:///embed?root={root}").trouble.calls == []


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("qemu:///embed", "names no root"),
        ("qemu:///embed?root=", "names no root"),
        ("qemu:///embed?root=srv/embed", "has root='srv/embed', which is no absolute path"),
    ],
)
def test_an_embedded_libvirt_has_an_absolute_root(
    fake: FakeLibvirt, monkeypatch: pytest.MonkeyPatch, uri: str, said: str
) -> None:
    """What is wrong with the root is said, with an example, and not that a master may have it open."""
    told = command(fake, "hosts", "-c", uri)
    assert (told.exit_code, said in told.stderr) == (2, True), told.stderr
    assert "qemu:///embed?root=/srv/buildbot/embed" in told.stderr
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", uri)
    told = command(fake, "hosts")
    assert (told.exit_code, said in told.stderr) == (1, True), told.stderr
    assert "only one process" not in told.stderr


def test_a_vm_without_a_console_is_not_said_to_be_somebodys(
    fake: FakeLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no console to open, that is what is said, and not that somebody else has it."""
    monkeypatch.setattr("shutil.which", lambda name: f"/nonexistent/{name}")
    told = command(fake, *both("vm", "console", "ours"))
    assert told.exit_code == 1
    assert "has no serial console" in told.stderr
    assert "somebody else" not in told.stderr


TERMINAL = """
import sys
sys.path[:0] = {paths!r}
import test_cli_hosts as here
fake = here.FakeLibvirt()
here.add(fake, here.HERE, "{name}")
here.main(["vm", "list", "--all", "-c", here.HERE], obj=fake)
"""


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_a_name_on_a_narrow_terminal_can_be_copied(columns: int) -> None:
    """A table that does not fit is shown as a block of lines for each row, and no name is folded."""
    name = "a-vm-with-a-name-that-fills-a-good-part-of-a-line"
    far, near = pty.openpty()
    paths = [str(Path(__file__).parent)]
    done = subprocess.run(
        [sys.executable, "-c", TERMINAL.format(paths=paths, name=name)],
        stdout=near,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm", "COLUMNS": str(columns)},
    )
    os.close(near)
    assert done.returncode == 0, done.stderr
    seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", os.read(far, 65536).decode()).splitlines()
    os.close(far)
    if columns > 80:
        assert seen[0].startswith("┏")
        assert max(map(len, seen)) <= columns
        assert any(f"│ {HERE} │ {name} │" in line for line in seen)
    else:
        assert seen[:4] == [f"host: {HERE}", f"name: {name}", "worker:", "state: running"]


@pytest.mark.parametrize(
    "words", [("hosts",), ("vm", "list"), ("sweep",), ("image", "gc")], ids=lambda words: words[-1]
)
def test_where_no_host_answers_there_is_no_empty_table(
    fake: FakeLibvirt, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of hosts that do not answer only that is said; one that answers, and has nothing, is shown so."""
    monkeypatch.setenv("LATENTVIRT_IMAGES", str(tmp_path))
    empty = command(fake, *words, "-c", THERE)
    assert empty.stdout.startswith("HOST ")
    fake.inspect(THERE).reachable = False
    told = command(fake, *words, "-c", THERE)
    assert (told.exit_code, told.stdout) == (1, "")
    assert THERE in told.stderr


@pytest.mark.parametrize("words", [("hosts",), ("vm", "list"), ("doctor",)], ids=lambda words: words[-1])
def test_what_takes_long_says_in_a_pipe_what_it_waits_for(
    fake: FakeLibvirt, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a host takes its time, a line says that it is asked; where it does not, nothing is said."""
    assert THERE not in command(fake, *words, "-c", THERE).stderr
    monkeypatch.setattr(progress, "PATIENCE_S", 0.0)
    fake.inspect(THERE).trouble.latency_s = 0.1
    said = command(fake, *words, "-c", THERE).stderr
    assert re.search(rf"^(asking )?{re.escape(THERE)}.*\.\.\.$|^looking\.\.\.$", said, re.MULTILINE), said


def test_without_virsh_it_is_said_how_to_get_it(fake: FakeLibvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Consoles are virsh's; where it is missing, its package is named."""
    monkeypatch.setenv("PATH", "/nonexistent")
    told = command(fake, *both("vm", "console", "ours"))
    assert told.exit_code == 1
    assert "libvirt-clients" in told.stderr


@pytest.mark.libvirt
def test_a_console_on_a_terminal(tmp_path: Path) -> None:
    """A VM's console is on the person's terminal, also if somebody had it, which is said."""
    with open_backend("daemon", tmp_path) as backend:
        direct = backend.direct()
        first = terminal(backend, direct.createXML(domain_xml("alone"), libvirt.VIR_DOMAIN_START_PAUSED))
        assert "latentvirt-busybox: up" in first
        assert "somebody else" not in first
        taken = direct.createXML(domain_xml("taken"), libvirt.VIR_DOMAIN_START_PAUSED)
        # libvirtd 9 answers no call of a connection whose stream somebody takes over at that moment.
        others = backend.direct()
        somebody = others.newStream()
        others.lookupByName("taken").openConsole(None, somebody, 0)
        second = terminal(backend, taken)
        assert "somebody else has the console of taken; it is taken over" in second
        assert "latentvirt-busybox: up" in second


def terminal(backend: Backend, domain: Any) -> str:
    """Open a paused VM's console on a terminal, let it run, and return what is seen until its guest is up."""
    far, near = pty.openpty()
    program = "from latentvirt.cli import main; main()"
    arguments = [sys.executable, "-c", program, "vm", "console", domain.name(), "-c", backend.uri]
    with watched(
        subprocess.Popen(arguments, stdin=near, stdout=near, stderr=near, start_new_session=True)
    ) as child:
        os.close(near)
        seen = b""
        while b"Escape character" not in seen:
            seen += os.read(far, 4096)
        domain.resume()
        while b"latentvirt-busybox: up" not in seen:
            seen += os.read(far, 4096)
        os.write(far, LEAVE)
        assert child.wait(timeout=60) == 0
    os.close(far)
    return seen.decode(errors="replace")


@pytest.mark.libvirt
def test_a_real_host_from_a_shell(tmp_path: Path) -> None:
    """The command itself, in a pipe, lists, shows and ends a VM of a real libvirt's."""
    with open_backend("daemon", tmp_path) as backend:
        direct = backend.direct()
        direct.createXML(domain_xml("shell"), 0)
        run(backend, "hosts")
        assert run(backend, "vm", "list").splitlines()[1].split()[1:3] == ["shell", "running"]
        assert json.loads(run(backend, "vm", "show", "shell", "--json"))["memory_mib"] == 128
        assert run(backend, "vm", "destroy", "shell") == f"ended shell on {backend.uri}\n"
        assert run(backend, "vm", "list").splitlines()[1:] == []


def run(backend: Backend, *arguments: str) -> str:
    """Run the command on a real libvirt; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", "from latentvirt.cli import main; main()", *arguments, "-c", backend.uri],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
