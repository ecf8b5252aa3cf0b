"""A libvirtd and an sshd that belong to one test and touch nothing of the machine's own (see sandbox.py)."""

from __future__ import annotations

import os
import shutil
import signal
import socket as sockets
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from sandbox import POLL, START_DEADLINE, Sandbox

NETWORK_XML = Path(__file__).parent.parent / "contrib" / "libvirt" / "network.xml"


class PrivateLibvirtd:
    """A running libvirtd of the test's own.

    Attributes:
        uri: where to open it from outside the sandbox.
        socket: its Unix socket, seen from inside and outside.
        pid: the daemon's process id; changes with `restart`.
        etc: its /etc/libvirt, for hook scripts.
        log: its log file.
        env: environment for programs that have no uri argument.
        sandbox: where it runs.
    """

    def __init__(self, sandbox: Sandbox, socket_folder: Path) -> None:
        self.sandbox = sandbox
        self.socket = socket_folder / "libvirt-sock"
        self.uri = f"qemu+unix:///system?{urlencode({'socket': str(self.socket)}, safe='/')}"
        self.etc = sandbox.root / "etc" / "libvirt"
        self.log = sandbox.root / "libvirtd.log"
        self.env = {**os.environ, "LIBVIRT_DEFAULT_URI": self.uri}
        self._start()

    @property
    def pid(self) -> int:
        """The daemon's process id, as the machine knows it."""
        return self._daemon.pid

    def _start(self) -> None:
        self.socket.unlink(missing_ok=True)
        self._daemon = self.sandbox.spawn(["libvirtd"], self.log)
        deadline = time.monotonic() + START_DEADLINE
        while not self.socket.exists():
            self._daemon.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"libvirtd made no socket: {self.log.read_text()[-4000:]}")
            time.sleep(POLL)
        self.virsh("version")

    def virsh(self, *command: str) -> str:
        """Run virsh, from outside, on this daemon; raise with its message if it failed."""
        result = subprocess.run(
            ["virsh", "-c", self.uri, *command], capture_output=True, text=True, timeout=START_DEADLINE
        )
        if result.returncode:
            raise RuntimeError(f"virsh {' '.join(command)}: {result.stderr}")
        return result.stdout

    def restart(self, sig: signal.Signals = signal.SIGTERM) -> None:
        """End the daemon with a signal and start it again; its guests go on."""
        self._daemon.stop(sig)
        self._start()

    def kill(self) -> None:
        """End the daemon with SIGKILL and leave it at that; its guests go on."""
        self._daemon.stop(signal.SIGKILL)

    def start(self) -> None:
        """Start the daemon again after `kill`."""
        self._start()

    def stop_signal(self) -> None:
        """Make the daemon mute: it still accepts connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def cont(self) -> None:
        """Let the daemon go on after `stop_signal`."""
        os.kill(self.pid, signal.SIGCONT)

    def clear(self) -> None:
        """Destroy what still runs, through libvirt, which then takes its labels off images and kernels.

        A label (an extended attribute) that stays would make the next test's QEMU, under another user, refuse
        them.
        """
        if self._daemon.ended:
            self._start()
        self.cont()
        for domain in filter(None, self.virsh("list", "--name").splitlines()):
            self.virsh("destroy", domain)

    def qemu_pid(self, domain: str) -> int:
        """Return the process id of a running domain's QEMU, as the machine knows it."""
        pid_file = self.sandbox.root / "run" / "libvirt" / "qemu" / f"{domain}.pid"
        return self.sandbox.outer_pid(int(pid_file.read_text()))


def _write_configuration(etc: Path, socket_folder: Path, user: str) -> None:
    group = "kvm" if user == "libvirt-qemu" else user
    (etc / "libvirtd.conf").write_text(
        f'unix_sock_dir = "{socket_folder}"\n'
        'unix_sock_rw_perms = "0700"\n'
        'auth_unix_ro = "none"\nauth_unix_rw = "none"\n'
        'log_outputs = "3:stderr"\n'
    )
    (etc / "qemu.conf").write_text(
        f'user = "{user}"\ngroup = "{group}"\n'
        'security_driver = "none"\ncgroup_controllers = [ ]\nnamespaces = [ ]\nstdio_handler = "file"\n'
    )


