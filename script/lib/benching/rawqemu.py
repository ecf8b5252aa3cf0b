"""The floor: QEMU as libvirt itself would call it, run without libvirt and without latentvirt."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import attrs

from latentvirt import guest

T = TypeVar("T", bound=guest.Message)

READY_S = 600.0
ATTACH_S = 120.0
MIGRATE_S = 120.0
POLL_S = 0.002
EXIT_S = 20.0
MOST_BYTES_A_SECOND = 1 << 40
"""How fast memory may be saved: as fast as it goes."""
MONITOR, CHANNEL = "monitor", "channel"
USER_NETWORK = {"type": "user", "id": "hostnet0"}


def command_of_libvirt(said: str, folder: Path) -> list[str]:
    """Make a command that can be run by itself of what ``virsh domxml-to-native qemu-argv`` said.

    libvirt's own files and file descriptors are replaced; the machine is the same.

    Args:
        said: environment and command.
        folder: where the monitor's and the channel's sockets are to be (`MONITOR`, `CHANNEL`).
    """
    words = shlex.split(said)
    while "=" in words[0]:  # libvirt says the environment first
        words.pop(0)
    command = []
    for word in words:
        if word == "-S":  # libvirt would then tell it to go on
            continue
        if word.startswith("{"):
            said_object = json.loads(word)
            if said_object.get("id") == "masterKey0":  # for secrets, of which there are none
                command.pop()
                continue
            if said_object.get("type") == "tap":  # which libvirt writes down for any network
                word = json.dumps(USER_NETWORK)
        for device, name in (("charmonitor", MONITOR), ("charchannel0", CHANNEL)):
            if word.startswith(f"socket,id={device},"):
                word = f"socket,id={device},path={folder / name},server=on,wait=off"
        command.append(word)
    return command


class RawFailed(Exception):
    """QEMU or its guest did not do what was wanted."""


@attrs.define
class RawMachine:
    """One QEMU process; leaving the context ends it.

    Args:
        command: from `command_of_libvirt`.
        folder: where it has its sockets.
        identity: who the guest is to be.
        memory: memory image to go on from; None to boot.
    """

    command: list[str]
    folder: Path
    identity: guest.Identity
    memory: Path | None = None
    _process: subprocess.Popen[bytes] = attrs.field(init=False)
    _channel: socket.socket = attrs.field(init=False)
    _reader: guest.GuestReader = attrs.field(init=False, factory=guest.GuestReader)
    _heard: list[guest.Message] = attrs.field(init=False, factory=list)

    def __enter__(self) -> RawMachine:
        for name in (MONITOR, CHANNEL):
            (self.folder / name).unlink(missing_ok=True)
        log = self.folder / "log"
        if self.memory is None:
            with log.open("ab") as output:
                self._process = subprocess.Popen(self.command, stdout=output, stderr=output)
        else:
            with log.open("ab") as output, self.memory.open("rb") as memory:
                self._process = subprocess.Popen(
                    [*self.command, "-incoming", f"fd:{memory.fileno()}"],
                    stdout=output,
                    stderr=output,
                    pass_fds=[memory.fileno()],
                )
        try:
            self._channel = self._connect(CHANNEL)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait(EXIT_S)

    def _connect(self, name: str) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        path = self.folder / name
        until = time.monotonic() + EXIT_S
        while True:
            try:
                connection.connect(str(path))
                return connection
            except (FileNotFoundError, ConnectionRefusedError):
                if self._process.poll() is not None or time.monotonic() > until:
                    log = (self.folder / "log").read_text(errors="replace")
                    raise RawFailed(f"QEMU did not start: {log[-2000:]}") from None
                time.sleep(POLL_S)

    def hear(self, kind: type[T], seconds: float, meanwhile: Callable[[], None] = lambda: None) -> T:
        """Wait until the guest says something.

        Args:
            kind: of message.
            seconds: how long to wait.
            meanwhile: called whenever it says that it is ready instead.
        """
        until = time.monotonic() + seconds
        while True:
            while self._heard:
                message = self._heard.pop(0)
                if isinstance(message, kind):
                    return message
                if isinstance(message, guest.Complaint):
                    raise RawFailed(f"the guest complains: {message.why}")
                if isinstance(message, guest.Ready):
                    meanwhile()
            self._channel.settimeout(max(POLL_S, until - time.monotonic()))
            try:
                data = self._channel.recv(guest.LONGEST_LINE)
            except TimeoutError:
                raise RawFailed(f"the guest said no {kind.__name__} within {seconds:.0f} s") from None
            if not data:
                raise RawFailed(f"QEMU ended: {(self.folder / 'log').read_text(errors='replace')[-2000:]}")
            self._heard += self._reader.feed(data)

    def identify(self) -> None:
        """Tell the guest who it is."""
        thawed = self.memory is not None
        line = guest.identity_line(self.identity, start="raw", now=time.time(), thawed=thawed)
        self._channel.sendall(line)

    def wait_ready(self) -> guest.Ready:
        """Wait until the guest has booted."""
        return self.hear(guest.Ready, READY_S)

    def wait_attaching(self) -> None:
        """Wait until the guest has taken its identity."""
        self.hear(guest.Attaching, ATTACH_S, meanwhile=self.identify)

    def save(self, memory: Path) -> None:
        """Save the memory, and end; the disk is then as this memory knows it.

        Args:
            memory: file to make.
        """
        ready = self.wait_ready()
        if guest.FREEZE in ready.can:
            self._channel.sendall(guest.freeze_line())
            self.hear(guest.Prepared, READY_S)
        monitor = Monitor(self._connect(MONITOR))
        monitor.ask("migrate-set-parameters", **{"max-bandwidth": MOST_BYTES_A_SECOND})
        with memory.open("wb") as file:
            monitor.ask("getfd", fd=file.fileno(), fdname="memory")
            monitor.ask("migrate", uri="fd:memory")
            until = time.monotonic() + MIGRATE_S
            while (status := monitor.ask("query-migrate").get("status")) != "completed":
                if status in ("failed", "cancelled") or time.monotonic() > until:
                    raise RawFailed(f"QEMU did not save its memory: {status}")
                time.sleep(POLL_S)
            os.fsync(file.fileno())
        monitor.ask("quit")
        self._process.wait(EXIT_S)


class Monitor:
    """QEMU's monitor.

    Args:
        connection: to its socket.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("rb")
        self._lines.readline()  # its greeting
        self.ask("qmp_capabilities")

    def ask(self, command: str, fd: int | None = None, **arguments: Any) -> dict[str, Any]:
        """Have a command done.

        Args:
            command: its name.
            fd: file descriptor to hand over with it.
            arguments: of the command.
        """
        text = json.dumps({"execute": command, "arguments": arguments}).encode()
        socket.send_fds(self._connection, [text], [] if fd is None else [fd])
        while True:
            answer = json.loads(self._lines.readline())
            if "error" in answer:
                raise RawFailed(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                result: dict[str, Any] = answer["return"]
                return result
