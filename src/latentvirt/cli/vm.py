"""`latentvirt vm`: the VMs that run on hosts, whichever master's they are."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import click

from latentvirt import domainxml
from latentvirt.cli.asking import (
    EXIT_STATUS,
    about_hosts,
    ask,
    finish,
    tell_errors,
    tell_json,
    tell_table_of,
)
from latentvirt.cli.finding import ENDS_WITH, Seen, find, look_at_vms, only
from latentvirt.cli.grouping import LazyGroup
from latentvirt.cli.saying import say
from latentvirt.config import Connection
from latentvirt.errors import ConfigError, ForeignDomain, HostError, HostUnreachable, NotFound
from latentvirt.hold import moment
from latentvirt.host import Driver, Host

FURTHER = {
    "hold": "latentvirt.cli.hold",
    "release": "latentvirt.cli.hold",
    "screenshot": "latentvirt.cli.screenshot",
    "ssh": "latentvirt.cli.ssh",
}
"""The commands that are in modules of their own, under the command's name, with that module."""


@click.group(cls=LazyGroup, further=FURTHER)
def vm() -> None:
    """Look at the VMs that run on hosts; keep one, or end it."""


def _as_json(uri: str, seen: Seen) -> dict[str, Any]:
    use, owned = seen.use, seen.use.ownership
    return {
        "host": uri,
        "name": use.name,
        "worker": seen.worker,
        "uuid": use.uuid,
        "state": seen.state,
        "memory_mib": use.memory,
        "vcpus": use.vcpus,
        "owner": owned.owner if owned else None,
        "slot": owned.slot if owned else None,
        "start": owned.start if owned else None,
        "held": None
        if seen.hold is None
        else {"until": moment(seen.hold.until), "by": seen.hold.by, "why": seen.hold.why},
    }


def _held(row: dict[str, Any]) -> str:
    held = row["held"]
    return f"until {held['until']} by {held['by']}: {held['why']}"


@vm.command("list", short_help="List VMs.", epilog=EXIT_STATUS)
@about_hosts
@click.option("--all", "everyones", is_flag=True, help="Also VMs that are not latentvirt's.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects instead of a table.")
@click.pass_obj
def list_(driver: Driver | None, connections: Sequence[Connection], everyones: bool, as_json: bool) -> None:
    """List latentvirt's VMs: host, name, worker, state, size, and which master's start they are."""
    answers = finish(connections, lambda: ask(connections, look_at_vms, driver))
    rows = [
        _as_json(answer.uri, seen)
        for answer in answers
        for seen in answer.found or []
        if everyones or seen.use.ownership is not None
    ]
    if as_json:
        tell_json(rows)
    else:
        tell_table_of(
            answers,
            ("HOST", "NAME", "WORKER", "STATE", "MEMORY", "VCPUS", "OWNER", "SLOT", "START"),
            [
                (
                    row["host"],
                    row["name"],
                    row["worker"],
                    row["state"],
                    f"{row['memory_mib']} MiB",
                    row["vcpus"],
                    row["owner"],
                    row["slot"],
                    row["start"],
                )
                for row in rows
            ],
        )
        for row in rows:
            if row["held"] is not None:
                say(f"{row['name']} on {row['host']} is held {_held(row)}")
    sys.exit(int(tell_errors(answers)))


@vm.command(short_help="Show one VM and its disks.", epilog=ENDS_WITH)
@click.argument("name")
@about_hosts
@click.option("--json", "as_json", is_flag=True, help="Print an object instead of lines.")
@click.pass_obj
def show(driver: Driver | None, connections: Sequence[Connection], name: str, as_json: bool) -> None:
    """Show the VM of the domain, or the worker, NAME: what `list` does, its disks, and what they stand on."""

    async def look() -> dict[str, Any]:
        connection, seen = await find(connections, name, driver)

        async def read(host: Host) -> str:
            return await host.description(seen.use.uuid)

        disks = domainxml.files_of_disks(only(await ask([connection], read, driver)))
        return _as_json(connection.uri, seen) | {
            "disks": [{"target": target, "files": list(files)} for target, files in disks]
        }

    shown = finish(connections, look)
    if as_json:
        tell_json(shown)
        return
    shown["memory"] = f"{shown.pop('memory_mib')} MiB"
    for key in ("host", "name", "worker", "uuid", "state", "memory", "vcpus", "owner", "slot", "start"):
        say(f"{key}: {'' if shown[key] is None else shown[key]}".rstrip())
    if shown["held"] is not None:
        say(f"held: {_held(shown)}")
    for disk in shown["disks"]:
        say(f"disk {disk['target']}: {' over '.join(disk['files'])}")


@vm.command(short_help="End a VM at once.", epilog=ENDS_WITH)
@click.argument("name")
@about_hosts
@click.pass_obj
def destroy(driver: Driver | None, connections: Sequence[Connection], name: str) -> None:
    """End the VM of the domain, or the worker, NAME at once, as a power cut does.

    Only latentvirt's VMs are ended. The master whose build has it sees its end, and tries the build again;
    it removes the VM's files, or the sweep does when that master starts. A VM that somebody holds is ended,
    too, and it is said who held it. One that ended while it was looked for is said to be gone, which is no
    failure.
    """

    async def end() -> tuple[str, Seen, bool]:
        connection, seen = await find(connections, name, driver)
        domain, owned = seen.use.name, seen.use.ownership
        if owned is None:
            raise ForeignDomain(
                f"the VM {domain!r} is not latentvirt's, and was left alone",
                host=connection.uri,
                domain=domain,
                remedy=f"end it with: virsh -c '{connection.uri}' destroy '{domain}'",
            )

        async def destroy(host: Host) -> bool:
            return await host.destroy(seen.use.uuid, only=owned)

        return connection.uri, seen, only(await ask([connection], destroy, driver))

    uri, seen, ended = finish(connections, end)
    if not ended:
        say(f"{seen.use.name} on {uri} was gone already")
        return
    say(f"ended {seen.use.name} on {uri}" + ("" if seen.hold is None else f", which was {seen.hold}"))


@vm.command(
    short_help="Open a VM's serial console.",
    epilog="Exit status: that of virsh; 1 there is no such VM, or no virsh; 2 wrong command line.",
)
@click.argument("name")
@about_hosts
@click.pass_obj
def console(driver: Driver | None, connections: Sequence[Connection], name: str) -> None:
    """Open the serial console of the VM of the domain, or the worker, NAME, by virsh; Ctrl and ] leave it.

    If somebody has the console, it is taken over: a build whose VM is just being started goes on without what
    the guest would have written to its page.
    """
    virsh = shutil.which("virsh")
    if virsh is None:
        raise ConfigError(
            "there is no virsh here, which shows consoles",
            remedy="install it (libvirt-clients on Debian, libvirt-client on Fedora)",
        )

    async def look() -> tuple[str, str, bool]:
        connection, seen = await find(connections, name, driver)
        domain = seen.use.name

        async def is_taken(host: Host) -> bool:
            if not domainxml.console_of(await host.description(seen.use.uuid)):
                raise NotFound(f"the VM {domain!r} has no serial console", remedy="give its XML a <serial>")
            try:
                stream = await host.open_console(seen.use.uuid, lambda _: None, lambda: None)
            except HostUnreachable:
                raise
            except HostError:
                return True
            await host.close_stream(stream)
            return False

        return connection.uri, domain, only(await ask([connection], is_taken, driver))

    uri, domain, taken = finish(connections, look)
    if taken:
        say(f"latentvirt: somebody else has the console of {domain}; it is taken over", err=True)
    os.execv(virsh, [virsh, "-c", uri, "console", "--force", domain])
