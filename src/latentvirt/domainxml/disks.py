"""Which of a domain's disks the guest can write to, and which of them is the system's."""

from __future__ import annotations

import posixpath
from typing import Literal, TypeAlias, cast

import attrs

from latentvirt.domainxml.parse import Element, line_of, parse
from latentvirt.domainxml.problems import Problem, refuse
from latentvirt.domainxml.remembering import remembered
from latentvirt.errors import BadXML

SourceKind: TypeAlias = Literal["file", "block", "volume"]

PATH_ATTRIBUTE = {"file": "file", "block": "dev", "volume": "volume"}
"""Kinds of disk that an overlay can stand on, and the attribute of <source> that says where the disk is."""

WRITABLE_DEVICES = ("disk", "floppy")
"""A cdrom is read-only whatever the XML says; a lun passes commands through to a real device."""


@attrs.frozen
class DiskSource:
    """Where a disk's content is.

    Args:
        kind: ``file``, ``block`` or ``volume``.
        path: path on the host; for a volume its name.
        pool: libvirt pool of a volume.
        format: as the XML says; None if it does not, which libvirt takes for ``raw``.
    """

    kind: SourceKind
    path: str
    pool: str = ""
    format: str | None = None


@attrs.frozen
class WritableDisk:
    """A disk that gets an overlay.

    Args:
        target: its name in the domain, such as ``vda``.
        source: what it stands on without us; None if the XML names nothing (system disk only).
        system: whether it is the one that stands on the base image.
        line: where it is in the XML.
    """

    target: str
    source: DiskSource | None
    system: bool
    line: int


def target_of(disk: Element) -> str:
    """Read a disk's name in the domain; empty if the XML gives none."""
    target = disk.find("target")
    return "" if target is None else target.get("dev", "")


def source_of(disk: Element) -> DiskSource | None:
    """Read where a disk's content is; None if the XML names nothing, or nothing that can carry an overlay."""
    kind = disk.get("type", "file")
    source, driver = disk.find("source"), disk.find("driver")
    path = source.get(PATH_ATTRIBUTE.get(kind, ""), "") if source is not None else ""
    if source is None or not path:
        return None
    return DiskSource(
        kind=cast(SourceKind, kind),
        path=path,
        pool=source.get("pool", "") if kind == "volume" else "",
        format=None if driver is None else driver.get("type"),
    )


@remembered
def writable_disks(
    xml: str, *, hd_image: str | None, allow_shared: frozenset[str]
) -> tuple[WritableDisk, ...]:
    """List the disks that get an overlay, in the XML's order.

    Args:
        xml: the domain's XML.
        hd_image: path of the system disk's image; if None or not found, the first writable
            disk is the system's.
        allow_shared: targets of disks that stay as they are.

    Returns:
        Exactly one of them is the system's, unless there is none.

    Raises:
        BadXML: a disk lacks its target or its source, two have one target, or ``hd_image`` names one that is
            read-only or allowed to be shared.
        NotFresh: the guest can write to a disk that no overlay can stand before.
    """
    return disks_of(parse(xml), hd_image=hd_image, allow_shared=allow_shared)


def disks_of(
    root: Element, *, hd_image: str | None, allow_shared: frozenset[str]
) -> tuple[WritableDisk, ...]:
    """List the disks that get an overlay; as `writable_disks`, of XML that is read already."""
    disks = root.findall("devices/disk")
    _check_targets(disks)
    writable = [disk for disk in disks if is_written(disk, allow_shared)]
    refuse([problem for disk in writable for problem in problems_of(disk)])
    system = _system_disk(disks, writable, hd_image)
    found = []
    for disk in writable:
        source = source_of(disk)
        if source is None and disk is not system:
            if disk.get("device") == "floppy":
                continue
            raise BadXML(
                f"disk {target_of(disk)} has no source",
                line=line_of(disk),
                remedy="give it a <source>, or remove the disk",
            )
        found.append(WritableDisk(target_of(disk), source, disk is system, line_of(disk)))
    return tuple(found)


def is_written(disk: Element, allow_shared: frozenset[str]) -> bool:
    """Whether the guest can write to a disk and nobody has said that it may be shared."""
    if disk.find("readonly") is not None or target_of(disk) in allow_shared:
        return False
    return disk.get("device", "disk") in (*WRITABLE_DEVICES, "lun")


def problems_of(disk: Element) -> list[Problem]:
    """Say why no overlay can stand before a writable disk; nothing if one can."""
    target, kind = target_of(disk), disk.get("type", "file")
    remedies = ("give it a file, a block device or a volume as its source", "mark it <readonly/>")
    if disk.get("device") == "lun":
        what = f"disk {target} is a lun: the guest writes to the host's own device"
    elif kind not in PATH_ATTRIBUTE:
        what = f"disk {target} is of type {kind!r}, which the guest writes to directly"
    elif disk.find("shareable") is not None:
        what = f"disk {target} is <shareable/>: what the guest writes is meant for others"
        remedies = ("remove <shareable/>", "mark it <readonly/>")
    elif any(disk.find(path) is not None for path in ("encryption", "source/encryption", "source/slices")):
        what = f"disk {target} is encrypted or a slice of its source, which an overlay cannot stand on"
        remedies = ("give it a plain image as its source", "mark it <readonly/>")
    else:
        return []
    return [Problem(name=target, line=line_of(disk), what=what, remedies=remedies)]


def _check_targets(disks: list[Element]) -> None:
    seen: dict[str, int] = {}
    for disk in disks:
        target = target_of(disk)
        if not target:
            raise BadXML(
                "a disk has no <target dev=...>",
                line=line_of(disk),
                remedy="name it, as in <target dev='vda'/>",
            )
        if target in seen:
            raise BadXML(
                f"two disks have the target {target}: here and in line {seen[target]}",
                line=line_of(disk),
                remedy="give each disk a target of its own",
            )
        seen[target] = line_of(disk)


def _system_disk(disks: list[Element], writable: list[Element], hd_image: str | None) -> Element | None:
    if hd_image:
        wanted = posixpath.normpath(hd_image)
        for disk in disks:
            source = source_of(disk)
            if source is None or source.kind == "volume" or posixpath.normpath(source.path) != wanted:
                continue
            if disk in writable:
                return disk
            raise BadXML(
                f"hd_image {hd_image!r} is the source of disk {target_of(disk)}, which cannot be replaced: "
                "it is read-only or named in allow_shared",
                line=line_of(disk),
                remedy="make that disk writable, take it out of allow_shared, or name another in hd_image",
            )
    return next((disk for disk in writable if disk.get("device", "disk") == "disk"), None)
