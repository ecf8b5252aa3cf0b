"""How late the reactor gets while 50 workers start on a host whose every call takes 200 ms.

Fifty real workers of latentvirt are driven through ``start_instance`` and ``stop_instance`` on the fake
libvirt. Of Buildbot's master only what the worker and its hub call is there, so that what is measured is
latentvirt's own work.

The peer is the same load without latentvirt: as many threads as latentvirt uses on that host do as many
sleeps of the same length as its round has made libvirt calls, and each hands one result to the reactor.
Rounds of the two alternate in one process, since machines are noisy.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import threading
import time
from pathlib import Path
from queue import Empty, SimpleQueue
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "src"))

from buildbot.util.service import MasterService
from rich.console import Console
from rich.table import Table
from twisted.internet import defer, reactor, task

from latentvirt.host.link import CALLS_AT_A_TIME
from latentvirt.master.hub import Hub
from latentvirt.master.worker import LibVirtWorker
from latentvirt.testing import FakeLibvirt

WORKERS = 50
LATENCY_S = 0.2
BEAT_S = 0.005
ROUNDS = 2
P99_TARGET_MS = 10.0
MAX_ABOVE_PEER_MS = 25.0
IMAGES = "/images"
POOL = f"<pool type='dir'><name>images</name><target><path>{IMAGES}</path></target></pool>"


class Heart:
    """Beats every few milliseconds and notes how late each beat was."""

    def __init__(self) -> None:
        self.late_ms: list[float] = []
        self._due = 0.0
        self._stopped = False

    def start(self) -> None:
        """Begin."""
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

    def render(self, value: Any) -> Any:
        """Render, where there is nothing to."""
        return defer.succeed(value)


async def with_latentvirt() -> tuple[list[float], int]:
    """Start and stop all workers once; returns the beats' lateness and how many libvirt calls it took."""
    fake = FakeLibvirt()
    host = fake.inspector
    host.add_file(f"{IMAGES}/base.qcow2")
    person = fake.open(host.uri)
    person.storagePoolCreateXML(POOL, 0)
    host.trouble.latency_s = LATENCY_S
    master = Master()
    hub = await Hub.getService(master)
    hub.driver = fake
    workers = []
    for number in range(WORKERS):
        worker = LibVirtWorker(
            f"bench{number}", "password", uri=host.uri, base_image=f"{IMAGES}/base.qcow2", size={"memory": 64}
        )
        worker.parent = master
        worker._arguments = worker_arguments(host.uri)
        worker._hub = hub
        workers.append(worker)
    before = len(host.trouble.calls)
    gc.collect()
    heart = Heart()
    heart.start()
    await all_of(worker.start_instance(Build(number)) for number, worker in enumerate(workers, 1))
    if len(host.running()) != WORKERS:
        raise SystemExit(f"only {len(host.running())} of {WORKERS} VMs run")
    await all_of(worker.stop_instance() for worker in workers)
    heart.stop()
    if host.running():
        raise SystemExit(f"{len(host.running())} VMs were left")
    calls = len(host.trouble.calls) - before
    host.trouble.latency_s = 0.0
    for record in hub._records.values():
        await record.host.close()
    return heart.late_ms, calls


def worker_arguments(uri: str) -> Any:
    """Read the arguments as ``reconfigService`` does."""
    from latentvirt.master.arguments import read_arguments

    return read_arguments("password", uri=uri, base_image=f"{IMAGES}/base.qcow2", size={"memory": 64})


async def all_of(waiting: Any) -> None:
    """Wait for all, and raise the first failure."""
    await defer.gatherResults(list(waiting), consumeErrors=True)


async def without_latentvirt(calls: int) -> list[float]:
    """Let as many threads do as many sleeps, and hand their results to the reactor."""
    line: SimpleQueue[int] = SimpleQueue()
    for number in range(calls):
        line.put(number)
    done: defer.Deferred[None] = defer.Deferred()
    left = calls

    def arrived() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            done.callback(None)

    def serve() -> None:
        while True:
            try:
                line.get_nowait()
            except Empty:
                return
            time.sleep(LATENCY_S)
            reactor.callFromThread(arrived)

    gc.collect()
    heart = Heart()
    heart.start()
    for _ in range(CALLS_AT_A_TIME):
        threading.Thread(target=serve, daemon=True).start()
    await done
    heart.stop()
    return heart.late_ms


def summary(late_ms: list[float]) -> dict[str, float]:
    """Say how late the beats were."""
    ordered = sorted(late_ms)

    def share(part: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(len(ordered) * part))], 3)

    return {"p50_ms": share(0.5), "p99_ms": share(0.99), "max_ms": round(ordered[-1], 3)}


async def bench(rounds: int) -> dict[str, Any]:
    """Run the rounds."""
    ours: list[float] = []
    peers: list[float] = []
    calls = 0
    for number in range(rounds):
        late, calls = await with_latentvirt()
        ours += late
        print(f"round {number + 1}: latentvirt, {calls} calls: {summary(late)}", file=sys.stderr)
        late = await without_latentvirt(calls)
        peers += late
        print(f"round {number + 1}: the same threads and sleeps alone: {summary(late)}", file=sys.stderr)
    result: dict[str, Any] = summary(ours)
    result["peer"] = summary(peers)
    result["calls"] = calls
    return {"stall": result}


def report(result: dict[str, Any]) -> bool:
    """Print the table; returns whether the target is met."""
    stall = result["stall"]
    table = Table(title=f"reactor stall while {WORKERS} workers start, every call {LATENCY_S * 1000:.0f} ms")
    for column in ("", "p50 ms", "p99 ms", "max ms"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in (("latentvirt", stall), ("the same threads and sleeps", stall["peer"])):
        table.add_row(name, *(f"{row[key]:.2f}" for key in ("p50_ms", "p99_ms", "max_ms")))
    table.add_row("at most", "", f"{P99_TARGET_MS:.2f}", f"{stall['peer']['max_ms'] + MAX_ABOVE_PEER_MS:.2f}")
    Console().print(table)
    return bool(
        stall["p99_ms"] <= P99_TARGET_MS and stall["max_ms"] <= stall["peer"]["max_ms"] + MAX_ABOVE_PEER_MS
    )


def main() -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the result there, too")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of each kind")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []

    async def run(_: Any) -> None:
        results.append(await bench(options.rounds))

    try:
        task.react(lambda clock: defer.ensureDeferred(run(clock)))
    except SystemExit as ended:
        if ended.code or not results:
            raise
    if options.json:
        options.json.write_text(json.dumps(results[0], indent=2) + "\n")
    met = report(results[0])
    print("bench stall: " + ("within its target" if met else "misses its target"))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
