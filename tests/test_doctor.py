"""What `latentvirt doctor` finds where things were broken for real: daemons, ssh, modes, disks, networks."""

from __future__ import annotations

import grp
import json
import os
import pwd
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from click.testing import CliRunner

import reactorthread
from brokenoff import watched
from latentvirt.cli import main
from latentvirt.config import Connection
from latentvirt.doctor import Finding, MasterAddress, Severity, Wanted, examine
from latentvirt.doctor.folders import GIB, Someone, folder_findings
from latentvirt.doctor.masters import address_finding, call, guest_sees
from latentvirt.doctor.shell import ask_shell
from latentvirt.host import Deadlines, Host
from latentvirt.names import FileName
from latentvirt.storage import open_storage
from privatelibvirt import LoopbackSshd, PrivateLibvirtd, loopback_sshd, private_libvirtd
from reactorthread import run

NETWORK = "buildbot-network"
OWNER = "0123456789abcdef"
HASTY_S = 0.5
"""How long a libvirt may take to answer that will not."""

OK, WARNING, PROBLEM = Severity.OK, Severity.WARNING, Severity.PROBLEM
NOBODY = 65534

MIB = 1024**2
ISOLATED = "<network><name>mute</name><bridge name='virbr-mute'/><ip address='192.168.175.1'/></network>"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder through which all may pass, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="lv-doctor-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateLibvirtd]:
    """A libvirt with a network, whose QEMU has a user of its own."""
    tmp = tmp_path_factory.mktemp("doctor")
    with private_libvirtd(tmp, netns=True, network=True, user="libvirt-qemu") as running:
        yield running


@pytest.fixture(scope="module")
def sshd(daemon: PrivateLibvirtd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackSshd]:
    """The way to the same libvirt by ssh."""
    with loopback_sshd(tmp_path_factory.mktemp("sshd"), daemon.socket) as running:
        yield running


def look(wanted: Wanted, deadlines: Deadlines | None = None) -> dict[str, Finding]:
    """Examine a host, and return what was found by its id."""

    async def work() -> list[Finding]:
        host = Host(wanted.connection, reactorthread.start(), deadlines=deadlines)
        try:
            return await examine(host, wanted)
        finally:
            await host.close()

    return {finding.id: finding for finding in run(work())}


def at(uri: str, **wants: Any) -> Wanted:
    """Want something of a host."""
    return Wanted(connection=Connection(uri), **wants)


def only(wanted: Wanted, deadlines: Deadlines | None = None) -> Finding:
    """Examine a host of which one thing only can be said."""
    (finding,) = look(wanted, deadlines).values()
    return finding


def doctor(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """Run the command; returns its exit status and what it says as JSON."""
    reactorthread.start()
    told = CliRunner().invoke(main, ["doctor", "--json", *arguments])
    return told.exit_code, json.loads(told.stdout)


def ids(told: list[dict[str, Any]], severity: str = "") -> set[str]:
    """Name what was found."""
    return {one["id"] for one in told if severity in ("", one["severity"])}


# The daemon on this machine


def unix(path: Path) -> str:
    """Name the libvirt behind a socket."""
    return f"qemu+unix:///system?socket={path}"


def test_a_daemon_that_does_not_run_is_told_from_one_that_refuses(folder: Path) -> None:
    """Where nobody listens, it is said that libvirt's daemon does not run, and how to start it."""
    found = only(at(unix(folder / "libvirt-sock")))
    assert (found.id, found.severity) == ("libvirt-not-running", PROBLEM)
    assert str(folder / "libvirt-sock") in found.what
    assert "systemctl enable --now libvirtd" in found.remedy
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(folder / "left"))  # as after kill -9
    assert only(at(unix(folder / "left"))).id == "libvirt-not-running"


@contextmanager
def listener(path: Path) -> Iterator[socket.socket]:
    """Listen at a socket."""
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(path))
        door.listen()
        yield door


