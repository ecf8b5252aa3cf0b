"""Which hosts a command is about, and asking all of them at once."""

from __future__ import annotations

import functools
import json
import os
import shlex
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import attrs
import click
from rich.console import Console
from rich.table import Table
from twisted.internet import defer, threads
from twisted.python.failure import Failure

from latentvirt.aliases import check_alias
from latentvirt.cli.progress import waiting
from latentvirt.cli.refusing import EXIT_INTERRUPTED, signals_given_back
from latentvirt.cli.saying import say
from latentvirt.cli.values import read_by
from latentvirt.config import Connection
from latentvirt.errors import HostUnreachable, LatentvirtError, NotFound
from latentvirt.host import Driver, Host
from latentvirt.roots import check_root_is_there
from latentvirt.showing import visible

T = TypeVar("T")

DEFAULT_URI_VARIABLE = "LIBVIRT_DEFAULT_URI"
PLAIN_WIDTH = 10_000
"""In a pipe no line is broken, however long it is."""

EXIT_STATUS = (
    "Exit status: 0 all hosts answered, 1 some did not (standard error names them), 2 wrong command line."
)


@attrs.frozen
class Answer(Generic[T]):
    """What one host said.

    Args:
        uri: of the host.
        found: its answer; None if it gave none.
        error: why not; None if it did.
    """

    uri: str
    found: T | None = None
    error: LatentvirtError | None = None


