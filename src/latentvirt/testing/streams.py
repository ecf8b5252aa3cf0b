"""The ports of a fake domain and the streams that a host opens to them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeAlias

import libvirt

from latentvirt.testing.transfers import FakeDownload, FakePicture, FakeUpload
from latentvirt.testing.trouble import connection_lost, libvirt_error

Post: TypeAlias = Callable[[Callable[[], object]], object]

WOULD_BLOCK = -2
UNREAD_BYTES = 4096
"""How much of what a guest writes to its console a pseudo-terminal keeps while nobody reads."""


class FakePort:
    """The host's end of a console or channel; it lives as long as its domain's run.

    Args:
        post: puts a call in line for the fake's event thread.
        limit: how many bytes are kept while nobody reads; None for all.
        to_guest: takes what the host writes.
    """

    def __init__(self, post: Post, limit: int | None, to_guest: Callable[[bytes], object]) -> None:
        self._post = post
        self._limit = limit
        self.to_guest = to_guest
        self._unread = b""
        self.stream: FakeStream | None = None

    def from_guest(self, data: bytes) -> None:
        """Take what the guest writes."""
        if self.stream is not None and not self.stream.connection_broken:
            self.stream.arrive(data)
            return
        self._unread = (self._unread + data)[: self._limit]

    def attach(self, stream: FakeStream) -> None:
        """Give the port to a stream."""
        self.stream = stream
        unread, self._unread = self._unread, b""
        if unread:
            stream.arrive(unread)

    def end(self) -> None:
        """End with the domain's run."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.hang_up()


class FakeStream:
    """A virStream; what its names mean, libvirt's documentation says."""

    def __init__(self, connection: Any, post: Post) -> None:
        self._connection = connection
        self._post = post
        self._lock = threading.RLock()
        self._arrived = b""
        self._hung_up = False
        self._callback: tuple[int, Callable[..., object], object] | None = None
        self.port: FakePort | None = None
        self.transfer: FakeUpload | FakeDownload | FakePicture | None = None
        """A whole file's bytes instead of a port's; such a stream blocks."""

    @property
    def connection_broken(self) -> bool:
        """Whether its client is gone; the fake's own."""
        return bool(self._connection.broken)

    def arrive(self, data: bytes) -> None:
        """Take bytes for the host; the fake's own."""
        with self._lock:
            self._arrived += data
        self._post(self._tell)

    def hang_up(self) -> None:
        """Tell the host that the far side is gone; the fake's own."""
        with self._lock:
            self._hung_up = True
            self.port = None
        self._post(self._tell)

    def _tell(self) -> None:
        while True:
            with self._lock:
                events = (libvirt.VIR_STREAM_EVENT_READABLE if self._arrived else 0) | (
                    libvirt.VIR_STREAM_EVENT_HANGUP if self._hung_up else 0
                )
                callback = self._callback
            if callback is None or not events & callback[0]:
                return
            callback[1](self, events, callback[2])

    def eventAddCallback(self, events: int, callback: Callable[..., object], opaque: object) -> None:
        with self._lock:
            self._callback = (events, callback, opaque)
        self._post(self._tell)

    def eventRemoveCallback(self) -> None:
        with self._lock:
            if self._callback is None:
                raise libvirt_error(
                    libvirt.VIR_ERR_INTERNAL_ERROR, "internal error: stream has no callback registered"
                )
            self._callback = None

    def recv(self, count: int) -> bytes | int:
        if self.transfer is not None:
            self._connection.meet("stream.recv")
            return self.transfer.give(count)
        with self._lock:
            if self._connection.broken:
                raise connection_lost()
            data, self._arrived = self._arrived[:count], self._arrived[count:]
            return data if data or self._hung_up else WOULD_BLOCK

    def send(self, data: bytes) -> int:
        self._connection.meet("stream.send")
        if self.transfer is not None:
            return self.transfer.take(data)
        port = self.port
        if port is None:
            raise libvirt_error(libvirt.VIR_ERR_INTERNAL_ERROR, "internal error: stream is not open")
        self._post(lambda: port.to_guest(data))
        return len(data)

    def abort(self) -> None:
        self._connection.meet("stream.abort")
        self._end()

    def finish(self) -> None:
        self._connection.meet("stream.finish")
        self._end()

    def _end(self) -> None:
        if self.transfer is not None:
            transfer, self.transfer = self.transfer, None
            transfer.end()
            return
        port, self.port = self.port, None
        if port is None:
            raise libvirt_error(libvirt.VIR_ERR_INTERNAL_ERROR, "internal error: stream is not open")
        port.stream = None
