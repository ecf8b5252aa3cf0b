"""Whether guests find their master, whether clocks agree, and what other masters left."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence

import attrs

from latentvirt.abandoned import Estate
from latentvirt.address import USER_MODE_HOST, master_host
from latentvirt.doctor.finding import Finding, fine, problem, warning
from latentvirt.doctor.shell import Shell
from latentvirt.doctor.wanted import MasterAddress
from latentvirt.domainxml import NetworkUse
from latentvirt.host import NetworkView
from latentvirt.names import FileName
from latentvirt.sweep import FROZEN

CALL_S = 5.0
"""How long a master may take to accept a connection."""

CLOCK_OFF_S = 60
"""By how much a host's clock may differ: directories are claimed for an hour at a time."""

LOOPBACK = "127.0.0.1"
MINUTE_S, HOUR_S = 60, 3600


# The master's address


@attrs.frozen
class Calling:
    """Where guests would look for their master, and what is heard there from here.

    Args:
        host: name or address that a guest is told; `USER_MODE_HOST` stands for this machine's loopback.
        port: the port.
        addresses: what the name means here; empty if it means nothing.
        is_ours: whether one of them is this machine's; another machine is not called.
        error: what came of a connection; empty if somebody answers.
    """

    host: str
    port: int | None
    addresses: tuple[str, ...] = ()
    is_ours: bool = False
    error: str = ""


def guest_sees(
    address: MasterAddress, *, is_here: bool, networks: Sequence[NetworkView], fallback: Callable[[], str]
) -> str:
    """Say which host a guest is told, as a start would.

    Args:
        address: what master.cfg says.
        is_here: whether the VM's host is this machine.
        networks: those of the VM's host.
        fallback: tells this machine's own name.
    """
    on = {network.name: network.address for network in networks}
    user = address.network == "user"
    return master_host(
        NetworkUse("user") if user else NetworkUse("network", address.network),
        given=address.given,
        host_is_local=is_here,
        network_address=on.get(address.network),
        fallback=fallback,
    )


