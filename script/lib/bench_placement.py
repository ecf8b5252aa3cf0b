"""How well builds are spread over a hundred hosts, and how long it takes to choose one.

Builds of four sizes arrive at random, nine tenths of what the hosts can do, and go where latentvirt's rule
sends them, in simulated time: no VM is started. Five hosts die on the way and return; their builds begin
anew. The bound is the time before which no schedule whatever can be done: when the hosts that live have had
as many slots, as much memory and as many vCPUs as all builds need, as if VMs could be cut in pieces; and not
before the last build arrives. That this one has to run as well is not in it, so that few builds make a poor
figure.

Then the time of one decision is measured, on farms that are seven tenths full, while an older build waits. It
is the processor's time, since what else goes on on the machine is not the rule's affair.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

LIB = Path(__file__).resolve().parent
sys.path[:0] = [str(LIB.parent.parent / "src"), str(LIB)]

import attrs  # noqa: E402
from benching.farm import KINDS, Farm, bound_s, builds_of, deaths_of, hosts_of, mean_pause_s  # noqa: E402
from benching.figures import LEAST, MOST, Target  # noqa: E402
from benching.report import show, targets_table  # noqa: E402
from rich.table import Table  # noqa: E402

from latentvirt.line import Line  # noqa: E402
from latentvirt.placement import HostView, Rule, Wish, choose  # noqa: E402

HOSTS = 100
BUILDS = 10_000
SEED = 4
LOAD = 0.9
FARMS = (10, 100, 1000)
DECISIONS = 300
FULL = 0.7
ARCH = "x86_64"
REGION = {"region": "near"}


def play(builds: int, seed: int, load: float, rule: Rule) -> dict[str, Any]:
    """Play a farm through; returns how it went.

    Args:
        builds: how many arrive.
        seed: of chance.
        load: part of what the hosts have that the builds need.
        rule: which host is the best.
    """
    hosts = hosts_of(HOSTS)
    pause = mean_pause_s(hosts, load)
    coming = builds_of(builds, pause, random.Random(seed))
    deaths = deaths_of(HOSTS, builds * pause)
    bound = bound_s(hosts, coming, deaths)
    farm = Farm(hosts, coming, deaths, rule)
    makespan = farm.run()
    return {
        "hosts": HOSTS,
        "builds": builds,
        "seed": seed,
        "load": load,
        "rule": "spread" if rule.spread else "pack",
        "makespan_s": round(makespan, 1),
        "bound_s": round(bound, 1),
        "of_bound": round(bound / makespan, 4) if makespan else 0.0,
        "lost": farm.lost,
        "over_commits": farm.over_commits,
        "hosts_died": len(deaths),
        "retries": farm.retries,
        "starts_moved_on": farm.failed_starts,
        "longest_wait_s": {kind.name: round(farm.longest_wait_s.get(kind.name, 0.0), 1) for kind in KINDS},
    }


def part_full(count: int, rule: Rule, chance: random.Random) -> list[HostView]:
    """Make a farm that is in use to the part that is named above, as the rule fills it."""
    hosts = [
        attrs.evolve(host, arch=ARCH, labels=REGION if number % 2 else {"region": "far"})
        for number, host in enumerate(hosts_of(count))
    ]
    numbers = {host.uri: number for number, host in enumerate(hosts)}
    memory = sum(host.limit.memory or 0 for host in hosts)
    while sum(host.used.memory for host in hosts) < FULL * memory:
        wish = chance.choices(KINDS, [kind.share for kind in KINDS])[0].wish
        chosen = choose(hosts, wish, rule)
        if chosen is not None:
            hosts[numbers[chosen.uri]] = attrs.evolve(chosen, used=chosen.used + wish.amounts)
    return hosts


def decide(count: int, seed: int, rule: Rule) -> dict[str, float]:
    """Measure decisions on a farm of so many hosts; returns figures in milliseconds."""
    chance = random.Random(seed)
    hosts = part_full(count, Rule(spread=rule.spread), chance)
    wishes = [attrs.evolve(kind.wish, arch=frozenset({ARCH})) for kind in KINDS]
    line, now = Line(), 1.0
    line.refused("older", 0.0, max(wishes, key=lambda wish: wish.memory), now)
    took = []
    for number in range(DECISIONS):
        wish: Wish = chance.choice(wishes)
        began = time.thread_time()
        choose(line.as_seen_by(number, now, hosts, now), wish, rule)
        took.append((time.thread_time() - began) * 1000)
    took.sort()
    return {
        "median_ms": round(statistics.median(took), 4),
        "p99_ms": round(took[int(len(took) * 0.99)], 4),
    }


def targets_of(figures: dict[str, Any]) -> list[Target]:
    """Hold a result to what is wanted of it."""
    slowest = figures["decision_ms"].get(str(FARMS[-1]), {})
    return [
        Target("bound / makespan", figures["of_bound"], LEAST, 0.95),
        Target("builds lost", figures["lost"], MOST, 0),
        Target("over-commits", figures["over_commits"], MOST, 0),
        Target(f"decision at {FARMS[-1]} hosts, p99", slowest.get("p99_ms"), MOST, 5, "ms"),
    ]


def tables_of(figures: dict[str, Any]) -> list[Table]:
    """Make the tables of a result."""
    told = Table(
        title=f"{figures['builds']} builds on {figures['hosts']} hosts",
        caption=f"load {figures['load']:g}, {figures['rule']}, seed {figures['seed']}",
    )
    for column in ("", "is"):
        told.add_column(column, justify="right" if column else "left")
    told.add_row("makespan", f"{figures['makespan_s']:.0f} s")
    told.add_row("bound", f"{figures['bound_s']:.0f} s")
    told.add_row("hosts that died", str(figures["hosts_died"]))
    told.add_row("builds that began anew for that", str(figures["retries"]))
    told.add_row("starts that moved on to another host", str(figures["starts_moved_on"]))
    for name, seconds in figures["longest_wait_s"].items():
        told.add_row(f"longest wait, {name}", f"{seconds:.0f} s")
    times = Table(title="one decision, milliseconds of processor time")
    for column in ("hosts", "median", "p99"):
        times.add_column(column, justify="right")
    for count, row in figures["decision_ms"].items():
        times.add_row(count, f"{row['median_ms']:.3f}", f"{row['p99_ms']:.3f}")
    return [told, times, targets_table(targets_of(figures))]


def main() -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="script/bench placement",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    for option, kind, default, what in (
        ("--builds", int, BUILDS, "how many arrive"),
        ("--seed", int, SEED, "of chance"),
        ("--load", float, LOAD, "part of what the hosts have that the builds need"),
    ):
        parser.add_argument(option, type=kind, default=default, help=f"{what} (default: %(default)s)")
    parser.add_argument("--pack", action="store_true", help="fill hosts one after the other")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    options = parser.parse_args()
    if options.builds < 1 or options.load <= 0:
        parser.error("there must be builds, and a load")
    rule = Rule(spread=not options.pack)
    figures = play(options.builds, options.seed, options.load, rule)
    preferring = attrs.evolve(rule, prefer=REGION)
    figures["decision_ms"] = {str(count): decide(count, options.seed, preferring) for count in FARMS}
    if options.json:
        options.json.write_text(json.dumps({"placement": figures}, indent=2) + "\n")
    show(tables_of(figures))
    missed = [target.what for target in targets_of(figures) if target.met is False]
    if missed:
        print(f"bench placement: misses {', '.join(missed)}")
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
