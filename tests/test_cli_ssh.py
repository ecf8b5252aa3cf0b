"""`latentvirt known-hosts`, `vm ssh` and `vm screenshot`, as a person calls them."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

import libvirt
import pytest
from click.testing import CliRunner, Result

import reactorthread
from contract.backends import QEMU_NAMESPACE
from latentvirt.cli import main
from latentvirt.domainxml import Forward, GuestMark, can_be_reached, forward_to, guest_mark, has_screen
from latentvirt.hostkeys import HostKey
from latentvirt.names import GUEST_NAMESPACE, METADATA_NAMESPACE
from latentvirt.testing import FakeLibvirt
from privatelibvirt import LoopbackSshd, loopback_sshd

EXAMPLES = Path(__file__).resolve().parent.parent / "docs" / "examples"
HERE, THERE, LOCAL = "qemu+ssh://one/system", "qemu+ssh://two/system", "qemu:///system"
KEY = HostKey("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAIG1hdGVyaWFs")
OTHER = HostKey("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAIG90aGVy")
NETWORK = "<interface type='network'><source network='default'/></interface>"
USER = "<interface type='user'/>"
SCREEN = "<video><model type='vga'/></video>"
NONE = "<video><model type='none'/></video>"


def add(
    fake: FakeLibvirt,
    uri: str,
    name: str,
    mark: GuestMark | None,
    devices: str = "",
    lease: str = "",
    arguments: str = "",
) -> None:
    """Let a VM of latentvirt's run on a host, whose guest has told something or nothing."""
    told = (
        "" if mark is None else guest_mark(mark).replace("<guest ", f"<guest xmlns='{GUEST_NAMESPACE}' ", 1)
    )
    uuid = uuid5(NAMESPACE_URL, name)
    fake.open(uri).createXML(
        f"<domain type='qemu' xmlns:qemu='{QEMU_NAMESPACE}'><name>{name}</name><uuid>{uuid}</uuid><metadata>"
        f"<l:vm xmlns:l='{METADATA_NAMESPACE}' owner='0123456789abcdef' slot='slot1' start='0a1b2c3d4e5f'/>"
        f"{told}</metadata><memory unit='MiB'>256</memory><os><type>hvm</type></os>"
        f"<devices>{devices}</devices>{arguments}</domain>",
        0,
    )
    domain = fake.inspect(uri).domains[str(uuid)]
    domain.addresses[libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE] = [lease] if lease else []


@pytest.fixture
def fake() -> FakeLibvirt:
    """Two hosts: a VM that told its key, one that told nothing, and one of a person's."""
    reactorthread.start()
    made = FakeLibvirt()
    add(made, HERE, "farm-1", GuestMark("minion1", (KEY,)), NETWORK + SCREEN, "192.0.2.11")
    add(made, HERE, "farm-2", None, USER + NONE)
    made.open(HERE).createXML(
        f"<domain type='qemu'><name>theirs</name><uuid>{uuid5(NAMESPACE_URL, 'theirs')}</uuid>"
        "<memory unit='MiB'>64</memory><os><type>hvm</type></os></domain>",
        0,
    )
    made.inspect(THERE)
    return made


def command(fake: FakeLibvirt, *arguments: str) -> Result:
    """Run it, on fake hosts."""
    return CliRunner().invoke(main, arguments, obj=fake)


def test_the_transcript_is_what_the_commands_say(fake: FakeLibvirt) -> None:
    """The commands answer as the documentation shows."""
    shown = (EXAMPLES / "latentvirt-ssh.txt").read_text()
    said = ""
    commands = re.findall(r"^\$ latentvirt (.*)$", shown, re.MULTILINE)
    for line in commands:
        result = command(fake, *shlex.split(line))
        said += f"$ latentvirt {line}\n{result.stdout}{result.stderr}"
    assert len(commands) > 4
    assert said == shown


# known-hosts


def test_all_keys_that_are_known_are_lines_for_ssh(fake: FakeLibvirt) -> None:
    """Domain, worker and address have the keys; VMs that told none have no line, and that is no error."""
    told = command(fake, "known-hosts", "-c", HERE, "-c", THERE)
    assert (told.exit_code, told.stderr) == (0, "")
    assert told.stdout == f"farm-1,minion1,192.0.2.11 {KEY}\n"