def call(host: str, port: int | None) -> Calling:
    """Try to reach a master from here; blocks, for a thread.

    Args:
        host: as a guest is told.
        port: None if the system chooses one, so that nobody knows where to try.
    """
    there = LOOPBACK if host == USER_MODE_HOST else host.strip("[]")
    try:
        found = socket.getaddrinfo(there, port or 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # the latter for what cannot be a name at all
        return Calling(host, port)
    addresses = tuple(dict.fromkeys(str(one[4][0]) for one in found))
    ours = [address for address in addresses if _is_ours(address)]
    error = ""
    for address in ours:
        if port is None:
            break
        try:
            socket.create_connection((address, port), timeout=CALL_S).close()
        except OSError as refused:
            error = str(refused.strerror or refused)
        else:
            error = ""
            break
    return Calling(host, port, addresses, bool(ours), error)


def _is_ours(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def address_finding(uri: str, address: MasterAddress, calling: Calling) -> Finding:
    """Say whether guests on a host find their master, as far as that is seen from here.

    Args:
        uri: the host.
        address: what master.cfg says.
        calling: what came of a call.
    """
    user_mode = calling.host == USER_MODE_HOST
    where = calling.host if calling.port is None else f"{calling.host}:{calling.port}"
    where += f" ({LOOPBACK} here)" if user_mode else ""
    kind = f" (network {address.network})" if address.network else ""
    tell = problem if address.sure else warning
    say = "give the worker an address that guests reach: masterFQDN='ADDRESS'"
    if not calling.addresses:
        return tell(
            "master-unknown-name",
            uri,
            f"guests{kind} are told to find their master at {where}, a name that is not known here",
            say,
        )
    loopback = all(_is_loopback(one) for one in calling.addresses)
    if loopback and not user_mode:
        return tell(
            "master-loopback",
            uri,
            f"guests{kind} are told to find their master at {where}, which means {calling.addresses[0]}: the "
            "guest itself",
            f"{say}; a name that means 127.0.1.1 stands in this machine's /etc/hosts",
        )
    if not user_mode and address.interface and _is_loopback(address.interface):
        return tell(
            "master-listens-inside",
            uri,
            f"guests{kind} are told to find their master at {where}, which listens at {address.interface} "
            "only",
            "leave the interface out in master.cfg: c['protocols'] = {'pb': {'port': 9989}}",
        )
    if calling.port is None:
        return warning(
            "master-port-unknown",
            uri,
            f"the master's port is left to the system, so whether guests{kind} find it at {where} cannot be "
            "tried",
            "choose one that the firewall lets pass: c['protocols'] = {'pb': {'port': 9989}}",
        )
    if not calling.is_ours:
        return warning(
            "master-elsewhere",
            uri,
            f"guests{kind} are told to find their master at {where}, which means {calling.addresses[0]}, and "
            "that is no address of this machine",
            f"if the master runs elsewhere, run this there; if nothing passes it on to here, {say}",
        )
    if calling.error:
        return warning(
            "master-silent",
            uri,
            f"nobody answers at {where}, where guests{kind} are told to find their master: {calling.error}",
            "start the master; if it runs, see its port in master.cfg and the firewall (ss -ltn shows who "
            "listens)",
        )
    return fine(
        "master", uri, f"the master answers at {where}, as seen from here; a firewall for guests is not seen"
    )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return address == "localhost"


# Clocks


def clock_finding(uri: str, shell: Shell) -> Finding | None:
    """Compare a host's clock with this machine's; None if it did not tell."""
    if not shell.clock:
        return None
    ahead = shell.clock - shell.asked_at
    # It was read at some moment between question and answer, and has no fractions.
    off = max(0.0, abs(ahead) - shell.took_s - 1)
    if off > CLOCK_OFF_S:
        which = "ahead of" if ahead > 0 else "behind"
        return warning(
            "clock-off",
            uri,
            f"the host's clock is {off:.0f} s {which} this machine's; guests begin with the host's, and what "
            "is "
            "claimed for a time is judged by them",
            "let both be set by NTP: timedatectl set-ntp true",
        )
    return fine("clock", uri, "the host's clock agrees with this machine's")


# What masters left, and what they showed


def estate_findings(uri: str, estates: Sequence[Estate], now: float) -> list[Finding]:
    """Say what masters that are no more left on a host.

    Args:
        uri: the host.
        estates: what all masters have there.
        now: seconds since the epoch.
    """
    found = []
    for estate in estates:
        has = f"{_count(len(estate.domains), 'VM')} and {_count(estate.count, 'file')}"
        if estate.until is None:
            if estate.count or estate.domains:
                found.append(
                    warning(
                        "leftovers-unclaimed",
                        uri,
                        f"nobody says until when the master {estate.owner} claims its {has}",
                        f"if it is no more: latentvirt sweep -c '{uri}' --owner {estate.owner}",
                    )
                )
        elif estate.until <= now:
            found.append(
                warning(
                    "leftovers",
                    uri,
                    f"the master {estate.owner} seems to be no more: its claim on {has} ran out "
                    f"{_ago(now - estate.until)} ago",
                    f"start it again, or remove what it left: latentvirt sweep -c '{uri}'",
                )
            )
    return found or [fine("masters", uri, "no dead master left anything")]


def _ago(seconds: float) -> str:
    return f"{seconds / HOUR_S:.0f} h" if seconds >= HOUR_S else f"{seconds / MINUTE_S:.0f} min"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def helper_findings(uri: str, estates: Sequence[Estate], needed: Sequence[str]) -> list[Finding]:
    """Say whether the guest helper was seen in an image, which is known from what is frozen.

    Args:
        uri: the host.
        estates: what all masters have there.
        needed: workers that cannot do without it.
    """
    names = (FileName.parse(name) for estate in estates for files in estate.files.values() for name in files)
    frozen = sum(1 for name in names if name is not None and name.kind == FROZEN)
    if frozen:
        return [fine("helper", uri, f"the guest helper has answered in {frozen} VMs, which are frozen")]
    if not needed:
        return []
    return [
        warning(
            "helper-unseen",
            uri,
            f"{', '.join(needed)} cannot do without the guest helper, and no guest with it was seen on this "
            "host yet",
            "install it in the image (docs/howto/quick-starts.rst); a build's step 'start VM' says whether "
            "it answered",
        )
    ]
