"""`latentvirt vm hold` and `latentvirt vm release`: keep a VM beyond its build's end, and let go of it."""

from __future__ import annotations

import getpass
import math
import socket
import time
from collections.abc import Sequence

import click

from latentvirt.cli.asking import about_hosts, ask, finish
from latentvirt.cli.finding import ENDS_WITH, STATES, Seen, find, only
from latentvirt.cli.saying import say
from latentvirt.cli.values import read_by
from latentvirt.config import Connection
from latentvirt.errors import ConfigError, ForeignDomain, NotFound
from latentvirt.hold import Hold, moment, read_duration, read_why
from latentvirt.host import Condition, Driver, Host
from latentvirt.names import Ownership


def _ours(connection: Connection, seen: Seen) -> Ownership:
    if seen.use.ownership is None:
        raise ForeignDomain(
            f"the VM {seen.use.name!r} is not latentvirt's: no build's end would end it",
            host=connection.uri,
            domain=seen.use.name,
        )
    return seen.use.ownership


def _person() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"


@click.command(short_help="Keep a VM when its build ends.", epilog=ENDS_WITH)
@click.argument("name")
@click.option(
    "--for",
    "duration",
    metavar="DURATION",
    default="2h",
    show_default=True,
    callback=read_by(lambda value: read_duration(value, "--for")),
    help="How long from now: a number with s, min, h or d; 7 days at most.",
)
@click.option(
    "--why",
    metavar="TEXT",
    required=True,
    callback=read_by(read_why),
    help="Why, for others who look at it.",
)
@about_hosts
@click.pass_obj
def hold(
    driver: Driver | None, connections: Sequence[Connection], name: str, duration: int, why: str
) -> None:
    """Keep the VM of the domain, or the worker, NAME when its build ends, so that somebody can look into it.

    The master leaves it running, with its disk, and uses its place for no other build until it is released
    or the time is up; its other places go on. Held again, the new time and reason are put in place of the
    old ones. The time is that of this machine's clock.
    """

    async def keep() -> tuple[str, Hold, Hold | None]:
        connection, seen = await find(connections, name, driver)
        owned, before = _ours(connection, seen), seen.hold
        if before is None and seen.state == STATES[Condition.PAUSED]:
            raise ConfigError(
                f"the VM {seen.use.name!r} is paused: it stands by for a build, or is just being started",
                host=connection.uri,
                domain=seen.use.name,
                remedy="hold it while its build runs",
            )
        wanted = Hold(
            until=math.ceil(time.time()) + duration,
            by=_person(),
            why=why,
            worker=before.worker if before is not None else "",
        )

        async def set_it(host: Host) -> None:
            await host.set_hold(seen.use.uuid, wanted, only=owned)

        only(await ask([connection], set_it, driver))
        return f"{seen.use.name} on {connection.uri}", wanted, before

    where, held, before = finish(connections, keep)
    say(f"{where} is held until {moment(held.until)}")
    if before is not None:
        say(f"it was {before}")


@click.command(short_help="Let go of a VM that is held.", epilog=ENDS_WITH)
@click.argument("name")
@about_hosts
@click.pass_obj
def release(driver: Driver | None, connections: Sequence[Connection], name: str) -> None:
    """Let go of the VM of the domain, or the worker, NAME, which is held.

    If its build is over, its master ends it within moments and removes its files; a master that does not run
    does so when it starts. Where none will, end it with `vm destroy` and remove its files with `sweep`.
    """

    async def let_go() -> tuple[str, Hold]:
        connection, seen = await find(connections, name, driver)
        owned, held = _ours(connection, seen), seen.hold
        if held is None:
            domain = seen.use.name
            raise NotFound(f"the VM {domain!r} is not held", host=connection.uri, domain=domain)

        async def take_it_away(host: Host) -> None:
            await host.set_hold(seen.use.uuid, None, only=owned)

        only(await ask([connection], take_it_away, driver))
        return f"{seen.use.name} on {connection.uri}", held

    where, held = finish(connections, let_go)
    say(f"{where} is released; it was {held}")
