"""A pytest plugin: what needs no VM runs first, what boots a system last, so that failures show early."""

from __future__ import annotations

import pytest

SLOWER = ("libvirt", "guest", "soak")
"""Marks, the later the slower."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests in order of their slowest mark; within that, they keep theirs."""
    items.sort(key=_slowness)


def _slowness(item: pytest.Item) -> int:
    marks = {mark.name for mark in item.iter_markers()}
    return max((number for number, name in enumerate(SLOWER, 1) if name in marks), default=0)
