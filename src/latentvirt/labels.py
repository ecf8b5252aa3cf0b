"""Labels: which of them are asked for, with the values that are allowed for each."""

from __future__ import annotations

from collections.abc import Mapping

from latentvirt.errors import ConfigError
from latentvirt.showing import shown

Labels = tuple[tuple[str, frozenset[str]], ...]
"""By label, sorted: the values of which a host must have one."""


def read_labels(given: object, what: str) -> Labels:
    """Read which labels are asked for.

    Args:
        given: a mapping of each label to the value that is wanted, or to a list of those that are allowed; a
            label whose value is None is not asked for.
        what: name of the argument, for the message.

    Returns:
        The labels, in a form that can be compared.

    Raises:
        ConfigError: it is no such mapping.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"{what}={shown(given)} is not a mapping", remedy="write {'region': 'lab-1'}")
    read = {}
    for label, value in given.items():
        if not is_text(label):
            raise ConfigError(
                f"{what} has a label {shown(label)}, which is not a printable text",
                remedy="write {'region': 'lab-1'}",
            )
        if value is not None:
            read[label] = allowed_texts(value, f"{what}[{shown(label)}]")
    return tuple(sorted(read.items()))


def allowed_texts(given: object, what: str) -> frozenset[str]:
    """Read which texts are allowed.

    Args:
        given: one text, or a list of them.
        what: what they are allowed for, for the message.

    Raises:
        ConfigError: there is none, or one is empty, not printable, or no text.
    """
    values = given if isinstance(given, (list, tuple, set, frozenset)) else [given]
    if not values or not all(is_text(value) for value in values):
        raise ConfigError(
            f"{what}={shown(given)} is neither a printable text nor a list of them",
            remedy="write 'one', or ['one', 'another'] where both will do",
        )
    return frozenset(str(value).strip() for value in values)


def is_text(value: object) -> bool:
    """Whether a value is a text that a person can read in a message."""
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()
