"""`latentvirt doctor`, as a person calls it, on hosts whose answers are made up."""

from __future__ import annotations

import ast
import errno
import json
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from fcntl import ioctl
from pathlib import Path
from typing import Any

import libvirt
import pytest
from click.testing import CliRunner, Result

import reactorthread
from latentvirt.abandoned import Estate
from latentvirt.capabilities import HostCapabilities
from latentvirt.cli import main
from latentvirt.doctor import MasterAddress, Severity
from latentvirt.doctor import shell as shells
from latentvirt.doctor.finding import Finding
from latentvirt.doctor.folders import GIB, MIB, Someone, folder_findings, image_finding, room_finding
from latentvirt.doctor.hypervisor import kvm_finding, security_finding
from latentvirt.doctor.masters import helper_findings
from latentvirt.doctor.reaching import Door, unreached
from latentvirt.doctor.shell import Part, Ran, SeenPath, Shell, read_answer
from latentvirt.doctor.sockets import socket_finding
from latentvirt.doctor.way import way_to
from latentvirt.errors import HostUnreachable
from latentvirt.master.wanting import wanted_in
from latentvirt.names import Lease, directory_name, pool_name
from latentvirt.testing import FakeFile, FakeLibvirt

HERE, THERE = "qemu+ssh://one/system", "qemu+ssh://two/system"
OWNER = "0123456789abcdef"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
HOUR_S = 3600
DAY_S = 24 * HOUR_S

TESTS = Path(__file__).resolve().parent
SOURCE = TESTS.parent / "src" / "latentvirt" / "doctor"
DOCS = TESTS.parent / "docs"

X86 = HostCapabilities(arch="x86_64", machine="q35", emulator="/usr/bin/qemu-system-x86_64", kvm=False)

