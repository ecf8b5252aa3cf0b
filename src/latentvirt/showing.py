"""Values of a person's or a build's, as they are shown in messages."""

from __future__ import annotations

import reprlib

LONGEST_SHOWN = 120
"""Characters of a text in a message; the middle of a longer one is left out."""

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = LONGEST_SHOWN


def shown(value: object) -> str:
    """Write a value as Python would, but never at length, and whatever it is."""
    try:
        return _short.repr(value)
    except ValueError:
        # Python refuses to write numbers of thousands of digits.
        return f"a value of type {type(value).__name__}"


def visible(text: str) -> str:
    """Write what nobody can see, or what would move or turn others' text on a terminal, as escapes of it.

    Args:
        text: of one or more lines, which stay.
    """
    return "".join(
        one if one.isprintable() or one in "\n\t" else one.encode("unicode_escape").decode() for one in text
    )
