"""Tables of a result, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benching.figures import PART_OF_START, SECTIONS, Target, targets_of

MIB = 1 << 20
NOISE = 0.05
"""If others use more of the processors than this, figures say as much of them as of the peers."""

WHAT = {
    "in_tree": "Buildbot's own LibVirtWorker",
    "raw_boot": "QEMU alone, booting",
    "boot": "latentvirt, boot",
    "raw_thaw": "QEMU alone, thawing",
    "thaw": "latentvirt, thaw",
    "standby": "latentvirt, standby",
}


def start_tables(result: Mapping[str, Any]) -> list[Table]:
    """Make the tables of a result of `script/bench start`."""
    return [
        *(_tiers(image, result[section]) for image, section in SECTIONS.items() if section in result),
        *([_frozen(result["frozen_bytes"])] if result["frozen_bytes"] else []),
        targets_table(targets_of(result)),
    ]


def burst_table(result: Mapping[str, Any]) -> Table:
    """Make the table of a result of `script/bench burst`."""
    count = max(figures["count"] for figures in result["burst"].values())
    table = Table(title=f"{count} builds asked for at once: seconds to attached")
    for column in ("", "first", "middle", "all", "rounds"):
        table.add_column(column, justify="right" if column else "left")
    for way, figures in result["burst"].items():
        cells = (f"{figures[key]:.3f}" for key in ("first_s", "middle_s", "all_s"))
        table.add_row(WHAT[way], *cells, str(figures["rounds"]))
    return table


def targets_table(targets: Sequence[Target]) -> Table:
    """Say which targets are met."""
    table = Table(title="what is wanted")
    for column in ("", "is", "wanted", ""):
        table.add_column(column, justify="right" if column == "is" else "left")
    words = {True: "met", False: "missed", None: "not measured"}
    for target in targets:
        value = "" if target.value is None else f"{target.value:.2f} {target.unit}"
        wanted = f"{target.bound} {target.limit:g} {target.unit}".strip()
        table.add_row(target.what, value, wanted, words[target.met])
    return table


def show(tables: list[Table]) -> None:
    """Print tables; what is piped is not cut to a terminal's width."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    for table in tables:
        console.print(table)


def _tiers(image: str, section: Mapping[str, Any]) -> Table:
    others = max(figures["others_share"] for figures in section.values())
    table = Table(
        title=f"{image} image: request to attached, seconds",
        caption=f"others used up to {others:.0%} of the processors meanwhile" if others >= NOISE else None,
    )
    for column in ("", "median", "q1", "q3", "rounds", "over floor", "of which"):
        table.add_column(column, justify="left" if column in ("", "of which") else "right")
    for tier, figures in section.items():
        over = figures.get("over_floor_s")
        table.add_row(
            WHAT[tier],
            *(f"{figures[key]:.3f}" for key in ("median_s", "q1_s", "q3_s")),
            str(figures["rounds"]),
            "" if over is None else f"{over:+.3f}",
            _phases(figures["phases_s"]),
        )
    return table


def _phases(phases: Mapping[str, float]) -> str:
    """Write phases in a row, the parts of a start in brackets behind it."""

    def row(some: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {seconds:.3f}" for name, seconds in some.items())

    parts = {
        name.removeprefix(PART_OF_START): seconds
        for name, seconds in phases.items()
        if name.startswith(PART_OF_START)
    }
    whole = row({name: seconds for name, seconds in phases.items() if not name.startswith(PART_OF_START)})
    return f"{whole} (start: {row(parts)})" if parts else whole


def _frozen(sizes: Mapping[str, Mapping[str, int]]) -> Table:
    table = Table(title="memory images, MiB")
    for column in ("", "QEMU alone", "latentvirt"):
        table.add_column(column, justify="right" if column else "left")
    for image, made in sizes.items():
        cells = (f"{made[who] / MIB:.0f}" if who in made else "" for who in ("raw", "latentvirt"))
        table.add_row(image, *cells)
    return table