@contextmanager
def private_libvirtd(
    tmp: Path, *, netns: bool = False, network: bool = False, user: str = "root"
) -> Iterator[PrivateLibvirtd]:
    """Run a libvirtd of the test's own, for as long as the context lasts.

    Args:
        tmp: a folder for its files; one daemon each.
        netns: whether it and its guests have a network namespace of their own.
        network: whether the network of contrib/libvirt/network.xml is defined and started; needs `netns`.
        user: whom QEMU runs as; "libvirt-qemu" for tests of images' permissions. libvirt's DAC driver then
            changes the owner of disks, as it does on a real host.
    """
    if network and not netns:
        raise ValueError("a bridge and its firewall rules belong into a network namespace: netns=True")
    # A socket's path holds 107 bytes at most, and pytest's folders can be longer.
    socket_folder = Path(tempfile.mkdtemp(prefix="lv-"))
    try:
        with Sandbox(tmp / "libvirtd", netns=netns) as sandbox:
            _write_configuration(sandbox.root / "etc" / "libvirt", socket_folder, user)
            daemon = PrivateLibvirtd(sandbox, socket_folder)
            if network:
                daemon.virsh("net-define", str(NETWORK_XML))
                daemon.virsh("net-start", "buildbot-network")
            try:
                yield daemon
            finally:
                daemon.clear()
    finally:
        shutil.rmtree(socket_folder)


def _free_port() -> int:
    with sockets.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class LoopbackSshd:
    """A running sshd on loopback that lets root in with one key.

    Attributes:
        port: where it listens, on 127.0.0.1.
        keyfile: the private key that it lets in.
        uri: the private libvirtd, through ssh.
        log: what sshd said.
    """

    def __init__(self, port: int, keyfile: Path, client: Path, log: Path) -> None:
        self.port = port
        self.keyfile = keyfile
        self.log = log
        query = urlencode(
            {"keyfile": str(keyfile), "no_verify": 1, "no_tty": 1, "command": str(client)}, safe="/"
        )
        self.uri = f"qemu+ssh://root@127.0.0.1:{port}/system?{query}"


@contextmanager
def loopback_sshd(tmp: Path, libvirt_socket: Path) -> Iterator[LoopbackSshd]:
    """Run an sshd of the test's own, through which a private libvirtd is a remote host.

    Args:
        tmp: a folder for its keys and its log.
        libvirt_socket: the private libvirtd's socket.
    """
    folder = tmp / "sshd"
    with Sandbox(folder) as sandbox:
        (folder / "run" / "sshd").mkdir()  # sshd's privilege separation needs it
        # libvirt's helper on the remote side passes over `socket=` and opens the default path, private here.
        (folder / "run" / "libvirt").mkdir()
        (folder / "run" / "libvirt" / "libvirt-sock").symlink_to(libvirt_socket)
        # `no_verify=1` would note the test's host key in the person's own list.
        client = folder / "ssh"
        client.write_text('#!/bin/sh\nexec ssh -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "$@"\n')
        client.chmod(0o755)
        for key in ("host_key", "client_key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True
            )
        port = _free_port()
        (folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host_key\n"
            f"AuthorizedKeysFile {folder}/client_key.pub\nPermitRootLogin prohibit-password\n"
            "PasswordAuthentication no\nUsePAM no\nStrictModes no\nPidFile none\nUseDNS no\n"
        )
        sshd = shutil.which("sshd") or "/usr/sbin/sshd"
        daemon = sandbox.spawn([sshd, "-D", "-e", "-f", str(folder / "sshd_config")], folder / "sshd.log")
        deadline = time.monotonic() + START_DEADLINE
        while True:
            try:
                sockets.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                daemon.check()
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL)
        yield LoopbackSshd(port, folder / "client_key", client, daemon.log)
