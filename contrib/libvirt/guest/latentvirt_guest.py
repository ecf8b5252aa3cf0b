#!/usr/bin/env python3
# Copyright The latentvirt authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a Buildbot worker in a VM whose name and password the host tells it.

The helper imports all that a worker needs, says "ready" on a virtio-serial port and waits. A VM whose memory
is saved at this point can be woken for any build: it hears its identity, the time and some entropy, makes
itself new and attaches at once. Where nobody answers, a static identity from a file is used. README.md
describes the installation; everything that differs by operating system is in the class `System` and its
children.

Needs Python 3.10, buildbot-worker 3.7 or later, and nothing else.
"""

from __future__ import annotations

import argparse
import base64
import gc
import json
import os
import platform
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, NoReturn

VERSION = "4"
PROTOCOL = 1
PORT_NAME = "org.latentvirt.worker.0"
MAX_LINE = 64 * 1024

READY_EVERY_S = 1.0
IDLE_S = 0.05
"""How long to sleep where the system cannot wait for us: no host holds the other end of the port."""
FROZEN_IDLE_S = 0.01
"""The same where a host that freezes us comes back at any moment."""
FREEZE_QUIET_S = 2.0
"""For how long a guest that is ready to be frozen says nothing; the time that it is frozen does not count."""
BOOT_WAIT_S = 20.0
"""How long to wait, before we are frozen, for the rest of the boot: else each thaw would go through it."""
BOOT_POLL_S = 0.2
REHEARSAL_S = 20.0
"""How long a rehearsal may take; an emulated processor needs some seconds for it."""
REHEARSAL_POLL_S = 0.02
DROP_PASSES, DROP_PAUSE_S = 3, 0.2
"""How often to drop the kernel's caches: what one pass gives up lets go of more a moment later."""
PORT_GRACE_S = 2.0
"""How long the port may take to show up after its device did."""
REOPEN_S = 1.0
CHANNEL_WAIT_S = 10.0
HOSTNAME_WAIT_S = 60.0
CLOCK_TOLERANCE_S = 0.05
KEYGEN_WAIT_S = 10
MOST_KEYS, LONGEST_KEY = 8, 16 * 1024
"""How many public SSH host keys are told, and how many characters a host key may have."""
SSHD_STARTS_S = 5
"""How long an SSH server that has just read a host key may take until it can be told to read another."""
ATTACH_S = 1
"""For how long what need not be done before we attach leaves the processor to us."""
KEEPALIVE_S = 600
ROUTE_WAIT_S = 10.0
"""How long to wait for a route to the master; connecting without one would only make the next try later."""
ROUTE_POLL_S = 0.02
RETRY_FIRST_S, RETRY_MOST_S, RETRY_FACTOR = 0.1, 1.0, 1.5

GROW_FROM_SECTORS = 32768
"""Which room behind the root partition is worth growing into: 16 MiB, more than GPT and alignment take."""
GROW_WAIT_S = 60
GROWERS = {
    "ext4": "resize2fs {part}",
    "xfs": "xfs_growfs /",
    "btrfs": "btrfs filesystem resize max /",
}
"""What lets each type of file system fill its partition."""

RENEWABLE = ("ssh", "dhcp", "machine-id")
RENEWED = ("ssh", "dhcp")
"""What a VM that was thawed makes anew unless its configuration, or the host, says otherwise."""


class HelperError(Exception):
    """What went wrong, as one sentence that contains no secret."""


def note(text: str) -> None:
    print(f"latentvirt: {text}", flush=True)


# ---------------------------------------------------------------------------------------------------------
# What differs by operating system


class Port:
    """A non-blocking file descriptor of the port, on systems that can poll one."""

    idle_s = IDLE_S

    def __init__(self, fd: int) -> None:
        import select

        os.set_blocking(fd, False)
        self._fd = fd
        self._in = select.POLLIN
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def read(self, timeout_s: float) -> bytes | None:
        """Wait for what the host says: bytes, b"" where nothing came in time, None while no host is there."""
        events = self._poll.poll(max(0.0, timeout_s) * 1000)
        if not events:
            return b""
        if events[0][1] & self._in:
            try:
                data = os.read(self._fd, MAX_LINE)
            except BlockingIOError:
                return b""
            except OSError:
                data = b""
            if data:
                return data
        # Hung up: poll returns at once until a host opens its end.
        time.sleep(min(self.idle_s, max(0.0, timeout_s)))
        return None

    def write(self, data: bytes) -> int:
        """Hand bytes to the host; return how many were taken, 0 while it takes none."""
        try:
            return os.write(self._fd, data)
        except OSError:
            return 0

    def close(self) -> None:
        os.close(self._fd)


