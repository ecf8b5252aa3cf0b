"""What a start will need, looked up before anything of it exists: description, disks, fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import attrs

from latentvirt import domainxml
from latentvirt.config import BYTES_PER_MIB
from latentvirt.describing import describe, own_name
from latentvirt.domainxml.rewrite import OVERLAY_FORMAT
from latentvirt.errors import HostError, HostUnreachable, NotFresh
from latentvirt.guest import PROTOCOL
from latentvirt.host import Host
from latentvirt.spec import BY_CHANNEL, MachineSpec
from latentvirt.storage import Chain, Storage, backing_chain

DEVICES = "/dev/"

DIGEST_LENGTH = 16
LINEAGE_LENGTH = 8


@attrs.frozen(kw_only=True)
class PlannedDisk:
    """A disk that gets a file of its own at each start.

    Args:
        target: its name in the domain.
        chain: the images that its overlay stands on; no layers for a disk that begins empty.
        capacity: bytes that the guest is to see.
        format: of the file.
    """

    target: str
    chain: Chain
    capacity: int
    format: str = OVERLAY_FORMAT

    @property
    def kind(self) -> str:
        """Of what kind its file is, as in `FileName`."""
        return "overlay" if self.chain.layers else "disk"


@attrs.frozen(kw_only=True)
class Plan:
    """All that a start needs to know of its host and its images.

    Args:
        spec: what the VM is to be; its kind is known by now.
        xml: the domain's description before ours; the name in it may not be the one that a start gives it.
        disks: those that get a file of their own.
        has_vars: whether each start gets a file for its UEFI variables.
        hindrance: why such a VM cannot be frozen; None if it can, as far as is known before it was tried.
        fingerprint: digest of all that its memory image depends on; empty if it cannot be frozen.
        lineage: digest of what stays the same when an image is replaced by a newer one.
    """

    spec: MachineSpec
    xml: str = attrs.field(repr=False)
    disks: tuple[PlannedDisk, ...]
    has_vars: bool
    hindrance: str | None
    fingerprint: str
    lineage: str

    @property
    def may_be_thawed(self) -> bool:
        """Whether such a VM may begin from a frozen image, or be one that stands by."""
        return bool(self.fingerprint) and self.spec.start != "boot"


async def plan(host: Host, storage: Storage | None, spec: MachineSpec) -> Plan:
    """Look up what a start of a spec needs.

    Args:
        host: where.
        storage: where its files will go; None if it has none of its own.
        spec: what the VM is to be.

    Raises:
        NotFresh: the guest could write to something that outlives the start.
        ImageError: an image that an overlay is to stand on is not there.
        ForeignDomain: the domain is to be predefined, and is not.
    """
    described = await describe(host, spec)
    if spec.seed is not None:
        described = domainxml.with_seed(described, seed=spec.seed, own=False)
    xml, extra = domainxml.with_devices(described, spec.disks, spec.networks)
    if storage is None or not spec.proven:
        return _without_files(spec, xml)
    domainxml.check(
        described,
        base_image=spec.base_image,
        hd_image=spec.hd_image,
        allow_shared=spec.allow_shared,
        own_uuid=spec.own_uuid,
    )
    await host.turn()
    await storage.prepare()
    disks = (*await _disks(host, storage, spec, described), *_empty_disks(spec, extra))
    await host.turn()
    hindrance = _hindrance(spec, xml)
    has_vars = "nvram" not in spec.allow_shared and domainxml.uses_vars(xml)
    await host.turn()
    return Plan(
        spec=spec,
        xml=xml,
        disks=disks,
        has_vars=has_vars,
        hindrance=hindrance,
        fingerprint="" if hindrance else await _fingerprint(host, storage, spec, xml, disks),
        lineage=_lineage(spec),
    )


def _without_files(spec: MachineSpec, xml: str) -> Plan:
    return Plan(
        spec=spec,
        xml=xml,
        disks=(),
        has_vars=False,
        hindrance="without a base_image its disk is not ours to freeze",
        fingerprint="",
        lineage="",
    )


async def _disks(host: Host, storage: Storage, spec: MachineSpec, xml: str) -> tuple[PlannedDisk, ...]:
    disks = []
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
        chain = await backing_chain(storage, path, given, host=host.uri, role=role)
        capacity = chain.capacity
        if disk.system and spec.size.disk is not None:
            capacity = max(capacity, spec.size.disk * BYTES_PER_MIB)
        disks.append(PlannedDisk(target=disk.target, chain=chain, capacity=capacity))
    return tuple(disks)


def _empty_disks(spec: MachineSpec, targets: tuple[str, ...]) -> Iterator[PlannedDisk]:
    for target, disk in zip(targets, spec.disks, strict=True):
        capacity = disk.mib * BYTES_PER_MIB
        yield PlannedDisk(target=target, chain=Chain((), capacity, ""), capacity=capacity, format=disk.format)


async def _path_of(host: Host, source: domainxml.DiskSource) -> str:
    if source.kind == "volume":
        return await host.volume_path(source.pool, source.path)
    return source.path


def _hindrance(spec: MachineSpec, xml: str) -> str | None:
    if spec.identity not in BY_CHANNEL:
        return f"identity={spec.identity!r}: a frozen guest learns who it is over the channel only"
    return domainxml.hindrance(xml, allow_shared=spec.allow_shared)


async def _fingerprint(
    host: Host, storage: Storage, spec: MachineSpec, xml: str, disks: tuple[PlannedDisk, ...]
) -> str:
    overlaid = frozenset(disk.target for disk in disks)
    capabilities, versions = await host.capabilities(), await host.versions()
    await host.turn()
    essence = domainxml.essence(xml, overlaid=overlaid)
    await host.turn()
    parts = {
        # A domain that has a name of the person's is nobody else's.
        "domain": "" if spec.kind == "generated" else own_name(spec),
        "xml": essence,
        "disks": [(disk.target, disk.chain.stamp, disk.capacity) for disk in disks],
        "files": await _files(storage, domainxml.files_read(xml, overlaid=overlaid)),
        "host": (versions.libvirt, versions.hypervisor, capabilities.cpu),
        # The helper is part of the base image; what it speaks is not.
        "protocol": PROTOCOL,
    }
    return _digest(parts, DIGEST_LENGTH)


async def _files(storage: Storage, paths: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(path, await _content(storage, path)) for path in paths]


async def _content(storage: Storage, path: str) -> str:
    try:
        # libvirt labels a kernel while a guest runs from it, which is no change of the kernel's content.
        return (await storage.image(path)).modified
    except HostUnreachable:
        raise
    except HostError:
        return ""  # what libvirt says when it cannot start from it, will be clearer


def _lineage(spec: MachineSpec) -> str:
    named = spec.kind != "generated"
    parts: dict[str, object] = {
        "domain": own_name(spec) if named else "",
        "xml": spec.xml,
        "base": spec.base_image if spec.image is None else str(spec.image),
        "size": None if named else attrs.astuple(spec.size),
        "generated": None if named else (spec.network.text, spec.virt_type),
    }
    if named and spec.size.disk is not None:
        parts["disk"] = spec.size.disk
    if spec.disks or spec.networks:
        parts["extra"] = [str(one) for one in (*spec.disks, *spec.networks)]
    return _digest(parts, LINEAGE_LENGTH)


def _digest(parts: object, length: int) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:length]
