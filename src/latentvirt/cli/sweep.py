"""`latentvirt sweep`: what masters that are no more left on hosts."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import attrs
import click

from latentvirt.abandoned import Estate, clear, estates
from latentvirt.cli.asking import (
    EXIT_STATUS,
    Answer,
    about_hosts,
    ask,
    finish,
    tell_errors,
    tell_json,
    tell_table_of,
)
from latentvirt.config import Connection
from latentvirt.errors import HostUnreachable, LatentvirtError
from latentvirt.hold import moment
from latentvirt.host import DomainView, Driver, Host
from latentvirt.names import OWNER_PATTERN


@attrs.define
class Decided:
    """What is done with an owner's things on one host.

    Args:
        estate: the things.
        why_not: why they stay; empty if they go.
        held: the VMs that stay all the same, since somebody holds them.
        stay: the directories that stay all the same, since there are others' things in them.
        error: what went wrong when they were removed; None if nothing did.
    """

    estate: Estate
    why_not: str
    held: tuple[DomainView, ...]
    stay: Sequence[str] = ()
    error: LatentvirtError | None = None


def _owner(_: click.Context, __: click.Parameter, given: Sequence[str]) -> Sequence[str]:
    for owner in given:
        if OWNER_PATTERN.fullmatch(owner.lower()) is None:
            raise click.BadParameter(f"{owner!r} is no owner's id, which has 16 digits of 0-9 and a-f")
    return [owner.lower() for owner in given]


def _folder(_: click.Context, __: click.Parameter, given: Sequence[str]) -> Sequence[str]:
    for folder in given:
        if not folder.startswith("/"):
            raise click.BadParameter(f"{folder!r} is relative; name an absolute path on the hosts")
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
    callback=_folder,
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
        if not dry_run:
            await _clear(host, [one for one in decided if not one.why_not], now)
        return decided

    answers = finish(connections, lambda: ask(connections, see_to, driver))
    rows = [_row(answer.uri, one, dry_run) for answer in answers for one in answer.found or []]
    if as_json:
        tell_json(rows)
    else:
        columns = ("host", "owner", "until", "vms", "files", "done")
        tell_table_of(
            answers,
            [column.upper() for column in columns],
            [[row[column] for column in columns] for row in rows],
        )
    sys.exit(int(tell_errors([*answers, *_failures(answers)])))


async def _clear(host: Host, going: Sequence[Decided], now: float) -> None:
    """Remove owners' things; where one's are in the way, the others' go all the same."""
    away: HostUnreachable | None = None
    for one in going:
        if away is None:
            try:
                one.stay = await clear(host, one.estate, now)
            except HostUnreachable as error:
                one.error = away = error
            except LatentvirtError as error:
                one.error = error
        else:
            one.error = away


def _failures(answers: Sequence[Answer[list[Decided]]]) -> list[Answer[Any]]:
    """List what went wrong on hosts that answered, each reason once."""
    failed = {
        str(one.error): Answer[Any](answer.uri, error=one.error)
        for answer in answers
        for one in answer.found or []
        if one.error is not None
    }
    return list(failed.values())


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
        "done": one.why_not or ("would be removed" if dry_run else _done(one)) + _but(one),
    }


def _done(one: Decided) -> str:
    return "removed" if one.error is None else "not all removed"


def _but(one: Decided) -> str:
    """Say what stays of an owner's things: what somebody holds, and where others have theirs."""
    held = [f"{domain.name}, {domain.hold}" for domain in one.held]
    but = ", ".join([*held, *(f"{directory}, which has others' files in it" for directory in one.stay)])
    return f", but for {but}" if but else ""
