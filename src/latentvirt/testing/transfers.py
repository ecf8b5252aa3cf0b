"""Whole files that go through a fake stream; only what `latentvirt.host.Host` calls is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import libvirt

from latentvirt.testing.trouble import libvirt_error

if TYPE_CHECKING:
    from latentvirt.testing.files import FakeFile, FakePool
    from latentvirt.testing.state import FakeHostState


class FakePicture:
    """A screen's picture on its way out.

    Args:
        data: the picture.
    """

    def __init__(self, data: bytes) -> None:
        self._rest = data

    def take(self, data: bytes) -> int:
        """Refuse: nothing goes in here."""
        raise libvirt_error(
            libvirt.VIR_ERR_OPERATION_INVALID, "Requested operation is not valid: not writable"
        )

    def give(self, count: int) -> bytes:
        """Hand out bytes; none at the end."""
        data, self._rest = self._rest[:count], self._rest[count:]
        return data

    def end(self) -> None:
        """Be closed."""


class FakeUpload:
    """Bytes on their way into a file.

    Args:
        host: where it lies.
        pool: that it is seen in.
        name: of its volume.
        file: the file; it may be removed meanwhile, as any open file may.
        length: how many bytes may come; 0 for any number.
    """

    def __init__(self, host: FakeHostState, pool: FakePool, name: str, file: FakeFile, length: int) -> None:
        self._host = host
        self._pool = pool
        self._name = name
        self._file = file
        self._length = length
        self._at = 0

    def take(self, data: bytes) -> int:
        """Write bytes."""
        with self._host.lock:
            no_room = self._host.full or len(data) > self._host.free
            if no_room or (self._length and self._at + len(data) > self._length):
                raise libvirt_error(
                    libvirt.VIR_ERR_SYSTEM_ERROR, "cannot write to stream: No space left on device", errno=28
                )
            self._host.free -= len(data)
            self._file.write(self._at, data)
            self._at += len(data)
        return len(data)

    def give(self, count: int) -> bytes:
        """Refuse: nothing comes from here."""
        raise libvirt_error(
            libvirt.VIR_ERR_OPERATION_INVALID, "Requested operation is not valid: not readable"
        )

    def end(self) -> None:
        """Be closed: the pool looks at the file again."""
        with self._host.lock:
            self._file.recognise()
            if self._name in self._pool.seen:
                self._pool.see(self._name, self._file)


class FakeDownload:
    """Bytes on their way out of a file, as it was when the way began."""

    def __init__(self, file: FakeFile) -> None:
        self._data = file.read()
        self._at = 0

    def take(self, data: bytes) -> int:
        """Refuse: nothing goes in here."""
        raise libvirt_error(
            libvirt.VIR_ERR_OPERATION_INVALID, "Requested operation is not valid: not writable"
        )

    def give(self, count: int) -> bytes:
        """Read bytes."""
        data = self._data[self._at : self._at + count]
        self._at += len(data)
        return data

    def end(self) -> None:
        """Be closed."""