class System:
    """What a Unix can do without special knowledge; the children know the rest."""

    name = "unix"
    can: tuple[str, ...] = ()
    basedir = "/var/lib/latentvirt/worker"
    config = "/etc/latentvirt/worker.json"
    user: str | None = "buildbot"
    ssh = "/etc/ssh"
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    scratch: str | None = None

    def __init__(self) -> None:
        self._people: dict[str, tuple[Any, list[int], str]] = {}

    def port_path(self) -> str | None:
        """Find the port; None if there is none now."""
        return None

    def port_may_come(self) -> bool:
        """Whether the port's device is there, so that the port may show up within moments."""
        return False

    def open_port(self, path: str) -> Port:
        return Port(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))

    def set_clock(self, now: float) -> None:
        time.clock_settime(time.CLOCK_REALTIME, now)

    def add_entropy(self, data: bytes) -> None:
        with open("/dev/random", "wb", buffering=0) as device:
            device.write(data)

    def tell_loaded(self) -> None:
        """Tell whoever started us that the processor is free for others: all is imported."""

    def prepare_freeze(self) -> None:
        """Let the boot come to its end, the disk be whole and the memory small: both are saved now."""
        os.sync()

    def grow_root(self) -> bool:
        """Let the root file system fill a disk larger than its image; return whether it has grown."""
        return False

    def run_errands(self) -> None:
        """Begin with what need not be done before we attach."""

    def renew(self, what: str) -> None:
        """Make one of `RENEWABLE` anew, which the memory or the disk of other VMs has as well."""
        raise OSError(f"this helper does not know how on {self.name}")

    def rehearse_renewal(self, folder: str) -> None:
        """Do what `renew` will do, as far as it leaves no trace outside of a folder that is removed."""
        if any(map(_HOST_KEY.fullmatch, _listdir(self.ssh))):
            for kind in ("ecdsa", "ed25519"):
                subprocess.run([_ssh_keygen(), "-q", "-t", kind, "-N", "", "-f", f"{folder}/{kind}"])

    def make_missing_host_key(self) -> None:
        """Where there is an SSH server and no host key at all, make one: of this VM's own."""
        folder = _listdir(self.ssh)
        sshd = shutil.which("sshd", path=self.path)
        if sshd is None or not os.path.isdir(self.ssh) or any(map(_HOST_KEY.fullmatch, folder)):
            return
        command = [_ssh_keygen(), "-q", "-t", "ed25519", "-N", "", "-f", f"{self.ssh}/ssh_host_ed25519_key"]
        subprocess.run(command, check=True, timeout=KEYGEN_WAIT_S, stdin=subprocess.DEVNULL)

    def install_host_key(self, private: str, public: str) -> None:
        """Make this the only SSH host key that there is.

        Args:
            private: ed25519 key in OpenSSH's format.
            public: the same, as in its ``.pub`` file.
        """
        raise OSError(f"this helper does not know how on {self.name}")

    def host_keys(self) -> list[str]:
        """Return the public SSH host keys, each as type and base64."""
        keys = []
        for name in _listdir(self.ssh):
            words = (_read_text(f"{self.ssh}/{name}.pub") or "").split()[:2]
            if _HOST_KEY.fullmatch(name) and len(words) == 2 and len(" ".join(words)) <= LONGEST_KEY:
                keys.append(" ".join(words))
        return keys[:MOST_KEYS]

    def dhcp_hostname(self) -> str | None:
        """Return the name that DHCP gave, None if there is none yet.

        The DHCP client sets the host name from it; an image that waits for one is called ``localhost``.
        """
        name = socket.gethostname().split(".")[0]
        return None if name in ("", "localhost", "amnesiac") else name

    def set_hostname(self, name: str) -> None:
        """Call the machine what the worker is called, where that is a host's name; nothing depends on it."""
        if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", name):
            socket.sethostname(name)

    def look_up(self, user: str) -> None:
        """Read who a user is, as long as nobody waits for it."""
        import pwd

        entry = pwd.getpwnam(user)
        shell = entry.pw_shell if os.access(entry.pw_shell, os.X_OK) else "/bin/sh"
        self._people[user] = (entry, os.getgrouplist(user, entry.pw_gid), shell)

    def become(self, user: str) -> None:
        """Give up root for good, in this process, and make the environment that user's."""
        if user not in self._people:
            self.look_up(user)
        entry, groups, shell = self._people[user]
        if os.getuid() != entry.pw_uid:
            os.setgroups(groups)
            os.setgid(entry.pw_gid)
            os.setuid(entry.pw_uid)
        os.environ.update(HOME=entry.pw_dir, USER=user, LOGNAME=user, SHELL=shell, PATH=self.path)
        os.environ.setdefault("LANG", "C.UTF-8")

    def make_basedir(self, path: str, user: str | None) -> None:
        import pwd

        info = os.path.join(path, "info")
        os.makedirs(info, exist_ok=True)
        if user is not None and os.getuid() == 0:
            entry = pwd.getpwnam(user)
            for folder in (path, info):
                os.chown(folder, entry.pw_uid, entry.pw_gid)


