"""What a build asks of its VM, and the flavor that it gets."""

from __future__ import annotations

import operator
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentvirt import Flavor, Size
from latentvirt.amounts import MIB_PER_UNIT, amount_text, mebibytes
from latentvirt.errors import ConfigError, ImpossibleWish, LatentvirtError
from latentvirt.requirements import (
    CRITERIA,
    SIGNS,
    Comparison,
    Requirements,
    choose_flavor,
    host_labels,
    read_requirements,
)
from latentvirt.sizes import check_flavors

SMALL = Flavor("small", memory="1 GiB", vcpus=1, disk="10 GiB")
MEDIUM = Flavor("medium", memory="4 GiB", vcpus=2, disk="20 GiB")
LARGE = Flavor("large", memory="16 GiB", vcpus=8, disk="100 GiB")
FLAVORS = (LARGE, SMALL, MEDIUM)

COMPARED = {
    "": operator.ge,
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
}
"""What each sign means to a person, written down apart from the program."""

signs = st.sampled_from(sorted(COMPARED))
units = st.sampled_from(sorted(MIB_PER_UNIT))
blanks = st.sampled_from(["", " ", "  "])
flavors = st.lists(
    st.builds(
        Flavor,
        st.just("any"),
        memory=st.integers(1, 12),
        vcpus=st.integers(1, 5),
        disk=st.none() | st.integers(1, 8),
        labels=st.dictionaries(st.sampled_from("ab"), st.sampled_from("xyz")),
    ),
    min_size=1,
    max_size=8,
)
wishes = st.fixed_dictionaries(
    {},
    optional={
        **{
            what: st.lists(st.tuples(signs, st.integers(1, 12)), min_size=1, max_size=3)
            for what in ("memory", "vcpus", "disk")
        },
        "labels": st.dictionaries(st.sampled_from("abc"), st.lists(st.sampled_from("xyz"), min_size=1)),
    },
)
garbage = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
almost = st.text(alphabet="<>=!, 0123456789.GMiTBx-", max_size=20)


def chosen(requires: dict[str, Any], among: tuple[Flavor, ...] = FLAVORS) -> str:
    """Name the flavor that a build with these requirements gets."""
    return choose_flavor(read_requirements(requires), among).name


def refusal(requires: dict[str, Any], among: tuple[Flavor, ...] = FLAVORS) -> str:
    """Tell why a build gets no flavor."""
    with pytest.raises(ImpossibleWish) as caught:
        choose_flavor(read_requirements(requires), among)
    return str(caught.value)


def satisfies(flavor: Flavor, wish: dict[str, Any]) -> bool:
    """Say whether a flavor satisfies a wish, without the program's help."""
    for what in ("memory", "vcpus", "disk"):
        have = getattr(flavor, what)
        for sign, amount in wish.get(what, ()):
            if have is None or not COMPARED[sign](have, amount):
                return False
    return all(
        label not in wish.get("labels", {}) or allowed & set(wish["labels"][label])
        for label, allowed in flavor.labels
    )


def written(wish: dict[str, Any]) -> dict[str, Any]:
    """Write a wish as a build would."""
    return {
        what: value if what == "labels" else [f"{sign} {amount}" for sign, amount in value]
        for what, value in wish.items()
    }


# Flavors


def test_a_flavor_is_a_size_with_a_name() -> None:
    """A flavor takes amounts as a size does, and gives VMs that size."""
    assert Flavor("f", memory="2 GiB", vcpus=2, disk="1 TiB").size == Size(
        memory=2048, vcpus=2, disk=1024 * 1024
    )
    assert Flavor("f").size == Size()
    assert Flavor.of(MEDIUM.size, "medium") == MEDIUM