def test_a_vm_is_named_by_its_domain_or_its_worker(fake: FakeLibvirt) -> None:
    """Only the VMs that were named are shown; one whose keys are not known is said so, with exit status 1."""
    for name in ("farm-1", "minion1"):
        told = command(fake, "known-hosts", name, "-c", HERE)
        assert (told.exit_code, told.stdout) == (0, f"farm-1,minion1,192.0.2.11 {KEY}\n")
    told = command(fake, "known-hosts", "farm-1", "farm-2", "nobody", "-c", HERE)
    assert told.exit_code == 1
    assert told.stdout.count("\n") == 1
    assert "'farm-2' are not known: it has told none" in told.stderr
    assert "'nobody' are not known: no VM of that name" in told.stderr


def test_keys_as_json(fake: FakeLibvirt) -> None:
    """A program gets host, names and keys of each VM of latentvirt's, those without keys included."""
    first, second = json.loads(command(fake, "known-hosts", "--json", "-c", HERE).stdout)
    assert first["names"] == ["farm-1", "minion1", "192.0.2.11"]
    assert first["keys"] == [{"type": KEY.kind, "key": KEY.data}]
    assert (first["host"], first["worker"]) == (HERE, "minion1")
    assert (second["name"], second["worker"], second["keys"]) == ("farm-2", None, [])


def test_what_two_vms_are_called_means_none_of_them(fake: FakeLibvirt) -> None:
    """Networks of the same addresses on two hosts, or a domain defined twice, never confuse two VMs' keys."""
    add(fake, THERE, "farm-1", GuestMark("minion2", (OTHER,)), NETWORK, "192.0.2.11")
    told = command(fake, "known-hosts", "-c", HERE, "-c", THERE)
    assert told.stdout == f"minion1 {KEY}\nminion2 {OTHER}\n"
    assert "2 VMs are called 192.0.2.11; it is left out" in told.stderr
    assert "2 VMs are called farm-1; it is left out" in told.stderr
    assert told.exit_code == 0
    assert command(fake, "known-hosts", "farm-1", "-c", HERE, "-c", THERE).exit_code == 1


def test_a_host_that_is_down_does_not_hide_the_others(fake: FakeLibvirt) -> None:
    """What is known is printed, and the exit status says that it is not all."""
    fake.inspect(THERE).reachable = False
    told = command(fake, "known-hosts", "-c", HERE, "-c", THERE)
    assert told.exit_code == 1
    assert told.stdout.startswith("farm-1,")
    assert THERE in told.stderr


# Where a guest is reached


FORWARDS = """<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><devices><interface type='user'>
<portForward proto='udp'><range start='22'/></portForward>
<portForward proto='tcp' address='192.0.2.1'><range start='2000' end='2010' to='20'/>
<range start='3000' to='3' exclude='yes'/></portForward>
<portForward proto='tcp'><range start='80'/></portForward></interface></devices>
<qemu:commandline><qemu:arg value='-netdev'/><qemu:arg
value='user,id=n,hostfwd=tcp::4022-:40,hostfwd=tcp:127.0.0.1:5022-10.0.2.15:50,hostfwd=udp::6022-:60'/>
</qemu:commandline></domain>"""


@pytest.mark.parametrize(
    ("port", "found"),
    [
        (22, Forward("192.0.2.1", 2002)),
        (31, None),
        (3, None),
        (80, Forward("127.0.0.1", 80)),
        (40, Forward("127.0.0.1", 4022)),
        (50, Forward("127.0.0.1", 5022)),
        (60, None),
        (5, None),
    ],
)
def test_a_forwarded_port_is_found(port: int, found: Forward | None) -> None:
    """Ports that libvirt's passt or QEMU's own user-mode networking forward lead to the guest."""
    assert forward_to(FORWARDS, port) == found


def test_user_mode_networking_lets_nobody_in() -> None:
    """Only another network card can be connected to."""
    assert not can_be_reached(FORWARDS)
    assert not can_be_reached("<domain/>")
    assert can_be_reached(f"<domain><devices>{USER}{NETWORK}</devices></domain>")


@pytest.mark.parametrize(
    ("devices", "shows"), [("", False), (NONE, False), (SCREEN, True), (NONE + SCREEN, True)]
)
def test_a_screen_takes_a_video_device(devices: str, shows: bool) -> None:
    """A domain without a video device, or with one of the model none, has nothing to show."""
    assert has_screen(f"<domain><devices>{devices}</devices></domain>") is shows


# vm ssh: what it refuses


