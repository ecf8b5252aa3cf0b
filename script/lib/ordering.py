"""A pytest plugin: in which order the tests run.

In one process what needs no VM runs first, and what boots a system last, so that failures show early. Side by
side what is slow begins first: at the end no process is left alone with it.
"""

from __future__ import annotations

import pytest

SLOWER = ("libvirt", "guest", "soak")
"""Marks, the later the slower."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the tests in order of their slowest mark; within that, they keep theirs."""
    items.sort(key=_slowness, reverse=hasattr(config, "workerinput"))


def _slowness(item: pytest.Item) -> int:
    marks = {mark.name for mark in item.iter_markers()}
    return max((number for number, name in enumerate(SLOWER, 1) if name in marks), default=0)
