"""What a build asks of its VM, and which flavor is the smallest that has it."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import attrs

from latentvirt.amounts import amount_text, mebibytes
from latentvirt.devices import Disk
from latentvirt.errors import ConfigError, ImpossibleWish
from latentvirt.labels import Labels, allowed_texts, read_labels
from latentvirt.placement import Wish
from latentvirt.showing import shown
from latentvirt.sizes import Flavor

SIGNS: Mapping[str, Callable[[int, int], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    "<": operator.lt,
}
"""How amounts are compared, in the order in which messages write several comparisons."""

AT_LEAST = ">="
"""What an amount means without a sign before it: a build that asks for 4 GiB is content with more."""

SAME_SIGN = {"": AT_LEAST, "=": "=="}

ARCHITECTURES = {
    "amd64": "x86_64",
    "x86-64": "x86_64",
    "x86": "i686",
    "i386": "i686",
    "arm64": "aarch64",
    "armhf": "armv7l",
    "ppc64el": "ppc64le",
}
"""What others call an architecture, and what libvirt calls it."""

NOTHING_OF_IT = 1.0
"""The shortfall where there is no number to compare."""

_TERM = re.compile(r"\s*(>=|<=|==|!=|=|>|<|)(.*)", re.DOTALL)
_WHOLE = re.compile(r"\s*(\d{1,9})\s*")
_ARCH = re.compile(r"[a-z0-9_]+")


@attrs.frozen
class Comparison:
    """Compare an amount with the one that is asked for.

    Args:
        sign: one of `SIGNS`.
        amount: MiB, or a number of processors.
    """

    sign: str
    amount: int

    def holds(self, have: int) -> bool:
        """Whether an amount will do."""
        return SIGNS[self.sign](have, self.amount)

    def shortfall(self, have: int) -> float:
        """Say how far an amount is from one that will do, as a part of the one asked for; 0 if it will."""
        if self.holds(have):
            return 0.0
        # Where the amount itself will not do, the next one may.
        return (abs(self.amount - have) or 1) / self.amount


Comparisons = tuple[Comparison, ...]


@attrs.frozen(kw_only=True)
class Requirements:
    """Say what a build asks for, comparably; what is empty is not asked for.

    Args:
        memory: MiB, all of which must hold.
        vcpus: numbers of virtual processors, likewise.
        disk: size of the system disk in MiB, likewise.
        arch: architectures of which the host must have one, by libvirt's names.
        labels: what the host must have.
    """

    memory: Comparisons = ()
    vcpus: Comparisons = ()
    disk: Comparisons = ()
    arch: frozenset[str] = frozenset()
    labels: Labels = ()


AMOUNTS = ("memory", "vcpus", "disk")
"""The criteria that flavors differ in, the most important for what is small first."""

CRITERIA = tuple(field.name for field in attrs.fields(Requirements))


def read_requirements(given: object) -> Requirements:
    """Read what a build asks for.

    Args:
        given: a mapping of criteria to what is asked for; a value that is None is not asked for.

    Returns:
        The same, checked and comparable.

    Raises:
        ConfigError: it is no mapping, or has a criterion or a value that cannot be read.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"requires={shown(given)} is not a mapping", remedy="write {'memory': '4 GiB', 'vcpus': 2}"
        )
    for criterion in given:
        if criterion not in CRITERIA:
            raise _unknown(criterion)
    return Requirements(
        **{what: _READERS[what](what, value) for what, value in given.items() if value is not None}
    )


def choose_flavor(requirements: Requirements, flavors: Sequence[Flavor]) -> Flavor:
    """Choose the smallest flavor that satisfies all requirements.

    Smallest is that with the least memory, then with the fewest processors, then with the smallest disk, then
    the first. A flavor without a disk size has the image's, of which nothing is known: it satisfies no
    requirement of a disk. Labels count where flavor and requirement have the same one.

    Args:
        requirements: what a build asks for.
        flavors: at least one.

    Raises:
        ImpossibleWish: there is none; names what cannot be met, and the nearest flavor.
    """
    shortfalls = [_shortfalls(requirements, flavor) for flavor in flavors]
    fitting = [flavor for flavor, short in zip(flavors, shortfalls, strict=True) if not short]
    if not fitting:
        raise _impossible(requirements, flavors, shortfalls)
    return min(fitting, key=_smallness)