def test_a_vm_whose_keys_are_not_known_is_not_logged_in_to(fake: FakeLibvirt) -> None:
    """Where no key is known there is no connection, but a reason and a way out."""
    told = command(fake, "vm", "ssh", "farm-2", "-c", HERE)
    assert told.exit_code == 1
    assert "the SSH host keys of 'farm-2' are not known" in told.stderr
    assert "vm console" in told.stderr


def test_a_vm_that_nothing_connects_to(fake: FakeLibvirt) -> None:
    """User-mode networking is named as the reason, and what to do."""
    add(fake, HERE, "farm-3", GuestMark("minion3", (KEY,)), USER)
    told = command(fake, "vm", "ssh", "minion3", "-c", HERE)
    assert told.exit_code == 1
    assert "nothing can connect to 'farm-3': it has user-mode networking" in told.stderr
    assert "forward a port" in told.stderr


def test_a_vm_without_an_address(fake: FakeLibvirt) -> None:
    """Who was asked for an address is said, where nobody knows one."""
    add(fake, HERE, "farm-3", GuestMark("minion3", (KEY,)), NETWORK)
    told = command(fake, "vm", "ssh", "minion3", "-c", HERE)
    assert told.exit_code == 1
    assert "no address of 'farm-3' is known (lease, agent, arp were asked)" in told.stderr


def test_a_name_that_is_none_or_several(fake: FakeLibvirt) -> None:
    """A VM that is not latentvirt's, or not there, is not found; of two, ssh takes neither."""
    for name in ("theirs", "nobody"):
        told = command(fake, "vm", "ssh", name, "-c", HERE)
        assert told.exit_code == 1
        assert "no VM of latentvirt's of the name" in told.stderr
    add(fake, THERE, "farm-9", GuestMark("minion1", (OTHER,)), NETWORK)
    told = command(fake, "vm", "ssh", "minion1", "-c", HERE, "-c", THERE)
    assert told.exit_code == 1
    assert f"farm-1 on {HERE}, farm-9 on {THERE}" in told.stderr


# vm ssh: what it does, on a real ssh and an sshd that stands for a guest's


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[LoopbackSshd]:
    """An sshd on this machine's loopback."""
    with loopback_sshd(tmp_path, tmp_path / "none") as running:
        yield running


def forwarding(fake: FakeLibvirt, uri: str, sshd: LoopbackSshd, key: str) -> None:
    """Let a VM run whose host forwards the sshd's port to it."""
    told = HostKey.parse(key)
    assert told is not None
    words = f"user,id=n,hostfwd=tcp:127.0.0.1:{sshd.port}-:22"
    arguments = f"<qemu:commandline><qemu:arg value='{words}'/></qemu:commandline>"
    add(fake, uri, "farm-4", GuestMark("minion4", (told,)), USER, arguments=arguments)


def key_of(sshd: LoopbackSshd) -> str:
    """Read the sshd's public host key."""
    return (sshd.keyfile.parent / "host_key.pub").read_text()


def log_in(fake: FakeLibvirt, uri: str, sshd: LoopbackSshd, *words: str) -> Result:
    """Log in as root, with the test's key, and run a command there."""
    key = str(sshd.keyfile)
    return command(
        fake, "vm", "ssh", "minion4", "-c", uri, "-l", "root", "--", "-F", "none", "-i", key, "--", *words
    )


