"""`latentvirt doctor`: what is wrong with hosts, and how to mend it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import click
from rich.console import Console
from rich.table import Table
from rich.text import Text
from twisted.internet import defer

from latentvirt.cli.asking import named_by_uri, naming_hosts, tell_json, to_its_end, usual_host
from latentvirt.cli.progress import waiting
from latentvirt.cli.saying import say
from latentvirt.doctor import Finding, Severity, Wanted, examine, mend
from latentvirt.doctor.finding import problem
from latentvirt.errors import ConfigError, LatentvirtError
from latentvirt.host import Driver, Host
from latentvirt.showing import visible

STYLES = {Severity.OK: "green", Severity.WARNING: "yellow", Severity.PROBLEM: "bold red"}
ORDER = list(reversed(Severity))
"""What is worst comes first."""

WIDEST = 120
"""Longer lines are hard to read, however wide the terminal is."""


@attrs.frozen
class Told:
    """A finding as the person is told of it.

    Args:
        finding: what was found, after mending if something was mended.
        mended: what was done about it; empty if nothing was.
    """

    finding: Finding
    mended: str = ""


class Progress:
    """Show, while hosts are asked, what is asked.

    Args:
        hosts: how many.
        show: shows it.
    """

    def __init__(self, hosts: int, show: Callable[[str], None]) -> None:
        self._hosts = hosts
        self._done = 0
        self._show = show

    def tell(self, uri: str, what: str) -> None:
        """Show what is asked of a host next."""
        count = f"{self._done} of {self._hosts} hosts done; " if self._hosts > 1 else ""
        self._show(f"{count}{uri.partition('?')[0]}: {what}...")

    def done(self, uri: str) -> None:
        """Show that a host was asked for everything."""
        self._done += 1
        self.tell(uri, "done")


@click.command(
    short_help="Find out what is wrong with hosts, and how to mend it.",
    epilog="Exit status: 0 no problem (there may be warnings), 1 there are problems, 2 wrong command line.",
)
@naming_hosts
@click.option(
    "--folder",
    "folders",
    metavar="PATH",
    multiple=True,
    help="An image folder on the hosts to look at, besides those that master.cfg names; repeat it for more.",
)
@click.option(
    "--fix", is_flag=True, help="Mend what is safe to mend: start a network or pool, make a folder."
)
@click.option("-q", "--quiet", is_flag=True, help="Leave out what is as it should be.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects instead of text.")
@click.pass_obj
def doctor(
    driver: Driver | None,
    uris: Sequence[str],
    config: str | None,
    folders: Sequence[str],
    fix: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Look for what usually goes wrong with hosts, and say how to mend it.

    Whether libvirt can be reached without a question being asked, versions, KVM, networks and DHCP, image
    folders (who may pass, how much room there is), clocks, what dead masters left, which VMs somebody holds,
    and with --config also what the master.cfg needs, such as images by name, and whether guests find their
    master. Run it as the master's user, on the master's machine.

    Nothing is changed without --fix, which starts a network or a storage pool that is named and does not run,
    and makes an image folder that is named and not there.
    """
    try:
        wanted = _wanted(uris, config, tuple(folders))
    except ConfigError as error:
        if config is None:
            raise
        told = [Told(problem("config-unusable", config, error.what, error.remedy))]
    else:
        with waiting("looking...") as show:
            progress = Progress(len(wanted), show)
            told = to_its_end(lambda: _see_to_all(wanted, driver, fix, progress))
    _print(told, as_json=as_json, quiet=quiet)
    sys.exit(int(any(one.finding.severity is Severity.PROBLEM for one in told)))


def _wanted(uris: Sequence[str], config: str | None, folders: tuple[str, ...]) -> list[Wanted]:
    for folder in folders:
        if not folder.startswith("/"):
            raise click.BadParameter(f"{folder!r} is not an absolute path", param_hint="--folder")
    found: list[Wanted] = []
    if config is not None:
        from latentvirt.master.wanting import wanted_in  # Buildbot takes a second to load

        found = wanted_in(config, folders)
    known = {wanted.uri for wanted in found}
    named = [Wanted.usual(one, folders) for one in named_by_uri(uris) if one.uri not in known]
    return [*named, *found] or [Wanted.usual(usual_host(), folders)]