class Linux(System):
    name = "linux"
    can = ("freeze", "rehearse")
    scratch = "/dev/shm"  # never on a disk
    _ports = "/sys/class/virtio-ports"
    _devices = "/sys/bus/virtio/devices"
    _cards = "/sys/class/net"
    _leases = "/run/systemd/netif/leases"
    _systemd = "/run/systemd/system"
    _bus = "/run/dbus/system_bus_socket"
    _drop_caches = "/proc/sys/vm/drop_caches"
    _sshd_pid = "/run/sshd.pid"
    _machine_ids = ("/etc/machine-id", "/var/lib/dbus/machine-id")
    _mounts = "/proc/self/mountinfo"
    _blocks = "/sys/dev/block"
    _dev = "/dev"
    _serial_device = 3  # virtio's number for a console or serial device

    def __init__(self) -> None:
        super().__init__()
        self._errands: Errands | None = None
        self._later: list[str] = []

    def run_errands(self) -> None:
        errands, self._errands = self._errands, None
        later, self._later = self._later, []
        if errands is not None:
            errands.run(later)
        elif later:
            Errands().run(later)

    def port_path(self) -> str | None:
        # udev's /dev/virtio-ports comes later than the kernel's own name for the port.
        for port in _listdir(self._ports):
            if _read_text(f"{self._ports}/{port}/name") == PORT_NAME:
                return f"/dev/{port}"
        link = f"/dev/virtio-ports/{PORT_NAME}"
        return link if os.path.exists(link) else None

    def port_may_come(self) -> bool:
        numbers = (_read_text(f"{self._devices}/{device}/device") for device in _listdir(self._devices))
        return any(number and int(number, 16) == self._serial_device for number in numbers)

    def add_entropy(self, data: bytes) -> None:
        import fcntl
        import struct

        rndaddentropy, rndreseedcrng = 0x40085203, 0x5207  # linux/random.h
        with open("/dev/random", "wb", buffering=0) as device:
            try:
                header = struct.pack("ii", len(data) * 8, len(data))
                fcntl.ioctl(device, rndaddentropy, header + data)
            except OSError:
                device.write(data)  # mixed in, but not credited
            # Without it the generator goes on from its old, perhaps repeated state for up to a minute.
            fcntl.ioctl(device, rndreseedcrng)

    def tell_loaded(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")  # sd_notify(3); not for builds
        if address:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service_manager:
                service_manager.sendto(b"READY=1", re.sub("^@", "\0", address))

    def prepare_freeze(self) -> None:
        if self._errands is None:
            self._errands = Errands()
        until = time.monotonic() + BOOT_WAIT_S
        self._wait_for_boot(BOOT_WAIT_S)
        while not self._has_route():
            if time.monotonic() > until:
                note(f"there is no network after {BOOT_WAIT_S:.0f} s; frozen without one")
                break
            time.sleep(BOOT_POLL_S)
        os.sync()
        for _ in range(DROP_PASSES):
            with open(self._drop_caches, "w", encoding="ascii") as file:
                file.write("3")
            time.sleep(DROP_PAUSE_S)

    def grow_root(self) -> bool:
        if self.port_path() is None:
            return False  # no VM of latentvirt's, so nobody gave it a disk larger than its image
        kind, folder = self._root()
        number = _read_text(f"{folder}/partition")
        if number is None or kind not in GROWERS or not self._has_room(folder):
            return False
        disk, part = (f"{self._dev}/{os.path.basename(path)}" for path in (os.path.dirname(folder), folder))
        table = ["sfdisk", "--quiet", "--force", "--no-reread", "--no-tell-kernel", "-N", number, disk]
        self._run(table, ", +")  # from where it begins, as far as there is room
        self._run(["partx", "--update", "--nr", number, disk])
        self._run(shlex.split(GROWERS[kind].format(part=part)))
        return True

    def _root(self) -> tuple[str, str]:
        """Return the type of the root file system, and sysfs's folder of what it is on."""
        lines = map(str.split, (_read_text(self._mounts) or "").splitlines())
        root = [line for line in lines if line[4] == "/"][-1]
        kind, source = root[root.index("-") + 1 :][:2]
        number = root[2]
        if number.startswith("0:") and source.startswith("/"):  # btrfs makes up a number of its own
            device = os.stat(source).st_rdev
            number = f"{os.major(device)}:{os.minor(device)}"
        return kind, os.path.realpath(f"{self._blocks}/{number}")

    def _has_room(self, folder: str) -> bool:
        """Whether a partition is the last one of its disk, with room behind it."""
        disk = os.path.dirname(folder)
        end = _read_number(f"{folder}/start") + _read_number(f"{folder}/size")
        if _read_number(f"{disk}/size") - end < GROW_FROM_SECTORS:
            return False
        return not any(_read_number(f"{disk}/{other}/start") >= end for other in _listdir(disk))

    def _run(self, command: list[str], told: str = "") -> None:
        done = subprocess.run(
            command,
            input=told,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=GROW_WAIT_S,
            env={**os.environ, "PATH": self.path, "LC_ALL": "C"},
        )
        if done.returncode:
            raise OSError(f"{command[0]}: {' '.join(done.stdout.split())}")

    def _wait_for_boot(self, wait_s: float) -> None:
        if not os.path.isdir(self._systemd):
            return
        command = ["systemctl", "is-system-running", "--wait"]
        try:
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=wait_s)
        except (OSError, subprocess.TimeoutExpired) as error:
            note(f"frozen before the end of the boot: {error}")

    def _has_route(self) -> bool:
        """Whether any network is configured; true as well where there is no network card."""
        if _listdir(self._cards) in ([], ["lo"]):
            return True
        ipv4 = (_read_text("/proc/net/route") or "").splitlines()[1:]
        ipv6 = (_read_text("/proc/net/ipv6_route") or "").splitlines()
        # The default route: each card has routes to itself.
        return bool(ipv4) or any(re.match("0{32} 00 .*(?<! lo)$", line) for line in ipv6)

    def renew(self, what: str) -> None:
        renewals = {
            "ssh": self._renew_ssh,
            "dhcp": self._renew_dhcp,
            "machine-id": self._renew_machine_id,
        }
        renewals[what]()

    def _renew_ssh(self) -> None:
        """Make new host keys of the kinds that there are; the slow kinds in the background."""
        kinds = self._remove_host_keys()
        if not kinds:
            return
        program = _ssh_keygen()
        commands = {kind: [program, "-q", "-t", kind, "-N", "", "-f", kinds[kind]] for kind in sorted(kinds)}
        quick = [commands.pop(kind) for kind in ("ecdsa", "ed25519") if kind in commands]
        for process in [subprocess.Popen(command) for command in quick]:
            process.wait(KEYGEN_WAIT_S)
        reload = self._reload_sshd()
        if commands:
            self._later.append("; ".join([*map(shlex.join, commands.values()), reload]))

    def _remove_host_keys(self) -> dict[str, str]:
        """Remove all host keys; return the path of each by its kind."""
        kinds = {
            found[1]: f"{self.ssh}/{found[0]}"
            for found in map(_HOST_KEY.fullmatch, _listdir(self.ssh))
            if found
        }
        for path in kinds.values():
            for stale in (path, f"{path}.pub"):
                if os.path.exists(stale):
                    os.remove(stale)
        return kinds

    def _reload_sshd(self) -> str:
        """Let the SSH server read its keys again; return how to do it once more, nothing if there is none."""
        pid = _read_text(self._sshd_pid) or ""
        if pid.isdigit() and _read_text(f"/proc/{pid}/comm") == "sshd":
            os.kill(int(pid), signal.SIGHUP)  # it holds the old keys until then
            return f"kill -HUP {pid}"
        return ""

    def install_host_key(self, private: str, public: str) -> None:
        if not os.path.isdir(self.ssh):
            raise OSError(f"there is no {self.ssh}")
        self._remove_host_keys()
        path = f"{self.ssh}/ssh_host_ed25519_key"
        for name, text, mode in ((path, private, 0o600), (f"{path}.pub", public, 0o644)):
            with open(
                os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="ascii"
            ) as file:
                file.write(text.strip() + "\n")
        if not self._reload_sshd():
            # It may be just starting, with the old key in its memory, and no pid to be told of the new one.
            pid = shlex.quote(self._sshd_pid)
            self._later.append(f"sleep {SSHD_STARTS_S}; read -r pid <{pid} && kill -HUP $pid")

    def _renew_dhcp(self) -> None:
        """Ask for our address again, which the server may have given to others while we slept."""
        leases = _listdir(self._leases)
        if not leases:
            return
        if os.path.exists(self._bus):
            self._later.append(f"networkctl renew {shlex.join(leases)}")
        else:
            self._later.append("systemctl --no-block restart systemd-networkd.service")

    def _renew_machine_id(self) -> None:
        new = uuid.UUID(bytes=os.urandom(16), version=4).hex
        for path in self._machine_ids:
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "r+", encoding="ascii") as file:  # in its place: it may be mounted there
                    file.write(f"{new}\n")
                    file.truncate()

    def dhcp_hostname(self) -> str | None:
        # systemd-networkd sets the host name only with D-Bus and polkit; its lease file has it without them.
        for lease in _listdir(self._leases):
            for line in (_read_text(f"{self._leases}/{lease}") or "").splitlines():
                if line.startswith("HOSTNAME="):
                    name = line.partition("=")[2].split(".")[0]
                    return name or None
        return super().dhcp_hostname()


