"""The command `latentvirt`: thin, it parses, calls and prints."""

from __future__ import annotations

import importlib
from typing import Any

import click

from latentvirt._version import __version__
from latentvirt.cli.refusing import (
    EXIT_REFUSED,
    broken_off_alike,
    open_what_is_closed,
    refusals_told,
    write_whatever_can_be,
)

__all__ = ["COMMANDS", "EXIT_REFUSED", "Commands", "main"]

COMMANDS = ("doctor", "hosts", "image", "known-hosts", "sweep", "vm", "xml")
"""Each is in the module of its name, loaded when it is asked for: not all need libvirt or Buildbot."""


class Commands(click.Group):
    """A group of commands whose refusals are a sentence on standard error instead of a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command."""
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(importlib.import_module(f"{__name__}.{name}"), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        with refusals_told(), broken_off_alike():
            return super().invoke(ctx)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run from a shell's words, the options of the group itself included."""
        open_what_is_closed()
        write_whatever_can_be()
        with refusals_told():
            return super().main(*args, **kwargs)


@click.group("latentvirt", cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="latentvirt")
def main() -> None:
    """Look after the VMs that Buildbot's latent workers use.

    Exit status: 0 done, 1 refused or failed (the reason is on standard error), 2 wrong command line,
    130 broken off.
    """
