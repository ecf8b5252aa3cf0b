"""libvirt's own event loop, and the door to its connections."""

from __future__ import annotations

import logging
import threading
from typing import Any, ClassVar, Protocol

import libvirt

from latentvirt.config import Connection
from latentvirt.roots import open_way

logger = logging.getLogger(__name__)

KEEPALIVE_INTERVAL_S = 2
KEEPALIVE_COUNT = 3
"""A connection whose far end is mute breaks after interval x (count + 1) = 8 s."""


class Driver(Protocol):
    """What `Host` needs of libvirt beyond a connection's own methods; the fake has one of its own."""

    def open(self, uri: str) -> Any:
        """Open a connection (a virConnect); blocks."""
        ...


class LibvirtDriver:
    """Open real connections, with libvirt's event loop running on a daemon thread beforehand.

    The loop is one per process, as libvirt has it; it starts with the first connection and never ends.
    """

    _lock = threading.Lock()
    _running = False
    _kept_lock = threading.Lock()
    _kept: ClassVar[dict[str, Any]] = {}

    def open(self, uri: str) -> Any:
        """Open a connection with keep-alive where its kind has it; blocks."""
        self._start_loop()
        if Connection(uri).is_embed:
            return self._kept_open(uri)
        connection = libvirt.open(uri)
        try:
            connection.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
        except libvirt.libvirtError:
            # Drivers inside our own process (embed, test) have no far end to keep alive.
            pass
        return connection

    @classmethod
    def _kept_open(cls, uri: str) -> Any:
        """Open embed once per process: libvirt 9 registers QEMU's driver anew each time, and not often."""
        with cls._kept_lock:
            if uri not in cls._kept:
                open_way(uri)
                cls._kept[uri] = libvirt.open(uri)
            return _KeptOpen(cls._kept[uri])

    @classmethod
    def _start_loop(cls) -> None:
        with cls._lock:
            if cls._running:
                return
            # Without a handler of ours libvirt prints each error on the master's stderr as well.
            libvirt.registerErrorHandler(lambda _, __: None, None)
            libvirt.virEventRegisterDefaultImpl()
            threading.Thread(target=cls._loop, name="latentvirt libvirt events", daemon=True).start()
            cls._running = True

    @staticmethod
    def _loop() -> None:
        while True:
            try:
                libvirt.virEventRunDefaultImpl()
            except libvirt.libvirtError:
                logger.exception("libvirt's event loop failed once; it goes on")


class _KeptOpen:
    """A virConnect that its user may close and open again, and that stays open all the same."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def close(self) -> int:
        return 0
