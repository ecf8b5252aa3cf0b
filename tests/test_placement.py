"""Which host a VM goes to."""

from __future__ import annotations

import random

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentvirt.placement import (
    FROZEN_FITS,
    NOTHING,
    STANDBY_FITS,
    Amounts,
    HostView,
    Limits,
    Rule,
    Wish,
    choose,
    explain,
    room_left,
)

GIB = 1024
ANY = Wish()
SMALL = Wish(memory=2 * GIB, vcpus=1)
ALIASES = [f"mira{number:03}" for number in range(1, 26)]
"""As many hosts as the seed document's lab has."""


def host(uri: str, vms: int = 0, slots: int | None = 8, **more: object) -> HostView:
    """Make a host on which some VMs of 2 GiB run, of at most 8."""
    used = Amounts(vms, vms * 2 * GIB, float(vms), 0)
    view = HostView(uri=uri, limit=Limits(slots=slots, memory=16 * GIB, vcpus=8.0), used=used)
    return attrs.evolve(view, **more)


def chosen(
    hosts: list[HostView], wish: Wish = SMALL, rule: Rule | None = None, avoid: tuple[str, ...] = ()
) -> str:
    """Name the host that is chosen; nothing if there is none."""
    found = choose(hosts, wish, rule or Rule(), avoid)
    return "" if found is None else found.uri


def fill(hosts: list[HostView], wish: Wish, rule: Rule | None = None, most: int = 1000) -> list[str]:
    """Place VMs until there is no room, or as many as wanted; names the host of each."""
    hosts, went = list(hosts), []
    while len(went) < most and (found := choose(hosts, wish, rule or Rule())) is not None:
        went.append(found.uri)
        hosts[hosts.index(found)] = attrs.evolve(found, used=found.used + wish.amounts)
    return went


# The rule


def test_a_start_goes_where_most_room_is_left() -> None:
    """Of hosts that are alike, the least used one gets the next VM."""
    assert chosen([host("a", 3), host("b", 1), host("c", 2)]) == "b"


def test_packing_fills_the_fullest_host_that_has_room() -> None:
    """With spread=False small VMs leave whole hosts to large ones."""
    pack = Rule(spread=False)
    assert chosen([host("a", 3), host("b", 8), host("c", 7)], rule=pack) == "c"
    assert fill([host("a"), host("b")], SMALL, pack, most=10) == ["a"] * 8 + ["b"] * 2


def test_room_is_that_of_the_resource_that_is_shortest() -> None:
    """A host with many free slots and little memory has little room."""
    much_memory = host("slots", limit=Limits(slots=4, memory=64 * GIB), used=Amounts(2, 4 * GIB))
    many_slots = host("memory", limit=Limits(slots=64, memory=16 * GIB), used=Amounts(2, 10 * GIB))
    assert room_left(much_memory.used, SMALL.amounts, much_memory.limit) == 1 / 4
    assert room_left(many_slots.used, SMALL.amounts, many_slots.limit) == 1 / 4
    assert chosen([many_slots, attrs.evolve(much_memory, used=Amounts(1, 4 * GIB))]) == "slots"


def test_room_is_counted_with_the_vm() -> None:
    """The larger host is better for a large VM even if a larger part of it is in use."""
    small = host("small", limit=Limits(memory=8 * GIB), used=Amounts())
    large = host("large", limit=Limits(memory=64 * GIB), used=Amounts(4, 32 * GIB))
    assert chosen([small, large], Wish(memory=GIB)) == "small"
    assert chosen([small, large], Wish(memory=6 * GIB)) == "large"


def test_hosts_without_limits_are_used_in_turn() -> None:
    """Where nothing is limited or known, VMs are spread by their number, and packed likewise."""
    hosts = [HostView(uri=uri) for uri in "abc"]
    assert sorted(fill(hosts, ANY, most=6)) == list("aabbcc")
    assert fill(hosts, ANY, Rule(spread=False), most=6) == ["a"] * 6


