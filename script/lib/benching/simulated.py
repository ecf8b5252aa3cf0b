"""What benchmarks on simulated hosts share: the fake's hosts, a bare master, builds, and the reactor's beat.

Of Buildbot's master only what the worker and its hub call is there, so that what is measured is
latentvirt's own work.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Awaitable, Iterable, Sequence
from queue import Empty, SimpleQueue
from types import SimpleNamespace
from typing import Any

from buildbot.util.service import MasterService
from twisted.internet import defer, reactor

from benching.farside import FarSide
from benching.serving import BASE, IMAGES
from latentvirt.hosts import Hosts
from latentvirt.master.arguments import read_arguments
from latentvirt.master.hub import Hub
from latentvirt.master.worker import LibVirtWorker

LATENCY_S = 0.2
"""How long each call takes that crosses the wire."""
BEAT_S = 0.005
SETTLE_S = 0.02
MEMORY_MIB = 64


class Heart:
    """Beats every few milliseconds and notes how late each beat was."""

    def __init__(self) -> None:
        self.late_ms: list[float] = []
        self._due = 0.0
        self._stopped = False

    def start(self) -> None:
        """Begin, after a collection of garbage that others have left."""
        gc.collect()
        self._due = time.perf_counter() + BEAT_S
        reactor.callLater(BEAT_S, self._beat)

    def _beat(self) -> None:
        if self._stopped:
            return
        now = time.perf_counter()
        self.late_ms.append((now - self._due) * 1000)
        self._due = now + BEAT_S
        reactor.callLater(BEAT_S, self._beat)

    def stop(self) -> None:
        """End."""
        self._stopped = True


class Master(MasterService):
    """What of a Buildbot master the worker and its hub call."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "bench"
        self.reactor = reactor
        self.running = True
        self.config = SimpleNamespace(protocols={"pb": {"port": 9989}})
        self.botmaster = SimpleNamespace(maybeStartBuildsForAllBuilders=lambda: None, builders={})
        self.db = SimpleNamespace(state=State())
        self.data = SimpleNamespace(updates=Updates())


class State:
    """Buildbot's object state, in memory."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    async def getObjectId(self, name: str, kind: str) -> int:
        """Name one object."""
        return 1

    async def atomicCreateState(self, number: int, name: str, make: Any) -> Any:
        """Make a value once."""
        return self._values.setdefault(name, make())

    async def getState(self, number: int, name: str, default: Any) -> Any:
        """Read a value."""
        return self._values.get(name, default)

    async def setState(self, number: int, name: str, value: Any) -> None:
        """Write a value."""
        self._values[name] = value


class Updates:
    """Buildbot's data API, which takes each write and does nothing with it."""

    def __getattr__(self, name: str) -> Any:
        async def write(*args: Any, **kwargs: Any) -> Any:
            return (1, 1, name) if name == "addStep" else 1

        return write


class Build:
    """A build that asks for a worker."""

    def __init__(self, number: int) -> None:
        self.buildid = number
        self.requests = [SimpleNamespace(id=number)]
        self.stopped = False

    def getProperty(self, name: str, default: Any = None) -> Any:
        """Read a property; it has none."""
        return default

    def render(self, value: Any) -> Any:
        """Render, where there is nothing to."""
        return defer.succeed(value)


