"""Builds that wait for room are served by age."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
from hypothesis import given
from hypothesis import strategies as st

from latentvirt.line import EXPIRES_S, Line
from latentvirt.placement import Amounts, HostView, Limits, Rule, Wish, choose

SMALL = Wish(memory=1)
LARGE = Wish(memory=4)
OLD, YOUNG = 10.0, 20.0
NOW = 100.0


def host(uri: str, used: int, memory: int = 4, **more: object) -> HostView:
    """Make a host of so much memory, on which so much is used by VMs of 1."""
    view = HostView(uri=uri, limit=Limits(memory=memory), used=Amounts(used, used))
    return attrs.evolve(view, **more)


def goes_to(line: Line, key: str, since: float, hosts: list[HostView], wish: Wish) -> str:
    """Ask for a place, as the hub does; names the host."""
    found = choose(line.as_seen_by(key, since, hosts, NOW), wish)
    return "" if found is None else found.uri


def test_with_nobody_waiting_the_hosts_are_seen_as_they_are() -> None:
    """A build that finds nobody before it takes any room there is."""
    hosts = [host("a", 3)]
    line = Line()
    assert line.earmark(hosts, NOW) is None
    assert goes_to(line, "small", YOUNG, hosts, SMALL) == "a"


def test_room_is_kept_for_the_oldest_on_one_host() -> None:
    """Small builds do not take what the large one before them waits for, and may go anywhere else."""
    line = Line()
    line.refused("large", OLD, LARGE, NOW)
    hosts = [host("a", 2), host("b", 1), host("c", 3)]
    assert line.earmark(hosts, NOW) == ("b", LARGE)
    assert goes_to(line, "small", YOUNG, hosts, SMALL) == "a"
    assert goes_to(line, "small", YOUNG, hosts[1:2], SMALL) == ""


def test_the_oldest_itself_and_who_is_older_still_are_not_kept_out() -> None:
    """Room is kept from younger builds only."""
    line = Line()
    line.refused("large", OLD, LARGE, NOW)
    hosts = [host("a", 0)]
    assert goes_to(line, "large", OLD, hosts, LARGE) == "a"
    assert goes_to(line, "older", OLD - 1, hosts, LARGE) == "a"
    assert goes_to(line, "as old, but later", OLD, hosts, LARGE) == ""


def test_a_small_build_goes_beside_what_is_kept_if_both_fit() -> None:
    """Room is not wasted where the older build will not need it."""
    line = Line()
    line.refused("large", OLD, LARGE, NOW)
    assert goes_to(line, "small", YOUNG, [host("a", 0, memory=5)], SMALL) == "a"
    assert goes_to(line, "small", YOUNG, [host("a", 1, memory=5)], SMALL) == ""


def test_age_decides_and_not_who_was_refused_first() -> None:
    """A build whose VM's host died is as old as it was, and comes before builds that wait already."""
    line = Line()
    hosts = [host("a", 4), host("b", 3)]
    line.refused("young", YOUNG, SMALL, NOW)
    assert line.earmark(hosts, NOW) == ("b", SMALL)
    line.refused("old", OLD, LARGE, NOW)
    assert line.earmark(hosts, NOW) == ("b", LARGE)
    line.gone("old")
    assert line.earmark(hosts, NOW) == ("b", SMALL)
    line.gone("young")
    line.gone("young")
    assert line.earmark(hosts, NOW) is None


def test_a_build_that_does_not_ask_again_is_forgotten() -> None:
    """Room is not kept for a build that was cancelled; one that asks again keeps its place in the line."""
    line = Line()
    hosts = [host("a", 3)]
    later = NOW + EXPIRES_S
    line.refused("cancelled", OLD, LARGE, NOW)
    line.refused("waits", OLD + 1, Wish(memory=3), NOW)
    line.refused("young", YOUNG, SMALL, NOW)
    for key, since, wish in (("young", YOUNG, SMALL), ("waits", OLD + 1, Wish(memory=3))):
        line.refused(key, since, wish, later - 1)
    assert line.earmark(hosts, later - 1) == ("a", LARGE)
    assert line.earmark(hosts, later) == ("a", Wish(memory=3))
    line.gone("waits")
    assert line.earmark(hosts, later) == ("a", SMALL)
    assert line.earmark(hosts, later + EXPIRES_S) is None