def test_among_equals_the_first_that_was_named_is_taken() -> None:
    """The same farm gives the same choice each time."""
    assert chosen([host("b"), host("a")]) == "b"


def test_a_host_where_a_vm_waits_comes_before_one_with_an_image_and_that_before_all_others() -> None:
    """Builds start quickest where the most is ready, however much room there is elsewhere."""
    empty, image = host("empty"), host("image", 5, readiness=FROZEN_FITS)
    standby = host("standby", 6, readiness=STANDBY_FITS)
    assert chosen([empty, image, standby]) == "standby"
    assert chosen([empty, image]) == "image"


def test_a_standby_needs_no_further_room() -> None:
    """A build can take the VM that waits on a host that is full because of it."""
    assert chosen([host("full", 8, readiness=STANDBY_FITS)]) == "full"
    assert chosen([host("full", 8, readiness=FROZEN_FITS)]) == ""


def test_a_host_that_is_over_its_limits_gets_nothing_not_even_by_its_standby() -> None:
    """When a person's own VMs came meanwhile, a paused VM is not resumed beside them."""
    assert chosen([host("over", 9, readiness=STANDBY_FITS)]) == ""


@pytest.mark.parametrize(
    ("limit", "wish"),
    [
        (Limits(slots=0), ANY),
        (Limits(memory=4095), Wish(memory=4096)),
        (Limits(vcpus=1.5), Wish(vcpus=2)),
        (Limits(disk=99), Wish(disk=100)),
    ],
    ids=["slots", "memory", "vcpus", "disk"],
)
def test_each_limit_counts(limit: Limits, wish: Wish) -> None:
    """A host that has too little of one thing is not chosen, and exactly enough is enough."""
    assert chosen([HostView(uri="a", limit=limit)], wish) == ""
    assert not wish.amounts.fits(limit)
    needed = Limits(slots=1, memory=wish.memory, vcpus=wish.vcpus, disk=wish.disk)
    assert chosen([HostView(uri="a", limit=needed)], wish) == "a"


def test_free_disk_does_not_make_a_host_better() -> None:
    """Disk has to suffice, no more: it is images that fill it."""
    little = host("little", 1, limit=Limits(slots=8, disk=100))
    much = host("much", 2, limit=Limits(slots=8, disk=100_000))
    assert chosen([much, little], Wish(disk=100)) == "little"
    assert chosen([much, little], Wish(disk=101)) == "much"


def test_a_host_whose_architecture_is_not_known_yet_may_take_anything() -> None:
    """The first build to a host is how its architecture gets known; then it must be the right one."""
    wish = Wish(arch=frozenset({"aarch64", "armv7l"}))
    assert chosen([host("x", arch="x86_64"), host("new")], wish) == "new"
    assert chosen([host("x", arch="x86_64"), host("arm", 4, arch="aarch64")], wish) == "arm"
    assert chosen([host("x", arch="x86_64")]) == "x"


def test_labels_must_be_among_those_allowed() -> None:
    """A host without the label, or with another value, is not chosen."""
    wish = Wish(labels={"cpu": {"avx512", "amx"}, "region": {"sepia"}})
    hosts = [
        host("none"),
        host("one", labels={"cpu": "avx512"}),
        host("wrong", labels={"cpu": "sse", "region": "sepia"}),
        host("right", 7, labels={"cpu": "amx", "region": "sepia", "more": "x"}),
    ]
    assert chosen(hosts, wish) == "right"
    assert chosen(hosts[:-1], wish) == ""


def test_the_more_preferred_labels_a_host_has_the_sooner_it_comes() -> None:
    """Preference goes before what is ready and before room, and excludes nobody."""
    rule = Rule(prefer={"region": "sepia", "disk": "ssd"})
    both = host("both", 7, labels={"region": "sepia", "disk": "ssd"})
    one = host("one", 3, labels={"region": "sepia"}, readiness=FROZEN_FITS)
    none = host("none", readiness=STANDBY_FITS)
    assert chosen([none, one, both], rule=rule) == "both"
    assert chosen([none, one], rule=rule) == "one"
    assert chosen([none], rule=rule) == "none"