def test_flavors_are_compared_by_what_they_mean() -> None:
    """A configuration that is read again has the same flavors, however their labels were written."""
    one = Flavor("f", memory="1 GiB", labels={"a": "x", "b": ["y", "z"]})
    other = Flavor("f", memory=1024, labels={"b": ["z", "y"], "a": ["x"], "c": None})
    assert one == other
    assert hash(one) == hash(other)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"memory": "lots"}, "memory='lots'"),
        ({"memory": 10**5000}, "memory=a value of type int"),
        ({"memory": "9" * 400}, "memory='999.*is not an amount"),
        ({"disk": "4 KiB"}, "disk='4 KiB'"),
        ({"vcpus": 0}, "vcpus=0"),
        ({"vcpus": "two"}, "vcpus='two'"),
        ({"labels": ["cpu"]}, r"labels=\['cpu'\] is not a mapping"),
        ({"labels": {"": "x"}}, "label ''"),
        ({"labels": {"cpu": 2}}, r"labels\['cpu'\]=2"),
        ({"labels": {"cpu": []}}, r"labels\['cpu'\]=\[\]"),
    ],
)
def test_what_is_no_flavor(wrong: dict[str, Any], message: str) -> None:
    """What cannot be a flavor's argument is named, with how to write it."""
    with pytest.raises(ConfigError, match=f"(?s){message}.*What to do: write"):
        Flavor("f", **wrong).check()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([SMALL, Size()], "Size.*which is no Flavor"),
        ([SMALL, "large"], "'large', which is no Flavor"),
        ([Flavor("")], "a flavor's name is ''"),
        ([Flavor("a\nb")], "a flavor's name is 'a"),
        ([Flavor(3)], "a flavor's name is 3"),  # type: ignore[arg-type]
        ([SMALL, MEDIUM, SMALL], "two flavors are called 'small'"),
        ([SMALL, Flavor("large", memory="16 Gigs")], "flavor 'large': memory='16 Gigs'"),
    ],
)
def test_flavors_that_cannot_be_told_apart(wrong: list[Any], message: str) -> None:
    """Flavors have names that a message can tell them by."""
    with pytest.raises(ConfigError, match=f"{message}.*What to do"):
        check_flavors(wrong)


def test_good_flavors() -> None:
    """Flavors with names of their own are good, and so is none at all."""
    check_flavors(FLAVORS)
    check_flavors([])


# Requirements


@given(signs, blanks, st.integers(1, 10**6), blanks, units, st.sampled_from(["memory", "disk"]))
def test_an_amount_means_the_same_as_in_a_size(
    sign: str, blank: str, number: int, other_blank: str, unit: str, what: str
) -> None:
    """An amount in any unit is read as in a size; without a sign it means at least so much."""
    amount = f"{number}{other_blank}{unit}"
    read = read_requirements({what: f"{blank}{sign}{blank}{amount}{blank}"})
    (comparison,) = getattr(read, what)
    mib = mebibytes(amount, what)
    for have in (mib - 1, mib, mib + 1):
        assert comparison.holds(have) == COMPARED[sign](have, mib)


@given(st.integers(1, 10**12))
def test_an_amount_reads_back(mib: int) -> None:
    """An amount as messages write it is read as the same amount."""
    assert mebibytes(amount_text(mib), "memory") == mib


@given(st.lists(st.tuples(st.sampled_from(list(SIGNS)), st.integers(1, 10**6)), min_size=1, max_size=4))
def test_comparisons_with_commas_are_those_of_a_list(given_: list[tuple[str, int]]) -> None:
    """A list and a text with commas mean the same, in any order and however often."""
    terms = [f"{sign} {amount}" for sign, amount in given_]
    for what in ("memory", "vcpus", "disk"):
        read = read_requirements({what: terms})
        assert read == read_requirements({what: ", ".join(terms)})
        assert read == read_requirements({what: [*reversed(terms), *terms]})
        assert hash(read) == hash(read_requirements({what: ",".join(terms)}))
        assert set(getattr(read, what)) == {Comparison(sign, amount) for sign, amount in given_}