ANSWER = """Welcome to this host!
latentvirt-doctor
clock {clock}
user 1000 1000
has virt-ssh-helper
path\t/images
part\t/\tdrwxr-xr-x 21 0 0 4096 Nov 21 19:15 /
part\t/images\tdrwx--x--x 2 0 0 4096 Oct 21  2024 /images
room\t/dev/vda1   103833600 51916800 51916800      50% /
kind\text2/ext3
writable
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeLibvirt:
    """Two hosts: on the first a network stands still, and a dead master left an image; the second is away."""
    reactorthread.start()
    made = FakeLibvirt()
    host = made.inspect(HERE)
    host.networks.update({"default": "192.168.122.1"})
    host.stopped_networks.add("default")
    directory = f"/images/{directory_name(OWNER)}"
    for name in (str(Lease(int(time.time()) - 3 * HOUR_S)), "slot1.0a1b2c3d4e5f.overlay.vda"):
        host.add_file(f"{directory}/{name}", FakeFile(format="raw"))
    name = pool_name(OWNER, "/images")
    made.open(HERE).storagePoolCreateXML(
        f"<pool type='dir'><name>{name}</name><target><path>{directory}</path></target></pool>", 0
    )

    def ssh(words: Sequence[str], _: str) -> Ran:
        if "two" in words:
            return Ran(255, "", "ssh: connect to host two port 22: No route to host\n")
        return Ran(0, ANSWER.format(clock=int(time.time())), "")

    monkeypatch.setattr(shells, "run_program", ssh)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return made


def command(fake: FakeLibvirt, *arguments: str) -> Result:
    """Run it, on fake hosts."""
    return CliRunner().invoke(main, ["doctor", *arguments], obj=fake)


def found(fake: FakeLibvirt, *arguments: str) -> dict[str, dict[str, Any]]:
    """Run it on the first host, and return what it found, by id."""
    told = command(fake, "-c", HERE, "--json", *arguments)
    return {one["id"]: one for one in json.loads(told.stdout)}


def test_the_transcript_is_what_the_command_says(fake: FakeLibvirt) -> None:
    """The command answers as the documentation shows."""
    shown = (DOCS / "examples" / "latentvirt-doctor.txt").read_text()
    commands = re.findall(r"^\$ latentvirt (.*)$", shown, re.MULTILINE)
    said = ""
    for line in commands:
        result = CliRunner().invoke(main, shlex.split(line), obj=fake)
        said += f"$ latentvirt {line}\n{result.stdout}{result.stderr}"
    assert len(commands) > 1
    assert said == shown


def test_what_is_wrong_is_told_with_a_way_out(fake: FakeLibvirt) -> None:
    """In a pipe each finding is one line: how bad, which host, what kind, what, and what to do."""
    told = command(fake, "-c", HERE, "-c", THERE)
    assert told.exit_code == 1
    assert told.stderr == ""
    lines = told.stdout.splitlines()
    assert all(
        re.match(r"(problem|warning|ok): \[qemu\+ssh://(one|two)/system\] [a-z-]+: ", line) for line in lines
    )
    assert f"problem: [{THERE}] ssh-unreachable: ssh does not reach two: " in told.stdout
    assert all(" What to do: " in line for line in lines if not line.startswith("ok: "))
    severities = [line.partition(":")[0] for line in lines if HERE in line]
    assert severities == sorted(severities, key=["problem", "warning", "ok"].index)


def test_the_same_as_json(fake: FakeLibvirt) -> None:
    """A program gets a list of objects, each with all that is known of one finding."""
    one = found(fake)["network-inactive"]
    assert one == {
        "id": "network-inactive",
        "severity": "warning",
        "host": HERE,
        "what": "the network default does not run",
        "remedy": f"virsh -c '{HERE}' 'net-start default'",
        "fixable": False,
        "mended": None,
    }


def test_only_what_is_wrong_on_request(fake: FakeLibvirt) -> None:
    """--quiet leaves out what is as it should be; warnings alone are no failure."""
    told = command(fake, "-c", HERE, "--quiet")
    assert told.exit_code == 0
    assert "network-inactive" in told.stdout
    assert not any(line.startswith("ok") for line in told.stdout.splitlines())


def test_what_a_dead_master_left_is_told(fake: FakeLibvirt) -> None:
    """Where a master's claim has run out, or was never made, it is told with the way to sweep."""
    one = found(fake)["leftovers"]
    assert (
        f"the master {OWNER} seems to be no more: its claim on 0 VMs and 1 file ran out 3 h ago"
        in one["what"]
    )
    assert f"latentvirt sweep -c '{HERE}'" in one["remedy"]
    host = fake.inspect(HERE)
    for path in [path for path in host.files if "/lease." in path]:
        del host.files[path]
    assert f"--owner {OWNER}" in found(fake)["leftovers-unclaimed"]["remedy"]
    host.pools.clear()
    assert found(fake)["masters"]["severity"] == "ok"


