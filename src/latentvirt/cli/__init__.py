"""The command `latentvirt`: thin, it parses, calls and prints."""

from __future__ import annotations

from typing import Any

import click

from latentvirt._version import __version__
from latentvirt.cli.hosts import hosts
from latentvirt.cli.sweep import sweep
from latentvirt.cli.vm import vm
from latentvirt.cli.xml import xml
from latentvirt.errors import LatentvirtError

EXIT_REFUSED = 1
"""What was asked for was refused, or failed; a wrong command line exits with 2, which is click's own."""


class Commands(click.Group):
    """A group of commands whose refusals are a sentence on standard error instead of a traceback."""

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


for command in (hosts, sweep, vm, xml):
    main.add_command(command)
