"""Whether the networks that VMs are to have are there, run, and give addresses."""

from __future__ import annotations

from collections.abc import Sequence

from latentvirt.doctor.finding import Finding, Fix, fine, problem, warning
from latentvirt.host import NetworkView


def network_findings(
    uri: str, networks: Sequence[NetworkView], wanted: Sequence[str], *, is_embed: bool, shown: str
) -> list[Finding]:
    """Say what is wrong with networks.

    Args:
        uri: the host.
        networks: all that it has.
        wanted: names of those that VMs are to have; if there is none, all that are there are looked at.
        is_embed: whether its libvirt can have none.
        shown: how virsh is told of the host.
    """
    if is_embed and wanted:
        return [
            problem(
                "network-embed",
                uri,
                f"workers name the network {name}, and an embedded libvirt has no networks",
                "leave network= out (user-mode networking), use a bridge of the system's, or qemu:///system",
            )
            for name in wanted
        ]
    known = {network.name: network for network in networks}
    found = []
    for name in wanted or known:
        network = known.get(name)
        found.append(
            _missing(uri, name, known, shown)
            if network is None
            else _look(uri, network, named=bool(wanted), virsh=f"virsh -c '{shown}'")
        )
    return found


def _missing(uri: str, name: str, known: dict[str, NetworkView], shown: str) -> Finding:
    there = f"it has {', '.join(known)}" if known else "it has none"
    source = "/usr/share/libvirt/networks/default.xml" if name == "default" else "contrib/libvirt/network.xml"
    return problem(
        "network-missing",
        uri,
        f"there is no network {name} on the host; {there}",
        f"define it, as in: virsh -c '{shown}' net-define {source}; or correct network= in master.cfg",
    )


def _look(uri: str, network: NetworkView, *, named: bool, virsh: str) -> Finding:
    name = network.name
    if not network.active:
        tell = problem if named else warning
        return tell(
            "network-inactive",
            uri,
            f"the network {name} does not run",
            f"{virsh} 'net-start {name}'"
            if network.autostart
            else f"{virsh} 'net-start {name}; net-autostart {name}'",
            Fix("start network", name) if named else None,
        )
    if not network.dhcp:
        return warning(
            "network-no-dhcp",
            uri,
            f"the network {name} gives guests no addresses: it has no <dhcp>",
            f"{virsh} net-edit '{name}', add <dhcp><range start=... end=.../></dhcp> to its <ip>, and start "
            "it anew; "
            "or let something else in that network give them",
        )
    if not network.autostart:
        return warning(
            "network-no-autostart",
            uri,
            f"the network {name} runs, but will not after the host was booted",
            f"{virsh} net-autostart '{name}'",
        )
    return fine("network", uri, f"the network {name} runs and gives addresses")
