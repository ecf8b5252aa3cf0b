"""The files of a start: one for each disk that its guest writes to, and one for its UEFI variables."""

from __future__ import annotations

from collections.abc import Callable

from latentvirt import domainxml
from latentvirt.frozen import FrozenImage
from latentvirt.names import FileName, Ownership
from latentvirt.planning import Plan
from latentvirt.storage import Storage

VARS = "nvram"


async def make_files(
    storage: Storage, plan: Plan, ownership: Ownership, will_make: Callable[[FileName], object]
) -> tuple[list[domainxml.Overlay], str | None]:
    """Make the files of a start that boots.

    Args:
        storage: where they go.
        plan: what the start needs.
        ownership: whose they are.
        will_make: called with each file's name before the file is made: a creation that fails late may have
            made it all the same.

    Returns:
        The overlays, and the path of the UEFI variables, which libvirt fills from their template; None if the
        domain has no such variables, or may share them.
    """
    overlays = []
    for disk in plan.disks:
        name = FileName(ownership.slot, ownership.start, disk.kind, disk.target)
        will_make(name)
        if disk.chain.layers:
            made = await storage.create_overlay(name, disk.chain.layers[0], disk.capacity)
        else:
            made = await storage.create_disk(name, disk.format, disk.capacity)
        overlays.append(domainxml.Overlay(disk.target, made, disk.chain.layers, disk.format))
    if not plan.has_vars:
        return overlays, None
    name = FileName(ownership.slot, ownership.start, "vars", VARS)
    will_make(name)
    return overlays, await storage.create_empty(name)


async def make_files_over(
    storage: Storage,
    plan: Plan,
    image: FrozenImage,
    ownership: Ownership,
    will_make: Callable[[FileName], object],
) -> tuple[list[domainxml.Overlay], str | None]:
    """Make the files of a start that is thawed: overlays over the frozen disks, a copy of the variables.

    Args:
        storage: where they go.
        plan: what the start needs.
        image: the frozen image.
        ownership: whose they are.
        will_make: as for `make_files`.
    """
    overlays = []
    for disk in plan.disks:
        below = domainxml.Layer(storage.path_of(image.disk(disk)), disk.format, ours=True)
        name = FileName(ownership.slot, ownership.start, "overlay", disk.target)
        will_make(name)
        made = await storage.create_overlay(name, below, disk.capacity)
        overlays.append(domainxml.Overlay(disk.target, made, (below, *disk.chain.layers)))
    if not plan.has_vars:
        return overlays, None
    name = FileName(ownership.slot, ownership.start, "vars", VARS)
    will_make(name)
    return overlays, await storage.copy(image.vars, name)
