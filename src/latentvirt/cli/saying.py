"""Saying something in which are other people's words, such as names of VMs."""

from __future__ import annotations

import click

from latentvirt.showing import visible


def say(text: str, *, err: bool = False) -> None:
    """Print a text in which nothing is that a terminal would obey, and of which nothing vanishes in a pipe.

    Args:
        text: without the end of its last line.
        err: whether on standard error.
    """
    click.echo(visible(text), err=err)