@given(
    st.dictionaries(st.sampled_from(CRITERIA), garbage | almost | st.lists(almost))
    | st.dictionaries(garbage.filter(lambda value: value.__hash__ is not None and _hashes(value)), garbage)
    | garbage
)
def test_garbage_is_refused_in_our_words(requires: Any) -> None:
    """Whatever a property holds, a build ends with an error that has a remedy, or with a flavor."""
    refused = None
    try:
        read = read_requirements(requires)
        assert read == read_requirements(requires)
        hash(read)
        assert choose_flavor(read, FLAVORS) in FLAVORS
    except LatentvirtError as error:
        refused = error
    if refused is not None:
        assert refused.remedy
        assert not refused.retry
        assert str(refused).isprintable()


def _hashes(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


@pytest.mark.parametrize(
    ("requires", "message"),
    [
        ({"memory": "4,096"}, "memory='4,096'"),
        ({"memory": "1,5 GiB"}, "memory='1,5 GiB'"),
        ({"memory": "4 GiB, < 8 GiB"}, "each with its sign: '>= 4 GiB, < 16 GiB'"),
        ({"memory": ""}, "memory=''"),
        ({"memory": []}, r"memory=\[\]"),
        ({"memory": "=> 4 GiB"}, "memory='=> 4 GiB'"),
        ({"memory": "> = 4 GiB"}, "memory='> = 4 GiB'"),
        ({"memory": -1}, "memory=-1"),
        ({"memory": True}, "memory=True"),
        ({"memory": 10**5000}, "memory=a value of type int"),
        ({"disk": {"min": 4}}, "disk={'min': 4}"),
        ({"vcpus": "1 GiB"}, "vcpus='1 GiB' is neither a number of processors"),
        ({"vcpus": 1.5}, "vcpus=1.5"),
        ({"vcpus": 0}, "vcpus=0"),
        ({"arch": "x86 64"}, "arch='x86 64' is no architecture"),
        ({"arch": []}, r"arch=\[\]"),
        ({"labels": "lab-1"}, "labels='lab-1' is not a mapping"),
        ("4 GiB", "requires='4 GiB' is not a mapping"),
    ],
)
def test_what_is_no_requirement(requires: Any, message: str) -> None:
    """A value that could be meant otherwise, or cannot be read, is named, with how to write it."""
    with pytest.raises(ConfigError, match=rf"{message}(.|\n)*") as caught:
        read_requirements(requires)
    assert "write" in caught.value.remedy


def test_a_long_value_does_not_fill_the_page() -> None:
    """A message shows of a property as large as a file no more than a line or two."""
    with pytest.raises(ConfigError) as caught:
        read_requirements({"memory": "x" * 100_000})
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("requires", "message"),
    [
        ({"memroy": 1}, "no requirement 'memroy'; did you mean 'memory'[?]"),
        ({"cpus": 1}, "no requirement 'cpus'; did you mean 'vcpus'[?]"),
        ({"region": "lab-1"}, "no requirement 'region'[.].*{'labels': {'region': 'lab-1'}}"),
        ({3: 1}, "no requirement 3[.]"),
        ({"Memory": None}, "no requirement 'Memory'; did you mean 'memory'[?]"),
    ],
)
def test_a_requirement_that_does_not_exist(requires: Any, message: str) -> None:
    """An unknown requirement ends the build with its name, what is probably meant, and those there are."""
    with pytest.raises(ConfigError, match=f"{message}.*") as caught:
        read_requirements(requires)
    assert "memory, vcpus, disk, arch or labels" in str(caught.value)


def test_what_is_none_is_not_asked_for() -> None:
    """A property that a build does not have asks for nothing."""
    nothing = dict.fromkeys(CRITERIA)
    assert read_requirements(nothing) == read_requirements({}) == Requirements()
    assert read_requirements({"labels": {"region": None}}) == Requirements()


def test_architectures_have_libvirts_names() -> None:
    """Debian's name of an architecture is as good as libvirt's."""
    assert read_requirements({"arch": "amd64"}) == read_requirements({"arch": ["x86_64"]})
    assert read_requirements({"arch": [" ARM64", "x86_64"]}).arch == {"aarch64", "x86_64"}


# Choosing


