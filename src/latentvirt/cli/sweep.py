"""`latentvirt sweep`: what masters that are no more left on hosts."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import attrs
import click

from latentvirt.abandoned import Estate, clear, estates
from latentvirt.cli.asking import EXIT_STATUS, about_hosts, ask, finish, tell_errors, tell_json, tell_table
from latentvirt.config import Connection
from latentvirt.hold import moment
from latentvirt.host import DomainView, Driver, Host
from latentvirt.names import OWNER_PATTERN


@attrs.frozen
class Decided:
    """What is done with an owner's things on one host.

    Args:
        estate: the things.
        why_not: why they stay; empty if they go.
        held: the VMs that stay all the same, since somebody holds them.
    """

    estate: Estate
    why_not: str
    held: tuple[DomainView, ...]


def _owner(_: click.Context, __: click.Parameter, given: Sequence[str]) -> Sequence[str]:
    for owner in given:
        if OWNER_PATTERN.fullmatch(owner) is None:
            raise click.BadParameter(f"{owner!r} is no owner's id, which has 16 hexadecimal digits")
    return given


@click.command(short_help="Remove what dead masters left.", epilog=EXIT_STATUS)
@about_hosts
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option(
    "--owner", "owners", metavar="ID", multiple=True, callback=_owner, help="Only this owner's things."
)
@click.option(
    "--folder",
    "folders",
    metavar="PATH",
    multiple=True,
    help="With --owner: an image folder to look in, where libvirt does not know the owner's directory.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects instead of a table.")
@click.pass_obj
def sweep(
    driver: Driver | None,
    connections: Sequence[Connection],
    dry_run: bool,
    owners: Sequence[str],
    folders: Sequence[str],
    as_json: bool,
) -> None:
    """Remove what masters that are no more left on hosts: VMs, their files, frozen images.

    A master claims its directories for an hour at a time. What belongs to one whose time has run out is
    removed; what nobody says the time of, only if its owner is named. VMs that somebody holds stay, with
    what they stand on, until they are released or the time is up.
    """
    if folders and not owners:
        raise click.UsageError(
            "--folder needs --owner: a directory that libvirt does not know is looked for by name"
        )

    async def see_to(host: Host) -> list[Decided]:
        now = time.time()
        decided = [
            Decided(estate, _why_not(estate, now, estate.owner in owners), _held(estate, now))
            for estate in await estates(host, owners, folders)
            if not owners or estate.owner in owners
        ]
        for one in decided:
            if not one.why_not and not dry_run:
                await clear(host, one.estate, now)
        return decided

    answers = finish(connections, lambda: ask(connections, see_to, driver))
    rows = [_row(answer.uri, one, dry_run) for answer in answers for one in answer.found or []]
    if as_json:
        tell_json(rows)
    else:
        columns = ("host", "owner", "until", "vms", "files", "done")
        tell_table(
            [column.upper() for column in columns], [[row[column] for column in columns] for row in rows]
        )
    sys.exit(int(tell_errors(answers)))


def _held(estate: Estate, now: float) -> tuple[DomainView, ...]:
    return tuple(domain for domain in estate.domains if domain.held_at(now) is not None)


def _why_not(estate: Estate, now: float, named: bool) -> str:
    if estate.until is None:
        return "" if named else "nobody says until when it is claimed; name it with --owner"
    return "kept: its master claims it" if estate.until > now else ""


def _row(uri: str, one: Decided, dry_run: bool) -> dict[str, Any]:
    until = one.estate.until
    return {
        "host": uri,
        "owner": one.estate.owner,
        "until": None if until is None else moment(until),
        "vms": len(one.estate.domains),
        "files": one.estate.count,
        "held": [domain.name for domain in one.held],
        "done": one.why_not or ("would be removed" if dry_run else "removed") + _but_held(one),
    }


def _but_held(one: Decided) -> str:
    """Say what stays of an owner's things, since somebody holds it."""
    held = ", ".join(f"{domain.name}, {domain.hold}" for domain in one.held)
    return f", but for {held}" if held else ""
