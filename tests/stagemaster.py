"""Of Buildbot's master what the worker and its hub call, with a clock that stands still."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from buildbot.util.service import MasterService
from twisted.internet import defer, reactor, task

from latentvirt.master.arguments import read_arguments
from latentvirt.master.hub import Hub
from latentvirt.master.worker import LibVirtWorker
from latentvirt.testing import FakeLibvirt
from reactorthread import on_reactor, run, start


class Clock(task.Clock):
    """Time that passes when the test says so; threads hand their results to the real reactor."""

    def callFromThread(self, call: Callable[..., object], *args: Any) -> None:
        """Call on the reactor's thread."""
        reactor.callFromThread(call, *args)

    def callLater(self, seconds: float, call: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
        """Call later by this clock, or soon on the real reactor."""
        return (super() if seconds else reactor).callLater(seconds, call, *args, **kwargs)


class State:
    """Buildbot's object state, in memory."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    async def getObjectId(self, name: str, kind: str) -> int:
        """Name one object."""
        return 1

    async def atomicCreateState(self, number: int, name: str, make: Callable[[], Any]) -> Any:
        """Make a value once."""
        return self.values.setdefault(name, make())

    async def getState(self, number: int, name: str, default: Any) -> Any:
        """Read a value."""
        return self.values.get(name, default)

    async def setState(self, number: int, name: str, value: Any) -> None:
        """Write a value."""
        self.values[name] = value


class Updates:
    """Buildbot's data API: notes what is written."""

    def __init__(self) -> None:
        self.written: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        async def write(*args: Any, **kwargs: Any) -> Any:
            self.written.append((name, args))
            return (1, 1, name) if name == "addStep" else 1

        return write

    @property
    def text(self) -> str:
        """All that was appended to logs."""
        return "".join(args[1] for name, args in self.written if name == "appendLog")


class StageMaster(MasterService):
    """A master with no more than a hub needs."""

    def __init__(self, fake: FakeLibvirt, clock: Any) -> None:
        super().__init__()
        self.name = "stage"
        self.basedir = "/nonexistent"
        self.reactor = clock
        self.wakes = 0
        self.config = SimpleNamespace(protocols={"pb": {"port": 9989}})
        self.botmaster = SimpleNamespace(maybeStartBuildsForAllBuilders=self._wake, builders={})
        self.db = SimpleNamespace(state=State())
        self.data = SimpleNamespace(updates=Updates())
        self.fake = fake
        self.hub: Hub

    def _wake(self) -> None:
        self.wakes += 1

    async def begin(self) -> StageMaster:
        """Start, with a hub on the fake."""
        await self.startService()
        self.hub = await Hub.getService(self)
        self.hub.driver = self.fake
        await self.hub.ready()
        return self

    def worker(self, name: str, password: str | None = "static", **kwargs: Any) -> LibVirtWorker:
        """Configure a worker, as `reconfigService` does, without Buildbot's own part in it."""
        worker = LibVirtWorker(name, password, **kwargs)
        worker.parent = self
        worker._take_over(read_arguments(password, **kwargs))
        worker._hub = self.hub
        worker._gate.static = password
        return worker


class Build:
    """A build that asks for a worker."""

    def __init__(self, number: int = 1) -> None:
        self.buildid = number
        self.requests = [SimpleNamespace(id=number)]
        self.stopped = False

    def getProperty(self, name: str, default: Any = None) -> Any:
        """Read a property; it has none."""
        return default

    def render(self, value: Any) -> Any:
        """Render, where there is nothing to."""
        return defer.succeed(value)


def open_stage(clock: Any = None, fake: FakeLibvirt | None = None) -> StageMaster:
    """Start a master; on a fake libvirt of its own and the real clock unless others are given."""
    real = start()
    master = on_reactor(lambda: StageMaster(fake or FakeLibvirt(), clock or real))
    return run(master.begin())


def close_stage(master: StageMaster) -> None:
    """Stop it."""

    async def stop() -> None:
        await master.stopService()

    run(stop())
