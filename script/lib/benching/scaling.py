"""From starts on many hosts to what is told of them: the bound, and what each call of a start is for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from benching.figures import LEAST, MOST, Target
from benching.report import targets_table

REASONS = {
    "open": "a further connection while calls wait, up to three for a host; not for each start",
    "storagePoolLookupByName": "the handle of the pool in which overlays are made, on each connection once",
    "storageVolLookupByPath": "libvirt's handle of the base image",
    "volume.XMLDesc": "the base image may have been replaced: its format, size and backing files",
    "pool.createXML": "the start's own overlay, so that its disk is fresh",
    "createXML": "the domain, paused",
    "domain.XMLDesc": "freshness is proven by the live domain, not by what was asked for",
    "domain.openConsole": "what the guest writes from its first instruction on is in the build's page",
    "domain.openChannel": "the guest is told who it is over it",
    "getAllDomainStats": "with this VM, no more runs on the host than it has room for, whoever started it",
    "domain.metadata": "whose each of those domains is, and which was created first",
    "domain.resume": "the guest's first instruction",
}
"""What each libvirt call of a start is needed for."""


class Unexplained(Exception):
    """A start makes a call that nobody has given a reason for."""


def calls_of(before: Sequence[Sequence[str]], after: Sequence[Sequence[str]]) -> list[Counter[str]]:
    """Count the calls of each host between two moments.

    Args:
        before: by host, the calls up to the first.
        after: those up to the second.
    """
    return [Counter(late[len(early) :]) for early, late in zip(before, after, strict=True)]


def explained(alone: Counter[str], run: Counter[str], starts: int) -> dict[str, dict[str, Any]]:
    """Say for each call how often a start makes it and why, the most frequent first.

    Args:
        alone: the calls of one start by itself.
        run: those of all starts, and what else was asked meanwhile.
        starts: how many these were.

    Raises:
        Unexplained: there is one without a reason.
    """
    unknown = sorted({*alone, *run} - set(REASONS))
    if unknown:
        raise Unexplained(
            f"a start calls {', '.join(unknown)}: do without, or give a reason in REASONS of {__name__}"
        )
    return {
        method: {"of_a_start": alone[method], "in_the_run": round(run[method] / starts, 3), "why": why}
        for method, why in sorted(REASONS.items(), key=lambda item: (-alone[item[0]], -run[item[0]]))
        if method in alone or method in run
    }


def bound_s(calls: float, chain: int, at_a_time: int, latency_s: float) -> float:
    """Say how long any client takes for the starts of one host.

    Args:
        calls: how many calls all its starts make.
        chain: how many calls of one start follow on each other.
        at_a_time: how many calls the host serves.
        latency_s: how long each takes.
    """
    rounds = math.ceil(round(calls, 6) / at_a_time)
    return max(rounds, chain) * latency_s


def targets_of(figures: Mapping[str, Any]) -> list[Target]:
    """Hold a result to what is wanted of it."""
    one, many = figures["one_host"], figures["hundred_hosts"]
    above = max(place["stall"]["max_ms"] - place["peer_stall"]["max_ms"] for place in (one, many))
    return [
        Target("one host: latentvirt / in-tree", one["times_in_tree"], LEAST, 6),
        Target("many hosts: latentvirt / bound", many["of_bound"], LEAST, 0.75),
        Target("reactor's stall, p99", figures["reactor_stall_p99_ms"], MOST, 10, "ms"),
        Target("reactor's stall, max above threads that sleep", round(above, 3), MOST, 25, "ms"),
    ]


def tables_of(figures: Mapping[str, Any]) -> list[Table]:
    """Make the tables of a result."""
    one, many = figures["one_host"], figures["hundred_hosts"]
    speed = Table(
        title=f"every call {figures['latency_ms']:.0f} ms; {figures['calls_of_connection']} at a time per "
        f"connection, {figures['calls_of_host']} per host"
    )
    for column in ("", "starts/s", "at a time", "CPU ms per start", "of which reactor"):
        speed.add_column(column, justify="right" if column else "left")

    def row(name: str, rate: float, place: Mapping[str, Any] | None = None) -> None:
        cells = ["", "", ""]
        if place is not None:
            cpu = place["cpu_ms_per_start"]
            cells = [str(place["most_calls_at_a_time"]), f"{cpu['process']:.2f}", f"{cpu['reactor']:.2f}"]
        speed.add_row(name, f"{rate:.2f}", *cells)

    row(f"{one['starts']} on one host, in-tree worker", one["in_tree_starts_per_s"])
    row(f"{one['starts']} on one host, latentvirt", one["latentvirt_starts_per_s"], one)
    row(f"{many['starts']} on {many['hosts']} hosts, latentvirt", many["latentvirt_starts_per_s"], many)
    row(
        f"{many['starts']} on {many['hosts']} hosts, the same calls by bare threads",
        many["bare_starts_per_s"],
    )
    row(f"{many['starts']} on {many['hosts']} hosts, bound", many["bound_starts_per_s"])
    stalls = Table(title="how late the reactor was, ms")
    for column in ("", "p50", "p99", "max"):
        stalls.add_column(column, justify="right" if column else "left")
    for name, place in (("one host", one), (f"{many['hosts']} hosts", many)):
        for who, kind in (("latentvirt", "stall"), ("the same threads and sleeps", "peer_stall")):
            late = place[kind]
            stalls.add_row(f"{name}, {who}", *(f"{late[key]:.2f}" for key in ("p50_ms", "p99_ms", "max_ms")))
    calls = Table(
        title=f"calls of a start: {many['calls_of_a_start']}, of which {many['chain']} after each other; "
        f"in the run {many['calls_per_start']:g} per start"
    )
    for column in ("", "alone", "in the run", "for"):
        calls.add_column(column, justify="left" if column in ("", "for") else "right")
    for method, told in many["calls"].items():
        calls.add_row(method, str(told["of_a_start"]), f"{told['in_the_run']:g}", told["why"])
    return [calls, speed, stalls, targets_table(targets_of(figures))]
