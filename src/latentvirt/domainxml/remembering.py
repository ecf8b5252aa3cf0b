"""Answers that are remembered: each build asks the same of the same description."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])

REMEMBERED = 256
"""How many answers of a question are; a description is a few KiB."""


def remembered(question: F) -> F:
    """Remember the answers of a function that depends on nothing but its arguments.

    Args:
        question: takes hashable arguments, and returns what nobody changes; what it raises is not remembered.
    """
    return functools.lru_cache(maxsize=REMEMBERED)(question)  # type: ignore[return-value]
