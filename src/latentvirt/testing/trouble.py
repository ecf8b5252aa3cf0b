"""The trouble that a test makes for a fake host: slowness, refusals, silence, broken connections."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import libvirt

TICK_S = 0.01
"""How often a hanging call looks whether its connection has broken meanwhile."""


def libvirt_error(code: int, message: str, *, errno: int = -1) -> libvirt.libvirtError:
    """Make the exception that libvirt-python raises.

    Args:
        code: libvirt's number (``VIR_ERR_...``).
        message: as libvirt words it.
        errno: the system's number, which libvirt hands on as ``int1``.
    """
    # The exception takes its words from libvirt's last error on this thread, if there is one.
    libvirt.virResetLastError()
    error = libvirt.libvirtError(message)
    error.err = (code, 0, message, libvirt.VIR_ERR_ERROR, None, None, None, errno, -1)
    return error


class Hang:
    """A method that does not answer until it is released, or the connection breaks."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        """Released once by each call that begins to hang: acquire it to know that one does."""
        self._released = threading.Event()

    def release(self) -> None:
        """Let all calls that hang here go on, and later ones not hang."""
        self._released.set()

    def wait(self, broken: Callable[[], bool]) -> None:
        """Hang; for the fake's own threads."""
        if self._released.is_set():
            return
        self.entered.release()
        while not self._released.wait(TICK_S) and not broken():
            pass


class Places:
    """So many calls at a time, first come, first served; all methods may be called on any thread.

    Args:
        limit: tells how many; None for no limit. It is asked for each call.
    """

    def __init__(self, limit: Callable[[], int | None]) -> None:
        self.most_busy = 0
        """How many calls there have been at a time at most."""
        self._limit = limit
        self._lock = threading.Lock()
        self._busy = 0
        self._waiting: deque[threading.Lock] = deque()

    @property
    def waiting(self) -> int:
        """How many calls stand in line."""
        with self._lock:
            return len(self._waiting)

    def __enter__(self) -> None:
        with self._lock:
            limit = self._limit()
            if limit is None or self._busy < limit:
                self._busy += 1
                self.most_busy = max(self.most_busy, self._busy)
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        turn.acquire()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()  # who waits longest has this place now
            else:
                self._busy -= 1


class Trouble:
    """What a test has asked to go wrong on one host; all methods may be called on any thread.

    Methods are named as ``domain.destroy``, ``pool.refresh``, ``volume.delete``, ``stream.send``,
    ``network.XMLDesc``, and those of a connection by their bare name: ``createXML``, ``open``.
    """

    def __init__(self) -> None:
        self.latency_s = 0.0
        """How long each call takes, in real seconds on the calling thread."""
        self.calls_of_host: int | None = None
        """How many calls are served at a time (libvirtd's ``max_workers``); None for no limit."""
        self.calls_of_connection: int | None = None
        """How many of one connection (libvirtd's ``max_client_requests``); None for no limit."""
        self.served = Places(lambda: self.calls_of_host)
        """Where calls of all connections are served."""
        self._lock = threading.Lock()
        self._failures: dict[str, deque[Exception]] = defaultdict(deque)
        self._hangs: dict[str, Hang] = {}
        self._before: dict[str, deque[Callable[[], object]]] = defaultdict(deque)
        self._calls: list[str] = []

    @property
    def calls(self) -> list[str]:
        """The methods called so far, in order."""
        with self._lock:
            return list(self._calls)

    def fail_next(self, method: str, error: int | Exception, message: str = "asked for by a test") -> None:
        """Let the next call of a method fail; several queue up.

        Args:
            method: its name.
            error: libvirt's number, or any exception.
            message: libvirt's words, where a number was given.
        """
        failure = error if isinstance(error, Exception) else libvirt_error(error, message)
        with self._lock:
            self._failures[method].append(failure)

    def forgive(self) -> None:
        """Let no call fail that was asked to and has not come yet."""
        with self._lock:
            self._failures.clear()

    def hang(self, method: str) -> Hang:
        """Let calls of a method not answer, until the returned one is released."""
        hang = Hang()
        with self._lock:
            self._hangs[method] = hang
        return hang

    def before_next(self, method: str, action: Callable[[], object]) -> None:
        """Do something on the calling thread just before the next call of a method takes effect."""
        with self._lock:
            self._before[method].append(action)

    def connection_served(self) -> Places:
        """Make the place where the calls of a new connection are served."""
        return Places(lambda: self.calls_of_connection)

    def meet(self, method: str, broken: Callable[[], bool], connection: Places | None = None) -> None:
        """Suffer what was asked for; called by the fake at the start of each call.

        Args:
            method: its name.
            broken: tells whether its connection has broken.
            connection: where the calls of its connection are served; None if it has none yet.
        """
        with self._lock:
            self._calls.append(method)
            hang = self._hangs.get(method)
            failure = self._failures[method].popleft() if self._failures[method] else None
            action = self._before[method].popleft() if self._before[method] else None
        with connection or nullcontext(), self.served:
            if self.latency_s:
                time.sleep(self.latency_s)
            if hang is not None:
                hang.wait(broken)
        if broken():
            raise connection_lost()
        if action is not None:
            action()
        if failure is not None:
            raise failure


def connection_lost() -> Any:
    """Make the error of a call whose connection has broken."""
    return libvirt_error(libvirt.VIR_ERR_INTERNAL_ERROR, "internal error: client socket is closed")