@given(wishes, flavors)
def test_the_smallest_flavor_that_satisfies_all_is_chosen(wish: dict[str, Any], among: list[Flavor]) -> None:
    """A build gets a flavor that has all it asks for, and none that has is smaller."""
    fitting = [flavor for flavor in among if satisfies(flavor, wish)]
    try:
        got = choose_flavor(read_requirements(written(wish)), among)
    except ImpossibleWish:
        assert fitting == []
        return
    sizes = [(flavor.memory, flavor.vcpus, flavor.disk or 0) for flavor in fitting]
    assert got is fitting[sizes.index(min(sizes))]


@given(wishes, flavors)
def test_a_refusal_names_what_stands_in_the_way(wish: dict[str, Any], among: list[Flavor]) -> None:
    """What is named together cannot be had together, all of it counts, and the nearest lacks the fewest."""
    try:
        choose_flavor(read_requirements(written(wish)), among)
    except ImpossibleWish as error:
        named, _, nearest = error.what.partition("; the nearest is ")
        groups = [
            set(re.findall("memory|vcpus|disk|labels", part)) for part in named.split(", and none has ")
        ]
    else:
        return
    for group in groups:
        part = {what: wish[what] for what in group}
        assert not any(satisfies(flavor, part) for flavor in among)
        for what in group:
            less = {other: wish[other] for other in group - {what}}
            assert any(satisfies(flavor, less) for flavor in among)

    def unmet(flavor: Flavor) -> int:
        return sum(not satisfies(flavor, {what: wish[what]}) for what in wish)

    fewest = min(map(unmet, among))
    assert any(
        unmet(flavor) == fewest
        and f"(memory {amount_text(flavor.memory)}; vcpus {flavor.vcpus}; disk" in nearest
        for flavor in among
    )


def test_a_build_that_asks_for_nothing_gets_the_smallest() -> None:
    """Without requirements a build takes no more room than it must."""
    assert chosen({}) == "small"


def test_of_equal_flavors_the_first_is_chosen() -> None:
    """Memory counts before processors, those before the disk, and the order of the list comes last."""
    tall = Flavor("tall", memory=2, vcpus=1, disk=1)
    wide = Flavor("wide", memory=1, vcpus=9, disk=9)
    slim = Flavor("slim", memory=1, vcpus=8, disk=9)
    bare = Flavor("bare", memory=1, vcpus=8)
    assert chosen({}, (tall, wide)) == "wide"
    assert chosen({}, (wide, slim)) == "slim"
    assert chosen({}, (slim, bare)) == "bare"
    assert chosen({}, (slim, Flavor("twin", memory=1, vcpus=8, disk=9))) == "slim"


def test_a_disk_of_unknown_size_satisfies_nobody_who_asks() -> None:
    """A build that asks for a disk gets a flavor that has one, even if it only asks for a small one."""
    bare = Flavor("bare")
    assert chosen({}, (bare, MEDIUM)) == "bare"
    assert chosen({"disk": "1 GiB"}, (bare, MEDIUM)) == "medium"
    assert "disk as large as its image" in refusal({"disk": "< 1 TiB"}, (bare,))


def test_each_requirement_that_cannot_be_met_is_named() -> None:
    """A build that asks for too much of several things learns of all of them at once."""
    assert refusal({"memory": "64 GiB", "vcpus": "> 8", "disk": "50 GiB"}) == (
        "no flavor has memory >= 64 GiB, and none has vcpus > 8; "
        "the nearest is large (memory 16 GiB; vcpus 8; disk 100 GiB). "
        "What to do: ask for less, or give the worker a flavor that has it"
    )


def test_requirements_that_cannot_be_met_together_are_named_together() -> None:
    """If each could be met, but not both, the message says so, and leaves out what is not to blame."""
    assert refusal({"memory": "< 4 GiB", "vcpus": 2, "disk": "10 GiB"}) == (
        "no flavor has memory < 4 GiB together with vcpus >= 2; "
        "the nearest is medium (memory 4 GiB; vcpus 2; disk 20 GiB). "
        "What to do: ask for less, or give the worker a flavor that has it"
    )


