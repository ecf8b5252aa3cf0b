"""How many VMs are started a second on one host, and on a hundred, when every call takes 200 ms.

The hosts are latentvirt's fake of libvirt, which the contract tests hold to the real one. Each call takes
as long as a far host's would, and each host serves as many at a time as libvirtd does: 5 of one connection,
20 of all. Starts are asked for as Buildbot does it, one build after the other, without Buildbot's database;
they are measured from the first question to the last VM that runs. What happens once only (connections,
pools, threads, what a host can do) has happened before: all VMs have been started and ended twice. How long
the first time took is told, too.

On one host latentvirt is compared with Buildbot's own LibVirtWorker, whose code is run as it is. It has
predefined domains and no base image, which spares it the copy.

On a hundred hosts it is compared with a bound: no host can have served the calls of its starts before, nor
any start have made those that follow on each other. They are counted on one start by itself; if it takes more
when there are many, that is not in the bound. A call without a reason in benching/scaling.py ends the
benchmark.

It is also compared with a floor for this machine: the same calls, by Twisted's pool of threads and nothing
besides (benching/bare.py).

Python looks for garbage less often meanwhile, as the guide to many hosts advises (--collect-often leaves it
out), for all that is measured.

The hosts are in a process of their own, on a processor of their own if there is one; the in-tree worker's,
which makes one call at a time, is not. How much processor time a start took is told, of the master's process
and of its reactor's thread: on a machine that is too slow, or busy, it is that which is measured.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import runpy
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

LIB = Path(__file__).resolve().parent
sys.path[:0] = [str(LIB.parent.parent / "src"), str(LIB)]

from benching.bare import BareStarts  # noqa: E402
from benching.intree import in_tree_workers  # noqa: E402
from benching.report import show  # noqa: E402
from benching.scaling import bound_s, calls_of, explained, tables_of, targets_of  # noqa: E402
from benching.simulated import (  # noqa: E402
    LATENCY_S,
    Build,
    Heart,
    Simulation,
    pause,
    start_all,
    summary,
    threads_and_sleeps,
)
from twisted.internet import defer, task  # noqa: E402

from latentvirt.config import Connection  # noqa: E402
from latentvirt.host.further import MOST_CONNECTIONS  # noqa: E402
from latentvirt.hosts import Hosts  # noqa: E402
from latentvirt.testing import FakeLibvirt  # noqa: E402

CALLS_OF_CONNECTION = 5
CALLS_OF_HOST = 20
ONE = 50
HOSTS = 100
STARTS = 1000
WARM_UPS = 2
"""The first opens further connections, on which only the second begins threads."""
QUIET_S = 1.0
ADVICE = LIB.parent.parent / "docs" / "examples" / "collect-less-often.py"
"""What the guide advises for starts like these."""


async def in_tree(starts: int) -> float:
    """Start VMs on one host by the in-tree worker; returns the starts per second."""
    fake = FakeLibvirt()
    host = fake.inspector
    host.trouble.calls_of_connection, host.trouble.calls_of_host = CALLS_OF_CONNECTION, CALLS_OF_HOST
    first, *workers = in_tree_workers(fake, host, 1 + starts)
    await first.start_instance(Build(0))
    host.trouble.latency_s = LATENCY_S
    began = time.perf_counter()
    await start_all(workers, [Build(number) for number in range(1, starts + 1)])
    took = time.perf_counter() - began
    if len(host.running()) != 1 + starts:
        raise SystemExit(f"only {len(host.running())} of {1 + starts} VMs of the in-tree worker run")
    return starts / took


async def one_start(simulation: Simulation) -> tuple[Counter[str], int]:
    """Start one VM by itself; returns its calls, and how many of them followed on each other.

    What each call that follows on another takes longer, the whole takes longer; what the start takes besides
    on a slow machine is the same.
    """
    took = []
    for latency_s in (LATENCY_S, 2 * LATENCY_S):
        await pause(QUIET_S)  # hosts are looked at shortly after something has happened there
        before = simulation.inside.calls()
        took.append(await burst(simulation, 1, latency_s))
        there = simulation.inside.running().index(1)
        calls = calls_of(before, simulation.inside.calls())[there]
        simulation.inside.take(0.0)
        await simulation.stop_all()
    return calls, min(round((took[1] - took[0]) / LATENCY_S), calls.total())


async def burst(simulation: Simulation, starts: int, latency_s: float = LATENCY_S) -> float:
    """Start VMs, each call as slow as it is far, as it is left afterwards; returns the seconds."""
    simulation.inside.take(latency_s)
    began = time.perf_counter()
    await start_all(simulation.workers[:starts], simulation.builds(starts))
    return time.perf_counter() - began


async def latentvirt(hosts: Hosts, starts: int, profile: cProfile.Profile | None = None) -> dict[str, Any]:
    """Start VMs by latentvirt.

    Args:
        hosts: with room for all.
        starts: how many.
        profile: notes what the reactor's thread does meanwhile.
    """
    simulation = Simulation(hosts, CALLS_OF_CONNECTION, CALLS_OF_HOST)
    await simulation.begin(starts, start="boot")
    each = len(hosts.connections)
    await start_all(simulation.workers[:each], simulation.builds(each))
    cold = simulation.inside.running().count(0)
    if cold:
        raise SystemExit(f"{cold} of {each} hosts were passed over when each was to start one VM")
    await simulation.stop_all()
    firsts = []
    for _ in range(WARM_UPS):
        firsts.append(await burst(simulation, starts))
        simulation.inside.take(0.0)
        await simulation.stop_all()
    alone, chain = await one_start(simulation)
    before = simulation.inside.calls()
    heart = Heart()
    heart.start()
    if profile is not None:
        profile.enable()
    process, reactor = time.process_time(), time.thread_time()
    took = await burst(simulation, starts)
    process, reactor = time.process_time() - process, time.thread_time() - reactor
    if profile is not None:
        profile.disable()
    heart.stop()
    if simulation.running != starts:
        raise SystemExit(f"only {simulation.running} of {starts} VMs run")
    by_host = calls_of(before, simulation.inside.calls())
    busiest = simulation.inside.most_busy()
    simulation.inside.take(0.0)
    bare = BareStarts(simulation, MOST_CONNECTIONS, starts)
    try:
        await simulation.stop_all()
        await bare.burst(starts, 0.0)
        floor = await bare.burst(starts, LATENCY_S)
    finally:
        bare.end()
    loads = [(calls.total(), threads) for calls, threads in zip(by_host, busiest, strict=True)]
    peers = await threads_and_sleeps(loads)
    await simulation.end()
    calls: Counter[str] = sum(by_host, Counter())
    fewest = min(alone.total(), calls.total() / starts)
    bound = bound_s(-(-starts // each) * fewest, chain, CALLS_OF_HOST, LATENCY_S)
    return {
        "hosts": each,
        "starts": starts,
        "first_took_s": round(firsts[0], 3),
        "took_s": round(took, 3),
        "latentvirt_starts_per_s": round(starts / took, 3),
        "bound_starts_per_s": round(starts / bound, 3),
        "of_bound": round(bound / took, 4),
        "bare_starts_per_s": round(starts / floor, 3),
        "of_bare": round(floor / took, 4),
        "calls_of_a_start": alone.total(),
        "chain": chain,
        "calls_per_start": round(calls.total() / starts, 3),
        "calls": explained(alone, calls, starts),
        "most_calls_at_a_time": max(busiest),
        "cpu_ms_per_start": {
            "process": round(process * 1000 / starts, 3),
            "reactor": round(reactor * 1000 / starts, 3),
        },
        "processors_used": round(process / took, 3),
        "stall": summary(heart.late_ms),
        "peer_stall": summary(peers),
    }


async def bench(options: argparse.Namespace, profile: cProfile.Profile | None) -> dict[str, Any]:
    """Measure all of it."""
    one_host = Hosts(Connection("qemu:///system", slots=options.one))
    one = await latentvirt(one_host, options.one)
    one["in_tree_starts_per_s"] = round(await in_tree(options.one), 3)
    one["times_in_tree"] = round(one["latentvirt_starts_per_s"] / one["in_tree_starts_per_s"], 3)
    slots = -(-options.starts // options.hosts)
    many_hosts = Hosts(
        *(Connection(f"qemu+ssh://host{number:03}/system", slots=slots) for number in range(options.hosts))
    )
    many = await latentvirt(many_hosts, options.starts, profile)
    return {
        "simulation": "fake",
        "latency_ms": LATENCY_S * 1000,
        "calls_of_connection": CALLS_OF_CONNECTION,
        "calls_of_host": CALLS_OF_HOST,
        "gc_threshold": gc.get_threshold(),
        "one_host": one,
        "hundred_hosts": many,
        "reactor_stall_p50_ms": max(one["stall"]["p50_ms"], many["stall"]["p50_ms"]),
        "reactor_stall_p99_ms": max(one["stall"]["p99_ms"], many["stall"]["p99_ms"]),
        "reactor_stall_max_ms": max(one["stall"]["max_ms"], many["stall"]["max_ms"]),
    }


def main() -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="script/bench scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    for option, default, what in (
        ("--one", ONE, "VMs to start on one host"),
        ("--hosts", HOSTS, "of the many"),
        ("--starts", STARTS, "VMs to start on the many hosts"),
    ):
        parser.add_argument(option, type=int, default=default, help=f"{what} (default: %(default)s)")
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="write there, for pstats, what the reactor's thread does"
    )
    parser.add_argument(
        "--collect-often", action="store_true", help="leave Python's garbage collection as it is by default"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    options = parser.parse_args()
    if options.one < 1 or not 2 <= options.hosts <= options.starts:
        parser.error("there must be starts, two hosts, and a start for each")
    if not options.collect_often:
        runpy.run_path(str(ADVICE))
    profile = cProfile.Profile(time.thread_time) if options.profile else None
    results: list[dict[str, Any]] = []

    async def run(_: Any) -> None:
        results.append(await bench(options, profile))

    try:
        task.react(lambda clock: defer.ensureDeferred(run(clock)))
    except SystemExit as ended:
        if ended.code or not results:
            raise
    figures = results[0]
    if options.json:
        options.json.write_text(json.dumps({"scale": figures}, indent=2) + "\n")
    if profile is not None:
        profile.dump_stats(options.profile)
    show(tables_of(figures))
    missed = [target.what for target in targets_of(figures) if target.met is False]
    if missed:
        print(f"bench scale: misses {', '.join(missed)}")
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
