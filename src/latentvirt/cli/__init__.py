"""The command `latentvirt`: thin, it parses, calls and prints."""

from __future__ import annotations

import importlib
from typing import Any

import click

from latentvirt._version import __version__
from latentvirt.errors import LatentvirtError

EXIT_REFUSED = 1
"""What was asked for was refused, or failed; a wrong command line exits with 2, which is click's own."""


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
        try:
            return super().invoke(ctx)
        except LatentvirtError as error:
            click.echo(f"latentvirt: {error}", err=True)
            ctx.exit(EXIT_REFUSED)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="latentvirt")
def main() -> None:
    """Look after the VMs that Buildbot's latent workers use.

    Exit status: 0 done, 1 refused or failed (the reason is on standard error), 2 wrong command line.
    """
