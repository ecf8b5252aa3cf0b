"""A farm in simulated time: builds arrive, go where latentvirt's rule sends them, and end; some hosts die."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Sequence
from typing import Any

import attrs

from latentvirt.line import Line
from latentvirt.placement import SPREAD, Amounts, HostView, Limits, Rule, Wish, choose

GIB = 1024

SHAPES = (Limits(slots=4, memory=16 * GIB, vcpus=8.0), Limits(slots=6, memory=12 * GIB, vcpus=6.0))
"""The hosts are of these kinds, in turn."""


@attrs.frozen
class Kind:
    """One of the sizes of builds.

    Args:
        name: of it.
        share: of all builds.
        wish: what its VM needs.
        shortest_s: that such a build takes.
        longest_s: the same; all in between are as likely.
    """

    name: str
    share: float
    wish: Wish
    shortest_s: float
    longest_s: float

    @property
    def mean_s(self) -> float:
        """How long such a build takes on average."""
        return (self.shortest_s + self.longest_s) / 2


KINDS = (
    Kind("small", 0.35, Wish(memory=2 * GIB, vcpus=1), 120.0, 300.0),
    Kind("medium", 0.30, Wish(memory=4 * GIB, vcpus=2), 180.0, 360.0),
    Kind("large", 0.20, Wish(memory=8 * GIB, vcpus=4), 240.0, 420.0),
    Kind("huge", 0.15, Wish(memory=12 * GIB, vcpus=6), 240.0, 420.0),
)

DEATHS = ((7, 0.15, 0.30), (22, 0.30, 0.35), (41, 0.45, 0.60), (68, 0.50, 0.55), (93, 0.70, 0.90))
"""Which hosts die, and when they do and return, as parts of the time in which builds arrive."""

NOTICED_S = 15.0
"""How long it may take until a host's death is known, as it may in latentvirt."""


@attrs.define(eq=False)
class Build:
    """One build.

    Args:
        number: names it.
        kind: its size.
        since: when it is asked for.
        seconds: that it takes.
        host: number of the host on which it runs; None if it does not.
        tries: how often it was started.
        waits_from: when it began to wait, again if its host died.
        ended: when it was done; None before.
    """

    number: int
    kind: Kind
    since: float
    seconds: float
    host: int | None = None
    tries: int = 0
    waits_from: float = attrs.field(default=attrs.Factory(lambda self: self.since, takes_self=True))
    ended: float | None = None


def hosts_of(count: int) -> list[HostView]:
    """Make a farm of empty hosts."""
    return [HostView(uri=f"host{number}", limit=SHAPES[number % len(SHAPES)]) for number in range(count)]


def weighed(amounts: Amounts | Limits) -> tuple[float, float, float]:
    """Name the resources that can be short."""
    return amounts.slots or 0, amounts.memory or 0, amounts.vcpus or 0


def capacity_of(hosts: Sequence[HostView]) -> tuple[float, float, float]:
    """Add up the hosts' limits: slots, MiB, vCPUs."""
    slots, memory, vcpus = zip(*(weighed(host.limit) for host in hosts), strict=True)
    return sum(slots), sum(memory), sum(vcpus)


def mean_pause_s(hosts: Sequence[HostView], load: float) -> float:
    """Say how far apart builds must arrive to load the resource that is shortest so much.

    Args:
        hosts: the farm.
        load: part of the hosts' capacity that the builds need on average.
    """
    per_build = zip(
        *([kind.share * kind.mean_s * need for need in weighed(kind.wish.amounts)] for kind in KINDS),
        strict=True,
    )
    return max(sum(need) / most for need, most in zip(per_build, capacity_of(hosts), strict=True)) / load


def builds_of(count: int, pause_s: float, chance: random.Random) -> list[Build]:
    """Make builds that arrive independently of each other.

    Args:
        count: how many.
        pause_s: between two of them, on average.
        chance: decides times and sizes.
    """
    now, builds = 0.0, []
    for number in range(count):
        now += chance.expovariate(1 / pause_s)
        kind = chance.choices(KINDS, [kind.share for kind in KINDS])[0]
        builds.append(Build(number, kind, now, chance.uniform(kind.shortest_s, kind.longest_s)))
    return builds


@attrs.frozen
class Death:
    """A host is away for a while.

    Args:
        host: its number.
        dies: when.
        returns: when; it is empty then.
    """

    host: int
    dies: float
    returns: float


def deaths_of(hosts: int, arrivals_s: float) -> list[Death]:
    """Say which hosts of a farm die when.

    Args:
        hosts: how many there are.
        arrivals_s: how long builds arrive.
    """
    return [
        Death(number, dies * arrivals_s, returns * arrivals_s)
        for number, dies, returns in DEATHS
        if number < hosts
    ]


def bound_s(hosts: Sequence[HostView], builds: Sequence[Build], deaths: Sequence[Death]) -> float:
    """Say before when no schedule whatever can be done with all builds.

    That is when the hosts that live have had capacity for all that is needed, of each resource by itself, as
    if VMs could be cut in pieces; and not before the last build arrives.

    Args:
        hosts: the farm.
        builds: all of them.
        deaths: when which host is away.
    """
    last = max(build.since for build in builds)
    needs = zip(
        *([build.seconds * x for x in weighed(build.kind.wish.amounts)] for build in builds), strict=True
    )
    lost = (
        zip(*(weighed(hosts[death.host].limit) for death in deaths), strict=True) if deaths else ((), (), ())
    )
    ends = [
        _full_after(sum(need), most, list(zip(deaths, away, strict=True)))
        for need, most, away in zip(needs, capacity_of(hosts), lost, strict=True)
    ]
    return max(last, *ends)