class FreeBSD(System):
    """Untried."""

    name = "freebsd"
    config = "/usr/local/etc/latentvirt/worker.json"
    path = "/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"

    def port_path(self) -> str | None:
        path = f"/dev/vtcon/{PORT_NAME}"  # virtio_console(4)
        return path if os.path.exists(path) else None

    def open_port(self, path: str) -> Port:
        import tty

        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        tty.setraw(fd)  # the port is a terminal there
        return Port(fd)


class WindowsPort:
    """The port as the vioserial driver shows it: one opener, so reads and writes must overlap. Untried."""

    idle_s = IDLE_S

    def __init__(self, path: str) -> None:
        import _winapi

        self._api: Any = _winapi
        self._handle = _winapi.CreateFile(
            path,
            _winapi.GENERIC_READ | _winapi.GENERIC_WRITE,
            0,
            _winapi.NULL,
            _winapi.OPEN_EXISTING,
            _winapi.FILE_FLAG_OVERLAPPED,
            _winapi.NULL,
        )
        self._reading: Any = None

    def read(self, timeout_s: float) -> bytes | None:
        wait_ms = int(max(0.0, timeout_s) * 1000)
        try:
            if self._reading is None:
                self._reading, _ = self._api.ReadFile(self._handle, MAX_LINE, overlapped=True)
            if self._api.WaitForSingleObject(self._reading.event, wait_ms) != self._api.WAIT_OBJECT_0:
                return b""
            reading, self._reading = self._reading, None
            reading.GetOverlappedResult(False)
            return bytes(reading.getbuffer() or b"") or None
        except OSError:
            self._reading = None
            time.sleep(min(self.idle_s, max(0.0, timeout_s)))
            return None

    def write(self, data: bytes) -> int:
        try:
            writing, _ = self._api.WriteFile(self._handle, data, overlapped=True)
            if self._api.WaitForSingleObject(writing.event, int(IDLE_S * 1000)) != self._api.WAIT_OBJECT_0:
                writing.cancel()
            return int(writing.GetOverlappedResult(True)[0])
        except OSError:
            return 0

    def close(self) -> None:
        self._api.CloseHandle(self._handle)


class Windows(System):
    """Untried."""

    name = "windows"
    user = None  # the service's account

    def __init__(self) -> None:
        super().__init__()
        data = os.environ.get("PROGRAMDATA", r"C:\ProgramData")
        self.basedir = os.path.join(data, "latentvirt", "worker")
        self.config = os.path.join(data, "latentvirt", "worker.json")

    def port_path(self) -> str | None:
        return rf"\\.\Global\{PORT_NAME}"  # cannot be looked for, only opened

    def open_port(self, path: str) -> Any:
        return WindowsPort(path)

    def set_clock(self, now: float) -> None:
        import ctypes

        utc = time.gmtime(now)
        weekday = (utc.tm_wday + 1) % 7  # SYSTEMTIME counts from Sunday
        fields = (utc.tm_year, utc.tm_mon, weekday, utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec)
        systemtime = (ctypes.c_uint16 * 8)(*fields, int(now % 1 * 1000))
        if not ctypes.windll.kernel32.SetSystemTime(ctypes.byref(systemtime)):  # type: ignore[attr-defined]
            raise OSError("SetSystemTime refused; the service's account needs SeSystemtimePrivilege")

    def set_hostname(self, name: str) -> None:
        pass  # would take a reboot

    def add_entropy(self, data: bytes) -> None:
        raise OSError("Windows takes no entropy from programs; give the VM a virtio-rng device")

    def prepare_freeze(self) -> None:
        pass

    def look_up(self, user: str) -> None:
        raise HelperError('"user" cannot be chosen on Windows; choose the account of the service')

    def become(self, user: str) -> None:
        raise HelperError('"user" cannot be chosen on Windows; choose the account of the service')

    def make_basedir(self, path: str, user: str | None) -> None:
        os.makedirs(os.path.join(path, "info"), exist_ok=True)