def test_what_libvirt_has_forgotten_is_found(fake: FakeLibvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leftovers are also found once the host was booted, when libvirt knows nothing of their directory."""
    fake.inspect(HERE).reboot()
    answer = ANSWER + f"ours\t{directory_name(OWNER)}\n"
    assert "leftovers" not in found(fake)
    monkeypatch.setattr(shells, "run_program", lambda *_: Ran(0, answer.format(clock=int(time.time())), ""))
    assert "leftovers" in found(fake, "--folder", "/images")


DEFINED = """
from buildbot.plugins import schedulers, util
from latentvirt import LibVirtWorker
c = BuildmasterConfig = {}
c['workers'] = [LibVirtWorker(name, 'pass', 'qemu+ssh://one/system') for name in ('there', 'gone')]
c['builders'] = [util.BuilderConfig(name='x', workernames=['there', 'gone'], factory=util.BuildFactory())]
c['schedulers'] = [schedulers.ForceScheduler(name='force', builderNames=['x'])]
c['protocols'] = {'pb': {'port': 9989}}
"""


def test_a_domain_that_is_not_defined_is_named(fake: FakeLibvirt, tmp_path: Path) -> None:
    """A worker that starts a predefined domain is told where there is none; its network counts as named."""
    fake.inspect(HERE).define(
        "<domain type='qemu'><name>there</name><memory>1024</memory><os><type>hvm</type></os><devices>"
        "<interface type='network'><source network='default'/></interface></devices></domain>"
    )
    (tmp_path / "master.cfg").write_text(DEFINED)
    config = ("--config", str(tmp_path))
    told = {one["id"]: one for one in json.loads(command(fake, "--json", *config).stdout)}
    assert told["domain-missing"]["severity"] == "problem"
    assert "no domain gone" in told["domain-missing"]["what"]
    assert told["network-inactive"]["severity"] == "problem"
    assert "started the network default" in command(fake, "--fix", *config).stdout


def test_old_versions_are_told(fake: FakeLibvirt) -> None:
    """A libvirt or a QEMU older than any that latentvirt is tried with is named."""
    assert found(fake)["versions"]["what"] == "libvirt 9.0.0 and QEMU 7.2.0"
    fake.inspect(HERE).libvirt_version, fake.inspect(HERE).hypervisor_version = 7_000_000, 5_002_000
    told = found(fake)
    assert (told["libvirt-old"]["severity"], told["qemu-old"]["severity"]) == ("warning", "warning")
    assert "UEFI guests do not start" in told["libvirt-old"]["what"]


def test_a_question_that_fails_does_not_hide_the_others(fake: FakeLibvirt) -> None:
    """What a host refuses to tell is a problem of its own; the rest is looked at all the same."""
    fake.inspect(HERE).trouble.fail_next("listAllNetworks", libvirt.VIR_ERR_ACCESS_DENIED, "access denied")
    told = found(fake)
    assert (told["unanswered"]["severity"], "access denied" in told["unanswered"]["what"]) == (
        "problem",
        True,
    )
    assert "leftovers" in told


def test_a_bad_master_cfg_is_a_finding(fake: FakeLibvirt, tmp_path: Path) -> None:
    """A master.cfg that Buildbot refuses is told as the problem that it is."""
    (tmp_path / "master.cfg").write_text("raise OSError('no')")
    told = command(fake, "--config", str(tmp_path), "--json")
    assert told.exit_code == 1
    (one,) = json.loads(told.stdout)
    assert (one["id"], one["severity"]) == ("config-unusable", "problem")
    assert "buildbot checkconfig" in one["remedy"]


def test_a_bad_argument_in_a_master_cfg_has_one_way_out(fake: FakeLibvirt, tmp_path: Path) -> None:
    """What a worker's argument says of itself is what to do, and that is told once."""
    (tmp_path / "master.cfg").write_text(
        "from latentvirt import LibVirtWorker\nLibVirtWorker('a', 'p', '', base_image='/b')\n"
    )
    told = command(fake, "--config", str(tmp_path))
    assert "URI '' is empty" in told.stdout
    assert told.stdout.count("What to do: ") == 1
    assert "checkconfig" not in told.stdout


@pytest.mark.parametrize("arguments", [("--folder", "images"), ("--nonsense",)])
def test_a_wrong_command_line_is_told_from_problems(fake: FakeLibvirt, arguments: tuple[str, ...]) -> None:
    """Who mistypes gets another exit status than who has problems."""
    assert command(fake, "-c", HERE, *arguments).exit_code == 2


def test_what_cannot_be_mended_is_told(fake: FakeLibvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where --fix comes to nothing the problem stays, with the reason."""
    there = "part\t/images\tdrwx--x--x 2 0 0 4096 Oct 21  2024 /images"
    gone = ANSWER.replace(there, "gone\t/images\tls: cannot access '/images': No such file or directory")
    assert gone != ANSWER
    monkeypatch.setattr(shells, "run_program", lambda *_: Ran(0, gone.format(clock=int(time.time())), ""))
    fake.inspect(HERE).trouble.fail_next("storagePoolCreateXML", libvirt.VIR_ERR_OPERATION_FAILED, "no room")
    one = found(fake, "--folder", "/images", "--fix")["folder-missing"]
    assert (one["severity"], one["mended"]) == ("problem", None)
    assert "it could not be mended: " in one["what"]
    assert "no room" in one["what"]


# KVM, and what confines VMs


def seen(kvm: str = "", *, virtualisation: bool = True) -> Shell:
    """Let a host's shell tell of KVM's device."""
    lines = [
        "latentvirt-doctor",
        "user 0 0",
        "qemu 108 64055",
        *([f"kvm {kvm} 10, 232 /dev/kvm"] if kvm else []),
    ]
    said = read_answer("\n".join([*lines, *(["virtualisation yes"] if virtualisation else []), ""]))
    assert said is not None
    return said


def test_why_kvm_does_not_work_is_told() -> None:
    """A device that is missing, closed to QEMU's user, or of no use is told apart."""
    qemu = (64055, 108)
    open_, closed = "crw-rw---- 1 0 108", "crw------- 1 0 0"
    works = HostCapabilities(arch="x86_64", machine="q35", emulator="/usr/bin/qemu", kvm=True)
    assert kvm_finding("h", works, seen(open_), qemu, ()).id == "kvm"
    assert kvm_finding("h", works, None, None, ("a",)).severity is Severity.OK
    missing = kvm_finding("h", X86, seen(), qemu, ())
    assert (missing.id, missing.severity) == ("kvm-missing", Severity.WARNING)
    shut = kvm_finding("h", works, seen(closed), qemu, ("a",))
    assert (shut.id, shut.severity) == ("kvm-closed", Severity.PROBLEM)
    assert "a must have it" in shut.what
    assert "/dev/kvm (crw-------, owner 0:0)" in shut.what
    hollow = kvm_finding("h", X86, seen(open_, virtualisation=False), qemu, ())
    assert hollow.id == "kvm-hollow"
    assert "vmx" in hollow.what
    assert "may not open it" not in hollow.what
    both = kvm_finding("h", X86, seen(closed, virtualisation=False), qemu, ())
    assert (both.id, "may not open it" in both.what) == ("kvm-hollow", True)


def test_where_a_security_module_tells_its_refusals_is_said() -> None:
    """A person learns where to look when AppArmor or SELinux says no, and which files have no labels."""

    def confined(*models: str) -> Finding | None:
        return security_finding(
            "h", HostCapabilities(arch="x", machine="q35", emulator="q", kvm=True, security_models=models)
        )

    assert confined("dac") is None
    for models, said in ((("apparmor", "dac"), "journalctl -k -g DENIED"), (("selinux", "dac"), "ausearch")):
        told = confined(*models)
        assert told is not None
        assert (told.id, told.severity) == ("security-module", Severity.OK)
        assert said in told.what
    folder = SeenPath(path="/srv", parts=(Part(path="/srv", mode="drwxr-xr-x", uid=0, gid=0),), kind="nfs")
    by_id = {
        one.id: one
        for one in folder_findings("h", folder, Someone(107, (107,)), named=True, by_user=False, selinux=True)
    }
    assert by_id["selinux-network-files"].severity is Severity.WARNING
    assert "virt_use_nfs" in by_id["selinux-network-files"].remedy


def test_an_access_control_list_makes_a_closed_folder_a_doubt() -> None:
    """Where the mode says no and an access control list may say yes, it is only a warning."""
    closed = Part(path="/srv", mode="drwx------", uid=0, gid=0, acl=True)
    (told,) = folder_findings(
        "h",
        SeenPath(path="/srv", parts=(closed,)),
        Someone(107, ()),
        named=True,
        by_user=False,
        selinux=False,
    )
    assert (told.id, told.severity) == ("folder-closed", Severity.WARNING)
    assert "getfacl" in told.what


def test_a_file_in_place_of_a_folder_is_told() -> None:
    """Who names an image where its folder is meant is told that, and not to open it to others."""
    file = SeenPath(path="/srv/base", parts=(Part(path="/srv/base", mode="-rw-r--r--", uid=0, gid=0),))
    (told,) = folder_findings("h", file, Someone(107, ()), named=True, by_user=False, selinux=False)
    assert (told.id, told.severity) == ("folder-missing", Severity.PROBLEM)
    assert "/srv/base is a file" in told.what
    assert "chmod" not in told.remedy
    assert told.fix is None


@pytest.mark.parametrize(("uid", "gid", "whose"), [(107, 107, "u"), (107, 0, "u"), (0, 36, "g"), (0, 0, "o")])
def test_who_keeps_qemu_out_is_told_the_right_that_lacks(uid: int, gid: int, whose: str) -> None:
    """The chmod that is told gives QEMU's user the right, also where that user or its group has the file."""
    someone = Someone(107, (107, 36))
    parts = (
        Part(path="/srv", mode="drwxr-xr-x", uid=0, gid=0),
        Part(path="/srv/base", mode="----------", uid=uid, gid=gid),
    )
    told = image_finding("h", SeenPath(path="/srv/base", parts=parts), someone, ())
    assert told is not None
    assert told.id == "image-closed"
    assert told.remedy.startswith(f"chmod {whose}+r '/srv/base'")
    closed = Part(path="/srv", mode="d---------", uid=uid, gid=gid)
    folder = SeenPath(path="/srv", parts=(closed,))
    (told,) = folder_findings("h", folder, someone, named=True, by_user=False, selinux=False)
    assert told.remedy.startswith(f"chmod {whose}+x '/srv'")


def test_a_file_system_that_is_too_small_is_not_called_full() -> None:
    """Where even an empty file system has no room, nobody is told to remove anything from it."""
    small = SeenPath(path="/srv", size=160 * MIB, free=150 * MIB)
    full = SeenPath(path="/srv", size=50 * GIB, free=150 * MIB)
    told, other = (room_finding("h", seen, 0, 20 * GIB) for seen in (small, full))
    assert told is not None
    assert other is not None
    assert told.id == other.id == "disk-full"
    assert "150 MiB of 160 MiB are free at /srv" in told.what
    assert "too small" in told.what
    assert "make room" not in told.remedy
    assert "make room" in other.remedy


def test_nobody_is_told_to_enable_a_sessions_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own daemon, which no system starts, is not mended by starting the system's."""
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    door = Door(Path("/run/user/1/libvirt/libvirt-sock"), errno.ENOENT)
    told = unreached("qemu:///session", way_to("qemu:///session"), HostUnreachable("no"), door)
    assert told.id == "libvirt-unreachable"
    assert "systemctl" not in told.remedy


def test_a_daemon_that_cannot_be_seen_may_not_run() -> None:
    """Where libvirt's folder is closed to the user, nobody is told that only a group lacks."""
    door = Door(Path("/run/libvirt/libvirt-sock"), errno.EACCES, hidden=True)
    told = unreached("qemu:///system", way_to("qemu:///system"), HostUnreachable("no"), door)
    assert told.id == "libvirt-closed"
    assert "/run/libvirt is closed to that user" in told.what
    assert told.remedy.index("systemctl enable --now libvirtd") < told.remedy.index("usermod -a -G libvirt")


@pytest.mark.parametrize(
    ("libvirt_version", "longest"), [(9_000_000, "/home/buildbot/.config"), (10_000_000, f"/{'h' * 43}")]
)
def test_a_home_that_is_too_long_for_sockets_is_told(
    monkeypatch: pytest.MonkeyPatch, libvirt_version: int, longest: str
) -> None:
    """Who uses a libvirt of their own is warned before its sockets get too long paths, and nobody else."""

    def told(uri: str = "qemu:///session") -> Finding | None:
        return socket_finding(uri, way_to(uri), libvirt_version)

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CONFIG_HOME", longest)
    assert told() is None
    monkeypatch.setenv("XDG_CONFIG_HOME", f"{longest}x")
    found = told()
    assert found is not None
    assert (found.id, found.severity) == ("session-home-long", Severity.WARNING)
    many, most = len(longest) + 1, len(longest)
    assert f"below {longest}x, whose {many} bytes are too many: with more than {most}" in found.what
    assert "XDG_CONFIG_HOME" in found.remedy
    assert told("qemu:///system") is told("qemu+ssh://far/session") is None
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", longest)
    assert told() is not None


def test_an_image_that_the_user_who_asks_cannot_see_is_a_doubt() -> None:
    """Where whoever asks may not look at an image, nobody is told that QEMU may not."""
    hidden = Part(path="/srv/base", error="Permission denied")
    told = image_finding("h", SeenPath(path="/srv/base", parts=(hidden,)), Someone(107, ()), ())
    assert told is not None
    assert (told.id, told.severity) == ("image-unseen", Severity.WARNING)


def test_a_helper_is_missed_only_by_who_needs_it() -> None:
    """Where nothing was frozen yet, workers that need the helper are warned, and no others."""
    idle = Estate(owner=OWNER, until=None, domains=(), files={"/images": ("slot1.0a1b2c3d4e5f.overlay.vda",)})
    assert helper_findings("h", [idle], ()) == []
    (told,) = helper_findings("h", [idle], ("minion1",))
    assert (told.id, told.severity) == ("helper-unseen", Severity.WARNING)
    assert "minion1" in told.what


# Ways to hosts


@pytest.mark.parametrize(
    ("uri", "transport", "host"),
    [
        ("qemu:///system", "unix", ""),
        ("qemu+unix:///session?socket=/x", "unix", ""),
        ("qemu://far.example.org/system", "tls", "far.example.org"),
        ("qemu+ssh://me@far:2222/system", "ssh", "far"),
        ("qemu+tcp://far/system", "tcp", "far"),
        ("qemu:///embed?root=/x", "", ""),
        ("test:///default", "", ""),
    ],
)
def test_the_way_to_a_host_is_read_from_its_uri(uri: str, transport: str, host: str) -> None:
    """Which of libvirt's transports a URI means is known without a connection."""
    way = way_to(uri)
    assert (way.transport, way.host) == (transport, host)


def test_an_aliass_way_is_that_of_its_uri(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A host behind an alias is looked at by ssh as well, as libvirt would go there, and nothing is asked."""
    (tmp_path / "libvirt.conf").write_text('uri_aliases = [ "far=qemu+ssh://me@far:2222/system?keyfile=/k" ]')
    monkeypatch.setattr("latentvirt.doctor.way.client_config", lambda: tmp_path / "libvirt.conf")
    way = way_to("far")
    assert way.by_hand == "ssh -p 2222 -i /k me@far"
    assert way.ssh[way.ssh.index("-l") + 1] == "me"
    assert "BatchMode=yes" in way.ssh


# What a master.cfg wants

WANTING = """
from buildbot.plugins import schedulers, util
from latentvirt import Connection, Hosts, Image, LibVirtWorker, Size
c = BuildmasterConfig = {}
one, two = Connection('qemu+ssh://one/system'), Connection('qemu+ssh://two/system')
XML = (
    "<domain type='qemu'><memory>1024</memory><os><type>hvm</type></os><devices><disk type='file'>"
    "<driver name='qemu' type='qcow2'/><source file='/vms/a'/><target dev='vda'/></disk>"
    "<interface type='network'><source network='lan'/></interface></devices></domain>"
)
c['workers'] = [
    LibVirtWorker('xml', 'pass', one, '/vms/a', '/srv/base', xml=XML, identity='channel'),
    LibVirtWorker('sized', 'pass', Hosts(one, two), base_image='/srv/base', size=Size(), networks=['extra'],
                  masterFQDN='ci.example.org:9990', virt_type='kvm'),
    LibVirtWorker('copied', 'pass', two, base_image=Image('/srv/image'), size=Size()),
    LibVirtWorker('defined', 'pass', two),
    LibVirtWorker('varies', 'pass', one, base_image=util.Interpolate('/srv/%(prop:image)s')),
]
names = [worker.name for worker in c['workers']]
c['builders'] = [util.BuilderConfig(name='x', workernames=names, factory=util.BuildFactory())]
c['schedulers'] = [schedulers.ForceScheduler(name='force', builderNames=['x'])]
c['protocols'] = {'pb': {'port': 'tcp:9989:interface=127.0.0.1'}}
"""


def test_what_a_master_cfg_wants_of_each_host_is_read(tmp_path: Path) -> None:
    """Of each host are wanted the folders, images and networks of its workers that depend on no build."""
    (tmp_path / "master.cfg").write_text(WANTING)
    one, two = wanted_in(str(tmp_path), ["/more"])
    assert (one.uri, two.uri) == (HERE, THERE)
    assert one.folders == ("/vms", "/srv", "/more")
    assert two.folders == ("/srv", "/var/lib/libvirt/images", "/more")
    assert (one.images, two.images) == (("/srv/base",), ("/srv/base",))
    assert (one.networks, two.networks) == (("lan", "extra"), ("extra",))
    assert (one.domains, two.domains) == ((), ("defined",))
    assert (one.kvm, one.helper, two.helper) == (("sized",), ("xml",), ())
    inside = "127.0.0.1"
    assert set(one.addresses) == {
        MasterAddress(network="lan", given=None, port=9989, interface=inside),
        MasterAddress(network="user", given="ci.example.org", port=9990, interface=inside, sure=False),
        MasterAddress(network="", given=None, port=9989, interface=inside, sure=False),
    }


# On a terminal


@pytest.mark.parametrize("columns", [80, 200])
def test_a_terminal_is_filled_and_not_overrun(columns: int, tmp_path: Path) -> None:
    """On a terminal texts are folded beside how bad they are, each host has a head, and there is a sum."""
    host = f"qemu+unix:///system?socket={tmp_path}/none"
    far, near = pty.openpty()
    ioctl(near, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from latentvirt.cli import main; main()",
            "doctor",
            "-c",
            "nowhere",
            "-c",
            host,
        ],
        stdin=near,
        stdout=near,
        stderr=near,
        env={**{key: value for key, value in os.environ.items() if key != "COLUMNS"}, "TERM": "xterm"},
        start_new_session=True,
    )
    os.close(near)
    shown = b""
    while b"should be" not in re.sub(rb"\s+", b" ", shown):
        shown += os.read(far, 4096)
    assert child.wait(timeout=60) == 1
    os.close(far)
    lines = [line.rstrip() for line in ESCAPES.sub("", shown.decode()).splitlines()]
    assert max(map(len, lines)) <= columns
    folded = [line for line in lines if line.startswith(" " * 11)]
    assert (max(map(len, folded)) > 80) is (columns > 80)
    head = next(number for number, line in enumerate(lines) if line.endswith("nowhere"))
    assert lines[head + 1].startswith("  problem  'nowhere' is no URI")
    assert any(line.strip().startswith("→ add 'nowhere=qemu+ssh://") for line in folded)
    assert "2 problems and 0 warnings; 0 things are as they should be." in " ".join(lines)


# What is known of findings


def ids_in_source() -> set[str]:
    """Collect the ids of all findings there are."""
    found: set[str] = set()
    for path in [*SOURCE.glob("*.py"), SOURCE.parent / "cli" / "doctor.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                first = node.args[0] if node.args else None
                makes = node.func.id in ("fine", "warning", "problem", "tell")
                if makes and isinstance(first, ast.Constant) and " " not in first.value:
                    found.add(first.value)
    return found | {"folder-closed", "folder-unseen", "image-closed", "image-unseen"}


def test_every_finding_is_documented_and_no_other() -> None:
    """A person can look up what each id means."""
    page = (DOCS / "howto" / "doctor.rst").read_text()
    terms = {
        term
        for line in re.findall(r"^(``.+``)$", page, re.MULTILINE)
        for term in re.findall(r"``(.+?)``", line)
    }
    assert terms == ids_in_source()


def test_every_finding_is_tried() -> None:
    """There is a test that has seen each finding that is not about something being well."""
    files = [*TESTS.glob("test_doctor*.py"), TESTS / "test_cli_doctor.py"]
    tested = "".join(path.read_text() for path in files)
    tested, _, _ = tested.partition("# What is known of findings\n")
    assert {id for id in ids_in_source() if re.search(rf"\b{id}\b", tested) is None} == set()