def test_a_build_may_change_its_mind_and_its_age() -> None:
    """What counts is what it wished for when it was last refused."""
    line = Line()
    hosts = [host("a", 4), host("b", 0, memory=2)]
    line.refused("x", OLD, SMALL, NOW)
    assert line.earmark(hosts, NOW) == ("b", SMALL)
    line.refused("x", OLD, LARGE, NOW)
    assert line.earmark(hosts, NOW) == ("a", LARGE)
    line.refused("y", OLD + 1, SMALL, NOW)
    line.refused("x", YOUNG, LARGE, NOW)
    assert line.earmark(hosts, NOW) == ("b", SMALL)


def test_room_is_kept_only_where_the_build_can_go() -> None:
    """Hosts that are too small, of another kind, or not in use now are nothing to wait for."""
    line = Line()
    line.refused("large", OLD, attrs.evolve(LARGE, labels={"cpu": {"new"}}), NOW)
    new = {"cpu": "new"}
    hosts = [
        host("other", 0),
        host("small", 0, memory=3, labels=new),
        host("rests", 0, usable=False, labels=new),
        host("good", 4, labels=new),
    ]
    found = line.earmark(hosts, NOW)
    assert found is not None
    assert found[0] == "good"


def test_who_cannot_be_served_now_does_not_stand_in_the_way() -> None:
    """While the only host for the oldest build rests, room is kept for the next."""
    line = Line()
    line.refused("oldest", OLD, attrs.evolve(LARGE, arch=frozenset({"s390x"})), NOW)
    line.refused("like it", OLD, attrs.evolve(LARGE, arch=frozenset({"s390x"})), NOW)
    line.refused("next", OLD + 1, LARGE, NOW)
    hosts = [host("z", 4, arch="s390x", usable=False), host("x", 4, arch="x86_64")]
    assert line.earmark(hosts, NOW) == ("x", LARGE)
    hosts[0] = attrs.evolve(hosts[0], usable=True)
    found = line.earmark(hosts, NOW)
    assert found is not None
    assert found[0] == "z"


class Looked(list[HostView]):
    """Hosts that count how often they are gone through."""

    times = 0

    def __iter__(self) -> Iterator[HostView]:
        self.times += 1
        return super().__iter__()


def test_many_builds_that_wait_for_the_same_host_cost_a_decision_no_more_than_one() -> None:
    """While a region is down for which thousands wait, builds for other hosts are placed as quickly."""
    line = Line()
    for number in range(5000):
        line.refused(number, OLD, attrs.evolve(LARGE, labels={"region": {"down"}}), NOW)
    hosts = Looked([host("a", 0), host("b", 0, labels={"region": "down"}, usable=False)])
    assert goes_to(line, "small", YOUNG, hosts, SMALL) == "a"
    assert hosts.times < 5


def test_the_mark_stays_where_it_is_while_that_host_gets_emptier() -> None:
    """A host that was kept free for a while is not given away for one that is a little emptier now."""
    line = Line()
    line.refused("large", OLD, LARGE, NOW)
    assert line.earmark([host("a", 2), host("b", 3)], NOW) == ("a", LARGE)
    assert line.earmark([host("a", 2), host("b", 1)], NOW) == ("a", LARGE)


def test_the_mark_goes_to_where_there_is_room_now() -> None:
    """A host that returns empty is kept for the build that has waited longest, whoever asks first."""
    line = Line()
    line.refused("large", OLD, LARGE, NOW)
    assert line.earmark([host("a", 2)], NOW) == ("a", LARGE)
    hosts = [host("a", 2), host("b", 0)]
    assert line.earmark(hosts, NOW) == ("b", LARGE)
    assert goes_to(line, "small", YOUNG, hosts, SMALL) == "a"


def test_the_mark_leaves_a_host_that_fills_up_or_fails() -> None:
    """Somebody else's VMs, which heed no line, or a host's death, do not keep a build waiting for ever."""
    line = Line()
    line.refused("large", OLD, LARGE, NOW)
    assert line.earmark([host("a", 1), host("b", 2)], NOW) == ("a", LARGE)
    assert line.earmark([host("a", 3), host("b", 2)], NOW) == ("b", LARGE)
    assert line.earmark([host("a", 3), host("b", 2, usable=False)], NOW) == ("a", LARGE)
    assert line.earmark([host("b", 2)], NOW) == ("b", LARGE)
    assert line.earmark([], NOW) is None