class Simulation:
    """Hosts of the fake in a process of their own, and a master here with workers on them.

    Args:
        hosts: as a person names them.
        calls_of_connection: how many calls of one connection each host serves at a time; None for no limit.
        calls_of_host: the same of all.
    """

    def __init__(
        self, hosts: Hosts, calls_of_connection: int | None = None, calls_of_host: int | None = None
    ) -> None:
        self.hosts = hosts
        self.far = FarSide()
        self.inside = self.far.inside
        uris = [connection.uri for connection in hosts.connections]
        self.inside.prepare(uris, calls_of_connection, calls_of_host)
        self.workers: list[LibVirtWorker] = []
        self._hub: Hub
        self._builds = 0

    async def begin(self, workers: int, **ours: Any) -> None:
        """Start the master, and configure workers without Buildbot's own part in it.

        Args:
            workers: how many.
            ours: arguments of latentvirt's.
        """
        master = Master()
        await master.startService()
        self._hub = await Hub.getService(master)
        self._hub.driver = self.far
        for number in range(workers):
            arguments = {"connection": self.hosts, "base_image": BASE, "size": {"memory": MEMORY_MIB}, **ours}
            worker = LibVirtWorker(f"bench{number}", "password", **arguments)
            worker.parent = master
            worker.running = True
            worker._take_over(read_arguments("password", **arguments))
            worker._hub = self._hub
            self.workers.append(worker)
        await self._hub.expect(self.hosts, IMAGES)
        await self.settle()

    def builds(self, count: int) -> list[Build]:
        """Make builds that have not been started before."""
        self._builds += count
        return [Build(number) for number in range(self._builds - count + 1, self._builds + 1)]

    @property
    def running(self) -> int:
        """How many VMs there are on all hosts."""
        return sum(self.inside.running())

    async def stop_all(self) -> None:
        """Stop all workers' VMs, and wait until they are gone."""
        await all_of(worker.stop_instance() for worker in self.workers)
        await self.settle()
        if self.running:
            raise SystemExit(f"{self.running} VMs were left")

    async def settle(self) -> None:
        """Wait until the hub has nothing in the background."""
        while self._hub._background:
            await pause(SETTLE_S)

    async def end(self) -> None:
        """Close the connections, and end the hosts."""
        self.inside.take(0.0)
        await self._hub.stopService()
        self.far.end()


async def pause(seconds: float) -> None:
    """Let the reactor do other things."""
    done: defer.Deferred[None] = defer.Deferred()
    reactor.callLater(seconds, done.callback, None)
    await done


async def all_of(waiting: Iterable[Awaitable[Any]]) -> None:
    """Wait for all, and raise the first failure."""
    await defer.gatherResults(list(waiting), consumeErrors=True)


async def start_all(workers: Sequence[Any], builds: Sequence[Build]) -> None:
    """Start builds as Buildbot does: asked for one after the other, started beside each other.

    Args:
        workers: one for each build, of whichever kind.
        builds: the builds.
    """
    starts = []
    for worker, build in zip(workers, builds, strict=True):
        if not await worker.isCompatibleWithBuild(build):
            raise SystemExit(f"there is no room for build {build.buildid} of {len(builds)}")
        starts.append(worker.start_instance(build))
        await pause(0)  # there Buildbot writes to its database
    await all_of(starts)


async def threads_and_sleeps(loads: Sequence[tuple[int, int]]) -> list[float]:
    """Let threads sleep instead of making calls, and hand their results to the reactor.

    Args:
        loads: for each host, how many calls, and by how many threads.

    Returns:
        The beats' lateness in milliseconds.
    """
    done: defer.Deferred[None] = defer.Deferred()
    left = sum(calls for calls, _ in loads)

    def arrived() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            done.callback(None)

    def serve(line: SimpleQueue[int]) -> None:
        while True:
            try:
                line.get_nowait()
            except Empty:
                return
            time.sleep(LATENCY_S)
            reactor.callFromThread(arrived)

    heart = Heart()
    heart.start()
    for calls, threads in loads:
        line: SimpleQueue[int] = SimpleQueue()
        for number in range(calls):
            line.put(number)
        for _ in range(threads):
            threading.Thread(target=serve, args=(line,), daemon=True).start()
    await done
    heart.stop()
    return heart.late_ms


def summary(late_ms: Sequence[float]) -> dict[str, float]:
    """Say how late the beats were."""
    ordered = sorted(late_ms)

    def share(part: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(len(ordered) * part))], 3)

    return {"p50_ms": share(0.5), "p99_ms": share(0.99), "max_ms": round(ordered[-1], 3)}