def _full_after(need: float, most: float, away: Sequence[tuple[Death, float]]) -> float:
    """Say when capacity, summed up over time, has reached a need."""
    changes = sorted(
        change for death, gone in away for change in ((death.dies, -gone), (death.returns, gone))
    )
    now, capacity = 0.0, most
    for at, change in changes:
        if (at - now) * capacity >= need:
            break
        need -= (at - now) * capacity
        now, capacity = at, capacity + change
    return now + need / capacity


@attrs.define(eq=False)
class Farm:
    """Play it through.

    Like Buildbot, it asks for a place when a build arrives, and again for all that wait whenever room is
    freed: the builder whose oldest build waits longest first, each size having a builder of its own.

    Args:
        hosts: as they are seen; empty in the beginning.
        builds: in the order in which they arrive.
        deaths: when which host is away.
        rule: which host is the best.
    """

    hosts: list[HostView]
    builds: Sequence[Build]
    deaths: Sequence[Death]
    rule: Rule = SPREAD
    now: float = 0.0
    over_commits: int = 0
    retries: int = 0
    failed_starts: int = 0
    longest_wait_s: dict[str, float] = attrs.field(factory=dict)
    _line: Line = attrs.field(factory=Line)
    _waiting: dict[str, deque[Build]] = attrs.field(factory=dict)
    _running: list[set[Build]] = attrs.field(init=False)
    _alive: list[bool] = attrs.field(init=False)
    _events: list[tuple[float, int, str, Any]] = attrs.field(factory=list)
    _numbers: int = 0

    def __attrs_post_init__(self) -> None:
        self._running = [set() for _ in self.hosts]
        self._alive = [True] * len(self.hosts)

    @property
    def lost(self) -> int:
        """How many builds were never done."""
        return sum(build.ended is None for build in self.builds)

    def run(self) -> float:
        """Play until nothing happens any more; returns when the last build was done."""
        for build in self.builds:
            self._at(build.since, "arrives", build)
        for death in self.deaths:
            self._at(death.dies, "dies", death)
            self._at(min(death.dies + NOTICED_S, death.returns), "noticed", death)
            self._at(death.returns, "returns", death)
        while self._events:
            self.now, _, what, whom = heapq.heappop(self._events)
            getattr(self, f"_{what}")(whom)
        return max((build.ended for build in self.builds if build.ended is not None), default=0.0)

    def _at(self, when: float, what: str, whom: Any) -> None:
        self._numbers += 1
        heapq.heappush(self._events, (when, self._numbers, what, whom))

    # What happens

    def _arrives(self, build: Build) -> None:
        if not self._start(build):
            self._wait(build)

    def _ends(self, run: tuple[Build, int]) -> None:
        build, tries = run
        host = build.host
        if host is None or build.tries != tries or not self._alive[host]:
            return  # its host died meanwhile
        build.ended, build.host = self.now, None
        self._running[host].discard(build)
        self._see(host)
        self._wake()

    def _dies(self, death: Death) -> None:
        self._alive[death.host] = False

    def _noticed(self, death: Death) -> None:
        """The builds of a dead host begin anew, as old as they are."""
        builds = sorted(self._running[death.host], key=lambda build: build.number)
        self._running[death.host].clear()
        self._see(death.host)
        self.hosts[death.host] = attrs.evolve(self.hosts[death.host], usable=False, why_not="it died")
        self.retries += len(builds)
        for build in builds:
            build.host, build.waits_from = None, self.now
            self._wait(build)
        self._wake()

    def _returns(self, death: Death) -> None:
        self._alive[death.host] = True
        self.hosts[death.host] = attrs.evolve(self.hosts[death.host], usable=True, why_not="")
        self._wake()

    # Placing

    def _wait(self, build: Build) -> None:
        line = self._waiting.setdefault(build.kind.name, deque())
        line.append(build)
        if len(line) > 1 and line[-2].since > build.since:
            self._waiting[build.kind.name] = deque(sorted(line, key=lambda build: build.since))

    def _wake(self) -> None:
        """Ask for all that wait; who is like one that was just refused is refused as well."""
        builders = [(line[0].since, name) for name, line in self._waiting.items() if line]
        for _, name in sorted(builders):
            line = self._waiting[name]
            while line and self._start(line[0]):
                line.popleft()
            for build in line:
                self._line.refused(build.number, build.since, build.kind.wish, self.now)

    def _start(self, build: Build) -> bool:
        """Start a build where the rule says, or where it says next if that host is found dead."""
        wish, dead = build.kind.wish, set()
        while True:
            seen = self._line.as_seen_by(build.number, build.since, self.hosts, self.now)
            chosen = choose(seen, wish, self.rule, avoid=dead)
            if chosen is None:
                self._line.refused(build.number, build.since, wish, self.now)
                return False
            host = int(chosen.uri.removeprefix("host"))
            if self._alive[host]:
                break
            self.failed_starts += 1
            dead.add(chosen.uri)
        self._line.gone(build.number)
        name, waited = build.kind.name, self.now - build.waits_from
        self.longest_wait_s[name] = max(self.longest_wait_s.get(name, 0.0), waited)
        build.host = host
        build.tries += 1
        self._running[host].add(build)
        self._see(host)
        self._at(self.now + build.seconds, "ends", (build, build.tries))
        return True

    def _see(self, host: int) -> None:
        """Count anew what runs on a host, and whether that is more than it has."""
        used = Amounts()
        for build in self._running[host]:
            used += build.kind.wish.amounts
        limits, taken = weighed(self.hosts[host].limit), weighed(used)
        self.over_commits += any(x > most for x, most in zip(taken, limits, strict=True))
        self.hosts[host] = attrs.evolve(self.hosts[host], used=used)