def this_system() -> System:
    systems: dict[str, type[System]] = {"linux": Linux, "freebsd": FreeBSD, "win32": Windows}
    for prefix, system in systems.items():
        if sys.platform.startswith(prefix):
            return system()
    return System()


_HOST_KEY = re.compile(r"ssh_host_([a-z0-9]+)_key")


def _ssh_keygen() -> str:
    return shutil.which("ssh-keygen") or "/usr/bin/ssh-keygen"


def _listdir(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def _read_text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return None


def _read_number(path: str) -> int:
    """Read a number of sysfs; what is not there is 0."""
    return int(_read_text(path) or 0)


class Errands:
    """Do as root, once we had time to attach, what need not be done before.

    Its process waits from before the freeze on: to make one after the thaw takes longer than all else there.
    """

    def __init__(self) -> None:
        waits, self._tells = os.pipe()
        child = os.fork()
        if child:
            os.close(waits)
            os.waitpid(child, 0)
            return
        if os.fork():
            os._exit(0)  # so that process 1 reaps the one that waits
        os.close(self._tells)
        script = b""
        while said := os.read(waits, MAX_LINE):
            script += said
        if script:
            time.sleep(ATTACH_S)
            os.execv("/bin/sh", ["sh", "-c", script.decode()])
        os._exit(0)

    def run(self, scripts: list[str]) -> None:
        """Run shell scripts, none of which waits for another; nothing to run is the end as well."""
        os.write(
            self._tells, "".join(f"({script}) </dev/null >/dev/null 2>&1\n" for script in scripts).encode()
        )
        os.close(self._tells)


# ---------------------------------------------------------------------------------------------------------
# Who the worker is


class Identity(NamedTuple):
    name: str
    password: str
    host: str
    port: int
    time: float | None = None
    entropy: bytes = b""
    start: str = ""
    thawed: bool = False
    renew: tuple[str, ...] | None = None
    host_key: tuple[str, str] | None = None

    def __repr__(self) -> str:
        return f"Identity({self.name!r} at {self.host}:{self.port})"


class Config(NamedTuple):
    static: bool = False
    name: str | None = None
    password: str = ""
    master: str = ""
    user: str | None = None
    basedir: str = ""
    channel_wait_s: float = CHANNEL_WAIT_S
    keepalive_s: float = KEEPALIVE_S
    protocol: str = "pb"
    renew: tuple[str, ...] = RENEWED

    def __repr__(self) -> str:
        return f"Config({self.name!r} at {self.master!r} as {self.user!r} in {self.basedir!r})"


def parse_master(text: object) -> tuple[str, int]:
    """Read ``host:port``, with the brackets of an IPv6 address or without."""
    found = re.fullmatch(r"(?:\[([^\]]+)\]|([^\[\]]+)):(\d{1,5})", text) if isinstance(text, str) else None
    if not found or not 0 < int(found[3]) < 65536:
        raise HelperError('"master" must be "host:port"')
    return found[1] or found[2], int(found[3])


def parse_renew(said: object) -> tuple[str, ...]:
    """Read what to make anew; words that only newer helpers know are passed over."""
    if not isinstance(said, list) or not all(isinstance(word, str) for word in said):
        raise HelperError(f'"renew" must be a list of some of {", ".join(RENEWABLE)}')
    return tuple(word for word in RENEWABLE if word in said)


def parse_host_key(said: object) -> tuple[str, str]:
    """Read an SSH host key, private and public."""
    if isinstance(said, dict):
        private, public = said.get("private"), said.get("public")
        if (
            isinstance(private, str)
            and isinstance(public, str)
            and len(private) <= LONGEST_KEY
            and re.fullmatch(
                r"-----BEGIN OPENSSH PRIVATE KEY-----\n[A-Za-z0-9+/=\n]+-----END [A-Z ]+-----\n?", private
            )
            and re.fullmatch(r"ssh-ed25519 [A-Za-z0-9+/=]{60,100}", public)
        ):
            return private, public
    raise HelperError('"ssh_host_key" must be an ed25519 key in OpenSSH\'s format, private and public')


def read_line(line: bytes) -> dict[str, Any]:
    """Read what the host said.

    Raises:
        HelperError: it is not of the protocol; the message says why and holds nothing of the line's values.
    """
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):  # also bad UTF-8
        raise HelperError("the line is not JSON in UTF-8") from None
    if not isinstance(said, dict):
        raise HelperError("the line is not a JSON object")
    if said.get("latentvirt") != PROTOCOL:
        raise HelperError(f'this helper speaks "latentvirt": {PROTOCOL} only')
    return said


def parse_news(said: dict[str, Any]) -> tuple[float | None, bytes]:
    """Read the time and the entropy that the host sends along."""
    now = said.get("time")
    if now is not None and (isinstance(now, bool) or not isinstance(now, (int, float)) or not now > 0):
        raise HelperError('"time" must be seconds since 1970')
    try:
        entropy = base64.b64decode(said.get("entropy", ""), validate=True)
    except (ValueError, TypeError):
        raise HelperError('"entropy" must be base64') from None
    return now, entropy


def parse_identity(said: dict[str, Any]) -> Identity:
    """Read who the host says we are.

    Raises:
        HelperError: it does not; the message says why and holds nothing of the line's values.
    """
    if said.get("say") != "identity":
        raise HelperError('the host can only say "identity", "freeze" or "rehearse" here')
    for key in ("name", "password"):
        if not isinstance(said.get(key), str) or not said[key]:
            raise HelperError(f'"{key}" must be a text that is not empty')
    host, port = parse_master(said.get("master"))
    return Identity(
        said["name"],
        said["password"],
        host,
        port,
        *parse_news(said),
        str(said.get("start", "")),
        said.get("thawed") is True,
        parse_renew(said["renew"]) if "renew" in said else None,
        parse_host_key(said["ssh_host_key"]) if "ssh_host_key" in said else None,
    )


