"""`latentvirt hosts`: each host's libvirt, its size, and what runs there."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import attrs
import click

from latentvirt.cli.asking import EXIT_STATUS, about_hosts, ask, finish, tell_errors, tell_json, tell_table_of
from latentvirt.config import Connection
from latentvirt.host import Driver, Host

VERSION_PARTS = 1000
"""libvirt writes a version as major * 1,000,000 + minor * 1,000 + release."""


@attrs.frozen(kw_only=True)
class Seen:
    """One host.

    Args:
        libvirt: version of its daemon.
        qemu: version of its QEMU.
        arch: its architecture.
        kvm: whether KVM works there.
        cpus: its processors.
        memory_mib: its memory.
        memory_free_mib: what new VMs could have of that.
        vms: latentvirt's VMs, whichever master's.
        held: those of them that somebody holds.
        others: everybody else's.
    """

    libvirt: str
    qemu: str
    arch: str
    kvm: bool
    cpus: int
    memory_mib: int
    memory_free_mib: int
    vms: int
    held: int
    others: int


async def _look(host: Host) -> Seen:
    versions, capabilities = await host.versions(), await host.capabilities()
    node, memory, used = await host.node(), await host.memory(), await host.usage()
    ours = sum(1 for use in used if use.ownership is not None)
    now = time.time()
    return Seen(
        libvirt=_version(versions.libvirt),
        qemu=_version(versions.hypervisor),
        arch=capabilities.arch,
        kvm=capabilities.kvm,
        cpus=node.cpus,
        memory_mib=memory.total,
        memory_free_mib=memory.available,
        vms=ours,
        held=sum(1 for domain in await host.domains() if domain.held_at(now) is not None),
        others=len(used) - ours,
    )


def _version(number: int) -> str:
    rest, release = divmod(number, VERSION_PARTS)
    major, minor = divmod(rest, VERSION_PARTS)
    return f"{major}.{minor}.{release}"


@click.command(short_help="Show hosts: libvirt, KVM, size, VMs.", epilog=EXIT_STATUS)
@about_hosts
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects instead of a table.")
@click.pass_obj
def hosts(driver: Driver | None, connections: Sequence[Connection], as_json: bool) -> None:
    """Show each host's libvirt and QEMU, whether KVM works, its size, and how many VMs run there.

    Of latentvirt's VMs it is told how many somebody holds; `vm list` says who, until when and why.
    """
    answers = finish(connections, lambda: ask(connections, _look, driver))
    if as_json:
        tell_json(
            [
                {"uri": answer.uri, "error": str(answer.error)}
                if answer.found is None
                else {"uri": answer.uri, **attrs.asdict(answer.found)}
                for answer in answers
            ]
        )
    else:
        tell_table_of(
            answers,
            ("HOST", "LIBVIRT", "QEMU", "ARCH", "KVM", "CPUS", "MEMORY", "FREE", "VMS", "HELD", "OTHERS"),
            [(answer.uri, *_cells(answer.found)) for answer in answers if answer.found is not None],
        )
    sys.exit(int(tell_errors(answers)))


def _cells(seen: Seen) -> list[Any]:
    return [
        seen.libvirt,
        seen.qemu,
        seen.arch,
        "works" if seen.kvm else "no",
        seen.cpus,
        f"{seen.memory_mib} MiB",
        f"{seen.memory_free_mib} MiB",
        seen.vms,
        seen.held,
        seen.others,
    ]
