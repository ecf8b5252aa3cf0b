"""A domain's console or channel as a stream of bytes that arrives on the reactor's thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import libvirt

from latentvirt.host.pace import Pace

READ_BYTES = 64 * 1024
WOULD_BLOCK = -2  # what libvirt-python's non-blocking recv and send return for EAGAIN


class ByteStream:
    """Carry bytes between a guest's port and the reactor; it lives until either side ends it.

    Args:
        stream: an opened, non-blocking virStream.
        reactor: a Twisted reactor (IReactorFromThreads).
        on_data: called on the reactor's thread with each piece of bytes.
        on_end: called on the reactor's thread once, when the far side ended the stream.
    """

    def __init__(
        self,
        stream: Any,
        reactor: Any,
        on_data: Callable[[bytes], object],
        on_end: Callable[[], object],
    ) -> None:
        self._stream = stream
        self._pace = Pace.of(reactor)
        self._on_data = on_data
        self._on_end = on_end
        self._closed = False

    def begin(self) -> None:
        """Ask for the bytes; blocks shortly, for a thread of the host's."""
        self._stream.eventAddCallback(
            libvirt.VIR_STREAM_EVENT_READABLE
            | libvirt.VIR_STREAM_EVENT_ERROR
            | libvirt.VIR_STREAM_EVENT_HANGUP,
            self._ready,
            None,
        )

    def _ready(self, stream: Any, events: int, _: object) -> None:
        """Runs on libvirt's event thread: takes what is there and hands it on; must not block."""
        data: Any = b""
        if events & libvirt.VIR_STREAM_EVENT_READABLE:
            try:
                data = stream.recv(READ_BYTES)
            except libvirt.libvirtError:
                data = b""
            if data == WOULD_BLOCK:
                return
        if data:
            self._pace.arrive(partial(self._arrived, data))
            return
        self._forget()
        self._pace.arrive(self._ended)

    def _forget(self) -> None:
        try:
            self._stream.eventRemoveCallback()
        except libvirt.libvirtError:
            # The connection under it is gone, and the callback with it.
            pass

    def _arrived(self, data: bytes) -> None:
        if not self._closed:
            self._on_data(data)

    def _ended(self) -> None:
        if not self._closed:
            self._closed = True
            self._on_end()

    def write(self, data: bytes) -> int:
        """Write what fits; blocks shortly, for a thread of the host's.

        Returns:
            How many bytes were taken, 0 if the far side is not ready for any.
        """
        taken = self._stream.send(data)
        return 0 if taken == WOULD_BLOCK else int(taken)

    def silence(self) -> None:
        """Call nobody any more, from now on; on the reactor's thread."""
        self._closed = True

    def close(self) -> None:
        """End the stream, so that somebody else can have the port; blocks, for a thread of the host's."""
        self._forget()
        try:
            self._stream.abort()
        except libvirt.libvirtError:
            # The far side ended it first.
            pass