def about_hosts(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say which hosts it is about, as its argument ``connections``."""

    @naming_hosts
    @functools.wraps(command)
    def with_hosts(*args: Any, uris: Sequence[str], config: str | None, **kwargs: Any) -> Any:
        return command(*args, connections=connections_of(uris, config), **kwargs)

    return with_hosts


def naming_hosts(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the same options as they are, as its arguments ``uris`` and ``config``."""
    named = click.option(
        "-c",
        "--connect",
        "uris",
        metavar="URI",
        multiple=True,
        callback=read_by(lambda uris: tuple(map(checked_uri, uris))),
        help="A libvirt URI or alias; repeat it for more. Without it: as for virsh.",
    )
    configured = click.option(
        "--config",
        "config",
        metavar="MASTER.CFG",
        type=click.Path(exists=True),
        help="All hosts that a master.cfg names; the file is run, as by buildbot checkconfig.",
    )
    return named(configured(command))


def checked_uri(uri: str) -> str:
    """Check a URI as it is written, and return it.

    Raises:
        ConfigError: it cannot be one.
    """
    Connection(uri).check()
    return uri


def connections_of(uris: Sequence[str], config: str | None) -> list[Connection]:
    """List the hosts that a command is about.

    Args:
        uris: those that are named.
        config: a master.cfg that names more.

    Returns:
        Each once; the usual one if none is named.

    Raises:
        ConfigError: a URI cannot be one, or the file cannot be used.
    """
    named = named_by_uri(uris)
    if config is not None:
        from latentvirt.master.reading import hosts_in  # Buildbot takes a second to load

        known = {connection.uri for connection in named}
        named += [connection for connection in hosts_in(config) if connection.uri not in known]
    return named or [usual_host()]


def named_by_uri(uris: Sequence[str]) -> list[Connection]:
    """Make connections of URIs, each once.

    Raises:
        ConfigError: one cannot be a URI.
    """
    return [Connection(checked_uri(uri)) for uri in dict.fromkeys(uris)]


def usual_host() -> Connection:
    """Say which host is meant where none is named: that of virsh.

    Raises:
        ConfigError: the environment names it, by what cannot be a URI.
    """
    usual = "qemu:///system" if os.geteuid() == 0 else "qemu:///session"
    return Connection(checked_uri(os.environ.get(DEFAULT_URI_VARIABLE) or usual))


async def ask(
    connections: Sequence[Connection],
    question: Callable[[Host], Awaitable[T]],
    driver: Driver | None,
) -> list[Answer[T]]:
    """Ask hosts at the same time.

    Args:
        connections: the hosts.
        question: asks one; the connection is closed afterwards.
        driver: opens connections; libvirt's own if None.

    Returns:
        Their answers, in the order of the hosts.
    """
    from twisted.internet import reactor

    async def ask_one(connection: Connection) -> Answer[T]:
        host = Host(connection, reactor, driver=driver)
        try:
            check_alias(connection.uri)
            check_root_is_there(connection.uri)
            return Answer(connection.uri, found=await question(host))
        except LatentvirtError as error:
            return Answer(connection.uri, error=explained(error, connection))
        finally:
            await host.close()

    return await defer.gatherResults([defer.ensureDeferred(ask_one(one)) for one in connections])


def explained(error: LatentvirtError, connection: Connection) -> LatentvirtError:
    """Say of an error what to do where somebody else has the host.

    Args:
        error: what went wrong there.
        connection: of the host.
    """
    if isinstance(error, HostUnreachable) and connection.is_embed:
        error.remedy = (
            "only one process at a time can use the root of an embedded libvirt: if a master runs that has "
            "it, ask there (its web page, latentvirt.host_states), or stop it first"
        )
    return error


def finish(connections: Sequence[Connection], work: Callable[[], Awaitable[T]]) -> T:
    """Do what a command does, to its end, and show that it goes on.

    Args:
        connections: the hosts that it asks.
        work: does it; a process can do this once, unless a reactor runs already, on another thread.
    """
    many = f"{len(connections)} hosts" if len(connections) > 1 else connections[0].uri
    with waiting(f"asking {many}..."):
        return to_its_end(work)


def to_its_end(work: Callable[[], Awaitable[T]]) -> T:
    """Do what a command does; as `finish`, and show nothing."""
    from twisted.internet import reactor

    loop: Any = reactor
    if loop.running:
        return threads.blockingCallFromThread(loop, lambda: defer.ensureDeferred(work()))  # type: ignore[arg-type]
    outcome: list[Any] = []

    def start() -> None:
        done: defer.Deferred[Any] = defer.ensureDeferred(work())  # type: ignore[arg-type]
        done.addBoth(outcome.append).addBoth(lambda _: loop.stop())

    loop.callWhenRunning(start)
    with signals_given_back():
        loop.run()
    if not outcome:
        sys.exit(EXIT_INTERRUPTED)
    if isinstance(outcome[0], Failure):
        outcome[0].raiseException()
    result: T = outcome[0]
    return result


# Telling


def tell_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table: framed on a terminal, plain in a pipe; nothing in it is folded or left out.

    On a terminal that is too narrow for it each row is a block of lines, one for each column.

    Args:
        columns: their heads.
        rows: their cells.
    """
    framed = sys.stdout.isatty()
    shown = [["" if cell is None else visible(str(cell)) for cell in row] for row in rows]
    table = Table(box=None, pad_edge=False) if not framed else Table()
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in shown:
        table.add_row(*row)
    room = Console().width
    console = Console(width=PLAIN_WIDTH, highlight=False, markup=False, emoji=False)
    if framed and shown and console.measure(table).maximum > room:
        # What does not fit is broken by the terminal itself, which puts it together again when it is copied.
        click.echo("\n\n".join(map("\n".join, _blocks(columns, shown))))
        return
    with console.capture() as printed:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in printed.get().splitlines()))


def tell_table_of(
    answers: Sequence[Answer[Any]], columns: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    """Print a table of what hosts said, as `tell_table` does; none where it is empty and some said nothing.

    Args:
        answers: of the hosts.
        columns: their heads.
        rows: their cells.
    """
    if rows or all(answer.error is None for answer in answers):
        tell_table(columns, rows)


def _blocks(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[list[str]]:
    """Write each row as lines of a column's head and the cell."""
    for row in rows:
        yield [f"{column.lower()}: {cell}".rstrip() for column, cell in zip(columns, row, strict=True)]


def tell_json(value: object) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2, sort_keys=True))


def not_found(what: str, answers: Sequence[Answer[Any]], listing: str) -> NotFound:
    """Say which hosts gave no answer, and make the error that what was looked for is on no other.

    Args:
        what: it in words, without an article.
        answers: of the hosts.
        listing: the command that lists what there is, without its hosts.
    """
    there = [answer.uri for answer in answers if answer.error is None]
    if tell_errors(answers) and not there:
        return NotFound(f"whether there is a {what} is not known: no host answered")
    hosts = "".join(f" -c {shlex.quote(uri)}" for uri in there)
    return NotFound(f"no {what} runs on {', '.join(there)}", remedy=f"see which there are: {listing}{hosts}")


def tell_errors(answers: Sequence[Answer[Any]]) -> bool:
    """Say on standard error which hosts gave no answer, and why; returns whether there are any."""
    failed = [answer.error for answer in answers if answer.error is not None]
    for error in failed:
        say(f"latentvirt: {error}", err=True)
    return bool(failed)
