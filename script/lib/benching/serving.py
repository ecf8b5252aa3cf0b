"""The process of the simulated hosts: one thread serves all calls.

A thread for each call, as libvirtd has it, would cost Python several times what the calls themselves do, and
let answers come late when there are many. A hundred hosts are here one processor, so what a call does is done
halfway, as it would be with half of the wire before it: when many come at once, its answer is in time still.
"""

from __future__ import annotations

import gc
import heapq
import itertools
import math
import multiprocessing
import os
import pickle
import resource
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any

import libvirt

from benching.wire import HANDLE, KIND, OPENING, READ_BYTES, Line
from latentvirt.testing import FakeLibvirt
from latentvirt.testing.connection import VirConnect
from latentvirt.testing.domain import VirDomain
from latentvirt.testing.storage import VirPool, VirVolume
from latentvirt.testing.streams import WOULD_BLOCK, FakeStream
from latentvirt.testing.trouble import Trouble

IMAGES = "/images"
BASE = f"{IMAGES}/base.qcow2"
POOL = f"<pool type='dir'><name>images</name><target><path>{IMAGES}</path></target></pool>"

BACKLOG = 512

HALFWAY = 0.5
"""Which part of the time that a call takes has passed when it gets to its host."""

KNOWN = {
    VirConnect: (),
    VirDomain: ("name", "UUIDString", "ID"),
    VirPool: ("name",),
    VirVolume: (),
    FakeStream: (),
}
"""Of what the client gets a handle, and what that knows without a call."""


class Gate:
    """Let so many in at a time, first come, first served.

    Args:
        most: how many; None for any number.
    """

    def __init__(self, most: int | None) -> None:
        self.most_busy = 0
        """How many there have been at a time at most."""
        self._most = most
        self._busy = 0
        self._line: deque[Callable[[], object]] = deque()

    def enter(self, go: Callable[[], object]) -> None:
        """Call something, now or when it is its turn."""
        if self._most is not None and self._busy >= self._most:
            self._line.append(go)
            return
        self._busy += 1
        self.most_busy = max(self.most_busy, self._busy)
        go()

    def leave(self) -> None:
        """Make room for the next."""
        if self._line:
            self._line.popleft()()
        else:
            self._busy -= 1


class PutOff(BaseException):
    """A call has only been sent yet: what it does is done when it is due.

    Args:
        distance: that it has to go.
        connection: where the calls of its connection are let in; None if it has none yet.
    """

    def __init__(self, distance: Distance, connection: Gate | None) -> None:
        super().__init__()
        self.distance = distance
        self.gates = [gate for gate in (connection, distance.gate) if gate is not None]


class Distance(Trouble):
    """The trouble of a far host: a call that meets it begins anew when it has arrived; nothing waits for it.

    Args:
        calls_of_connection: how many calls of one connection are served at a time; None for no limit.
        calls_of_host: the same of all.
    """

    def __init__(self, calls_of_connection: int | None, calls_of_host: int | None) -> None:
        super().__init__()
        self.wire_s = 0.0
        self.arrived = False
        self.gate = Gate(calls_of_host)
        self._of_connection = calls_of_connection

    def connection_served(self) -> Any:
        """Make the gate for the calls of a new connection."""
        return Gate(self._of_connection)

    def meet(self, method: str, broken: Callable[[], bool], connection: Any = None) -> None:
        """Put a call off that has not arrived yet."""
        if self.wire_s and not self.arrived:
            raise PutOff(self, connection)
        super().meet(method, broken)


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
            host.trouble = Distance(calls_of_connection, calls_of_host)
            host.add_file(BASE)
            self._fake.open(host.uri).storagePoolCreateXML(POOL, 0)

    def take(self, latency_s: float) -> None:
        """Let each call take so long from now on."""
        for host in self._hosts:
            host.trouble.wire_s = latency_s

    def calls(self) -> list[list[str]]:
        """Return the calls so far, by host."""
        return [host.trouble.calls for host in self._hosts]

    def running(self) -> list[int]:
        """Count the VMs, by host."""
        return [len(host.running()) for host in self._hosts]

    def most_busy(self) -> list[int]:
        """Say how many calls were served at a time at most, by host."""
        return [host.trouble.gate.most_busy for host in self._hosts]


