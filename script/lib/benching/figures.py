"""From single measurements to what is told of them; plain values in, plain values out."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

FLOORS = {"boot": "raw_boot", "thaw": "raw_thaw"}
"""Which raw QEMU a tier can at best be as fast as."""

SECTIONS = {"stock": "start", "tuned": "start_tuned"}
"""Where in the result an image's figures are."""

PART_OF_START = "start: "
"""Begins the names of phases that are a part of the phase ``start``."""

GUEST_ATTACHES = "guest attaches"
"""How latentvirt's log of a start says that the guest has taken its identity; not a part of ``start``."""

MOST, LEAST = "at most", "at least"


@attrs.frozen
class Sample:
    """One start.

    Args:
        image: ``stock`` or ``tuned``.
        tier: ``in_tree``, ``raw_boot``, ``boot``, ``raw_thaw``, ``thaw`` or ``standby``.
        round: which of the rounds, from 1; samples of one round make pairs.
        total_s: from request, or from the first command, to attached.
        phases_s: how long each part took.
        others: which part of all processors others used meanwhile, 0 to 1.
    """

    image: str
    tier: str
    round: int
    total_s: float
    phases_s: Mapping[str, float]
    others: float = 0.0


@attrs.frozen
class Target:
    """What a figure is to be.

    Args:
        what: the figure's name.
        value: None if it was not measured.
        bound: `MOST` or `LEAST`.
        limit: of the value.
        unit: of both.
    """

    what: str
    value: float | None
    bound: str
    limit: float
    unit: str = ""

    @property
    def met(self) -> bool | None:
        """Whether it is as it is to be; None if it was not measured."""
        if self.value is None:
            return None
        return self.value <= self.limit if self.bound == MOST else self.value >= self.limit


def summary(values: Sequence[float]) -> dict[str, float]:
    """Say where the middle of some values lies and how far they spread."""
    ordered = sorted(values)
    if len(ordered) > 1:
        q1, _, q3 = statistics.quantiles(ordered, n=4, method="inclusive")
    else:
        q1 = q3 = ordered[0]
    figures = {
        "median_s": statistics.median(ordered),
        "q1_s": q1,
        "q3_s": q3,
        "min_s": ordered[0],
        "max_s": ordered[-1],
    }
    return {name: round(value, 4) for name, value in figures.items()}


def paired_differences(samples: Iterable[Sample], tier: str, floor: str) -> list[float]:
    """Subtract in each round the floor's time from a tier's; rounds that lack either are left out."""
    rounds: dict[int, dict[str, float]] = {}
    for sample in samples:
        rounds.setdefault(sample.round, {})[sample.tier] = sample.total_s
    return [times[tier] - times[floor] for times in rounds.values() if tier in times and floor in times]


def figures_of(samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    """Sum up one image's samples, by tier in the order in which they were first measured."""
    result: dict[str, dict[str, Any]] = {}
    for tier in dict.fromkeys(sample.tier for sample in samples):
        own = [sample for sample in samples if sample.tier == tier]
        figures: dict[str, Any] = summary([sample.total_s for sample in own])
        figures["rounds"] = len(own)
        names = dict.fromkeys(name for sample in own for name in sample.phases_s)
        figures["phases_s"] = {
            name: round(statistics.median(sample.phases_s.get(name, 0.0) for sample in own), 4)
            for name in names
        }
        differences = paired_differences(samples, tier, FLOORS.get(tier, ""))
        if differences:
            figures["over_floor_s"] = round(statistics.median(differences), 4)
            figures["over_floor_spread_s"] = summary(differences)
        figures["others_share"] = round(statistics.median(sample.others for sample in own), 4)
        figures["samples_s"] = [round(sample.total_s, 4) for sample in own]
        result[tier] = figures
    return result


def result_of(samples: Sequence[Sample], frozen: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Make the whole result.

    Args:
        samples: all that was measured.
        frozen: sizes of memory images in bytes, by image: ``raw``, and ``latentvirt`` where it made one.
    """
    result: dict[str, Any] = {}
    for image, section in SECTIONS.items():
        own = [sample for sample in samples if sample.image == image]
        if own:
            result[section] = figures_of(own)
    result["frozen_bytes"] = {image: dict(sizes) for image, sizes in frozen.items()}
    return result


def targets_of(result: Mapping[str, Any]) -> list[Target]:
    """Hold a result to what is wanted of it."""
    stock, tuned = (result.get(section, {}) for section in ("start", "start_tuned"))

    def ratio(over: Any, under: Any) -> float | None:
        return None if over is None or not under else over / under

    def median(section: Mapping[str, Any], tier: str) -> float | None:
        return section[tier]["median_s"] if tier in section else None

    def over_floor(tier: str) -> float | None:
        return stock.get(tier, {}).get("over_floor_s")

    def frozen(image: str) -> int | None:
        return result.get("frozen_bytes", {}).get(image, {}).get("latentvirt")

    in_tree = median(stock, "in_tree")
    return [
        Target("in_tree / thaw", ratio(in_tree, median(stock, "thaw")), LEAST, 15),
        Target("in_tree / standby", ratio(in_tree, median(stock, "standby")), LEAST, 40),
        Target("thaw over its floor", over_floor("thaw"), MOST, 0.35, "s"),
        Target("boot over its floor", over_floor("boot"), MOST, 0.7, "s"),
        Target("boot, tuned / stock", ratio(median(tuned, "boot"), median(stock, "boot")), MOST, 0.7),
        Target("frozen file, tuned / stock", ratio(frozen("tuned"), frozen("stock")), MOST, 0.6),
    ]
