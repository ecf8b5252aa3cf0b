"""Simulated hosts in a process of their own, as real ones are, so that they take no time from the master's.

What is left on the client's side is about what libvirt-python does there: a message, and waiting for its
answer without holding up Python's other threads.
"""

from __future__ import annotations

import itertools
import marshal
import multiprocessing
import os
import pickle
import resource
import socket
import struct
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import libvirt

from latentvirt.testing import FakeLibvirt
from latentvirt.testing.connection import VirConnect
from latentvirt.testing.domain import VirDomain
from latentvirt.testing.storage import VirPool, VirVolume
from latentvirt.testing.streams import WOULD_BLOCK, FakeStream

IMAGES = "/images"
BASE = f"{IMAGES}/base.qcow2"
POOL = f"<pool type='dir'><name>images</name><target><path>{IMAGES}</path></target></pool>"

PATIENCE_S = 60.0
DIAL_AGAIN_S = 0.02
BACKLOG = 512
READ_BYTES = 64 * 1024
LENGTH = struct.Struct("!I")

KNOWN = {
    VirConnect: (),
    VirDomain: ("name", "UUIDString", "ID"),
    VirPool: ("name",),
    VirVolume: (),
    FakeStream: (),
}
"""Of what the client gets a handle, and what that knows without a call."""

OPENING = ("openConsole", "openChannel")


class Inside:
    """The hosts, seen from inside: how a benchmark sets them up, and what it asks of them.

    Args:
        fake: they are its.
    """

    def __init__(self, fake: FakeLibvirt) -> None:
        self._fake = fake
        self._hosts: list[Any] = []

    def prepare(
        self, uris: Sequence[str], calls_of_connection: int | None, calls_of_host: int | None
    ) -> None:
        """Give hosts the base image and a pool, and limit how many calls each serves at a time."""
        self._hosts = [self._fake.inspect(uri) for uri in uris]
        for host in self._hosts:
            host.add_file(BASE)
            self._fake.open(host.uri).storagePoolCreateXML(POOL, 0)
            host.trouble.calls_of_connection, host.trouble.calls_of_host = calls_of_connection, calls_of_host

    def take(self, latency_s: float) -> None:
        """Let each call take so long from now on."""
        for host in self._hosts:
            host.trouble.latency_s = latency_s

    def calls(self) -> list[list[str]]:
        """Return the calls so far, by host."""
        return [host.trouble.calls for host in self._hosts]

    def running(self) -> list[int]:
        """Count the VMs, by host."""
        return [len(host.running()) for host in self._hosts]

    def most_busy(self) -> list[int]:
        """Say how many calls were served at a time at most, by host."""
        return [host.trouble.served.most_busy for host in self._hosts]


class Line:
    """Messages over a socket, each written and read at one go, as libvirt's client does.

    Python's own for processes does so in several, and lets other threads have their turn between them.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._ahead = b""

    def send(self, message: object) -> None:
        """Send one message of plain values."""
        data = marshal.dumps(message)
        self._socket.sendall(LENGTH.pack(len(data)) + data)

    def recv(self) -> Any:
        """Wait for one message; raises EOFError at the end."""
        there = self._ahead
        while len(there) < LENGTH.size or len(there) < LENGTH.size + LENGTH.unpack_from(there)[0]:
            more = self._socket.recv(READ_BYTES)
            if not more:
                raise EOFError
            there += more
        end = LENGTH.size + LENGTH.unpack_from(there)[0]
        self._ahead = there[end:]
        return marshal.loads(memoryview(there)[LENGTH.size : end])


HANDLE = "handle"
"""A handle on its way is a mapping with its number under this key; no other mapping has it."""
KIND = "kind"


class _Server:
    """Serve one client process; each of its threads has a connection, and one is for events."""

    def __init__(self) -> None:
        fake = FakeLibvirt()
        self._numbers = itertools.count(2)
        self._objects: dict[int, Any] = {0: Inside(fake), 1: fake}
        self._events: SimpleQueue[Any] = SimpleQueue()

    def accept(self, listener: socket.socket) -> None:
        for serve in itertools.chain([self._tell], itertools.repeat(self._answer)):
            threading.Thread(target=serve, args=(Line(listener.accept()[0]),), daemon=True).start()

    def _tell(self, client: Line) -> None:
        while True:
            client.send(self._events.get())

    def _answer(self, client: Line) -> None:
        while True:
            try:
                number, method, given = client.recv()
            except EOFError:
                return
            args = [self._objects[one[HANDLE]] if isinstance(one, dict) else one for one in given]
            try:
                answer: tuple[bool, Any] = True, self._shown(self._call(self._objects[number], method, args))
            except Exception as error:
                answer = False, pickle.dumps(error)
            client.send(answer)

    def _call(self, here: Any, method: str, args: list[Any]) -> Any:
        if method == "domainEventRegisterAny":
            return here.domainEventRegisterAny(*self._telling_of_domains(*args))
        if method in OPENING:
            # A stream is the client's own affair until something is opened on it.
            device, connection, key, flags = args
            stream = connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
            getattr(here, method)(device, stream, flags)
            stream.eventAddCallback(*self._telling_of_bytes(key))
            return stream
        return getattr(here, method)(*args)

    # What is heard is sent to the client under its key for it.

    def _telling_of_domains(self, event: int, key: int) -> list[Any]:
        def tell(_: Any, domain: VirDomain, *details: Any) -> None:
            self._events.put((key, (self._shown(domain), *details[:-1])))

        return [None, event, tell, None]

    def _telling_of_bytes(self, key: int) -> list[Any]:
        def tell(stream: FakeStream, happened: int, _: object) -> None:
            # It is told again as long as nobody has read, so the client gets what there is with it.
            try:
                data = stream.recv(READ_BYTES)
            except libvirt.libvirtError:
                data = b""
            if data != WOULD_BLOCK:
                self._events.put((key, (happened, data)))
            if not data:
                stream.eventRemoveCallback()

        return [libvirt.VIR_STREAM_EVENT_READABLE | libvirt.VIR_STREAM_EVENT_HANGUP, tell, None]

    def _shown(self, value: Any) -> Any:
        known = KNOWN.get(type(value))
        if known is not None:
            number = next(self._numbers)
            self._objects[number] = value
            shown = {name: getattr(value, name)() for name in known}
            return {HANDLE: number, KIND: type(value).__name__, **shown}
        if isinstance(value, (list, tuple)):
            return type(value)(map(self._shown, value))
        return value


def _serve(address: str) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_it() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=end_with_it, daemon=True).start()
    _allow_many_files()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(BACKLOG)
        _Server().accept(listener)


def _allow_many_files() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class FarSide:
    """The process with the hosts: a `latentvirt.host.Driver`."""

    def __init__(self) -> None:
        _allow_many_files()
        self._folder = tempfile.TemporaryDirectory()
        self._address = str(Path(self._folder.name) / "hosts")
        self._process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(self._address,), daemon=True
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
