"""Values of options that latentvirt's own functions read: a bad one is a wrong command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

from latentvirt.errors import ConfigError
from latentvirt.labels import is_text
from latentvirt.showing import shown

T = TypeVar("T")
V = TypeVar("V")


def read_by(read: Callable[[V], T]) -> Callable[[click.Context, click.Parameter, V | None], T | None]:
    """Make the callback of an option that reads its value.

    Args:
        read: reads what was written, all of it if the option can be repeated; not called where nothing was.
    """

    def callback(_context: click.Context, _option: click.Parameter, value: V | None) -> T | None:
        if value is None:
            return None
        try:
            return read(value)
        except ConfigError as error:
            raise click.BadParameter(str(error)) from error

    return callback


def line_of_text(value: str) -> str:
    """Check that a value is a line of text, such as XML can hold.

    Raises:
        ConfigError: it is empty, or has characters that nobody can see.
    """
    if not is_text(value):
        raise ConfigError(f"{shown(value)} is not a line of text")
    return value
