"""`latentvirt image gc`: images that nothing needs any more, on hosts and on this machine."""

from __future__ import annotations

import posixpath
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
from twisted.internet import defer

from latentvirt.cli.asking import (
    EXIT_STATUS,
    ask,
    connections_of,
    finish,
    naming_hosts,
    tell_errors,
    tell_json,
    tell_table_of,
)
from latentvirt.cli.saying import say as tell
from latentvirt.config import BYTES_PER_MIB
from latentvirt.errors import HostError, HostUnreachable, ImageError, NotFound
from latentvirt.host import Driver, Host
from latentvirt.images.collecting import Collection, Copy
from latentvirt.images.leftovers import leftovers, remove_leftovers
from latentvirt.images.naming import DIRECTORY
from latentvirt.images.store import ImageStore, digest_of
from latentvirt.names import new_owner

THIS_MACHINE = "this machine"

WOULD_BE_REMOVED, REMOVED = "would be removed", "removed"


@click.command(short_help="Remove images that nothing needs.", epilog=EXIT_STATUS)
@naming_hosts
@click.option(
    "--folder",
    "folders",
    metavar="PATH",
    multiple=True,
    help="A further image folder on the hosts to look in; libvirt forgets them when a host is booted.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed, at once.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects instead of a table.")
@click.pass_obj
def gc(
    driver: Driver | None,
    uris: Sequence[str],
    config: str | None,
    folders: Sequence[str],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove the images that latentvirt copied to hosts and that nothing needs now, and what is left here.

    A copy stays on a host while a domain or an overlay stands on it, a frozen image's too, whichever
    master's it is; while it is being copied; and if its image is in this machine's store, or the master.cfg
    of --config names its file. A master that needs a removed one later copies it again.
    """
    connections, wanted = connections_of(uris, config), _wanted(config)

    async def see_to(host: Host) -> list[tuple[Copy, bool]]:
        looking = [
            defer.ensureDeferred(_see_to(host, folder, must, wanted, dry_run, lenient=bool(folders)))
            for folder, must in await _folders(host, folders)
        ]
        outcomes = await defer.DeferredList(looking, consumeErrors=True)
        for good, outcome in outcomes:
            if not good:
                raise outcome.value  # type: ignore[attr-defined]
        return [one for _, found in outcomes for one in found]

    answers = finish(connections, lambda: ask(connections, see_to, driver))
    rows = [_row(answer.uri, *one, dry_run) for answer in answers for one in answer.found or []]
    store = ImageStore()
    rows += [
        {
            "host": THIS_MACHINE,
            "path": str(left.path),
            "size_mib": _mebibytes(left.size),
            "needed_by": [],
            "done": WOULD_BE_REMOVED if dry_run else REMOVED,
        }
        for left in (leftovers if dry_run else remove_leftovers)(store)
    ]
    if as_json:
        tell_json(rows)
    else:
        tell_table_of(
            answers,
            ("HOST", "IMAGE", "SIZE", "DONE"),
            [(row["host"], row["path"], f"{row['size_mib']} MiB", row["done"]) for row in rows],
        )
    sys.exit(int(tell_errors(answers)))


async def _see_to(
    host: Host, folder: str, must: bool, wanted: Mapping[str, str], dry_run: bool, *, lenient: bool
) -> list[tuple[Copy, bool]]:
    """List a folder's copies, and whether each goes; none where there is no folder, and need not be.

    Args:
        host: the host.
        folder: an image folder there.
        must: whether the person has named it.
        wanted: why images are to stay, by digest.
        dry_run: whether all stay.
        lenient: whether the person has named others, so that this one may be closed to them.
    """

    def say(text: str) -> None:
        tell(f"{host.uri}: {folder}: {text}", err=True)

    collection = Collection(host, folder, wanted, new_owner(), say)
    try:
        copies = await collection.look()
        gone = [] if dry_run else [copy.path for copy in await collection.collect()]
    except NotFound:
        if must:
            raise
        return []
    except HostUnreachable:
        raise
    except HostError as error:
        if must or not lenient:
            raise
        say(f"passed over: {error.what}")
        return []
    return [(copy, not copy.needed_by if dry_run else copy.path in gone) for copy in copies]


def _wanted(config: str | None) -> dict[str, str]:
    """Say why images are to stay, by digest, though nothing on a host may need them now."""
    wanted = {
        entry.digest: f"{entry.name} ({entry.kind}) of this machine" for entry in ImageStore().entries()
    }
    if config is not None:
        from latentvirt.master.reading import images_in  # Buildbot takes a second to load

        for image in images_in(config):
            if image.path and image.at is None:  # those with a name are this machine's
                wanted[_digest_of(image.path)] = f"{config} names {image.path}"
    return wanted


def _digest_of(path: str) -> str:
    try:
        return digest_of(path)
    except OSError as error:
        raise ImageError(
            f"could not read the image {path}: {error.strerror}",
            remedy="without it nobody can tell which copies are needed: run this where the master runs",
        ) from error


async def _folders(host: Host, given: Sequence[str]) -> list[tuple[str, bool]]:
    """List the image folders to look in, and whether each must be there."""
    pools = {} if host.connection.is_embed else await host.pools()
    seen = [posixpath.dirname(path) for path in pools.values() if posixpath.basename(path) == DIRECTORY]
    named = [folder.rstrip("/") or "/" for folder in given]
    return list((dict.fromkeys([host.connection.images, *seen], False) | dict.fromkeys(named, True)).items())


def _row(uri: str, copy: Copy, goes: bool, dry_run: bool) -> dict[str, Any]:
    kept = f"kept: {'; '.join(copy.needed_by) or 'somebody has begun to use it'}"
    done = (WOULD_BE_REMOVED if dry_run else REMOVED) if goes else kept
    return {
        "host": uri,
        "path": copy.path,
        "size_mib": _mebibytes(copy.size),
        "needed_by": list(copy.needed_by),
        "done": done,
    }


def _mebibytes(size: int) -> int:
    return -(-size // BYTES_PER_MIB)
