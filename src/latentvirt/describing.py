"""What a domain would be without us, and its place on the host cleared of what is left of ours."""

from __future__ import annotations

import time
from collections.abc import Callable

import attrs

from latentvirt import domainxml
from latentvirt.errors import ForeignDomain, HostFull, NotFound
from latentvirt.host import Host
from latentvirt.names import Ownership, generated_domain_name
from latentvirt.spec import MachineSpec

GENERATED = "latentvirt-generated"
"""Name in a generated description, until a start puts that of its slot in its place."""

GENERATED_UUID = "00000000-0000-0000-0000-000000000000"
"""The same for its UUID; always one, so that what was found out about the description is remembered."""


def own_name(spec: MachineSpec) -> str:
    """Name the domain of a spec that is predefined or given: it keeps its own name."""
    return (domainxml.domain_name(spec.xml) if spec.xml else None) or spec.worker


async def settled(host: Host, spec: MachineSpec) -> MachineSpec:
    """Find out whether a domain is predefined, where the person did not say."""
    if spec.kind != "auto":
        return spec
    there = await host.domain(spec.worker)
    if there is None and spec.proven:
        return attrs.evolve(spec, kind="generated")
    return attrs.evolve(spec, kind="predefined")


def domain_in(spec: MachineSpec, owner: str, slot: str) -> str:
    """Name the domain that a start of an owner's makes in a slot."""
    return generated_domain_name(owner, slot) if spec.kind == "generated" else own_name(spec)


async def describe(host: Host, spec: MachineSpec) -> str:
    """Return the domain's XML as the person wrote it, or as it is generated for the host.

    Raises:
        ForeignDomain: it is to be predefined, and is not.
    """
    if spec.kind == "predefined":
        name = own_name(spec)
        try:
            return await host.definition(name)
        except NotFound as error:
            raise ForeignDomain(
                f"there is no domain {name!r} to start",
                host=host.uri,
                domain=name,
                remedy="define it (virsh define, virt-manager), or give xml=, or give a size=",
            ) from error
    if spec.kind == "xml":
        return spec.xml or ""
    capabilities = await host.capabilities()
    await host.turn()
    described = domainxml.generate(
        name=GENERATED,
        uuid=GENERATED_UUID,
        capabilities=capabilities,
        size=spec.size,
        network=spec.network,
        virt_type=spec.virt_type,
    )
    await host.turn()
    return described


async def clear_place(
    host: Host, spec: MachineSpec, ownership: Ownership, claimed: Callable[[str], bool]
) -> bool:
    """End what an earlier start of ours left under the domain's name.

    Args:
        host: where.
        spec: what is to be started.
        ownership: whose it will be.
        claimed: tells of a start's id whether a build has its VM.

    Returns:
        Whether there was anything of an earlier start.

    Raises:
        ForeignDomain: what is there is not ours to end; it was left alone.
        HostFull: it is ours, and somebody holds it.
    """
    name = domain_in(spec, ownership.owner, ownership.slot)
    there = await host.domain(name)
    if there is None or there.ownership == ownership:
        return False
    if there.active:
        held = there.ownership
        if held is None or (held.owner, held.slot) != (ownership.owner, ownership.slot):
            raise ForeignDomain(
                f"a domain {name!r} runs already and is not ours; it was left alone",
                host=host.uri,
                domain=name,
                remedy=f"end it (virsh -c '{host.uri}' shutdown '{name}'), or rename one",
            )
        if claimed(held.start):
            raise ForeignDomain(
                f"another build has the domain {name!r}; it was left alone",
                host=host.uri,
                domain=name,
                remedy="name each host by one URI only",
            )
        hold = there.held_at(time.time())
        if hold is not None:
            raise HostFull(
                f"the VM {name!r} is {hold}",
                host=host.uri,
                domain=name,
                remedy=f"wait, or: latentvirt vm release {name} -c '{host.uri}'",
            )
        await host.destroy(there.uuid, only=held)
    if there.persistent and spec.kind != "predefined":
        raise ForeignDomain(
            f"a domain {name!r} is defined on the host and is not ours; it was left alone",
            host=host.uri,
            domain=name,
            remedy="leave xml= and size= out to use it, or undefine it, or give yours another name",
        )
    return there.active
