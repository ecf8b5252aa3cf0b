"""The daemons that other tests rely on: what they promise must be true, or those tests prove nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from guests import busybox_guest
from privatelibvirt import PrivateLibvirtd, loopback_sshd, private_libvirtd

DEADLINE = 60.0
POLL = 0.1
MUTE_SECONDS = "2"

pytestmark = pytest.mark.libvirt


def boot(daemon: PrivateLibvirtd, folder: Path, name: str = "guest") -> None:
    """Start a guest that does nothing."""
    guest = busybox_guest()
    xml = folder / f"{name}.xml"
    xml.write_text(
        f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>128</memory>
        <os><type arch='x86_64' machine='q35'>hvm</type><kernel>{guest.kernel}</kernel></os></domain>"""
    )
    daemon.virsh("create", str(xml))


def gone(pid: int) -> bool:
    """Whether a process has ended, within the deadline."""
    deadline = time.monotonic() + DEADLINE
    while os.path.exists(f"/proc/{pid}"):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True


def test_it_is_a_remote_host_over_ssh(tmp_path: Path) -> None:
    """A guest started through the socket is seen through ssh; the person's list of hosts stays as it is."""
    known = Path.home() / ".ssh" / "known_hosts"
    before = known.read_bytes() if known.exists() else None
    with private_libvirtd(tmp_path) as daemon, loopback_sshd(tmp_path, daemon.socket) as sshd:
        boot(daemon, tmp_path)
        listed = subprocess.run(
            ["virsh", "-c", sshd.uri, "list", "--name"], capture_output=True, text=True, timeout=DEADLINE
        )
        assert listed.stdout.split() == ["guest"], listed.stderr
    assert (known.read_bytes() if known.exists() else None) == before


def test_guests_outlive_the_daemon_and_not_the_test(tmp_path: Path) -> None:
    """QEMU runs on through restarts of libvirtd, in both ways, and is gone when the context is left."""
    with private_libvirtd(tmp_path) as daemon:
        boot(daemon, tmp_path)
        qemu, first = daemon.qemu_pid("guest"), daemon.pid
        daemon.restart()
        daemon.restart(signal.SIGKILL)
        assert daemon.pid != first
        assert daemon.qemu_pid("guest") == qemu
        assert daemon.virsh("domstate", "guest").strip() == "running"
    assert gone(qemu)
    assert not daemon.socket.parent.exists()


def test_a_stopped_daemon_is_mute(tmp_path: Path) -> None:
    """Stopped, it accepts and says nothing; going on, it answers."""
    with private_libvirtd(tmp_path) as daemon:
        daemon.stop_signal()
        asked = ["timeout", MUTE_SECONDS, "virsh", "-c", daemon.uri, "list"]
        assert subprocess.run(asked, capture_output=True, timeout=DEADLINE).returncode != 0
        daemon.cont()
        assert "Name" in daemon.virsh("list")


_KILLED = """
import sys, time
from pathlib import Path
from privatelibvirt import private_libvirtd
from test_privatelibvirt import boot
folder = Path(sys.argv[1])
with private_libvirtd(folder) as daemon:
    boot(daemon, folder)
    print(daemon.pid, daemon.qemu_pid("guest"), daemon.socket.parent, flush=True)
    sys.stdin.read()
"""


def test_nothing_outlives_a_killed_test(tmp_path: Path) -> None:
    """When the test itself is killed with SIGKILL, its libvirtd and its guests end."""
    test = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert test.stdout is not None
    assert test.stdin is not None
    libvirtd, qemu, sockets = test.stdout.readline().split()
    test.kill()
    test.wait(DEADLINE)
    test.stdin.close()
    test.stdout.close()
    assert gone(int(libvirtd))
    assert gone(int(qemu))
    assert Path(sockets).parent == Path(tempfile.gettempdir())
    for file in Path(sockets).iterdir():
        file.unlink()
    Path(sockets).rmdir()
