"""`latentvirt vm ssh`: log in to a VM whose host key is known."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import click

from latentvirt import domainxml
from latentvirt.aliases import client_config, read_aliases
from latentvirt.cli.asking import about_hosts, ask, finish
from latentvirt.cli.finding import only
from latentvirt.cli.guests import LEASE, Guest, find_guest
from latentvirt.cli.known_hosts import SSH_PORT
from latentvirt.cli.refusing import EXIT_INTERRUPTED, signals_given_back
from latentvirt.config import Connection
from latentvirt.errors import ConfigError, NotFound
from latentvirt.host import Driver, Host
from latentvirt.hostkeys import is_plain_name
from latentvirt.hostkeys import known_hosts as lines_of

FURTHER_SOURCES = ("agent", "arp")
SSH_TRANSPORTS = ("ssh", "libssh", "libssh2")
"""What libvirt calls its ways through ssh, behind the plus of a URI's scheme."""


@click.command(
    short_help="Log in to a VM by ssh.",
    epilog="Exit status: that of ssh (255: ssh itself failed); 1 there is no such VM, no way to it, or its "
    "keys are not known; 2 wrong command line.",
)
@click.argument("name")
@click.argument("ssh_args", metavar="[-- SSH_ARGS]...", nargs=-1, type=click.UNPROCESSED)
@about_hosts
@click.option("-l", "--user", metavar="USER", help="Whom to log in as; without it as ssh says.")
@click.pass_obj
def ssh(
    driver: Driver | None,
    connections: Sequence[Connection],
    name: str,
    ssh_args: Sequence[str],
    user: str | None,
) -> None:
    """Log in by ssh to the VM of the domain, or the worker, NAME.

    ssh is given the host keys that the VM told its host, and connects only if the VM has one of them; your
    own known_hosts file is neither read nor written. What stands after -- goes to ssh: its options, and a
    command to run there. A VM on a host that is reached by qemu+ssh is reached through that host.

    The address is what the host's DHCP server, the guest's agent or the host's neighbour table tells. Into
    user-mode networking nothing connects, unless the domain forwards a port.
    """
    program = shutil.which("ssh")
    if program is None:
        raise ConfigError("there is no ssh here", remedy="install it (openssh-client on Debian)")

    async def look() -> tuple[Guest, str, int]:
        guest = await find_guest(connections, name, driver)
        if not guest.keys:
            raise NotFound(
                f"the SSH host keys of {guest.name!r} are not known: it has told none (yet)",
                host=guest.connection.uri,
                domain=guest.name,
                remedy="its image needs an SSH server and the guest helper of version 3 or later; until then "
                f"see: latentvirt vm console -c '{guest.connection.uri}' '{guest.name}'",
            )
        return guest, *await _way_to(guest, driver)

    guest, address, port = finish(connections, look)
    alias = guest.name if is_plain_name(guest.name) else guest.uuid
    with tempfile.TemporaryDirectory(prefix="latentvirt-") as folder:
        file = Path(folder, "known_hosts")
        file.write_text(lines_of([alias], guest.keys))
        options = {
            "UserKnownHostsFile": _quoted(str(file)),
            "GlobalKnownHostsFile": "none",
            "StrictHostKeyChecking": "yes",
            "HostKeyAlias": alias,
            "CheckHostIP": "no",
            "UpdateHostKeys": "no",
            **_jump(guest.connection.uri),
        }
        command = [program, *(f"-o{key}={value}" for key, value in options.items()), f"-p{port}"]
        if user is not None:
            command.append(f"-l{user}")
        status = _run([*command, address, *ssh_args])
    sys.exit(status)


def _run(command: Sequence[str]) -> int:
    """Run ssh to its end, and return its exit status, or that of what was broken off."""
    begun: list[subprocess.Popen[bytes]] = []
    ended: list[int] = []

    def end_both(number: int, _: object) -> None:
        ended.append(number)
        for one in begun:
            one.terminate()

    with signals_given_back():
        signal.signal(signal.SIGTERM, end_both)
        begun.append(subprocess.Popen(command))
        # Ctrl and C are for what runs there.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if ended:
            begun[0].terminate()  # it came when nothing could be done about it yet
        status = begun[0].wait()
    return EXIT_INTERRUPTED if ended else status


async def _way_to(guest: Guest, driver: Driver | None) -> tuple[str, int]:
    """Find the address and the port by which a guest's SSH server is reached from its host."""
    if guest.addresses:
        return guest.addresses[0], SSH_PORT
    forward = domainxml.forward_to(guest.xml, SSH_PORT)
    if forward is not None:
        return forward.address, forward.port
    if not domainxml.can_be_reached(guest.xml):
        raise NotFound(
            f"nothing can connect to {guest.name!r}: it has user-mode networking, or none",
            host=guest.connection.uri,
            domain=guest.name,
            remedy="give the worker network=, or its XML an <interface> on a network or a bridge, or forward "
            f"a port; until then see: latentvirt vm console -c '{guest.connection.uri}' '{guest.name}'",
        )

    async def look(host: Host) -> str | None:
        for source in FURTHER_SOURCES:
            for address in await host.addresses(guest.uuid, source):
                return address
        return None

    address = only(await ask([guest.connection], look, driver))
    if address is None:
        raise NotFound(
            f"no address of {guest.name!r} is known ({', '.join((LEASE, *FURTHER_SOURCES))} were asked)",
            host=guest.connection.uri,
            domain=guest.name,
            remedy="wait until it has booted, or install qemu-guest-agent in its image",
        )
    return address, SSH_PORT


def _jump(uri: str) -> dict[str, str]:
    """Say how ssh gets to where a host's guests can be reached; nothing where it is there already."""
    parts = urlsplit(uri)
    if not parts.scheme and client_config().exists():
        parts = urlsplit(read_aliases(client_config().read_text(errors="replace")).get(uri, uri))
    if parts.scheme.partition("+")[2] not in SSH_TRANSPORTS or not parts.hostname:
        return {}
    said = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    command = [said.get("command", "ssh"), "-W", "[%h]:%p"]
    # What libvirt makes of these, it makes of them here, too.
    if "keyfile" in said:
        command += ["-i", said["keyfile"].replace("%", "%%")]
    if said.get("no_verify", "0") != "0":
        command.append("-oStrictHostKeyChecking=no")
    if said.get("no_tty", "0") != "0":
        command.append("-oBatchMode=yes")
    if parts.username:
        command += ["-l", parts.username]
    if parts.port:
        command += ["-p", str(parts.port)]
    return {"ProxyCommand": shlex.join([*command, "--", parts.hostname])}


def _quoted(path: str) -> str:
    """Write a path so that ssh takes it for one, whatever is in it."""
    return '"' + path.replace("%", "%%") + '"'
