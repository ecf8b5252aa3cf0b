"""`latentvirt known-hosts`: the SSH host keys of running VMs, which nobody had to scan for."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import click

from latentvirt import domainxml
from latentvirt.cli.asking import about_hosts, ask, finish, tell_errors, tell_json
from latentvirt.cli.guests import Guest, guests_in, look_at_guests
from latentvirt.cli.saying import say
from latentvirt.config import Connection
from latentvirt.host import Driver
from latentvirt.hostkeys import is_plain_name
from latentvirt.hostkeys import known_hosts as lines_of

SSH_PORT = 22


@click.command(
    "known-hosts",
    short_help="Print VMs' SSH host keys.",
    epilog="Exit status: 0 done; 1 a host did not answer, or the keys of a VM that was named are not known "
    "or could be several's (standard error says which); 2 wrong command line.",
)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@about_hosts
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects instead of lines.")
@click.pass_obj
def known_hosts(
    driver: Driver | None, connections: Sequence[Connection], names: Sequence[str], as_json: bool
) -> None:
    """Print the SSH host keys of running VMs, as lines for ssh's known_hosts file.

    The keys are those that the VMs told their hosts through their virtual hardware when they started; nobody
    on the network could change them. A line names the VM's domain, its worker and the addresses that its
    host's DHCP server gave it. A name or an address that several VMs have is left out. NAME is a domain or a
    worker; without one, all VMs of latentvirt's are listed.

    To let ssh know all VMs: latentvirt known-hosts >~/.ssh/known_hosts_vms, with "UserKnownHostsFile
    ~/.ssh/known_hosts ~/.ssh/known_hosts_vms" in ~/.ssh/config.
    """
    answers = finish(connections, lambda: ask(connections, look_at_guests, driver))
    guests = guests_in(answers)
    wanted = [
        (guest, called)
        for guest, called in zip(guests, _names(guests), strict=True)
        if not names or any(map(guest.is_called, names))
    ]
    if as_json:
        tell_json([_as_json(guest, called) for guest, called in wanted])
    else:
        click.echo("".join(lines_of(called, guest.keys) for guest, called in wanted), nl=False)
    unknown = [name for name in names if not any(guest.is_called(name) and guest.keys for guest in guests)]
    for name in unknown:
        there = any(guest.is_called(name) for guest in guests)
        answered = any(answer.error is None for answer in answers)
        none = "no VM of that name runs on the hosts that answered" if answered else "no host answered"
        why = "it has told none (yet)" if there else none
        say(f"latentvirt: the SSH host keys of {name!r} are not known: {why}", err=True)
    ambiguous = [name for name in names if sum(guest.is_called(name) for guest in guests) > 1]
    sys.exit(int(tell_errors(answers) or bool(unknown or ambiguous)))


def _names(guests: Sequence[Guest]) -> list[list[str]]:
    """Say by which names and addresses each guest is known, and no other is."""
    all_of = [list(dict.fromkeys(filter(is_plain_name, _names_of(guest)))) for guest in guests]
    counts = Counter(name for names in all_of for name in names)
    for name, count in counts.items():
        if count > 1:
            say(f"latentvirt: {count} VMs are called {name}; it is left out", err=True)
    return [[name for name in names if counts[name] == 1] for names in all_of]


def _names_of(guest: Guest) -> list[str]:
    names = [guest.name, guest.worker or "", *guest.addresses]
    forward = domainxml.forward_to(guest.xml, SSH_PORT)
    if forward is not None and guest.connection.is_local:
        names.append(f"[{forward.address}]:{forward.port}")
    return names


def _as_json(guest: Guest, names: list[str]) -> dict[str, Any]:
    return {
        "host": guest.connection.uri,
        "name": guest.name,
        "uuid": guest.uuid,
        "worker": guest.worker,
        "names": names,
        "keys": [{"type": key.kind, "key": key.data} for key in guest.keys],
    }