def host_labels(requirements: Requirements, flavor: Flavor) -> dict[str, frozenset[str]]:
    """Say what a host must have for a build: what the build asks for, and what its flavor does.

    Returns:
        By label, the values of which the host must have one.
    """
    wanted = dict(requirements.labels)
    for label, allowed in flavor.labels:
        wanted[label] = wanted.get(label, allowed) & allowed
    return wanted


def wish_for(
    requirements: Requirements,
    flavor: Flavor,
    disks: Iterable[Disk] = (),
    archs: frozenset[str] = frozenset(),
) -> Wish:
    """Say what a build's VM needs of a host.

    Args:
        requirements: what the build asks for.
        flavor: how large the VM is.
        disks: those that it has besides.
        archs: architectures of which its host must have one if the build asks for none.
    """
    return Wish(
        memory=flavor.memory,
        vcpus=flavor.vcpus,
        disk=(flavor.disk or 0) + sum(disk.mib for disk in disks),
        arch=requirements.arch or archs,
        labels=host_labels(requirements, flavor),
    )


# Reading


def _unknown(criterion: object) -> ConfigError:
    close = difflib.get_close_matches(criterion, CRITERIA, 1) if isinstance(criterion, str) else []
    meant = f"; did you mean {close[0]!r}?" if close else ""
    return ConfigError(
        f"there is no requirement {shown(criterion)}{meant}",
        remedy=f"use {', '.join(CRITERIA[:-1])} or {CRITERIA[-1]}; what else a host may have is asked for by "
        "its labels: {'labels': {'region': 'lab-1'}}",
    )


def _read_amount(criterion: str, given: object) -> Comparisons:
    found = {_comparison(criterion, given, term) for term in _terms(criterion, given)}
    return tuple(sorted(found, key=lambda one: (list(SIGNS).index(one.sign), one.amount)))


def _terms(criterion: str, given: object) -> Iterator[object]:
    """List the single comparisons of what was given.

    In a text with commas each one must have its sign: ``'4,096'`` and ``'1,5 GiB'`` are meant otherwise.
    """
    values = given if isinstance(given, (list, tuple)) else [given]
    if not values:
        raise _unreadable(criterion, given)
    for value in values:
        parts: list[object] = [value]
        if isinstance(value, str) and "," in value:
            parts = [*value.split(",")]
            if not all(str(part).lstrip().startswith((*SIGNS, "=")) for part in parts):
                raise _unreadable(criterion, given)
        yield from parts


def _comparison(criterion: str, given: object, term: object) -> Comparison:
    if isinstance(term, str):
        found = _TERM.fullmatch(term)
        sign, amount = found.groups() if found else ("", term)
    elif isinstance(term, (int, float)):
        sign, amount = "", term
    else:
        raise _unreadable(criterion, given)
    try:
        read = _processors(amount) if criterion == "vcpus" else mebibytes(amount, criterion)
    except ConfigError:
        raise _unreadable(criterion, given) from None
    return Comparison(SAME_SIGN.get(sign, sign), read)


def _processors(amount: str | float) -> int:
    if isinstance(amount, str):
        found = _WHOLE.fullmatch(amount)
        amount = int(found.group(1)) if found else 0
    if not isinstance(amount, int) or isinstance(amount, bool) or amount < 1:
        raise ConfigError("not a number of processors")
    return amount


def _unreadable(criterion: str, given: object) -> ConfigError:
    plain, several = ("2", "'>= 2, < 8'") if criterion == "vcpus" else ("'4 GiB'", "'>= 4 GiB, < 16 GiB'")
    kind = "a number of processors" if criterion == "vcpus" else "an amount"
    return ConfigError(
        f"the requirement {criterion}={shown(given)} is neither {kind} nor a comparison with one",
        remedy=f"write {plain} for at least so much, or comparisons, each with its sign: {several}",
    )


