"""Groups of commands whose commands are in modules of their own, loaded when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click


class LazyGroup(click.Group):
    """A group some of whose commands are in other modules, each under the command's name.

    Args:
        further: the module of each of those, by the command's name.
    """

    def __init__(self, *args: Any, further: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._further = dict(further or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands."""
        return sorted({*self.commands, *self._further})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find a command, and load it if need be."""
        if cmd_name not in self._further:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(self._further[cmd_name])
        command: click.Command = getattr(module, cmd_name)
        return command
