"""`latentvirt image remove`: images that are not needed any more."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import click

from latentvirt.cli import EXIT_REFUSED
from latentvirt.cli.saying import say
from latentvirt.errors import ConfigError, ImageError, LatentvirtError
from latentvirt.images.catalogue import load_catalogue
from latentvirt.images.items import plain_arch
from latentvirt.images.parts import Which, getting, partial_files
from latentvirt.images.store import KINDS, ImageStore


@click.command(
    "remove",
    short_help="Remove images from this machine.",
    epilog="Exit status: 0 done, 1 there is no such image or it cannot be removed, 2 wrong command line, 130 "
    "broken off.",
)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--arch", metavar="ARCH", help="Only that for this architecture, as x86_64 or arm64.")
@click.option("--kind", type=click.Choice(KINDS), help="Only that of this kind.")
def remove(names: Sequence[str], arch: str | None, kind: str | None) -> None:
    """Remove the images NAME from this machine, also what was downloaded of them in part.

    Copies that were brought to hosts are left alone, and so is what runs from them. One image that is not
    here, or that is just being got, does not keep the others from being removed.
    """
    store = ImageStore()
    there = [(entry.name, entry.arch, entry.kind) for entry in store.entries()]
    there += [one.of for one in store.damaged() if one.of is not None]
    there += partial_files(store)
    wanted: dict[Which, None] = {}
    failed = []
    for called in names:
        try:
            wanted |= dict.fromkeys(_meant(called, there, arch, kind))
        except LatentvirtError as error:
            failed.append(error)
    for which in wanted:
        try:
            _remove(store, which)
        except LatentvirtError as error:
            failed.append(error)
        else:
            say(f"removed {' '.join(which)}")
    for reason in failed:
        say(f"latentvirt: {reason}", err=True)
    if failed:
        sys.exit(EXIT_REFUSED)


def _meant(called: str, there: Iterable[Which], arch: str | None, kind: str | None) -> list[Which]:
    """Find the images that are meant by a name."""
    known = [which[0] for which in there]
    # What is here by that name needs no catalogue, which may be broken.
    name = called if called in known else load_catalogue().name_of(called, also=known, here=True)
    found = [
        which
        for which in there
        if which[0] == name and which[1] == plain_arch(arch or which[1]) and which[2] == (kind or which[2])
    ]
    if not found:
        only = " ".join(part for part in (plain_arch(arch) if arch else "", kind or "") if part)
        raise ConfigError(
            f"there is no image {name} here" + (f" of {only}" if only else ""),
            remedy="latentvirt image list names those that there are",
        )
    return found


def _remove(store: ImageStore, which: Which) -> None:
    def refuse() -> None:
        raise ImageError(
            f"the image {' '.join(which)} is just being got by another process",
            remedy="wait until that has ended, or break it off, and remove the image then",
        )

    with getting(store, which, refuse):
        for file in partial_files(store).get(which, ()):
            file.unlink(missing_ok=True)
        store.remove(*which)