def _read_arch(criterion: str, given: object) -> frozenset[str]:
    named = {name.lower() for name in allowed_texts(given, f"the requirement {criterion}")}
    read = frozenset(ARCHITECTURES.get(name, name) for name in named)
    if not all(_ARCH.fullmatch(name) for name in read):
        raise ConfigError(
            f"the requirement {criterion}={shown(given)} is no architecture",
            remedy="write 'x86_64', or ['x86_64', 'aarch64'] where both will do",
        )
    return read


def _read_labels(criterion: str, given: object) -> Labels:
    return read_labels(given, f"the requirement {criterion}")


_READERS: Mapping[str, Callable[[str, object], Any]] = {
    **dict.fromkeys(AMOUNTS, _read_amount),
    "arch": _read_arch,
    "labels": _read_labels,
}


# Choosing


def _smallness(flavor: Flavor) -> tuple[int, int, int]:
    # No disk is smaller than one that is as large as the image: it does not get smaller than that.
    return flavor.memory, flavor.vcpus, flavor.disk or 0


def _clashes(requirements: Requirements, flavor: Flavor) -> set[str]:
    """Find the labels of which a flavor's hosts have none of the values that are asked for."""
    asked = dict(requirements.labels)
    return {label for label, allowed in flavor.labels if label in asked and not asked[label] & allowed}


def _shortfalls(requirements: Requirements, flavor: Flavor) -> dict[str, float]:
    """Say of each criterion that a flavor does not meet how far off it is."""
    found = {}
    for criterion in AMOUNTS:
        comparisons: Comparisons = getattr(requirements, criterion)
        have: int | None = getattr(flavor, criterion)
        if have is None:
            found[criterion] = NOTHING_OF_IT if comparisons else 0.0
        else:
            found[criterion] = max((one.shortfall(have) for one in comparisons), default=0.0)
    found["labels"] = NOTHING_OF_IT * len(_clashes(requirements, flavor))
    return {criterion: short for criterion, short in found.items() if short}


def _impossible(
    requirements: Requirements, flavors: Sequence[Flavor], shortfalls: Sequence[Mapping[str, float]]
) -> ImpossibleWish:
    def far(place: int) -> tuple[int, float, tuple[int, int, int]]:
        short = shortfalls[place]
        return len(short), sum(short.values()), _smallness(flavors[place])

    nearest = flavors[min(range(len(flavors)), key=far)]
    clashing = {label for flavor in flavors for label in _clashes(requirements, flavor)}
    names = [
        " together with ".join(_asked(requirements, criterion, clashing) for criterion in together)
        for together in _conflicts(shortfalls)
    ]
    return ImpossibleWish(
        f"no flavor has {', and none has '.join(names)}; the nearest is {_described(nearest)}",
        remedy="ask for less, or give the worker a flavor that has it",
    )


def _conflicts(shortfalls: Sequence[Mapping[str, float]]) -> list[tuple[str, ...]]:
    """Find the criteria that no flavor meets together, none of which could be left out of its group."""
    unmet = [what for what in (*AMOUNTS, "labels") if any(what in short for short in shortfalls)]
    found: list[tuple[str, ...]] = []
    for size in range(1, len(unmet) + 1):
        for together in combinations(unmet, size):
            if any(set(smaller) <= set(together) for smaller in found):
                continue
            if all(set(together) & set(short) for short in shortfalls):
                found.append(together)
    return found


def _asked(requirements: Requirements, criterion: str, clashing: set[str]) -> str:
    if criterion == "labels":
        return _labels_text([pair for pair in requirements.labels if pair[0] in clashing])
    comparisons: Comparisons = getattr(requirements, criterion)
    write = str if criterion == "vcpus" else amount_text
    return f"{criterion} {', '.join(f'{one.sign} {write(one.amount)}' for one in comparisons)}"


def _labels_text(labels: Sequence[tuple[str, frozenset[str]]]) -> str:
    return "labels " + ", ".join(f"{label}: {' or '.join(sorted(allowed))}" for label, allowed in labels)


def _described(flavor: Flavor) -> str:
    parts = [
        f"memory {amount_text(flavor.memory)}",
        f"vcpus {flavor.vcpus}",
        "disk as large as its image" if flavor.disk is None else f"disk {amount_text(flavor.disk)}",
    ]
    if flavor.labels:
        parts.append(_labels_text(flavor.labels))
    return f"{flavor.name} ({'; '.join(parts)})"