def read_config(path: str, system: System) -> Config:
    """Read the configuration; what it does not say is the system's way. A missing file says nothing."""
    try:
        with open(path, encoding="utf-8") as file:
            said = json.load(file)
    except FileNotFoundError:
        said = {}
    except (OSError, ValueError) as error:
        raise HelperError(f"{path} cannot be read as JSON: {type(error).__name__}") from None
    if not isinstance(said, dict):
        raise HelperError(f"{path} is not a JSON object")
    config = Config(user=system.user, basedir=system.basedir)
    given = {key: said[key] for key in Config._fields if key in said and key != "static"}
    static = "password" in given or "master" in given
    config = config._replace(static=static, **given)
    if "renew" in given:
        try:
            config = config._replace(renew=parse_renew(given["renew"]))
        except HelperError as error:
            raise HelperError(f"{path}: {error}") from None
    if static:
        if not config.password or not isinstance(config.password, str):
            raise HelperError(f'{path}: a static identity needs a "password"')
        if config.name is not None and not (isinstance(config.name, str) and config.name):
            raise HelperError(f'{path}: "name" must be a text, or null to take the name that DHCP gives')
        try:
            parse_master(config.master)
        except HelperError as error:
            raise HelperError(f"{path}: {error}") from None
    return config


def static_identity(config: Config, system: System) -> Identity:
    """Make the identity of the configuration, waiting for DHCP's name where it says so."""
    host, port = parse_master(config.master)
    name = config.name
    if name is None:
        note("waiting for a host name from DHCP")
        until = time.monotonic() + HOSTNAME_WAIT_S
        while name is None:
            name = system.dhcp_hostname()
            if name is None:
                if time.monotonic() > until:
                    raise HelperError(
                        f"DHCP gave no host name within {HOSTNAME_WAIT_S:.0f} s; "
                        "let the network's DHCP send one, or name the worker in the configuration"
                    )
                time.sleep(IDLE_S)
    return Identity(name, config.password, host, port)


# ---------------------------------------------------------------------------------------------------------
# The channel


