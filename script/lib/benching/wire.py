"""What the simulated hosts' process and its client say to each other, and how."""

from __future__ import annotations

import marshal
import socket
import struct
from typing import Any

READ_BYTES = 64 * 1024
LENGTH = struct.Struct("!I")

HANDLE = "handle"
"""A handle on its way is a mapping with its number under this key; no other mapping has it."""
KIND = "kind"

OPENING = ("openConsole", "openChannel")
"""The calls that need a stream, which is made on the far side with them."""


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