@pytest.mark.libvirt
def test_logging_in_checks_the_known_key(
    fake: FakeLibvirt, sshd: LoopbackSshd, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A command runs in the VM whose key is known, its exit status is ours, and nothing is left behind."""
    forwarding(fake, LOCAL, sshd, key_of(sshd))
    assert log_in(fake, LOCAL, sshd, "echo it is $((40 + 2)); exit 7").exit_code == 7
    assert "it is 42" in capfd.readouterr().out


@pytest.mark.libvirt
def test_a_machine_with_another_key_is_refused(
    fake: FakeLibvirt, sshd: LoopbackSshd, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever answers at the VM's address without its key is not talked to, and nobody is asked about it."""
    forwarding(fake, LOCAL, sshd, str(OTHER))
    assert log_in(fake, LOCAL, sshd, "echo", "too", "late").exit_code == 255
    out, err = capfd.readouterr()
    assert "Host key verification failed" in err
    assert "late" not in out


@pytest.mark.libvirt
def test_a_vm_on_a_remote_host_is_reached_through_it(
    fake: FakeLibvirt, sshd: LoopbackSshd, capfd: pytest.CaptureFixture[str]
) -> None:
    """A port that a remote host forwards on its own loopback is reached by a jump with libvirt's key."""
    forwarding(fake, sshd.uri, sshd, key_of(sshd))
    assert log_in(fake, sshd.uri, sshd, "echo", "over", "there").exit_code == 0
    assert "over there" in capfd.readouterr().out
    jumps = sshd.log.read_text().count("Accepted publickey")
    assert jumps == 2


@pytest.mark.libvirt
def test_known_hosts_lets_ssh_connect(fake: FakeLibvirt, sshd: LoopbackSshd, tmp_path: Path) -> None:
    """A known_hosts file of our lines is all that ssh needs to trust a forwarded port."""
    forwarding(fake, LOCAL, sshd, key_of(sshd))
    file = tmp_path / "known"
    file.write_text(command(fake, "known-hosts", "-c", LOCAL).stdout)
    options = ["-F", "none", "-o", f"UserKnownHostsFile={file}", "-o", "StrictHostKeyChecking=yes"]
    said = subprocess.run(
        ["ssh", *options, "-i", sshd.keyfile, "-p", str(sshd.port), "root@127.0.0.1", "echo", "known"],
        capture_output=True,
        text=True,
    )
    assert said.stdout == "known\n", said.stderr


# vm screenshot


def test_a_picture_of_a_vms_screen(fake: FakeLibvirt, tmp_path: Path) -> None:
    """The file is a PNG of what the VM shows; - is standard output."""
    file = tmp_path / "screen.png"
    told = command(fake, "vm", "screenshot", "farm-1", str(file), "-c", HERE)
    assert (told.exit_code, told.output) == (0, "")
    assert file.read_bytes().startswith(b"\x89PNG")
    told = command(fake, "vm", "screenshot", "farm-1", "-", "-c", HERE)
    assert told.stdout_bytes == file.read_bytes()


def test_a_picture_goes_into_a_pipe(fake: FakeLibvirt, tmp_path: Path) -> None:
    """What is no regular file, such as a named pipe, gets the picture and stays what it is."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    told = command(fake, "vm", "screenshot", "farm-1", str(pipe), "-c", HERE)
    assert (told.exit_code, told.output) == (0, "")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    reader.join(10)
    assert got[0].startswith(b"\x89PNG")
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_picture_keeps_the_link_and_the_mode_of_its_file(fake: FakeLibvirt, tmp_path: Path) -> None:
    """A picture of before is replaced where its link leads; whoever could read it can read the new one."""
    (tmp_path / "real").mkdir()
    file, link = tmp_path / "real" / "screen.png", tmp_path / "screen.png"
    file.write_text("before")
    file.chmod(0o640)
    link.symlink_to(file)
    assert command(fake, "vm", "screenshot", "farm-1", str(link), "-c", HERE).exit_code == 0
    assert link.is_symlink()
    assert file.read_bytes().startswith(b"\x89PNG")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_a_picture_that_cannot_be_written_leaves_nothing(
    fake: FakeLibvirt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk the picture of before stays, and no half one beside it; a file needs a name."""
    file = tmp_path / "screen.png"
    file.write_text("before")

    def full(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    told = command(fake, "vm", "screenshot", "farm-1", str(file), "-c", HERE)
    assert told.exit_code == 1
    assert "No space left" in told.stderr
    assert (os.listdir(tmp_path), file.read_text()) == (["screen.png"], "before")
    monkeypatch.chdir(tmp_path)
    assert command(fake, "vm", "screenshot", "farm-1", "", "-c", HERE).exit_code == 2
    assert os.listdir(tmp_path) == ["screen.png"]


def test_a_vm_without_a_screen_makes_no_file(fake: FakeLibvirt, tmp_path: Path) -> None:
    """A domain without a video device is said to have none, and a file that is there stays."""
    file = tmp_path / "screen.png"
    file.write_text("before")
    told = command(fake, "vm", "screenshot", "farm-2", str(file), "-c", HERE)
    assert told.exit_code == 1
    assert "no video device" in told.stderr
    assert "vm console" in told.stderr
    assert file.read_text() == "before"


def test_a_picture_that_is_none_is_an_error(fake: FakeLibvirt, tmp_path: Path) -> None:
    """What cannot be a picture is not written to the file."""
    file = tmp_path / "screen.png"
    domain = fake.inspect(HERE).domain("farm-1")
    assert domain is not None
    domain.screen = b"P6\n640 480\n255\nshort"
    told = command(fake, "vm", "screenshot", "farm-1", str(file), "-c", HERE)
    assert told.exit_code == 1
    assert "640 by 480" in told.stderr
    assert not file.exists()