def test_the_nearest_flavor_is_short_of_the_least() -> None:
    """Of flavors that lack as many things, that one is named whose lack is the smallest part of the wish."""
    assert "nearest is medium" in refusal({"memory": "> 4 GiB, < 16 GiB"}, (SMALL, MEDIUM))
    assert "nearest is large" in refusal({"memory": ">= 12 GiB, < 16 GiB"})
    assert "nearest is medium" in refusal({"memory": "!= 4 GiB", "vcpus": "== 2"})


def test_a_worker_with_one_size_is_measured_by_it() -> None:
    """Where there is but a size, a build that asks for more than that learns what the size is."""
    message = refusal({"memory": "4 GiB"}, (Flavor.of(Size(memory="2 GiB")),))
    assert "the nearest is this worker's size (memory 2 GiB; vcpus 1; disk as large as its image)" in message


def test_labels_of_a_flavor_and_of_a_build_must_agree() -> None:
    """A build does not get a flavor that binds it to hosts other than those that it asks for."""
    fast = Flavor("fast", labels={"cpu": ["avx512", "amx"], "disk": "nvme"})
    assert chosen({"labels": {"cpu": "avx512"}}, (fast, LARGE)) == "fast"
    assert chosen({"labels": {"cpu": "avx2"}}, (fast, LARGE)) == "large"
    assert refusal({"labels": {"cpu": "avx2", "region": "lab-1"}}, (fast,)).startswith(
        "no flavor has labels cpu: avx2; "
        "the nearest is fast (memory 1 GiB; vcpus 1; disk as large as its image; "
        "labels cpu: amx or avx512, disk: nvme)"
    )


def test_a_host_must_have_the_labels_of_both() -> None:
    """Where a build runs is limited by what it asks for, and by what its flavor does."""
    fast = Flavor("fast", labels={"cpu": ["avx512", "amx"], "disk": "nvme"})
    requirements = read_requirements({"labels": {"cpu": ["avx2", "amx"], "region": "lab-1"}})
    assert host_labels(requirements, fast) == {"cpu": {"amx"}, "disk": {"nvme"}, "region": {"lab-1"}}
    assert host_labels(read_requirements({}), SMALL) == {}


def test_an_impossible_wish_is_the_builds_own_affair() -> None:
    """A wish that cannot be had is not tried again, and nobody but the build is to blame."""
    assert not ImpossibleWish.retry
    assert ImpossibleWish.fault == "build"


# Beaker's proposal, "Host filtering"


@pytest.mark.parametrize(
    ("memory", "disk", "name"),
    [
        (512, "5 GiB", "small"),
        (">= 2048", None, "medium"),
        (1024, "50 GiB", "large"),
        ("16 GiB", None, "large"),
    ],
)
def test_beaker_memory_and_disk_requirements_choose_a_flavor(memory: Any, disk: Any, name: str) -> None:
    """Memory and local disk requirements are translated into the flavor that has both."""
    assert chosen({"memory": memory, "disk": disk}) == name


def test_beaker_a_recipe_without_a_suitable_flavor_is_no_candidate() -> None:
    """If no flavor is suitable, the build learns why and does not get just any VM."""
    message = refusal({"memory": ">= 1 TiB", "disk": "5 GiB"})
    assert message.startswith("no flavor has memory >= 1 TiB; the nearest is large ")


def test_beaker_x86_and_x86_64_are_asked_of_the_host() -> None:
    """Either architecture will do for a recipe that names both, and leaves the choice of flavor as it is."""
    requires = {"arch": ["x86", "x86_64"], "memory": 2048}
    assert read_requirements(requires).arch == {"i686", "x86_64"}
    assert chosen(requires) == "medium"


def test_beaker_other_hardware_requirements_are_not_passed_over() -> None:
    """A recipe with a specific hardware requirement goes to hosts that have it, or nowhere."""
    requires = read_requirements({"memory": 512, "labels": {"device": "mellanox"}})
    assert host_labels(requires, choose_flavor(requires, FLAVORS)) == {"device": {"mellanox"}}
    with pytest.raises(ConfigError, match="no requirement 'device'"):
        read_requirements({"memory": 512, "device": "mellanox"})
