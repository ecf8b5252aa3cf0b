"""`latentvirt image push`: images on hosts before the first build that needs them."""

from __future__ import annotations

import os
import posixpath
import sys
from collections.abc import Sequence
from typing import Any

import attrs
import click

from latentvirt.cli.asking import connections_of, explained, naming_hosts, tell_json, tell_table
from latentvirt.cli.progress import Progress, Several, several
from latentvirt.cli.running import run_to_end
from latentvirt.cli.saying import say
from latentvirt.config import BYTES_PER_MIB, Image
from latentvirt.host import Driver
from latentvirt.images.pushing import Errand, Outcome
from latentvirt.images.pushing import push as push_images
from latentvirt.images.telling import HowFar

COPIED, WAS_THERE = "copied", "was there"
READ_BACK = "read-back"

INTERRUPTED = "Broken off, it leaves no half image; after kill -9 the next copy removes what was left."
EXIT_STATUS = (
    "Exit status: 0 all images are there, 1 some are not (standard error says which, and why), 2 wrong "
    "command line, 130 broken off."
)


class Telling:
    """Tell how far the copies got: on a terminal by a bar for each host, in a pipe by a line now and then.

    Args:
        telling: where it is told.
    """

    def __init__(self, telling: Several) -> None:
        self._telling = telling
        self._of_host: dict[str, Progress] = {}
        self._doing: dict[str, str] = {}

    def begin(self, errand: Errand) -> None:
        """Tell what is begun."""
        self._begin(errand.connection.uri, f"{_named(errand.image)} to {errand.connection.uri}")

    def say(self, errand: Errand, line: str) -> None:
        """Tell what happens."""
        if not isinstance(line, HowFar):
            self._telling.say(line)
            return
        uri = errand.connection.uri
        if self._doing[uri] != line.what:
            self._begin(uri, line.what)
        self._of_host[uri].progress(line.moved, line.total)

    def end(self, errand: Errand) -> None:
        """Tell no more of it."""
        self._of_host[errand.connection.uri].end()

    def _begin(self, uri: str, what: str) -> None:
        if uri not in self._of_host:
            self._of_host[uri] = self._telling.another()
        self._doing[uri] = what
        self._of_host[uri].begin(what)


@click.command(
    short_help="Bring images to hosts ahead of the builds that need them.",
    epilog=f"{INTERRUPTED} {EXIT_STATUS}",
)
@click.argument("names", metavar="[NAME|PATH]...", nargs=-1)
@naming_hosts
@click.option(
    "--folder",
    metavar="PATH",
    help="The image folder on the hosts. Without it: images= of each Connection, as a master takes it.",
)
@click.option("--stock", is_flag=True, help="The stock images of these names, instead of the built ones.")
@click.option("--read-back", is_flag=True, help="Read each copy back from its host, and compare.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects instead of a table.")
@click.pass_obj
def push(
    driver: Driver | None,
    names: Sequence[str],
    uris: Sequence[str],
    config: str | None,
    folder: str | None,
    stock: bool,
    read_back: bool,
    as_json: bool,
) -> None:
    """Bring images to hosts, so that the first build that needs one there need not wait for it.

    NAME is an image in this machine's store, the one that was built unless --stock is given; PATH is a file,
    and has a / in it. With --config and no image named: all that the workers of the master.cfg bring, each
    to the hosts where their VMs may start, and into the folder that they use there.

    The copies are those that a master makes: whole, compared, under the digest of what is in them. A master
    that starts later finds them. What is there already is not copied again. Hosts are served at the same
    time, each with one image after the other; a host that fails does not keep the others from theirs.
    """
    if not names and (uris or folder is not None or stock):
        raise click.UsageError("--connect, --folder and --stock are for images that are named")
    errands = _named_errands(names, uris, config, folder, stock) if names else _errands_of(config)
    if read_back:
        errands = [attrs.evolve(one, image=attrs.evolve(one.image, verify=READ_BACK)) for one in errands]

    async def work(telling: Telling) -> list[Outcome]:
        from twisted.internet import reactor

        return await push_images(errands, reactor, driver, telling)

    with several() as telling:
        outcomes = run_to_end(lambda: work(Telling(telling)))
    _tell(outcomes, as_json)
    sys.exit(int(_tell_failed(outcomes)))


# Which


def _named_errands(
    names: Sequence[str], uris: Sequence[str], config: str | None, folder: str | None, stock: bool
) -> list[Errand]:
    if folder is not None and not folder.startswith("/"):
        raise click.BadParameter("name an absolute path", param_hint="--folder")
    images = [_image(name, stock) for name in dict.fromkeys(names)]
    return [
        Errand(connection, connection.images if folder is None else posixpath.normpath(folder), image)
        for connection in connections_of(uris, config)
        for image in images
    ]


def _image(name: str, stock: bool) -> Image:
    return Image(os.path.abspath(name)) if "/" in name else Image(name=name, stock=stock)


def _errands_of(config: str | None) -> list[Errand]:
    if config is None:
        raise click.UsageError("name images, or with --config a master.cfg whose workers name them")
    from latentvirt.master.bringing import errands_in  # Buildbot takes a second to load

    errands, unknown = errands_in(config)
    for worker in unknown:
        say(
            f"latentvirt: worker {worker}: which image it brings, or where to, depends on the build. What to "
            "do: name the image, and if need be the --folder",
            err=True,
        )
    if not errands and not unknown:
        say(f"latentvirt: the workers of {config} bring no images to hosts", err=True)
    return errands


def _named(image: Image) -> str:
    return f"{image} (stock)" if image.called and image.stock else str(image)


# Telling


def _tell(outcomes: Sequence[Outcome], as_json: bool) -> None:
    rows = [row for row in map(_row, outcomes) if row is not None]
    if as_json:
        tell_json(rows)
    elif rows:
        tell_table(
            ("HOST", "IMAGE", "PATH", "SIZE", "DONE"),
            [(row["host"], row["image"], row["path"], _mebibytes(row["size"]), row["done"]) for row in rows],
        )


def _row(outcome: Outcome) -> dict[str, Any] | None:
    brought = outcome.brought
    if brought is None:
        return None
    identity = brought.identity
    return {
        "host": outcome.errand.connection.uri,
        "image": _named(outcome.errand.image),
        "path": brought.path,
        "digest": None if identity is None else identity.digest,
        "size": None if identity is None else identity.length,
        "done": COPIED if brought.copied else WAS_THERE,
    }


def _mebibytes(size: int | None) -> str | None:
    return None if size is None else f"{-(-size // BYTES_PER_MIB)} MiB"


def _tell_failed(outcomes: Sequence[Outcome]) -> bool:
    """Say what is not there and why, each reason once: it may be that of many images, or of many hosts."""
    failed: dict[str, list[str]] = {}
    for outcome in outcomes:
        error, connection = outcome.error, outcome.errand.connection
        if error is not None:
            # The image may lie on another host, and that be the one that failed.
            reason = str(explained(error, connection) if error.host == connection.uri else error)
            failed.setdefault(reason, []).append(_named(outcome.errand.image))
    for reason, images in failed.items():
        say(f"latentvirt: {', '.join(dict.fromkeys(images))}: {reason}", err=True)
    return bool(failed)
