"""`latentvirt image remove`: images that are not needed any more."""

from __future__ import annotations

from collections.abc import Sequence

import click

from latentvirt.errors import ConfigError
from latentvirt.images.catalogue import load_catalogue
from latentvirt.images.download import partial_files
from latentvirt.images.items import plain_arch
from latentvirt.images.store import KINDS, ImageStore


@click.command(
    "remove",
    short_help="Remove images from this machine.",
    epilog="Exit status: 0 done, 1 there is no such image or it cannot be removed, 2 wrong command line.",
)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--arch", metavar="ARCH", help="Only that for this architecture, as x86_64 or arm64.")
@click.option("--kind", type=click.Choice(KINDS), help="Only that of this kind.")
def remove(names: Sequence[str], arch: str | None, kind: str | None) -> None:
    """Remove the images NAME from this machine, also what was downloaded of them in part.

    Copies that were brought to hosts are left alone, and so is what runs from them.
    """
    store = ImageStore()
    there = [(entry.name, entry.arch, entry.kind) for entry in store.entries()]
    there += [one.of for one in store.damaged() if one.of is not None]
    parts = partial_files(store)
    known = [one[0] for one in (*there, *parts)]
    for name in [
        called if called in known else load_catalogue().name_of(called, also=known) for called in names
    ]:
        found = [
            of
            for of in dict.fromkeys((*there, *parts))
            if of[0] == name and of[1] == plain_arch(arch or of[1]) and of[2] == (kind or of[2])
        ]
        if not found:
            only = " ".join(part for part in (plain_arch(arch) if arch else "", kind or "") if part)
            raise ConfigError(
                f"there is no image {name} here" + (f" of {only}" if only else ""),
                remedy="latentvirt image list names those that there are",
            )
        for of in found:
            for file in parts.get(of, ()):
                file.unlink(missing_ok=True)
            store.remove(*of)
            click.echo(f"removed {' '.join(of)}")
