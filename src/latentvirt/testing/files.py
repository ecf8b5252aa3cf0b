"""What lies on a fake host's disk: images, saved domains, and the pools that know of them."""

from __future__ import annotations

import copy
import itertools
import struct
import uuid as uuids
from typing import TYPE_CHECKING

import attrs
import libvirt

from latentvirt.testing.trouble import libvirt_error

if TYPE_CHECKING:
    from latentvirt.testing.guest import FakeGuest

GIB = 1024**3
EMPTY_QCOW2_BYTES = 196616
SAVED_BYTES = 50_000_000
SAVE_HEADER_BYTES = 4096
"""What of a saved domain's file libvirt itself reads; the rest is for QEMU."""

QCOW2_HEAD = struct.Struct(">4sIQIIQ")
QCOW2_MAGIC, QCOW2_VERSION = b"QFI\xfb", 3

_times = itertools.count(1_700_000_000_000_000_000)


@attrs.frozen
class FakeSave:
    """A domain's memory in a file.

    Args:
        xml: the domain's description.
        guest: as it was when it was saved; what is restored is a copy of it.
        header: whether libvirt can still read its part of the file.
        whole: whether QEMU can still read the rest.
        kills: whether libvirt's daemon dies when it reads it, as version 9 does of some wrong headers.
    """

    xml: str
    guest: FakeGuest | None
    header: bool = True
    whole: bool = True
    kills: bool = False


@attrs.define(kw_only=True)
class FakeFile:
    """A file on the host.

    Args:
        format: ``qcow2``, ``raw``...
        capacity: bytes that a guest sees.
        backing: path that it stands on.
        backing_format: that one's format, if the file says.
        mode: its permissions.
        length: bytes of the file.
        modified: nanoseconds of its last write; each file and each write has a time of its own.
        changed: nanoseconds of its last change of any kind.
        save: the domain that was saved to it.
        content: what is in it; None for an image that nobody has written to as a file.
    """

    format: str = "qcow2"
    capacity: int = GIB
    backing: str | None = None
    backing_format: str | None = None
    mode: str = "0644"
    length: int = attrs.Factory(
        lambda file: file.capacity if file.format == "raw" else EMPTY_QCOW2_BYTES, takes_self=True
    )
    modified: int = attrs.field(factory=lambda: next(_times))
    changed: int = attrs.field(factory=lambda: next(_times))
    save: FakeSave | None = None
    content: bytearray | None = None

    def read(self) -> bytes:
        """Return all bytes: for an image without content, the head of one and zeroes."""
        if self.content is not None:
            return bytes(self.content)
        head = b""
        if self.format == "qcow2":
            backing = (self.backing or "").encode()
            head = QCOW2_HEAD.pack(
                QCOW2_MAGIC, QCOW2_VERSION, QCOW2_HEAD.size if backing else 0, len(backing), 0, self.capacity
            )
            head += backing
        return head.ljust(self.length, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """Be written to at an offset."""
        if self.content is None:
            self.content = bytearray(self.read())
        self.content[offset : offset + len(data)] = data
        self.length = len(self.content)
        self.touch()

    def recognise(self) -> None:
        """Be what the content says."""
        head = bytes(self.content or b"")[: QCOW2_HEAD.size]
        if len(head) < QCOW2_HEAD.size or not head.startswith(QCOW2_MAGIC):
            return
        self.format = "qcow2"
        *_, self.capacity = QCOW2_HEAD.unpack(head)

    def touch(self, *, modified: bool = True) -> None:
        """Be changed, as by a write; without `modified`, as by a change of owner."""
        self.changed = next(_times)
        if modified:
            self.modified = self.changed

    def truncate(self, length: int, *, seen: bool = True) -> None:
        """Lose what is beyond a length.

        Args:
            length: bytes that stay.
            seen: whether length and times tell of it, as they do unless a disk fails.
        """
        if self.save is not None:
            header = self.save.header and length >= SAVE_HEADER_BYTES
            self.save = attrs.evolve(self.save, header=header, whole=False)
        if seen:
            self.length = length
            self.touch()

    def corrupt(self, *, seen: bool = True, kills: bool = False) -> None:
        """Get other bytes at the beginning.

        Args:
            seen: whether its times tell of it, as they do unless a disk fails.
            kills: whether they are such that libvirt's daemon dies when it reads a saved domain with them.
        """
        if self.save is not None:
            self.save = attrs.evolve(self.save, header=False, kills=kills)
        if seen:
            self.touch()

    def saved(self) -> FakeSave:
        """Read what libvirt reads of a saved domain; the fake's own."""
        if self.save is None or (not self.save.header and self.length < SAVE_HEADER_BYTES):
            raise libvirt_error(
                libvirt.VIR_ERR_OPERATION_FAILED, "operation failed: failed to read qemu header"
            )
        if not self.save.header:
            raise libvirt_error(
                libvirt.VIR_ERR_OPERATION_FAILED, "operation failed: image magic is incorrect"
            )
        return self.save


@attrs.define(kw_only=True)
class FakePool:
    """A directory pool; ``seen`` is what it knows of its directory, as it was when it looked."""

    name: str
    path: str
    uuid: str = attrs.field(factory=lambda: str(uuids.uuid4()))
    active: bool = False
    persistent: bool = False
    mode: str = "0755"
    seen: dict[str, FakeFile] = attrs.field(factory=dict)

    def see(self, name: str, file: FakeFile) -> None:
        """Take note of a file as it is now."""
        self.seen[name] = copy.copy(file)