def test_a_daemon_that_does_not_answer_is_named(folder: Path) -> None:
    """A libvirt that takes connections and stays mute does not hang the command, which says so."""
    with listener(folder / "sock"):
        found = only(at(unix(folder / "sock")), Deadlines(open=HASTY_S))
    assert (found.id, found.severity) == ("libvirt-mute", PROBLEM)
    assert "restart it" in found.remedy


def test_what_libvirt_itself_says_is_told_where_nothing_else_is_known(folder: Path) -> None:
    """A daemon that hangs up is told in libvirt's words, with the way to look."""
    with listener(folder / "sock") as door:
        child = os.fork()
        if not child:
            while True:
                door.accept()[0].close()
        try:
            found = only(at(unix(folder / "sock")))
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)
    assert (found.id, found.severity) == ("libvirt-unreachable", PROBLEM)
    assert "virsh -c" in found.remedy


def as_nobody(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """Run the command as a user who may write to a home in a folder only, in a process of its own."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    os.chown(home, NOBODY, NOBODY)
    done = subprocess.run(
        [sys.executable, "-c", "from latentvirt.cli import main; main()", "doctor", "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(home)},
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
    )
    assert done.returncode in (0, 1), done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.libvirt
def test_a_user_who_may_not_use_libvirt_is_told_the_group(folder: Path) -> None:
    """Where the socket is closed to the user, the group is named that it is open to."""
    with listener(folder / "sock"):
        os.chown(folder / "sock", 0, grp.getgrnam("kvm").gr_gid)
        (folder / "sock").chmod(0o770)
        (found,) = as_nobody(folder, "-c", unix(folder / "sock"))
    assert (found["id"], found["severity"]) == ("libvirt-closed", "problem")
    assert f"usermod -a -G kvm {pwd.getpwuid(NOBODY).pw_name}" in found["remedy"]


@pytest.mark.libvirt
def test_where_the_sockets_folder_is_closed_the_daemon_may_not_run(folder: Path) -> None:
    """Who may not see whether a daemon runs is told first to see to that, and then of the group."""
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    (found,) = as_nobody(folder, "-c", unix(closed / "sock"))
    assert (found["id"], found["severity"]) == ("libvirt-closed", "problem")
    assert f"or its daemon does not run: {closed} is closed" in found["what"]
    assert found["remedy"].startswith("see as root whether it runs (systemctl status")
    start, join = (found["remedy"].index(words) for words in ("enable --now", "usermod -a -G libvirt"))
    assert start < join


def test_an_alias_that_is_none_is_named() -> None:
    """A name that libvirt's configuration does not have is said to be none."""
    found = only(at("latentvirt-has-no-such-alias"))
    assert (found.id, found.severity) == ("alias-unknown", PROBLEM)
    assert "uri_aliases" in found.remedy


# Embed

HOLD = (
    "import sys, libvirt; libvirt.virEventRegisterDefaultImpl(); held = libvirt.open(sys.argv[1]);"
    "print('open', flush=True); sys.stdin.read()"
)


def embed(folder: Path, owner: int = 0) -> str:
    """Make the root of an embedded libvirt."""
    root = folder / "root"
    (root / "etc").mkdir(parents=True)
    user = "" if owner else 'user = "root"\n'
    (root / "etc" / "qemu.conf").write_text(f'{user}security_driver = "none"\ncgroup_controllers = [ ]\n')
    for path in (root, root / "etc"):
        os.chown(path, owner, owner)
    return f"qemu:///embed?root={root}"


@pytest.mark.libvirt
def test_an_embedded_root_that_a_master_has_is_said_to_be_in_use(folder: Path) -> None:
    """Who has the root open is named, with where to ask instead; libvirt's own words would not help."""
    uri = embed(folder)
    holding = [sys.executable, "-c", HOLD, uri]
    with watched(
        subprocess.Popen(holding, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "open\n"
        command = [sys.executable, "-c", "from latentvirt.cli import main; main()", "doctor", "-c", uri]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        holder.stdin.close()
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith(f"problem: [{uri}] embed-in-use: process {holder.pid} (")
    assert "latentvirt.host_states" in done.stdout


@pytest.mark.libvirt
def test_what_an_embedded_libvirt_cannot_do_is_said(folder: Path) -> None:
    """On embed, networks are not to be had, and the user itself must be able to write to the folder."""
    (folder / "images").mkdir()
    config = folder / "master.cfg"
    config.write_text(MASTER_CFG.format(uri=embed(folder, NOBODY), images=folder / "images", port=1, more=""))
    found = {one["id"]: one for one in as_nobody(folder, "--config", str(config))}
    assert found["network-embed"]["severity"] == "problem"
    assert "qemu:///system" in found["network-embed"]["remedy"]
    assert found["folder-not-writable"]["severity"] == "problem"
    (folder / "file").touch()
    (found_,) = as_nobody(folder, "-c", f"qemu:///embed?root={folder}/file")
    assert (found_["id"], found_["severity"]) == ("embed-failed", "problem")


# ssh


def changed(uri: str, *drop: str, **parameters: str) -> str:
    """Change parameters of a URI."""
    base, _, query = uri.partition("?")
    kept = dict(word.split("=", 1) for word in query.split("&"))
    kept = {key: value for key, value in kept.items() if key not in drop} | parameters
    return f"{base}?{'&'.join(f'{key}={quote(value)}' for key, value in kept.items())}"


def program(folder: Path, *lines: str) -> str:
    """Make a program that stands for ssh."""
    made = folder / "ssh"
    made.write_text("\n".join(("#!/bin/sh", *lines, "")))
    made.chmod(0o755)
    return str(made)


@pytest.mark.libvirt
def test_ssh_that_asks_nothing_is_well(sshd: LoopbackSshd) -> None:
    """A host by ssh is looked at as one on this machine is, its clock included."""
    found = look(at(sshd.uri))
    assert {"ssh", "versions", "clock"} <= found.keys()
    assert {found[name].severity for name in ("ssh", "versions", "clock")} == {OK}


@pytest.mark.libvirt
def test_an_unknown_host_key_is_found_before_anybody_is_asked(sshd: LoopbackSshd, folder: Path) -> None:
    """Where ssh would ask whether a key is right, the person is told to answer once by hand."""
    found = only(at(changed(sshd.uri, "no_verify")))
    assert (found.id, found.severity) == ("ssh-host-key-unknown", PROBLEM)
    assert f"ssh -p {sshd.port}" in found.remedy


@pytest.mark.libvirt
def test_a_host_key_that_has_changed_is_told_as_that(sshd: LoopbackSshd, folder: Path) -> None:
    """A host that was installed anew, or is another, is told from one that nobody knows yet."""
    other = (sshd.keyfile.with_suffix(".pub")).read_text().split()[:2]
    known = folder / "known_hosts"
    known.write_text(f"[127.0.0.1]:{sshd.port} {' '.join(other)}\n")
    ssh = program(folder, f'exec ssh -o UserKnownHostsFile={known} "$@"')
    found = only(at(changed(sshd.uri, "no_verify", command=ssh)))
    assert (found.id, found.severity) == ("ssh-host-key-changed", PROBLEM)
    assert f"ssh-keygen -R '[127.0.0.1]:{sshd.port}'" in found.remedy


@pytest.mark.libvirt
def test_a_login_that_would_ask_for_a_password_is_told(sshd: LoopbackSshd, folder: Path) -> None:
    """Where the key is not let in, the person is told to give the user one, and nothing is asked."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "another")], check=True)
    found = only(at(changed(sshd.uri, keyfile=str(folder / "another"))))
    assert (found.id, found.severity) == ("ssh-login-refused", PROBLEM)
    assert "ssh-copy-id" in found.remedy


@pytest.mark.libvirt
def test_a_host_that_ssh_does_not_reach_is_told() -> None:
    """A port where nobody listens is told as that, in ssh's words."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listened at
        found = only(at(f"qemu+ssh://127.0.0.1:{taken.getsockname()[1]}/system?no_verify=1"))
    assert (found.id, found.severity) == ("ssh-unreachable", PROBLEM)
    assert "Connection refused" in found.what


def test_what_else_ssh_says_is_told(folder: Path) -> None:
    """A login that ends in some other way is told with the last that was said, and how to look."""
    ssh = program(folder, "echo 'This account is currently not available.' >&2", "exit 3")
    found = only(at(f"qemu+ssh://somebody@127.0.0.1/system?command={ssh}"))
    assert (found.id, found.severity) == ("ssh-failed", PROBLEM)
    assert "status 3: This account is currently not available." in found.what
    assert "ssh somebody@127.0.0.1" in found.remedy


def test_a_host_without_libvirts_helper_is_told(folder: Path) -> None:
    """Where ssh works and libvirt's own program is missing on the host, that is what is said."""
    ssh = program(folder, "echo latentvirt-doctor; echo user 1000 1000")
    found = look(at(f"qemu+ssh://127.0.0.1/system?command={ssh}"))
    assert found.keys() == {"ssh", "ssh-no-helper"}
    assert "virt-ssh-helper" in found["ssh-no-helper"].what


@pytest.mark.libvirt
def test_a_clock_that_is_off_is_told(sshd: LoopbackSshd, folder: Path) -> None:
    """A host whose clock is an hour behind is named."""
    behind = int(time.time()) - 3600
    real = sshd.uri.partition("command=")[2]
    ssh = program(
        folder,
        'case "$*" in',
        f'*ConnectTimeout*) {real} "$@" | sed "s/^clock .*/clock {behind}/" ;;',
        f'*) exec {real} "$@" ;;',
        "esac",
    )
    wanted = at(changed(sshd.uri, command=ssh))
    found = look(wanted).get("clock-off")
    assert found is not None
    assert found.severity is WARNING
    assert "behind" in found.what


# Networks


@pytest.fixture
def network(daemon: PrivateLibvirtd) -> Iterator[PrivateLibvirtd]:
    """A libvirt whose network is as it was afterwards."""
    yield daemon
    if NETWORK not in daemon.virsh("net-list", "--name").split():
        daemon.virsh("net-start", NETWORK)
    daemon.virsh("net-autostart", NETWORK, "--disable")


@pytest.mark.libvirt
def test_a_network_that_does_not_run_is_found_and_started(network: PrivateLibvirtd, folder: Path) -> None:
    """A network that master.cfg names and that does not run is a problem, and --fix starts it."""
    network.virsh("net-destroy", NETWORK)
    config = folder / "master.cfg"
    (folder / "images").mkdir()
    (folder / "images" / "base").touch()
    config.write_text(MASTER_CFG.format(uri=network.uri, images=folder / "images", port=1, more=""))
    status, told = doctor("--config", str(config))
    (found,) = (one for one in told if one["id"] == "network-inactive")
    assert (status, found["severity"], found["fixable"]) == (1, "problem", True)
    assert network.virsh("net-list", "--name").split() == []
    _, told = doctor("--fix", "--config", str(config))
    (found,) = (one for one in told if one["id"] == "network-inactive")
    assert (found["severity"], found["fixable"]) == ("ok", False)
    assert found["mended"] == f"started the network {NETWORK}, which did not run"
    assert network.virsh("net-list", "--name").split() == [NETWORK]


@pytest.mark.libvirt
def test_a_network_is_well_when_it_runs_after_a_boot_too(network: PrivateLibvirtd) -> None:
    """A network that runs, but would not after the host was booted, is told from one that would."""
    wanted = at(network.uri, networks=(NETWORK,))
    assert look(wanted)["network-no-autostart"].severity is WARNING
    network.virsh("net-autostart", NETWORK)
    assert look(wanted)["network"].severity is OK


@pytest.mark.libvirt
def test_a_network_without_dhcp_or_not_there_is_found(network: PrivateLibvirtd, folder: Path) -> None:
    """Guests would get no address in a network without DHCP; one that is not there is named."""
    (folder / "mute.xml").write_text(ISOLATED)
    network.virsh("net-create", str(folder / "mute.xml"))
    try:
        found = look(at(network.uri, networks=("mute", "nowhere")))
    finally:
        network.virsh("net-destroy", "mute")
    assert found["network-no-dhcp"].severity is WARNING
    assert "net-edit 'mute'" in found["network-no-dhcp"].remedy
    assert found["network-missing"].severity is PROBLEM
    assert NETWORK in found["network-missing"].what


# Image folders


@pytest.mark.libvirt
def test_the_component_that_keeps_qemu_out_is_named(daemon: PrivateLibvirtd, folder: Path) -> None:
    """Of a path that QEMU's user cannot pass through, the folder and its mode are named, once."""
    images = folder / "closed" / "images"
    images.mkdir(parents=True)
    (images / "base").touch(mode=0o644)
    wanted = at(daemon.uri, folders=(str(images),), images=(str(images / "base"),))
    found = look(wanted)
    assert (found["folder"].severity, found["image"].severity) == (OK, OK)
    (folder / "closed").chmod(0o700)
    found = look(wanted)
    assert found["folder-closed"].severity is PROBLEM
    assert f"{folder}/closed (drwx------, owner 0:0)" in found["folder-closed"].what
    assert f"chmod o+x '{folder}/closed'" in found["folder-closed"].remedy
    assert "image-closed" not in found


@pytest.mark.libvirt
def test_an_image_that_qemu_cannot_read_is_named(daemon: PrivateLibvirtd, folder: Path) -> None:
    """A base image that is closed to QEMU's user, or not there, is told; its group counts."""
    closed, lent = folder / "closed", folder / "lent"
    closed.touch(mode=0o600)
    lent.touch()
    os.chown(lent, 0, grp.getgrnam("kvm").gr_gid)
    lent.chmod(0o640)
    images = tuple(str(folder / name) for name in ("closed", "lent", "gone"))
    found = look(at(daemon.uri, folders=(str(folder),), images=images))
    assert (found["image-closed"].severity, found["image-missing"].severity) == (PROBLEM, PROBLEM)
    assert f"chmod o+r '{closed}'" in found["image-closed"].remedy
    assert str(folder / "gone") in found["image-missing"].what
    assert str(lent) in found["image"].what


@pytest.mark.libvirt
def test_a_folder_on_a_remote_host_is_looked_at_too(sshd: LoopbackSshd, folder: Path) -> None:
    """What keeps QEMU from an image folder is also found on a host by ssh."""
    folder.chmod(0o700)
    try:
        assert look(at(sshd.uri, folders=(str(folder),)))["folder-closed"].severity is PROBLEM
    finally:
        folder.chmod(0o755)


@pytest.mark.libvirt
def test_a_folder_that_is_not_there_is_made(daemon: PrivateLibvirtd, folder: Path) -> None:
    """An image folder that is named and missing is a problem, and --fix makes it, and no pool over it."""
    images = folder / "not" / "there"
    status, told = doctor("-c", daemon.uri, "--folder", str(images))
    assert status == 1
    assert ids(told, "problem") == {"folder-missing"}
    assert not images.exists()
    status, told = doctor("-c", daemon.uri, "--folder", str(images), "--fix")
    assert status == 0, told
    assert f"made the folder {images}, which was not there" in {one["mended"] for one in told}
    assert images.is_dir()
    assert str(images) not in daemon.virsh("pool-list", "--all", "--details")


@pytest.mark.libvirt
def test_a_pool_over_an_image_folder_that_does_not_run_is_started(
    daemon: PrivateLibvirtd, folder: Path
) -> None:
    """A person's pool that does not run is told, and --fix starts it."""
    daemon.virsh("pool-define-as", "mine", "dir", "--target", str(folder))
    try:
        _, told = doctor("-c", daemon.uri, "--folder", str(folder))
        assert "pool-inactive" in ids(told, "warning")
        _, told = doctor("-c", daemon.uri, "--folder", str(folder), "--fix")
        assert "started the storage pool mine, which did not run" in {one["mended"] for one in told}
        assert "mine" in daemon.virsh("pool-list", "--name").split()
        daemon.virsh("pool-destroy", "mine")
    finally:
        daemon.virsh("pool-undefine", "mine")


@pytest.mark.libvirt
@pytest.mark.parametrize(
    ("size", "id", "severity"),
    [
        (24 * MIB, "disk-full", PROBLEM),
        (5 * GIB, "disk-low", WARNING),
        (15 * GIB, "disk-frozen", WARNING),
        (40 * GIB, "disk", OK),
    ],
)
def test_a_disk_that_has_little_room_is_found(
    daemon: PrivateLibvirtd, folder: Path, size: int, id: str, severity: Severity
) -> None:
    """A disk that is full, or will be when the frozen images that may be there are, is told."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "small", folder], check=True)
    try:
        found = look(at(daemon.uri, folders=(str(folder),)))
    finally:
        subprocess.run(["umount", folder], check=True)
    assert found[id].severity is severity
    assert "frozen images take 0 MiB of the 20.0 GiB" in found[id].what


@pytest.mark.libvirt
def test_what_frozen_images_take_is_told(daemon: PrivateLibvirtd, folder: Path) -> None:
    """The share of frozen images is told, other files left out; they show that the guest helper is there."""
    wanted = at(daemon.uri, folders=(str(folder),))

    async def freeze() -> None:
        host = Host(wanted.connection, reactorthread.start())
        storage = open_storage(host, OWNER, str(folder))
        await storage.prepare()
        path = await storage.create_empty(FileName("slot1", "0a1b2c3d4e5f", "memory", "ram"))
        Path(path).write_bytes(os.urandom(3 * MIB))
        path = await storage.create_empty(FileName("slot1", "ffffffffffff", "overlay", "vda"))
        Path(path).write_bytes(os.urandom(5 * MIB))
        await storage.create_empty(FileName("slot1", "0a1b2c3d4e5f", "frozen", "0123"))
        await host.close()

    run(freeze())
    found = look(wanted)
    text = next(found[id] for id in found if id.startswith("disk")).what
    assert "frozen images take 3 MiB" in text
    assert found["helper"].severity is OK
    assert "leftovers-unclaimed" in found  # there is no lease
    for pool in daemon.virsh("pool-list", "--name").split():
        daemon.virsh("pool-destroy", pool)


@pytest.mark.libvirt
def test_a_path_that_the_user_who_asks_cannot_see_is_not_called_wrong(folder: Path) -> None:
    """Where whoever asks cannot look, it is said that nobody knows, and not that QEMU is kept out."""
    (folder / "closed" / "images").mkdir(parents=True)
    (folder / "closed").chmod(0o711)
    (folder / "closed" / "images").chmod(0o755)
    (folder / "closed").chmod(0o700)
    weak = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "sh", "-c"]
    shell, ran = ask_shell(weak, [str(folder / "closed" / "images")], 0)
    assert shell is not None, ran
    (found,) = folder_findings(
        "here", shell.paths[0], Someone(0, (0,)), named=True, by_user=False, selinux=False
    )
    assert (found.id, found.severity) == ("folder-unseen", WARNING)
    assert "Permission denied" in found.what


@pytest.mark.libvirt
@pytest.mark.parametrize(("named", "severity"), [(True, PROBLEM), (False, WARNING)])
def test_a_folder_that_a_users_own_libvirt_may_not_write_to(folder: Path, named: bool, severity: str) -> None:
    """With qemu:///session it is the user who makes the files; a folder that is closed to them is told."""
    (folder / "images").mkdir()
    folder.chmod(0o755)
    weak = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "sh", "-c"]
    shell, ran = ask_shell(weak, [str(folder / "images")], 0)
    assert shell is not None, ran
    someone = Someone.of(shell, None)
    (found,) = folder_findings("here", shell.paths[0], someone, named=named, by_user=True, selinux=False)
    assert (found.id, found.severity) == ("folder-not-writable", severity)
    assert "images= of the Connection" in found.remedy


# The master's address

MASTER_CFG = """
from buildbot.plugins import schedulers, util
from latentvirt import Connection, LibVirtWorker
c = BuildmasterConfig = {{}}
c['workers'] = [LibVirtWorker('a', 'pass', Connection('{uri}'), base_image='{images}/base',
                              size={{'memory': 512}}, network='buildbot-network'{more})]
c['builders'] = [util.BuilderConfig(name='x', workernames=['a'], factory=util.BuildFactory())]
c['schedulers'] = [schedulers.ForceScheduler(name='force', builderNames=['x'])]
c['protocols'] = {{'pb': {{'port': {port}}}}}
"""


def seen(given: str | None, port: int | None, *, network: str = "user", interface: str = "") -> Finding:
    """Call a master as guests on this machine would be told to."""
    address = MasterAddress(network=network, given=given, port=port, interface=interface)
    told = guest_sees(address, is_here=True, networks=(), fallback=lambda: "localhost")
    return address_finding("here", address, call(told, port))


def test_whether_a_master_answers_is_seen() -> None:
    """With user-mode networking guests reach the loopback here: it is said whether a master is there."""
    with socket.socket() as master:
        master.bind(("127.0.0.1", 0))
        port = master.getsockname()[1]
        silent = seen(None, port)
        master.listen()
        assert seen(None, port).id == "master"
    assert (silent.id, silent.severity) == ("master-silent", WARNING)
    assert f"10.0.2.2:{port} (127.0.0.1 here)" in silent.what


def test_addresses_that_guests_cannot_use_are_found() -> None:
    """A name that means the guest itself, nothing, or another machine, is told before a build hangs on it."""
    assert (seen("localhost", 9989).id, seen("localhost", 9989).severity) == ("master-loopback", PROBLEM)
    assert seen(None, 9989, network="lan").id == "master-loopback"
    unsure = MasterAddress(network="user", given="localhost", port=9989, sure=False)
    assert address_finding("here", unsure, call("localhost", 9989)).severity is WARNING
    # A name that can be none, so that nobody is asked for it.
    assert (seen("no..such", 9989).id, seen("no..such", 9989).severity) == (
        "master-unknown-name",
        PROBLEM,
    )
    # Of the addresses for documentation; nothing is sent there.
    assert (seen("192.0.2.1", 9989).id, seen("192.0.2.1", 9989).severity) == ("master-elsewhere", WARNING)
    inside = seen("192.0.2.1", 9989, interface="127.0.0.1")
    assert (inside.id, inside.severity) == ("master-listens-inside", PROBLEM)
    assert (seen(None, None).id, seen(None, None).severity) == ("master-port-unknown", WARNING)


@pytest.mark.libvirt
def test_what_a_master_cfg_wants_is_looked_at(daemon: PrivateLibvirtd, folder: Path) -> None:
    """The folder, the image, KVM, the helper and the address that a master.cfg names are all looked at."""
    config = folder / "master.cfg"
    more = ", virt_type='kvm', start='thaw', masterFQDN='localhost'"
    config.write_text(
        MASTER_CFG.format(uri=daemon.uri, images=folder, port="'tcp:9989:interface=127.0.0.1'", more=more)
    )
    status, told = doctor("--config", str(config))
    assert status == 1
    assert {"image-missing", "master-loopback"} <= ids(told, "problem")
    assert {"helper-unseen", "network-no-autostart"} <= ids(told, "warning")
    assert any(one["id"].startswith("kvm") for one in told)