class Agenda:
    """What is to be done when."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()

    def add(self, due: float, do: Callable[[], object]) -> None:
        """Add something, to be done at a moment of the monotonic clock."""
        heapq.heappush(self._due, (due, next(self._order), do))

    @property
    def next_due(self) -> float:
        """When the next is due; infinite if there is none."""
        return self._due[0][0] if self._due else math.inf

    def do_next(self) -> bool:
        """Do what is due; False if nothing is."""
        if self.next_due > time.monotonic():
            return False
        heapq.heappop(self._due)[2]()
        return True


class Server:
    """Serve one client process; each of its threads has a connection, and the first one is for events."""

    def __init__(self) -> None:
        fake = FakeLibvirt()
        self._numbers = itertools.count(2)
        self._objects: dict[int, Any] = {0: Inside(fake), 1: fake}
        self._events: SimpleQueue[Any] = SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._answers = Agenda()
        self._arrivals = Agenda()

    def serve(self, listener: socket.socket) -> None:
        """Serve, as long as the process lives."""
        threading.Thread(target=self._tell, args=(Line(listener.accept()[0]),), daemon=True).start()
        self._selector.register(listener, selectors.EVENT_READ)
        while True:
            next_due = min(self._answers.next_due, self._arrivals.next_due)
            until_next_s = max(0.0, next_due - time.monotonic()) if next_due < math.inf else None
            for key, _ in self._selector.select(until_next_s):
                if key.data is None:
                    client = listener.accept()[0]
                    self._selector.register(client, selectors.EVENT_READ, Line(client))
                else:
                    self._hear(key.fileobj, key.data)
            while self._answers.do_next():
                pass
            self._arrivals.do_next()  # one by one: their answers have time

    def _tell(self, client: Line) -> None:
        while True:
            client.send(self._events.get())

    def _hear(self, connected: Any, client: Line) -> None:
        try:
            asked = client.recv()
        except EOFError:
            self._selector.unregister(connected)
            connected.close()
            return
        try:
            client.send(self._answer(asked))
        except PutOff as call:
            self._let_in(call.gates, partial(self._send, call, client, asked))

    def _let_in(self, gates: Sequence[Gate], go: Callable[[], object]) -> None:
        if gates:
            gates[0].enter(partial(self._let_in, gates[1:], go))
        else:
            go()

    def _send(self, call: PutOff, client: Line, asked: Any) -> None:
        now, wire_s = time.monotonic(), call.distance.wire_s
        arrived = partial(self._arrived, call, client, asked, now + wire_s)
        self._arrivals.add(now + HALFWAY * wire_s, arrived)

    def _arrived(self, call: PutOff, client: Line, asked: Any, due: float) -> None:
        call.distance.arrived = True
        try:
            answer = self._answer(asked)
        finally:
            call.distance.arrived = False
        self._answers.add(due, partial(self._back, call, client, answer))

    def _back(self, call: PutOff, client: Line, answer: Any) -> None:
        client.send(answer)
        for gate in reversed(call.gates):
            gate.leave()

    def _answer(self, asked: Any) -> tuple[bool, Any]:
        number, method, given = asked
        args = [self._objects[one[HANDLE]] if isinstance(one, dict) else one for one in given]
        try:
            return True, self._shown(self._call(self._objects[number], method, args))
        except Exception as error:
            return False, pickle.dumps(error)

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

    # What is heard is sent to the client under its key for it, by one thread for all hosts: each has its own.

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


def serve(address: str) -> None:
    """Be the process of the hosts, until its parent ends.

    Args:
        address: path of the socket.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_it() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=end_with_it, daemon=True).start()
    allow_many_files()
    gc.disable()  # what looks at all objects of a hundred hosts would be taken for hosts that are slow
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(BACKLOG)
        Server().serve(listener)


def allow_many_files() -> None:
    """Let this process have a socket for each thread of many."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