def test_a_standby_on_the_host_that_is_kept_is_not_taken_by_a_younger_build() -> None:
    """What a paused VM would use for long is part of the room that the older build waits for."""
    line = Line()
    line.refused("large", OLD, LARGE, NOW)
    assert goes_to(line, "small", YOUNG, [host("a", 1, readiness=2)], SMALL) == ""


# A large build among small ones


@attrs.define
class Yard:
    """A farm that small builds of no end ask for, always before the large one."""

    hosts: list[HostView]
    running: list[list[int]]
    line: Line = attrs.field(factory=Line)
    asked: int = 0

    def ask_small(self) -> None:
        """Start small VMs wherever they are let."""
        while True:
            self.asked += 1
            key, since = f"small{self.asked}", YOUNG + self.asked
            found = choose(self.line.as_seen_by(key, since, self.hosts, NOW), SMALL)
            if found is None:
                self.line.refused(key, since, SMALL, NOW)
                return
            number = int(found.uri)
            self.running[number].append(self.asked)
            self.count(number)

    def ask_large(self, wish: Wish) -> bool:
        """Ask for the large one."""
        found = choose(self.line.as_seen_by("large", OLD, self.hosts, NOW), wish)
        if found is None:
            self.line.refused("large", OLD, wish, NOW)
        return found is not None

    def end(self, number: int, which: int) -> None:
        """End one VM of a host."""
        self.running[number].pop(which % len(self.running[number]))
        self.count(number)

    def count(self, number: int) -> None:
        """Look how much is used on a host."""
        vms = len(self.running[number])
        self.hosts[number] = attrs.evolve(self.hosts[number], used=Amounts(vms, vms))
        assert self.hosts[number].used.fits(self.hosts[number].limit)


@given(
    st.lists(st.integers(2, 6), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=30),
    st.integers(1, 6),
)
def test_a_large_build_waits_no_longer_than_the_vms_run_that_were_there_before_it(
    sizes: list[int], endings: list[tuple[int, int]], size: int
) -> None:
    """Whatever ends in whatever order, small builds that are always asked first do not starve a large one.

    It is served at latest when those VMs have ended that ran on the host kept for it when it was refused.
    """
    wish = Wish(memory=min(size, max(sizes)))
    hosts = [host(str(number), 0, memory=memory) for number, memory in enumerate(sizes)]
    yard = Yard(hosts, [[] for _ in hosts])
    yard.ask_small()
    assert not yard.ask_large(wish)
    mark = yard.line.earmark(yard.hosts, NOW)
    assert mark is not None
    kept = int(mark[0])
    before = set(yard.running[kept])
    endings += [(kept, 0)] * len(before)
    served = False
    for number, which in endings:
        number %= len(hosts)
        if not served and yard.running[number]:
            yard.end(number, which)
            yard.ask_small()
            served = yard.ask_large(wish)
            assert served or before & set(yard.running[kept])
    assert served


def test_without_the_line_the_large_one_would_starve() -> None:
    """Small builds that are asked first take each place that gets free: this is what the line is for."""
    yard = Yard([host("0", 0)], [[]])
    yard.ask_small()
    for _ in range(20):
        yard.line = Line()
        yard.end(0, 0)
        yard.ask_small()
        assert choose(yard.hosts, LARGE) is None


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 5), st.booleans()), min_size=1, max_size=30)
)
def test_the_mark_is_always_that_of_the_oldest_who_waits(asked: list[tuple[str, int, bool]]) -> None:
    """Whoever comes and goes in whatever order, the oldest build is the next that room is kept for."""
    line, waiting = Line(), {}
    for number, (key, since, goes) in enumerate(asked):
        if goes:
            line.gone(key)
            waiting.pop(key, None)
        else:
            if waiting.get(key, (None,))[0] != since:
                waiting[key] = (since, number)
            line.refused(key, since, Wish(memory=ord(key)), NOW)
        found = line.earmark([host("h", 1, memory=1000)], NOW)
        oldest = min(waiting, key=waiting.__getitem__, default=None)
        assert found == (None if oldest is None else ("h", Wish(memory=ord(oldest))))


def test_the_rule_for_small_builds_is_kept_while_a_large_one_waits() -> None:
    """Room that is kept looks used: packing fills other hosts as ever."""
    line = Line()
    line.refused("large", OLD, LARGE, NOW)
    hosts = [host("a", 1), host("b", 3, memory=5), host("c", 2, memory=5)]
    seen = line.as_seen_by("small", YOUNG, hosts, NOW)
    found = choose(seen, SMALL, Rule(spread=False))
    assert found is not None
    assert found.uri == "b"