def test_hosts_that_rest_or_were_tried_already_are_left_out() -> None:
    """A start that failed on one host goes to the next, and none goes to a drained one."""
    hosts = [host("drained", usable=False, why_not="drained"), host("tried", 1), host("next", 2)]
    assert chosen(hosts) == "tried"
    assert chosen(hosts, avoid=("tried",)) == "next"
    assert chosen(hosts, avoid=("tried", "next")) == ""


def test_nothing_is_chosen_from_nothing() -> None:
    """No host is no room."""
    assert chosen([]) == ""


def test_the_documentations_example_is_so() -> None:
    """Who checks the rule by hand on the page's three hosts comes to the same choice."""
    limit = Limits(slots=8, memory=16 * GIB, vcpus=8.0)
    hosts = [
        host("A", limit=limit, used=Amounts(1, 8 * GIB, 1.0)),
        host("B", limit=limit, used=Amounts(4, 4 * GIB, 4.0)),
        host("C", limit=limit, used=Amounts(2, 14 * GIB, 2.0)),
    ]
    wish = Wish(memory=4 * GIB, vcpus=1)
    assert [room_left(view.used, wish.amounts, limit) for view in hosts[:2]] == [1 / 4, 3 / 8]
    assert chosen(hosts, wish) == "B"
    assert chosen(hosts, wish, Rule(spread=False)) == "A"
    assert chosen(hosts[2:], wish) == ""


# Impossible wishes


def test_an_impossible_wish_is_explained_by_the_nearest_host() -> None:
    """The message names what fails where the least fails."""
    hosts = [
        host("far", arch="aarch64", labels={"region": "brno"}),
        host("near", 8, arch="x86_64", labels={"region": "sepia"}, usable=False),
    ]
    wish = Wish(memory=32 * GIB, arch=frozenset({"x86_64"}), labels={"region": {"sepia"}})
    assert explain(hosts, wish) == (
        "no host could ever take it; on the nearest, near, memory is at most 16 GiB, not 32 GiB"
    )


def test_of_hosts_that_fail_the_same_the_one_that_falls_least_short_is_named() -> None:
    """A person who asks for too much learns how much there is at most."""
    hosts = [HostView(uri=f"h{gib}", limit=Limits(memory=gib * GIB)) for gib in (8, 24, 16)]
    found = explain(hosts, Wish(memory=32 * GIB))
    assert found is not None
    assert "h24" in found


@pytest.mark.parametrize(
    ("wish", "named"),
    [
        (Wish(vcpus=9), "vcpus is at most 8, not 9"),
        (Wish(disk=200), "disk is at most 100 MiB, not 200 MiB"),
        (Wish(arch=frozenset({"s390x", "ppc64le"})), "arch is 'x86_64', not 'ppc64le' or 's390x'"),
        (Wish(labels={"region": ["brno"]}), "region is 'sepia', not 'brno'"),
        (Wish(labels={"cpu": ["avx512"]}), "it has no label cpu, which is to be 'avx512'"),
    ],
)
def test_each_criterion_that_fails_is_named(wish: Wish, named: str) -> None:
    """The message says what the host has, and what was wanted."""
    limit = Limits(slots=8, memory=16 * GIB, vcpus=8.0, disk=100)
    only = host("h", arch="x86_64", limit=limit, labels={"region": "sepia"})
    assert explain([only], wish) == f"no host could ever take it; on the nearest, h, {named}"
    assert explain([attrs.evolve(only, limit=Limits(slots=0))], ANY) is not None


def test_no_hosts_at_all_are_explained_too() -> None:
    """A build that may go nowhere ends with a reason."""
    assert explain([], ANY) == "there is no host that it could go to"


