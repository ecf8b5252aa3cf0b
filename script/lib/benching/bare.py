"""A floor for starts on many hosts: their calls, by Twisted's pool of threads, and nothing besides.

What threads that wait for calls cost Python on that machine is in it, and what simulated hosts take to
answer; nothing is planned, proven, placed or told.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable
from typing import Any

import libvirt
from lxml import etree
from twisted.internet import defer, reactor, threads
from twisted.python.threadpool import ThreadPool

from benching.serving import BASE
from benching.simulated import Simulation, all_of, pause
from latentvirt.names import CHANNEL_PORT

POOL = "images"
OVERLAY = (
    "<volume><name>{name}</name><capacity>1073741824</capacity><target><format type='qcow2'/></target>"
    f"<backingStore><path>{BASE}</path><format type='qcow2'/></backingStore></volume>"
)
NAME = "bare"
"""What the names of its VMs and their disks begin with."""


class BareStarts:
    """Start VMs like those that a simulation has, by the same calls.

    Args:
        simulation: with one VM at least.
        connections: how many there are to each host.
        starts: how many there will be at a time.
    """

    def __init__(self, simulation: Simulation, connections: int, starts: int) -> None:
        self._simulation = simulation
        uris = [connection.uri for connection in simulation.hosts.connections]
        self._hosts = [[simulation.far.open(uri) for _ in range(connections)] for uri in uris]
        self._pools = [
            [connection.storagePoolLookupByName(POOL) for connection in host] for host in self._hosts
        ]
        domains = (domain for host in self._hosts for domain in host[0].listAllDomains())
        self._xml = _template(next(domains).XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE))
        self._numbers = itertools.count()
        self._threads = ThreadPool(starts, starts)
        self._threads.start()
        self._running: list[Any] = []

    async def burst(self, starts: int, latency_s: float) -> float:
        """Start VMs on all hosts in turn; returns the seconds."""
        self._simulation.inside.take(latency_s)
        began = time.perf_counter()
        under_way = []
        for _ in range(starts):
            under_way.append(defer.ensureDeferred(self._start(next(self._numbers))))
            await pause(0)
        await all_of(under_way)
        took = time.perf_counter() - began
        self._simulation.inside.take(0.0)
        self._end_all()
        return took

    def _end_all(self) -> None:
        for domain in self._running:
            domain.destroy()
        self._running.clear()
        for host in self._pools:
            for name in host[0].listVolumes():
                if name.startswith(NAME):
                    host[0].storageVolLookupByName(name).delete(0)

    def end(self) -> None:
        """End the threads."""
        self._threads.stop()

    async def _start(self, number: int) -> None:
        turn, place = divmod(number, len(self._hosts))
        host, pools = self._hosts[place], self._pools[place]
        which = turn % len(host)
        connection, name = host[which], f"{NAME}{number}"
        xml = self._xml.format(name=name, uuid=uuid.uuid4(), disk=f"/images/{name}")
        await self._call(lambda: pools[which].createXML(OVERLAY.format(name=name), 0))

        def create() -> Any:
            domain = connection.createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED)
            domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)
            return domain

        domain = await self._call(create)

        def hear(opening: Callable[..., Any], device: str | None) -> None:
            stream = connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
            opening(device, stream, 0)
            stream.eventAddCallback(libvirt.VIR_STREAM_EVENT_READABLE, lambda *_: None, None)

        await all_of(
            [
                self._call(lambda: hear(domain.openConsole, None)),
                self._call(lambda: hear(domain.openChannel, CHANNEL_PORT)),
            ]
        )

        def resume() -> None:
            connection.getAllDomainStats(0, 0)
            domain.resume()

        await self._call(resume)
        self._running.append(domain)

    def _call(self, do: Callable[[], Any]) -> defer.Deferred[Any]:
        return threads.deferToThreadPool(reactor, self._threads, do)


def _template(live: str) -> str:
    """Make of a VM's XML one for VMs of other names."""
    root = etree.fromstring(live)
    root.attrib.pop("id", None)
    for path, text in (("name", "{name}"), ("uuid", "{uuid}")):
        element = root.find(path)
        assert element is not None
        element.text = text
    source = root.find("devices/disk/source")
    assert source is not None
    source.set("file", "{disk}")
    for mac in root.findall("devices/interface/mac"):
        mac.getparent().remove(mac)
    return etree.tostring(root, encoding="unicode")