class Lines:
    """Cuts what comes from the port into lines; None stands for a line that was too long."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes | None]:
        *whole, self._rest = (self._rest + data).split(b"\n")
        lines = [line if len(line) <= MAX_LINE else None for line in whole]
        if lines and self._skipping:
            lines.pop(0)
            self._skipping = False
        if len(self._rest) > MAX_LINE:
            self._rest = b""
            if not self._skipping:
                lines.append(None)
            self._skipping = True
        return lines


class Channel:
    """Says and hears lines on a port; what a host that left has half said is dropped."""

    def __init__(self, port: Port | WindowsPort) -> None:
        self._port = port
        self._lines = Lines()
        self._heard: list[bytes | None] = []
        self._unsaid = b""

    def say(self, **what: object) -> None:
        # What no host took is stale by the time one comes: only a line that was begun is ended.
        begun = self._unsaid
        both = begun + json.dumps({"latentvirt": PROTOCOL, **what}).encode() + b"\n"
        taken = self._port.write(both)
        self._unsaid = begun[taken:] if taken <= len(begun) else both[taken:]

    def idle(self, idle_s: float) -> None:
        """Choose how long to sleep between two looks for a host, while there is none."""
        self._port.idle_s = idle_s

    def listen(self, timeout_s: float) -> bool:
        """Wait until there is a line to `hear`; False if none came in time."""
        until = time.monotonic() + timeout_s
        while not self._heard:
            left = until - time.monotonic()
            if left <= 0:
                return False
            data = self._port.read(left)
            if data is None:
                self._lines = Lines()
            else:
                self._heard += self._lines.feed(data)
        return True

    def hear(self, timeout_s: float) -> bytes | None:
        """Return one line, or None if none came in time.

        Raises:
            HelperError: the host said more than a line may hold.
        """
        if not self.listen(timeout_s):
            return None
        line = self._heard.pop(0)
        if line is None:
            raise HelperError(f"a line holds at most {MAX_LINE} bytes")
        return line


def wait_for_identity(
    channel: Channel,
    system: System,
    wait_s: float | None,
    asked: dict[str, tuple[Callable[[dict[str, Any]], None], str]],
    clock: Callable[[], float] = time.monotonic,
) -> Identity | None:
    """Say ready until the host says who we are; None if it did not within `wait_s` (None: for ever).

    Before that the host may ask us for something that the system can: `asked` has what we do, by the host's
    word, and what we say when it is done; then we are silent for a while, since we will be paused.
    """
    until = None if wait_s is None else clock() + wait_s
    next_ready = clock()
    while until is None or clock() < until:
        if clock() >= next_ready:
            channel.say(say="ready", helper=VERSION, system=system.name, can=list(system.can))
            channel.idle(IDLE_S)
            next_ready = clock() + READY_EVERY_S
        try:
            line = channel.hear(max(0.0, min(next_ready, until or next_ready) - clock()))
            if line is None or not line.strip():
                continue
            said = read_line(line)
            word = said.get("say")
            if word not in system.can or word not in asked:
                return parse_identity(said)
            do, done = asked[word]
            do(said)
        except HelperError as error:
            note(f"the host said something else than an identity: {error}")
            channel.say(say="error", why=str(error))
        else:
            channel.say(say=done)
            channel.idle(FROZEN_IDLE_S)
            # What runs now are the host's next moments, and then those after the pause.
            next_ready = clock() + FREEZE_QUIET_S
            until = None if wait_s is None else next_ready + wait_s
    return None


def open_channel(system: System, wait: bool, path: str | None = None) -> Channel | None:
    """Open the port; None if there is none and nobody told us to `wait` for one."""
    until = time.monotonic() + PORT_GRACE_S
    told = False
    while True:
        found = path or system.port_path()
        if found:
            try:
                return Channel(system.open_port(found))
            except OSError as error:
                why = f"the port {found} cannot be opened ({error.strerror})"
        else:
            why = f"there is no virtio-serial port {PORT_NAME}"
        if not wait and (time.monotonic() > until or not (found or system.port_may_come())):
            note(why)
            return None
        if not told:
            note(f"{why}; waiting for it")
            told = True
        time.sleep(IDLE_S if time.monotonic() < until else REOPEN_S)


# ---------------------------------------------------------------------------------------------------------
# The worker


class Generators:
    """The random number generators of this process, whose states a restored memory repeats."""

    def __init__(self) -> None:
        self._found: list[random.Random] = []

    def find(self) -> None:
        """Find those that modules have made for themselves; slow, so done before a freeze, not after it."""
        self._found = [thing for thing in gc.get_objects() if issubclass(type(thing), random.Random)]

    def reseed(self, entropy: bytes) -> None:
        random.seed(entropy + os.urandom(32))
        for generator in self._found:
            generator.seed(entropy + os.urandom(32))
        ssl = sys.modules.get("ssl")  # what is not imported has no state
        if ssl is not None:
            fresh = entropy + os.urandom(32)
            ssl.RAND_add(fresh, len(fresh))


def prepare_freeze(system: System, generators: Generators) -> None:
    """Get ready to be saved with all our memory; whatever fails only makes it larger."""
    try:
        generators.find()
        gc.collect()
        system.prepare_freeze()
    except (OSError, subprocess.SubprocessError) as error:
        note(f"not all is ready to be frozen: {error}")


def settle(system: System, identity: Identity, generators: Generators, renew: tuple[str, ...]) -> None:
    """Put right what a VM that slept, or was copied, has wrong, before it attaches.

    That is the clock, the random numbers and the host's name; after a thaw also what `renew` names.
    """
    if identity.time is not None and abs(time.time() - identity.time) > CLOCK_TOLERANCE_S:
        try:
            system.set_clock(identity.time)
        except OSError as error:
            note(f"the clock stays {identity.time - time.time():+.1f} s off: {error}")
    if identity.entropy:
        try:
            system.add_entropy(identity.entropy)
        except OSError as error:
            note(f"the system's random numbers were not stirred: {error}")
    generators.reseed(identity.entropy)
    try:
        system.set_hostname(identity.name)
    except OSError as error:
        note(f"the host name stays: {error}")
    if identity.host_key is not None:
        try:
            system.install_host_key(*identity.host_key)
        except (OSError, subprocess.SubprocessError) as error:
            note(f"the SSH host key was not installed: {error}")
    for what in (renew if identity.renew is None else identity.renew) if identity.thawed else ():
        if what == "ssh" and identity.host_key is not None:
            continue
        try:
            system.renew(what)
        except (OSError, subprocess.SubprocessError) as error:
            note(f"{what} was not renewed: {error}")


def grow_root(system: System) -> None:
    """Give builds all of the disk, before we say that we are ready: what is frozen, and built in, has it."""
    try:
        if system.grow_root():
            note("the root file system fills the disk now")
    except (OSError, subprocess.SubprocessError, LookupError, ValueError) as error:
        note(f"the root file system did not grow: {error}")


def make_missing_host_key(system: System) -> None:
    """Let an SSH server have a key when it starts; without one a VM works as well."""
    try:
        system.make_missing_host_key()
    except (OSError, subprocess.SubprocessError) as error:
        note(f"no SSH host key was made: {error}")


def has_route(host: str, port: int) -> bool:
    """Whether the kernel knows a way to an address; what is not an address is left to the worker."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
        )[0]
    except socket.gaierror:
        return True
    try:
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing
    except OSError:
        return False
    return True


def wait_for_route(identity: Identity) -> None:
    until = time.monotonic() + ROUTE_WAIT_S
    while not has_route(identity.host, identity.port) and time.monotonic() < until:
        time.sleep(ROUTE_POLL_S)


def import_worker() -> None:
    """Import all that an attached worker needs, so that nothing is left to load after a thaw."""
    import encodings.idna  # noqa: F401  # what resolving a host name imports late
    import multiprocessing  # noqa: F401  # what counting the CPUs imports late

    # The master is connected to without TLS, and half of all that Twisted imports is for TLS.
    sys.modules["OpenSSL"] = None  # type: ignore[assignment]
    import buildbot_worker.bot  # noqa: F401

    platform.platform()  # runs a program, and remembers what it said


def write_info(basedir: str) -> None:
    """Tell the master's pages what this is; what the image's maker wrote into ``admin`` stays."""
    info = os.path.join(basedir, "info")
    admin = os.path.join(info, "admin")
    if not os.path.exists(admin):
        with open(admin, "w", encoding="utf-8") as file:
            file.write("a VM started by latentvirt for one build\n")
    with open(os.path.join(info, "host"), "w", encoding="utf-8") as file:
        file.write(f"{platform.platform()}, {os.cpu_count()} CPUs\n")


