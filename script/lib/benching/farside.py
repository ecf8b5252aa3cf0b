"""Simulated hosts in a process of their own, as real ones are, so that they take no time from the master's.

What is left on the client's side is about what libvirt-python does there: a message, and waiting for its
answer without holding up Python's other threads.
"""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benching.serving import allow_many_files, serve
from benching.wire import HANDLE, KIND, Line

PATIENCE_S = 60.0
DIAL_AGAIN_S = 0.02


class FarSide:
    """The process with the hosts: a `latentvirt.host.Driver`."""

    def __init__(self) -> None:
        allow_many_files()
        self._folder = tempfile.TemporaryDirectory()
        self._address = str(Path(self._folder.name) / "hosts")
        self._process = multiprocessing.get_context("spawn").Process(
            target=serve, args=(self._address,), daemon=True
        )
        self._process.start()
        self._idle: deque[Line] = deque()
        self._keys = itertools.count()
        self._heard: dict[int, Callable[..., object]] = {}
        threading.Thread(target=self._hear, args=(self._dial(),), daemon=True).start()
        self.inside: Any = Handle(self, {HANDLE: 0})
        self._fake = Handle(self, {HANDLE: 1})

    def _dial(self) -> Line:
        while True:
            connected = socket.socket(socket.AF_UNIX)
            try:
                connected.connect(self._address)
                return Line(connected)
            except (FileNotFoundError, ConnectionRefusedError):
                connected.close()
                if not self._process.is_alive():
                    raise SystemExit("the process of the simulated hosts has ended") from None
                time.sleep(DIAL_AGAIN_S)

    def open(self, uri: str) -> Any:
        """Open a connection; blocks."""
        return self._fake.open(uri)

    def end(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join(PATIENCE_S)
        self._folder.cleanup()

    def ask(self, number: int, method: str, args: Sequence[Any], asked: Handle | None = None) -> Any:
        """Call a method of an object there; blocks."""
        try:
            channel = self._idle.pop()
        except IndexError:
            channel = self._dial()
        channel.send((number, method, [one.shown if isinstance(one, Handle) else one for one in args]))
        well, answer = channel.recv()
        self._idle.append(channel)
        if not well:
            raise pickle.loads(answer)
        return self._taken(answer, asked)

    def hear(self, call: Callable[..., object]) -> int:
        """Call something with what comes under the key that is returned, on the thread of events."""
        key = next(self._keys)
        self._heard[key] = call
        return key

    def _hear(self, channel: Line) -> None:
        while True:
            try:
                key, details = channel.recv()
            except (EOFError, ConnectionResetError):
                return
            self._heard[key](*map(self._taken, details))

    def _taken(self, value: Any, asked: Handle | None = None) -> Any:
        if isinstance(value, dict) and HANDLE in value:
            return KINDS.get(value[KIND], Handle)(self, value, asked)
        if isinstance(value, (list, tuple)):
            return type(value)(self._taken(part, asked) for part in value)
        return value


class Handle:
    """Something on the far side: its methods are called there."""

    def __init__(self, far: FarSide, known: dict[str, Any], asked: Handle | None = None) -> None:
        self.far = far
        self.asked = asked
        self.number = known[HANDLE]
        self.shown = {HANDLE: self.number}
        self._known = known

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)  # Python looks for what it may use
        if name in self._known:
            return lambda: self._known[name]
        return lambda *args: self.far.ask(self.number, name, args, self)


class ConnectionHandle(Handle):
    """A connection, which does not break here."""

    def isAlive(self) -> int:
        """Say that it lives."""
        return 1

    def registerCloseCallback(self, *_: object) -> None:
        """Be asked to tell when it breaks."""

    def unregisterCloseCallback(self) -> None:
        """Be asked no more."""

    def domainEventRegisterAny(self, _: object, event: int, call: Callable[..., Any], opaque: object) -> int:
        """Call something at each event of a kind."""
        key = self.far.hear(lambda domain, *details: call(self, domain, *details, opaque))
        return int(self.far.ask(self.number, "domainEventRegisterAny", [event, key]))

    def newStream(self, _: int = 0) -> Stream:
        """Make a stream, on which nothing is opened yet."""
        return Stream(self.far, self)


class DomainHandle(Handle):
    """A domain, which knows the connection over which it was got."""

    def connect(self) -> Handle | None:
        """Return that connection."""
        return self.asked

    def openConsole(self, device: str | None, stream: Stream, flags: int = 0) -> int:
        """Open its console."""
        return stream.open(self, "openConsole", device, flags)

    def openChannel(self, name: str, stream: Stream, flags: int = 0) -> int:
        """Open one of its channels."""
        return stream.open(self, "openChannel", name, flags)


class Stream:
    """A stream, whose bytes come with the news of them.

    Args:
        far: the hosts' process.
        connection: over which it goes.
    """

    def __init__(self, far: FarSide, connection: Handle) -> None:
        self._far = far
        self._connection = connection
        self._there: Handle | None = None
        self._news: deque[tuple[int, bytes]] = deque()
        self._call: Callable[[int], object] | None = None
        self._lock = threading.RLock()
        self._arrived = b""

    def open(self, domain: Handle, method: str, device: str | None, flags: int) -> int:
        """Open something of a domain on it."""
        key = self._far.hear(self._tell)
        self._there = self._far.ask(domain.number, method, [device, self._connection, key, flags])
        return 0

    def eventAddCallback(self, _: int, call: Callable[..., Any], opaque: object) -> None:
        """Call something when there is something to read, or the stream has ended."""
        with self._lock:
            self._call = lambda happened: call(self, happened, opaque)
        self._tell()

    def eventRemoveCallback(self) -> None:
        """Call nobody any more."""
        self._call = lambda happened: None

    def _tell(self, *news: Any) -> None:
        with self._lock:
            if news:
                self._news.append(news)
            while self._news and self._call is not None:
                happened, self._arrived = self._news.popleft()
                self._call(happened)

    def recv(self, _: int) -> bytes:
        """Return what there was to read."""
        return self._arrived

    def send(self, data: bytes) -> int:
        """Write."""
        return int(self._ask("send", data))

    def abort(self) -> None:
        """End it."""
        self._ask("abort")

    def _ask(self, method: str, *args: Any) -> Any:
        assert self._there is not None, "nothing is opened on it"
        return self._far.ask(self._there.number, method, args)


KINDS: dict[str, type[Handle]] = {"VirConnect": ConnectionHandle, "VirDomain": DomainHandle}