def test_a_full_farm_is_not_an_impossible_wish() -> None:
    """A build that finds no room now waits, also if all hosts rest."""
    hosts = [host("full", 8), host("resting", usable=False, why_not="rests")]
    assert chosen(hosts) == ""
    assert explain(hosts, SMALL) is None


# The seed documents


def test_downburst_hosts_have_fixed_slots_and_never_more_vms() -> None:
    """The lab's 25 hosts take as many VMs as they have slots; each VM's host is known by its alias."""
    hosts = [HostView(uri=uri, limit=Limits(slots=8)) for uri in ALIASES]
    went = fill(hosts, SMALL)
    assert sorted(went) == sorted(ALIASES * 8)


def test_downburst_slots_are_filled_evenly() -> None:
    """As many builds as there are hosts get one host each, and the next as many again."""
    hosts = [HostView(uri=uri, limit=Limits(slots=8)) for uri in ALIASES]
    assert fill(hosts, SMALL, most=50) == ALIASES * 2


def test_downburst_slots_of_persons_own_vms_are_taken() -> None:
    """A VM that somebody else runs on a host takes a slot there."""
    hosts = [HostView(uri=uri, limit=Limits(slots=1)) for uri in ALIASES[:3]]
    hosts[1] = attrs.evolve(hosts[1], used=Amounts(slots=1))
    assert fill(hosts, SMALL) == [ALIASES[0], ALIASES[2]]


def test_beaker_region_near_the_lab_comes_first_and_others_take_what_it_cannot() -> None:
    """With a preferred region its hosts are filled first; then builds go elsewhere."""
    hosts = [
        host("far", labels={"region": "brno"}),
        host("near", 7, labels={"region": "sepia"}),
    ]
    assert fill(hosts, SMALL, Rule(prefer={"region": "sepia"}), most=3) == ["near", "far", "far"]


def test_beaker_region_that_is_required_is_never_left() -> None:
    """A build that requires the region near its lab waits when that is full."""
    hosts = [host("far", labels={"region": "brno"}), host("near", 7, labels={"region": "sepia"})]
    assert fill(hosts, attrs.evolve(SMALL, labels={"region": {"sepia"}})) == ["near"]


def test_beaker_region_is_optional() -> None:
    """A lab that is associated with no region takes any host."""
    hosts = [host("far", labels={"region": "brno"}), host("none", 3)]
    assert fill(hosts, SMALL, most=2) == ["far", "far"]


def test_beaker_memory_and_disk_requirements_filter_hosts() -> None:
    """Hosts without the memory or the local disk that a job needs are no candidates."""
    hosts = [
        HostView(uri="small", limit=Limits(memory=4 * GIB, disk=1000 * GIB)),
        HostView(uri="diskless", limit=Limits(memory=64 * GIB, disk=5 * GIB)),
        HostView(uri="good", limit=Limits(memory=16 * GIB, disk=100 * GIB), used=Amounts(1, 4 * GIB)),
    ]
    assert chosen(hosts, Wish(memory=8 * GIB, disk=20 * GIB)) == "good"


# Any farm

amounts = st.builds(
    Amounts, st.integers(0, 5), st.integers(0, 5000), st.integers(0, 10).map(float), st.integers(0, 500)
)
limits = st.builds(
    Limits,
    st.none() | st.integers(0, 5),
    st.none() | st.integers(0, 5000),
    st.none() | st.integers(0, 20).map(lambda x: x / 2),
    st.none() | st.integers(0, 500),
)
labels = st.dictionaries(st.sampled_from(["region", "cpu"]), st.sampled_from(["a", "b"]))
arches = st.sampled_from(["x86_64", "aarch64"])
views = st.builds(
    HostView,
    uri=st.just("?"),
    labels=labels,
    arch=st.none() | arches,
    limit=limits,
    used=amounts,
    usable=st.booleans(),
    readiness=st.integers(0, STANDBY_FITS),
)
farms = st.lists(views, max_size=6).map(
    lambda hosts: [attrs.evolve(view, uri=str(number)) for number, view in enumerate(hosts)]
)
wishes = st.builds(
    Wish,
    memory=st.integers(0, 5000),
    vcpus=st.integers(0, 10),
    disk=st.integers(0, 500),
    arch=st.frozensets(arches),
    labels=st.dictionaries(st.sampled_from(["region", "cpu"]), st.frozensets(st.sampled_from(["a", "b"]))),
)
rules = st.builds(Rule, st.booleans(), labels)