def run_worker(config: Config, identity: Identity) -> int:
    """Attach as `identity` and work until the master or the system says to stop."""
    import buildbot_worker.pb
    from buildbot_worker.bot import Worker
    from twisted.application import service
    from twisted.application.internet import backoffPolicy
    from twisted.internet import reactor
    from twisted.python import log

    write = log.FileLogObserver(sys.stdout).emit

    def emit(event: dict[str, Any]) -> None:
        # A build's environment may hold secrets, and our output is shown on a console that others read.
        if not "".join(event.get("message") or ()).lstrip().startswith("environment:"):
            write(event)

    log.startLoggingWithObserver(emit, setStdout=False)
    # The worker has no argument for it, and its own way waits up to a minute between two tries.
    buildbot_worker.pb.backoffPolicy = lambda: backoffPolicy(
        RETRY_FIRST_S, RETRY_MOST_S, RETRY_FACTOR, jitter=lambda: random.uniform(0, RETRY_FIRST_S)
    )
    worker = Worker(
        identity.host,
        identity.port,
        identity.name,
        identity.password,
        config.basedir,
        config.keepalive_s,
        umask=0o022,
        protocol=config.protocol,
    )
    worker.bf.noisy = False  # two lines for each try while the network comes up
    application = service.MultiService()
    worker.setServiceParent(application)
    reactor.callWhenRunning(application.startService)
    reactor.addSystemEventTrigger("before", "shutdown", application.stopService)
    reactor.run()
    return 0


# ---------------------------------------------------------------------------------------------------------
# The rehearsal


def rehearse(
    config: Config, system: System, generators: Generators, channel: Channel, said: dict[str, Any]
) -> None:
    """Become a VM of its own, and attach in a child, to a master that the child is itself.

    Who comes next finds everything in the memory and in the processor's caches, above all in those of an
    emulated processor, which translates what it never ran. Whatever fails only makes the next time slower; a
    host that speaks ends it.
    """
    now, entropy = parse_news(said)
    ourselves = Identity(socket.gethostname(), "", "127.0.0.1", 0, now, entropy)
    settle(system, ourselves, generators, ())
    if system.scratch is None or config.protocol != "pb":
        return
    try:
        folder = tempfile.mkdtemp(prefix="latentvirt-", dir=system.scratch)
        try:
            system.make_basedir(folder, config.user)
            if _rehearsed_in(folder, config, system, ourselves, channel):
                note("the rehearsal did not come to its end")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        note(f"no rehearsal: {error}")


def _rehearsed_in(folder: str, config: Config, system: System, identity: Identity, channel: Channel) -> int:
    """Let a child rehearse in a folder; returns its exit status."""
    child = os.fork()
    if not child:
        _rehearse_attaching(config._replace(basedir=folder), system, identity)
    until = time.monotonic() + REHEARSAL_S
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > until or channel.listen(REHEARSAL_POLL_S):
            os.kill(child, signal.SIGKILL)
            ended = os.waitpid(child, 0)
            break
    return ended[1]


def _rehearse_attaching(config: Config, system: System, identity: Identity) -> NoReturn:
    """Do, in a child of its own, what a worker does until it is attached, unseen."""
    status = 1
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        system.rehearse_renewal(config.basedir)
        if config.user is not None:
            system.become(config.user)
        os.chdir(config.basedir)
        greeted: list[bool] = []
        run_worker(config, identity._replace(port=_listen_as_master(identity, greeted)))
        status = int(greeted != [True])
    finally:
        os._exit(status)


def _listen_as_master(identity: Identity, greeted: list[bool]) -> int:
    """Be a master that ends it all as soon as its worker is attached; returns the port that it listens on."""
    from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
    from twisted.cred.portal import Portal
    from twisted.internet import reactor
    from twisted.internet.defer import ensureDeferred
    from twisted.spread import pb

    async def greet(worker: Any) -> None:
        await worker.callRemote("print", "attached")
        await worker.callRemote("getWorkerInfo")
        await worker.callRemote("setBuilderList", [("rehearsal", "rehearsal")])
        greeted.append(True)

    class Realm:
        def requestAvatar(self, name: str, worker: Any, *interfaces: Any) -> tuple[Any, ...]:  # noqa: N802
            ensureDeferred(greet(worker)).addBoth(lambda _: reactor.stop())
            return interfaces[0], pb.Avatar(), lambda: None

    checker = InMemoryUsernamePasswordDatabaseDontUse()
    checker.addUser(identity.name.encode(), identity.password.encode())
    factory = pb.PBServerFactory(Portal(Realm(), [checker]))
    return int(reactor.listenTCP(identity.port, factory, interface=identity.host).getHost().port)


def main(argv: list[str] | None = None) -> int:
    system = this_system()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", default=system.config, help="configuration (default: %(default)s)")
    parser.add_argument("--port", help="path of the port, where it cannot be found by its name")
    parser.add_argument("--version", action="version", version=VERSION)
    arguments = parser.parse_args(argv)
    try:
        config = read_config(arguments.config, system)
        make_missing_host_key(system)
        import_worker()
        system.tell_loaded()
        system.make_basedir(config.basedir, config.user)
        # All that can be known before the identity is: after a thaw, nothing is read from the disk for it.
        write_info(config.basedir)
        if config.user is not None:
            system.look_up(config.user)
        channel = open_channel(system, wait=not config.static, path=arguments.port)
        grow_root(system)
        identity = None
        generators = Generators()
        if channel is not None:
            note("ready")
            identity = wait_for_identity(
                channel,
                system,
                config.channel_wait_s if config.static else None,
                {
                    "freeze": (lambda _: prepare_freeze(system, generators), "frozen"),
                    "rehearse": (partial(rehearse, config, system, generators, channel), "rehearsed"),
                },
            )
        by_channel = identity is not None
        if identity is None:
            identity = static_identity(config, system)
        settle(system, identity, generators, config.renew)
        keys = system.host_keys()
        system.run_errands()
        if config.user is not None:
            system.become(config.user)
        os.chdir(config.basedir)
        note(f"attaching as {identity.name} to {identity.host}:{identity.port}")
        if by_channel and channel is not None:
            channel.say(say="attaching", **({"ssh": keys} if keys else {}))
        if not identity.thawed:
            wait_for_route(identity)  # a guest is frozen with one
    except (HelperError, ImportError, KeyError, OSError) as error:
        note(f"cannot go on: {error}")
        return 1
    return run_worker(config, identity)


if __name__ == "__main__":
    sys.exit(main())
