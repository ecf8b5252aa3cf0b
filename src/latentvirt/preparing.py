"""The files of a start: an overlay for each disk that its guest writes to, and one for its UEFI variables."""

from __future__ import annotations

from collections.abc import Callable

from latentvirt import domainxml
from latentvirt.errors import NotFresh
from latentvirt.host import Host
from latentvirt.names import FileName, Ownership
from latentvirt.spec import MachineSpec
from latentvirt.storage import Storage, backing_chain

BYTES_PER_MIB = 1024 * 1024
DEVICES = "/dev/"


async def make_overlays(
    host: Host,
    storage: Storage,
    spec: MachineSpec,
    ownership: Ownership,
    xml: str,
    will_make: Callable[[FileName], object],
) -> list[domainxml.Overlay]:
    """Make an overlay for each disk that the guest can write to.

    Args:
        host: where.
        storage: where the overlays go.
        spec: what the VM is to be.
        ownership: whose it is.
        xml: the domain's description, before ours.
        will_make: called with each file's name before the file is made: a creation that fails late may have
            made it all the same.

    Raises:
        NotFresh: the guest could write to something that outlives the start.
        ImageError: an image that an overlay is to stand on is not there.
    """
    domainxml.check(
        xml,
        base_image=spec.base_image,
        hd_image=spec.hd_image,
        allow_shared=spec.allow_shared,
        own_uuid=spec.own_uuid,
    )
    await storage.prepare()
    overlays = []
    for disk in domainxml.writable_disks(xml, hd_image=spec.hd_image, allow_shared=spec.allow_shared):
        if disk.system:
            path, given, role = str(spec.base_image), spec.base_format, "base image"
        elif disk.source is not None:
            # libvirt takes an undeclared format for raw; a guest could make its disk look like another.
            path, given = await _path_of(host, disk.source), disk.source.format or "raw"
            role = f"disk {disk.target}"
        else:
            continue
        if path.startswith(DEVICES):
            raise NotFresh(
                f"the {role} is the device {path}, over which latentvirt makes no overlays",
                remedy=f"use an image file, or allow_shared={{{disk.target!r}}} if builds may meet there",
                host=host.uri,
            )
        stand = await backing_chain(storage, path, given, host=host.uri, role=role)
        chain, capacity = stand.layers, stand.capacity
        if disk.system and spec.kind == "generated" and spec.size.disk is not None:
            capacity = max(capacity, spec.size.disk * BYTES_PER_MIB)
        name = FileName(ownership.slot, ownership.start, "overlay", disk.target)
        will_make(name)
        made = await storage.create_overlay(name, chain[0], capacity)
        overlays.append(domainxml.Overlay(disk.target, made, chain))
    return overlays


async def _path_of(host: Host, source: domainxml.DiskSource) -> str:
    if source.kind == "volume":
        return await host.volume_path(source.pool, source.path)
    return source.path


async def make_vars(
    storage: Storage,
    spec: MachineSpec,
    ownership: Ownership,
    xml: str,
    will_make: Callable[[FileName], object],
) -> str | None:
    """Make the file for a start's UEFI variables, which libvirt fills from their template.

    Returns:
        Its path on the host; None if the domain has no such variables, or may share them.
    """
    if "nvram" in spec.allow_shared or not domainxml.uses_vars(xml):
        return None
    name = FileName(ownership.slot, ownership.start, "vars", "nvram")
    will_make(name)
    return await storage.create_empty(name)
