"""A drawing of a result for the documentation: bars on a logarithmic scale, all text as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from benching.figures import SECTIONS
from benching.report import WHAT

WIDTH = 760
LEFT, RIGHT = 220, 90
ROW, BAR, HEAD, FOOT, GAP = 26, 16, 30, 44, 14
TICKS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)
ROOM = 1.1
"""How much further than the smallest and greatest values the scale goes."""

COLOURS = {"in_tree": "#888888", "raw_boot": "#c8c8c8", "raw_thaw": "#c8c8c8"}
OURS = "#3070b0"
INK, GRID = "#303030", "#d8d8d8"
STYLE = f"text {{ font: 13px sans-serif; fill: {INK}; }} .title {{ font-weight: bold; }}"
PAPER = "#ffffff"


def plot(result: Mapping[str, Any]) -> str:
    """Draw medians, with the quartiles as whiskers, of all tiers of all images.

    Args:
        result: as `figures.result_of` makes it.

    Returns:
        SVG.
    """
    sections = {image: result[name] for image, name in SECTIONS.items() if name in result}
    scale = _Scale([figures for section in sections.values() for figures in section.values()])
    rows = sum(len(section) for section in sections.values())
    bottom = HEAD + rows * ROW + len(sections) * (ROW + GAP)
    svg = ElementTree.Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {bottom + FOOT}",
        role="img",
    )
    ElementTree.SubElement(svg, "title").text = "Seconds from a build's request to its worker attached"
    ElementTree.SubElement(svg, "style").text = STYLE
    _add(svg, "rect", x=0, y=0, width=WIDTH, height=bottom + FOOT, fill=PAPER)
    for tick in scale.ticks:
        _add(svg, "line", x1=scale.x(tick), x2=scale.x(tick), y1=HEAD, y2=bottom, stroke=GRID)
        _text(svg, scale.x(tick), bottom + 18, f"{tick:g}", anchor="middle")
    _text(svg, (LEFT + WIDTH - RIGHT) / 2, bottom + 36, "seconds, logarithmic", anchor="middle")
    y = float(HEAD)
    for image, section in sections.items():
        _text(svg, 10, y + BAR, f"{image} image", klass="title")
        y += ROW
        for tier, figures in section.items():
            _bar(svg, scale, y, tier, figures)
            y += ROW
        y += GAP
    ElementTree.indent(svg)
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


class _Scale:
    """Seconds to places, logarithmically."""

    def __init__(self, figures: list[Mapping[str, Any]]) -> None:
        least = min(one["q1_s"] for one in figures)
        most = max(one["q3_s"] for one in figures)
        self._low = max([tick for tick in TICKS_S if tick <= least], default=least / ROOM)
        self._high = most * ROOM
        self.ticks = [tick for tick in TICKS_S if self._low <= tick <= self._high]

    def x(self, seconds: float) -> float:
        """Return where a value is."""
        share = math.log(seconds / self._low) / math.log(self._high / self._low)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)


def _bar(svg: ElementTree.Element, scale: _Scale, y: float, tier: str, figures: Mapping[str, Any]) -> None:
    end = scale.x(figures["median_s"])
    _text(svg, LEFT - 10, y + BAR - 3, WHAT[tier], anchor="end")
    _add(svg, "rect", x=LEFT, y=y, width=round(end - LEFT, 1), height=BAR, fill=COLOURS.get(tier, OURS))
    low, high, middle = scale.x(figures["q1_s"]), scale.x(figures["q3_s"]), y + BAR / 2
    _add(svg, "line", x1=low, x2=high, y1=middle, y2=middle, stroke=INK)
    for x in (low, high):
        _add(svg, "line", x1=x, x2=x, y1=middle - 4, y2=middle + 4, stroke=INK)
    _text(svg, max(end, high) + 8, y + BAR - 3, f"{figures['median_s']:.2f} s")


def _add(parent: ElementTree.Element, tag: str, **attributes: object) -> ElementTree.Element:
    named = {name.replace("_", "-"): str(value) for name, value in attributes.items()}
    return ElementTree.SubElement(parent, tag, named)


def _text(
    parent: ElementTree.Element, x: float, y: float, text: str, anchor: str = "start", klass: str = ""
) -> None:
    element = _add(parent, "text", x=x, y=y, text_anchor=anchor, **({"class": klass} if klass else {}))
    element.text = text