async def _see_to_all(
    wanted: Sequence[Wanted], driver: Driver | None, fix: bool, progress: Progress
) -> list[Told]:
    each = [defer.ensureDeferred(_see_to(one, driver, fix, progress)) for one in wanted]
    return [told for tolds in await defer.gatherResults(each) for told in tolds]


async def _see_to(wanted: Wanted, driver: Driver | None, fix: bool, progress: Progress) -> list[Told]:
    from twisted.internet import reactor

    host = Host(wanted.connection, reactor, driver=driver)
    try:
        found = await examine(host, wanted, lambda what: progress.tell(wanted.uri, what))
        told = [await _mended(host, finding) for finding in found] if fix else []
        done = [one for one in told if one.mended]
        if done:
            found = await examine(host, wanted, lambda what: progress.tell(wanted.uri, what))
        failed = {one.finding.fix: one for one in told if one.finding.fixable and not one.mended}
        seen = [failed.get(one.fix, Told(one)) if one.fixable else Told(one) for one in found]
        progress.done(wanted.uri)
        return sorted([*done, *seen], key=lambda one: ORDER.index(one.finding.severity))
    finally:
        await host.close()


async def _mended(host: Host, finding: Finding) -> Told:
    if finding.fix is None:
        return Told(finding)
    try:
        done = await mend(host, finding.fix)
    except LatentvirtError as error:
        return Told(attrs.evolve(finding, what=f"{finding.what}; it could not be mended: {error.what}"))
    return Told(attrs.evolve(finding, severity=Severity.OK), done)


# Telling


def _print(told: Sequence[Told], *, as_json: bool, quiet: bool) -> None:
    shown = [one for one in told if not quiet or one.mended or one.finding.severity is not Severity.OK]
    if as_json:
        tell_json([_as_json(one) for one in shown])
    elif sys.stdout.isatty():
        print_on_terminal(shown, told)
    else:
        for one in shown:
            say(_line(one))


def _as_json(told: Told) -> dict[str, Any]:
    finding = told.finding
    return {
        "id": finding.id,
        "severity": finding.severity.value,
        "host": finding.host,
        "what": finding.what,
        "remedy": finding.remedy,
        "fixable": finding.fixable and not told.mended,
        "mended": told.mended or None,
    }


def _line(told: Told) -> str:
    finding = told.finding
    if told.mended:
        return f"mended: [{finding.host}] {finding.id}: {told.mended}"
    text = f"{finding.severity.value}: [{finding.host}] {finding.id}: {finding.what}"
    if not finding.remedy:
        return text
    return f"{text.removesuffix('.')}. What to do: {finding.remedy}{_or_fix(finding)}"


def _or_fix(finding: Finding) -> str:
    return " (or: --fix)" if finding.fixable else ""


def print_on_terminal(shown: Sequence[Told], all_of_them: Sequence[Told]) -> None:
    """Print findings by host, fitted to the terminal.

    Args:
        shown: those that are told.
        all_of_them: those that are counted.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    width = min(console.width, WIDEST)
    for host in dict.fromkeys(one.finding.host for one in shown):
        console.print(Text(visible(host), style="bold", overflow="fold"))
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for one in shown:
            finding = one.finding
            if finding.host != host:
                continue
            style = STYLES[finding.severity]
            said = Text(visible(one.mended or finding.what))
            if finding.severity is not Severity.OK:
                said.append(f" ({finding.id})", style="dim")
            if finding.remedy and not one.mended:
                said.append(f"\n→ {visible(finding.remedy)}{_or_fix(finding)}", style="cyan")
            label = "mended" if one.mended else finding.severity.value
            table.add_row(Text(f"  {label}", style=style), said)
        console.print(table, width=width)
        console.print()
    console.print(_summary(all_of_them))


def _summary(told: Sequence[Told]) -> str:
    count = {severity: sum(1 for one in told if one.finding.severity is severity) for severity in Severity}
    right = count[Severity.OK]
    fine = "1 thing is as it should be" if right == 1 else f"{right} things are as they should be"
    if not count[Severity.PROBLEM] and not count[Severity.WARNING]:
        return f"Nothing is wrong; {fine}."
    parts = [
        f"{number} {word}{'' if number == 1 else 's'}"
        for number, word in ((count[Severity.PROBLEM], "problem"), (count[Severity.WARNING], "warning"))
    ]
    text = f"{' and '.join(parts)}; {fine}."
    if any(one.finding.fixable and one.finding.severity is not Severity.OK for one in told):
        text += " What --fix would mend is marked."
    return text
