"""Namespaces of one test's own, whose processes end with the test, however it ends.

The mount and process-id namespaces (and, on request, a network namespace) are private; so are /run, /dev,
/etc/libvirt and /var/{lib,cache,log}/libvirt there. Every other path is the machine's, so a folder of images
means the same files inside and outside. The first process inside reads a pipe whose other end the test holds:
when the test ends, even by SIGKILL, the kernel ends everything inside, QEMUs and dnsmasqs included.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

START_DEADLINE = 60.0
STOP_DEADLINE = 30.0
LEAVE_DEADLINE = 10.0
POLL = 0.05

# /dev is made anew without /dev/kvm: libvirt 9 throws its capabilities away on every call when the device is
# there but closed to QEMU's user, and offers KVM where it cannot run a kernel.
_SETUP = r"""
set -e
root=$1
mount --bind "$root/run" /run
for dir in etc/libvirt var/lib/libvirt var/cache/libvirt var/log/libvirt; do
    [ ! -d "/$dir" ] || mount --bind "$root/$dir" "/$dir"
done
mount -t tmpfs -o mode=755 latentvirt-test "$root/dev"
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty "$root/dev/"
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/net"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 latentvirt-test "$root/dev/shm"
[ ! -e /dev/net/tun ] || cp -a /dev/net/tun "$root/dev/net/"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount --rbind "$root/dev" /dev
if [ "$2" = net ]; then
    mount -t sysfs sysfs /sys
    ip link set lo up
fi
echo ready
exec tini -s -- cat
"""

# nsenter stops itself when its child is stopped, and then does not see it end: a shell stands between them.
_BETWEEN = '"$@"; exit'

_PRIVATE_FOLDERS = (
    "run/lock",  # libvirt locks a console here while it is attached
    "dev",
    "etc/libvirt/hooks",
    "var/lib/libvirt",
    "var/cache/libvirt",
    "var/log/libvirt",
)


class Sandbox:
    """Namespaces of one test's own, in which commands run until the sandbox is left.

    Args:
        root: an empty folder for the private sides of /run, /etc/libvirt and the like.
        netns: whether the sandbox has a network of its own, with nothing but a loopback in it.
    """

    def __init__(self, root: Path, *, netns: bool = False) -> None:
        self.root = root
        self.netns = netns

    def __enter__(self) -> Sandbox:
        for folder in _PRIVATE_FOLDERS:
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        # Readable by all: QEMU may run as a user who must walk down to its monitor's socket.
        self.root.chmod(0o755)
        namespaces = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        if self.netns:
            namespaces.append("--net")
        self._process = subprocess.Popen(
            ["unshare", *namespaces, "sh", "-c", _SETUP, "sh", str(self.root), "net" if self.netns else ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            self._process.kill()
            self._process.wait()
            raise RuntimeError("the namespaces could not be set up; what failed is on stderr, it needs root")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(LEAVE_DEADLINE)
        except subprocess.TimeoutExpired:
            # Something else holds the pipe's other end: a process that a library has just forked, say.
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def inside(self, command: Sequence[str]) -> list[str]:
        """Say how to run a command inside, from outside."""
        ns = f"/proc/{self._process.pid}/ns"
        enter = ["nsenter", f"--mount={ns}/mnt", f"--pid={ns}/pid_for_children"]
        if self.netns:
            enter.append(f"--net={ns}/net")
        return [*enter, "--", *command]

    def run(self, *command: str) -> str:
        """Run a command inside and return what it printed; raise if it failed."""
        result = subprocess.run(self.inside(command), capture_output=True, text=True, timeout=START_DEADLINE)
        if result.returncode:
            raise RuntimeError(f"{command} failed inside the sandbox: {result.stdout}{result.stderr}")
        return result.stdout

    def spawn(self, command: Sequence[str], log: Path) -> Daemon:
        """Start a long-running command inside, its output appended to a file."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                self.inside(["sh", "-c", _BETWEEN, "sh", *command]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return Daemon(process, log)

    def outer_pid(self, inner: int) -> int:
        """Return the process id that the machine knows a process inside by.

        Raises:
            ProcessLookupError: nothing inside has that id.
        """
        ours = os.readlink(f"/proc/{self._process.pid}/ns/pid_for_children")
        for entry in Path("/proc").iterdir():
            try:
                if not entry.name.isdigit() or os.readlink(entry / "ns" / "pid") != ours:
                    continue
                status = (entry / "status").read_text()
            except OSError:
                continue  # ended while we looked
            ids = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
            if int(ids[-1]) == inner:
                return int(entry.name)
        raise ProcessLookupError(f"no process {inner} in the sandbox")


def _grandchild(pid: int) -> int | None:
    """Return the process that nsenter's child, the shell, has started; None if it has not yet."""
    for _ in range(2):
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return None
        if not children:
            return None
        pid = int(children[0])
    return pid


class Daemon:
    """A command that runs inside a sandbox; `pid` is the one that the machine knows it by."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.log = log
        self._process = process
        deadline = time.monotonic() + START_DEADLINE
        while (pid := _grandchild(process.pid)) is None:
            self.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{process.args!r} did not start")
            time.sleep(POLL)
        self.pid = pid

    @property
    def ended(self) -> bool:
        """Whether the command has ended."""
        return self._process.poll() is not None

    def check(self) -> None:
        """Raise, with the end of its log, if the command has ended."""
        if self.ended:
            raise RuntimeError(f"{self._process.args!r} ended: {self.log.read_text()[-4000:]}")

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal that ends it, and wait until it has."""
        if not self.ended:
            os.kill(self.pid, sig)
            self._process.wait(STOP_DEADLINE)
