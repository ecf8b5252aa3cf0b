"""Simulated hosts in a process of their own, as real ones are, so that they take no time from the master's.

What is left on the client's side is about what libvirt-python does there: a message, and waiting for its
answer without holding up Python's other threads.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import resource
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

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
        """Send one message."""
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
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
        return pickle.loads(memoryview(there)[LENGTH.size : end])


class Shown(NamedTuple):
    """A handle on its way to the client."""

    number: int
    kind: str
    known: dict[str, Any]


class Meant(NamedTuple):
    """A handle on its way back."""

    number: int


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
            here = self._objects[number]
            args = [self._objects[one.number] if isinstance(one, Meant) else one for one in given]
            try:
                if method == "domainEventRegisterAny":
                    args = self._telling_of_domains(*args)
                elif method == "eventAddCallback":
                    args = self._telling_of_bytes(*args)
                answer = True, self._shown(getattr(here, method)(*args))
            except Exception as error:
                answer = False, error
            client.send(answer)

    # What is heard is sent to the client under its key for it.

    def _telling_of_domains(self, event: int, key: int) -> list[Any]:
        def tell(_: Any, domain: VirDomain, *details: Any) -> None:
            self._events.put((key, (self._shown(domain), *details[:-1])))

        return [None, event, tell, None]

    def _telling_of_bytes(self, events: int, key: int) -> list[Any]:
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

        return [events, tell, None]

    def _shown(self, value: Any) -> Any:
        known = KNOWN.get(type(value))
        if known is not None:
            number = next(self._numbers)
            self._objects[number] = value
            return Shown(number, type(value).__name__, {name: getattr(value, name)() for name in known})
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
        self._mine = threading.local()
        self._keys = itertools.count()
        self._heard: dict[int, Callable[..., object]] = {}
        threading.Thread(target=self._hear, args=(self._dial(),), daemon=True).start()
        self.inside: Any = Handle(self, Shown(0, "Inside", {}))
        self._fake = Handle(self, Shown(1, "FakeLibvirt", {}))

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
        channel = getattr(self._mine, "channel", None)
        if channel is None:
            channel = self._mine.channel = self._dial()
        channel.send((number, method, args))
        well, answer = channel.recv()
        if not well:
            raise answer
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
        if isinstance(value, Shown):
            return KINDS.get(value.kind, Handle)(self, value, asked)
        if isinstance(value, (list, tuple)):
            return type(value)(self._taken(part, asked) for part in value)
        return value


class Handle:
    """Something on the far side: its methods are called there."""

    def __init__(self, far: FarSide, shown: Shown, asked: Handle | None = None) -> None:
        self.far = far
        self.asked = asked
        self.number = shown.number
        self._known = shown.known

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)  # Python looks for what it may use
        if name in self._known:
            return lambda: self._known[name]
        return lambda *args: self.far.ask(
            self.number, name, [Meant(one.number) if isinstance(one, Handle) else one for one in args], self
        )


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


class DomainHandle(Handle):
    """A domain, which knows the connection over which it was got."""

    def connect(self) -> Handle | None:
        """Return that connection."""
        return self.asked


class StreamHandle(Handle):
    """A stream, whose bytes come with the news of them."""

    _arrived = b""

    def eventAddCallback(self, events: int, call: Callable[..., Any], opaque: object) -> None:
        """Call something when there is something to read, or the stream has ended."""

        def tell(happened: int, data: bytes) -> None:
            self._arrived = data
            call(self, happened, opaque)

        self.far.ask(self.number, "eventAddCallback", [events, self.far.hear(tell)])

    def recv(self, _: int) -> bytes:
        """Return what there was to read."""
        return self._arrived


KINDS: dict[str, type[Handle]] = {
    "VirConnect": ConnectionHandle,
    "VirDomain": DomainHandle,
    "FakeStream": StreamHandle,
}
