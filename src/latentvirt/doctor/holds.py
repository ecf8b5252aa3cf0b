"""VMs that somebody holds: until when and why, and those that nobody is there to end."""

from __future__ import annotations

from collections.abc import Sequence

from latentvirt.abandoned import Estate
from latentvirt.doctor.finding import Finding, fine, warning
from latentvirt.hold import Hold
from latentvirt.host import DomainView


def hold_findings(uri: str, estates: Sequence[Estate], now: float) -> list[Finding]:
    """Say which VMs somebody holds on a host, and which no master will end, or has ended, afterwards.

    Args:
        uri: the host.
        estates: what all masters have there.
        now: seconds since the epoch.
    """
    found, held = [], []
    for estate in estates:
        is_dead = estate.until is not None and estate.until <= now
        for domain in estate.domains:
            if domain.hold is None:
                continue
            if domain.hold.until <= now:
                # Where its master lives, its build goes on; else that would have ended it within moments.
                if is_dead or estate.until is None:
                    found.append(_over(uri, estate, domain, domain.hold))
            elif is_dead:
                found.append(_masterless(uri, estate, domain, domain.hold))
            else:
                held.append((domain.hold.until, domain))
    if held:
        found.append(_held(uri, [domain for _, domain in sorted(held, key=lambda one: one[0])]))
    return found


def _held(uri: str, domains: Sequence[DomainView]) -> Finding:
    one = len(domains) == 1
    count = (
        "1 VM is held and keeps its place" if one else f"{len(domains)} VMs are held and keep their places"
    )
    return fine(
        "held",
        uri,
        f"{count}: " + "; ".join(f"{domain.name}, {domain.hold}" for domain in domains),
        f"when nobody needs it any more: {_release(uri, domains[0].name if one else 'NAME')}",
    )


def _release(uri: str, name: str) -> str:
    return f"latentvirt vm release '{name}' -c '{uri}'"


def _masterless(uri: str, estate: Estate, domain: DomainView, hold: Hold) -> Finding:
    return warning(
        "held-masterless",
        uri,
        f"nobody ends the VM {domain.name} when the time is up, since its master {estate.owner} seems to be "
        f"no more: it is {hold}",
        "start the master again, or, when nobody needs the VM any more: "
        f"{_release(uri, domain.name)} && latentvirt sweep -c '{uri}'",
    )


def _over(uri: str, estate: Estate, domain: DomainView, hold: Hold) -> Finding:
    if estate.until is None:
        why = f"nobody says until when its master {estate.owner} claims it"
        remedy = f"if that is no more: latentvirt sweep -c '{uri}' --owner {estate.owner}"
    else:
        why = f"its master {estate.owner} seems to be no more"
        remedy = f"start it again, or end the VM and remove its files: latentvirt sweep -c '{uri}'"
    return warning(
        "hold-over",
        uri,
        f"the VM {domain.name} is there still, and {why}: it was {hold}",
        remedy,
    )
