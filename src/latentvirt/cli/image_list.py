"""`latentvirt image list`: what is in the store, and what can be had."""

from __future__ import annotations

import sys
import time
from typing import Any

import attrs
import click

from latentvirt.cli.asking import tell_json, tell_table
from latentvirt.cli.saying import say
from latentvirt.config import BYTES_PER_MIB
from latentvirt.images.catalogue import load_catalogue
from latentvirt.images.store import ImageStore


def _tell_stored(store: ImageStore, as_json: bool) -> None:
    entries = store.entries()
    if as_json:
        tell_json([attrs.asdict(entry) | {"path": str(store.path_of(entry))} for entry in entries])
        return
    tell_table(
        ("NAME", "ARCH", "KIND", "SIZE", "DATE", "MADE OF"),
        [
            (
                entry.name,
                entry.arch,
                entry.kind,
                f"{-(-entry.size // BYTES_PER_MIB)} MiB",
                time.strftime("%Y-%m-%d", time.gmtime(entry.when)),
                _made_of(entry.source),
            )
            for entry in entries
        ],
    )


def _made_of(source: dict[str, Any]) -> str:
    """Say in a few words where an image came from."""
    return next((str(source[key]) for key in ("file", "origin", "of") if source.get(key)), "")


def _tell_available(store: ImageStore, as_json: bool) -> None:
    here = {(entry.name, entry.arch): entry.kind for entry in store.entries()}
    items = [*load_catalogue()]
    if as_json:
        tell_json(
            [
                {
                    "name": item.name,
                    "arch": item.arch,
                    "os_type": item.os_type or None,
                    "os_version": item.os_version or None,
                    "codenames": [*item.codenames],
                    "from": item.origin,
                    "defined_in": item.defined_in,
                    "stored": (item.name, item.arch) in here,
                }
                for item in items
            ]
        )
        return
    tell_table(
        ("NAME", "ALSO", "ARCH", "HERE"),
        [
            (
                name,
                ", ".join(ours[0].codenames),
                ", ".join(item.arch for item in ours),
                ", ".join(item.arch for item in ours if (name, item.arch) in here),
            )
            for name in dict.fromkeys(item.name for item in items)
            if (ours := [item for item in items if item.name == name])
        ],
    )


@click.command(
    "list",
    short_help="List images.",
    epilog="Exit status: 0 done, 1 some images are damaged (see standard error), 2 wrong command line, 130 "
    "broken off.",
)
@click.option("--available", is_flag=True, help="What can be had by name, instead of what is here already.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects instead of a table.")
def list(available: bool, as_json: bool) -> None:
    """List the images on this machine: name, architecture, kind, size, date, and what they were made of.

    Images of the kind stock are as their vendors made them; those of the kind built are ready for workers.
    """
    store = ImageStore()
    (_tell_available if available else _tell_stored)(store, as_json)
    damaged = store.damaged()
    for one in damaged:
        say(
            f"latentvirt: {one.path} leads to no image: {one.why}. What to do: remove that file, and get the "
            "image again",
            err=True,
        )
    sys.exit(int(bool(damaged)))
