"""What a host tells about itself and its domains, as plain values."""

from __future__ import annotations

import enum

import attrs

from latentvirt.hold import Hold
from latentvirt.names import Ownership


class Condition(enum.Enum):
    """How a domain fares."""

    RUNNING = "running"
    PAUSED = "paused"
    IO_ERROR = "paused by an I/O error"
    CRASHED = "crashed"
    ENDED = "ended"
    HOST_LOST = "host lost"
    HOST_BACK = "host back"

    @property
    def is_end(self) -> bool:
        """Whether no build can go on in such a domain."""
        return self not in (Condition.RUNNING, Condition.PAUSED, Condition.HOST_BACK)


class Change(enum.Enum):
    """What happened to the room on a host."""

    BEGAN = "a domain began"
    SAVED = "a domain was saved, and may come back from its file"
    ENDED = "a domain ended"
    UNHEARD = "the connection broke: whatever happens from now on is not heard of"


@attrs.frozen
class DomainNews:
    """Tell what became of a domain.

    Args:
        condition: how it fares now.
        detail: the same for a person, a clause such as "the guest powered itself off".
    """

    condition: Condition
    detail: str


@attrs.frozen(kw_only=True)
class DomainView:
    """A domain at one moment.

    Args:
        name: its name on the host.
        uuid: its UUID.
        active: whether it runs (or is paused).
        persistent: whether the host has a definition of it that outlives the run.
        ownership: whose it is; None if it is not latentvirt's, or not running.
        hold: until when it is held, also if that is over; None if nobody has held it.
    """

    name: str
    uuid: str
    active: bool
    persistent: bool
    ownership: Ownership | None = None
    hold: Hold | None = None

    def held_at(self, now: float) -> Hold | None:
        """Say until when it is held; None if it is not, or the time (seconds since the epoch) is up."""
        return self.hold if self.hold is not None and self.hold.until > now else None


@attrs.frozen(kw_only=True)
class ImageView:
    """An image file on the host.

    Args:
        path: where it is.
        format: ``qcow2``, ``raw``...
        capacity: bytes that a guest sees.
        backing: path of the image that this one stands on, None if it stands alone.
        backing_format: that one's format, None if the image does not say.
        owner: ``uid:gid mode`` for messages, empty if unknown.
        size: bytes that it takes on the host's disk.
        length: bytes of the file, holes included.
        modified: its length and the time of its last write, which tell one content from another; for files
            whose owner libvirt itself changes.
        stamp: the same and the time of its last change of any kind, which nobody can set back.
    """

    path: str
    format: str
    capacity: int
    backing: str | None = None
    backing_format: str | None = None
    owner: str = ""
    size: int = 0
    length: int = 0
    modified: str = ""
    stamp: str = ""


@attrs.frozen
class Created:
    """A domain that was created or restored, paused.

    Args:
        uuid: its UUID.
        xml: its live XML, as libvirt made it, secrets included.
    """

    uuid: str
    xml: str = attrs.field(repr=False)


@attrs.frozen
class Versions:
    """What runs on a host, as libvirt numbers it: major * 1000000 + minor * 1000 + release.

    Args:
        libvirt: of the daemon.
        hypervisor: of QEMU.
    """

    libvirt: int
    hypervisor: int


@attrs.frozen
class MemoryView:
    """A host's memory at one moment, in MiB.

    Args:
        total: all that it has.
        available: what new VMs can have without swapping, about.
    """

    total: int
    available: int


@attrs.frozen
class Node:
    """How large a host is.

    Args:
        memory: all that it has, in MiB.
        cpus: processors that run.
    """

    memory: int
    cpus: int


@attrs.frozen(kw_only=True)
class DomainUse:
    """What a domain that runs, or is paused, takes of its host.

    Args:
        uuid: its UUID.
        name: its name.
        number: libvirt's number of its run; who started later has the higher one.
        memory: MiB, at most.
        vcpus: virtual processors, at most.
        ownership: whose it is; None if it is not latentvirt's.
    """

    uuid: str
    name: str
    number: int
    memory: int
    vcpus: int
    ownership: Ownership | None = None


@attrs.frozen(kw_only=True)
class NetworkView:
    """A network of libvirt's at one moment.

    Args:
        name: its name.
        active: whether it runs.
        autostart: whether it runs again after the host was booted.
        dhcp: whether somebody is there to give guests their addresses.
        address: the host's own on it; None if it has none.
    """

    name: str
    active: bool
    autostart: bool
    dhcp: bool
    address: str | None = None


@attrs.frozen(kw_only=True)
class PoolView:
    """A storage pool at one moment.

    Args:
        name: its name.
        path: of its directory.
        active: whether it runs.
        autostart: whether it runs again after the host was booted.
    """

    name: str
    path: str
    active: bool
    autostart: bool
