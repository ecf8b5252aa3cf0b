"""`latentvirt image pull`: stock images from their vendors."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Sequence

import click

from latentvirt.cli import EXIT_REFUSED
from latentvirt.cli.progress import Progress, progress
from latentvirt.cli.saying import say
from latentvirt.cli.values import read_by
from latentvirt.config import BYTES_PER_MIB
from latentvirt.durations import DAY_S, read_seconds
from latentvirt.errors import LatentvirtError
from latentvirt.images.catalogue import Catalogue, load_catalogue
from latentvirt.images.download import DEFAULT_MAX_AGE_DAYS
from latentvirt.images.download import pull as pull_image
from latentvirt.images.store import ImageStore

SAID = {
    "kept": "here already",
    "unchanged": "here already, and still the newest",
    "new": "new",
}
"""What became of an image, in words."""


def _age(value: str) -> float:
    """Read an age, in seconds; a number alone is days, and may be 0."""
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value):
        return float(value) * DAY_S
    return read_seconds(value, "--max-age")


@click.command(
    "pull",
    short_help="Get stock images from their vendors.",
    epilog="Exit status: 0 all are here, 1 some are not (standard error names them), 2 wrong command line, "
    "130 broken off.",
)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--arch", metavar="ARCH", help="Architecture, as x86_64 or arm64. Without it: this machine's.")
@click.option("--refresh", is_flag=True, help="Ask the vendor for a newer one, however young it is.")
@click.option(
    "--max-age",
    "max_age_s",
    metavar="DURATION",
    callback=read_by(_age),
    default=f"{DEFAULT_MAX_AGE_DAYS}d",
    show_default=True,
    help="Ask the vendor if it was not asked for so long: a number with s, min, h or d; alone, days.",
)
def pull(names: Sequence[str], arch: str | None, refresh: bool, max_age_s: float) -> None:
    """Get the stock images NAME, such as debian-12, bookworm or ubuntu-24.04.

    An image that is here already is downloaded again only if its vendor has another one by now. A download
    that was broken off goes on where it was. What does not have the checksum of the vendor's list is not
    kept. One image that cannot be had does not keep the others from being got.
    """
    catalogue, store = load_catalogue(), ImageStore()
    failed = []
    for name in dict.fromkeys(names):
        try:
            # No line is written while a terminal's bar is up, which would take it for its own.
            with progress() as listener:
                said = _pull(catalogue, store, name, arch or platform.machine(), listener, refresh, max_age_s)
        except KeyboardInterrupt:
            say(f"latentvirt: {name}: what was downloaded is kept; pull it again to go on", err=True)
            raise
        except LatentvirtError as error:
            failed.append(name)
            say(f"latentvirt: {name}: {error}", err=True)
        else:
            say(said)
    if failed:
        if len(names) > 1:
            say(f"latentvirt: not got: {', '.join(failed)}", err=True)
        sys.exit(EXIT_REFUSED)


def _pull(
    catalogue: Catalogue,
    store: ImageStore,
    name: str,
    arch: str,
    listener: Progress,
    refresh: bool,
    max_age_s: float,
) -> str:
    item = catalogue.item(name, arch)
    listener.begin(f"{item.name} {item.arch}")
    pulled = pull_image(item, store, listener, refresh=refresh, max_age_s=max_age_s)
    entry = pulled.entry
    size = -(-entry.size // BYTES_PER_MIB)
    listener.end()
    return f"{entry.name} {entry.arch}: {SAID[pulled.how]}, {size} MiB, {store.path_of(entry)}"
