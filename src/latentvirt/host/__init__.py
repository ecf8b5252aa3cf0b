"""The only room that knows libvirt: threads, deadlines, error codes, events, streams."""

from latentvirt.host.codes import MAY_BE_TAKEN
from latentvirt.host.deadlines import Deadlines
from latentvirt.host.driver import Driver, LibvirtDriver
from latentvirt.host.hauling import Haul
from latentvirt.host.host import Host
from latentvirt.host.streams import ByteStream
from latentvirt.host.views import (
    Change,
    Condition,
    Created,
    DomainNews,
    DomainUse,
    DomainView,
    ImageView,
    MemoryView,
    NetworkView,
    Node,
    PoolView,
    Versions,
)
from latentvirt.host.watching import Watch

__all__ = [
    "MAY_BE_TAKEN",
    "ByteStream",
    "Change",
    "Condition",
    "Created",
    "Deadlines",
    "DomainNews",
    "DomainUse",
    "DomainView",
    "Driver",
    "Haul",
    "Host",
    "ImageView",
    "LibvirtDriver",
    "MemoryView",
    "NetworkView",
    "Node",
    "PoolView",
    "Versions",
    "Watch",
]