def candidates(hosts: list[HostView], wish: Wish) -> list[HostView]:
    """List those that may be chosen, written down as people would say it."""

    def within(used: Amounts, limit: Limits) -> bool:
        return all(
            getattr(limit, name) is None or getattr(used, name) <= getattr(limit, name)
            for name in ("slots", "memory", "vcpus", "disk")
        )

    return [
        view
        for view in hosts
        if view.usable
        and (not wish.arch or view.arch is None or view.arch in wish.arch)
        and all(view.labels.get(label) in allowed for label, allowed in wish.labels.items())
        and within(view.used + (NOTHING if view.readiness == STANDBY_FITS else wish.amounts), view.limit)
    ]


@given(farms, wishes, rules)
def test_a_host_is_chosen_if_one_may_be_and_no_limit_is_passed(
    hosts: list[HostView], wish: Wish, rule: Rule
) -> None:
    """Nothing is placed beyond a limit or against a label, and nothing waits that has a place."""
    possible = candidates(hosts, wish)
    found = choose(hosts, wish, rule)
    assert (found in possible) if possible else (found is None)


@given(farms, wishes, rules)
def test_a_chosen_host_is_as_much_preferred_as_any(hosts: list[HostView], wish: Wish, rule: Rule) -> None:
    """No host that might be chosen has more of the preferred labels, or the same and more ready."""

    def rank(view: HostView) -> tuple[int, int]:
        return len(set(view.labels.items()) & set(rule.prefer.items())), view.readiness

    found = choose(hosts, wish, rule)
    if found is not None:
        assert rank(found) == max(rank(view) for view in candidates(hosts, wish))


@given(farms, wishes, rules, st.randoms(use_true_random=False))
def test_the_choice_depends_on_the_hosts_order_only_among_equals(
    hosts: list[HostView], wish: Wish, rule: Rule, chance: random.Random
) -> None:
    """Two masters that name the same hosts in another order choose hosts that are equally good."""
    shuffled = chance.sample(hosts, len(hosts))
    one, other = choose(hosts, wish, rule), choose(shuffled, wish, rule)
    if one is None or other is None:
        assert one is other
    else:
        assert choose([one, other], wish, rule) is one
        assert choose([other, one], wish, rule) is other


@given(farms, wishes, st.data())
def test_avoiding_a_host_is_as_if_it_were_not_there(
    hosts: list[HostView], wish: Wish, data: st.DataObject
) -> None:
    """A start that moves on finds what it had found if the host that failed had never been."""
    avoid = data.draw(st.sets(st.sampled_from([view.uri for view in hosts])) if hosts else st.just(set()))
    rest = [view for view in hosts if view.uri not in avoid]
    assert choose(hosts, wish, avoid=avoid) == choose(rest, wish)


@given(farms, wishes)
def test_a_wish_is_impossible_if_no_host_took_it_empty(hosts: list[HostView], wish: Wish) -> None:
    """A build ends at once just if it would wait for ever."""
    empty = [attrs.evolve(view, used=NOTHING, usable=True, readiness=0) for view in hosts]
    assert (explain(hosts, wish) is None) == (choose(empty, wish) is not None)


@given(amounts, amounts)
def test_amounts_that_are_added_can_be_taken_away_again(one: Amounts, other: Amounts) -> None:
    """Room is the same after a VM has come and gone."""
    assert one + other - other == one
