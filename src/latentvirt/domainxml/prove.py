"""Reading a paused domain's live XML back: is everything the guest can write to this start's own?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from latentvirt.domainxml.disks import is_written, source_of, target_of
from latentvirt.domainxml.freshness import NVRAM, has_vars, problems_in
from latentvirt.domainxml.ownership import ownership_in
from latentvirt.domainxml.parse import Element, parse_to_read
from latentvirt.domainxml.rewrite import Overlay, chain_of
from latentvirt.errors import NotProven
from latentvirt.names import Ownership


def prove(
    live_xml: str,
    *,
    ownership: Ownership,
    overlays: Sequence[Overlay],
    vars_path: str | None,
    allow_shared: frozenset[str],
    own_uuid: bool = False,
) -> None:
    """Make sure that a domain, as libvirt made it, writes to nothing but this start's own.

    Args:
        live_xml: the running or paused domain's XML.
        ownership: what its metadata must say.
        overlays: the disks that it must have.
        vars_path: file that its UEFI variables must be in; None if it may have none.
        allow_shared: names of what may outlive the start.
        own_uuid: as in `freshness_problems`.

    Raises:
        NotProven: with everything that differs.
    """
    root = parse_to_read(live_xml)
    differences = [
        *_ownership(root, ownership),
        *_disks(root, overlays, allow_shared),
        *_vars(root, vars_path, allow_shared),
        *(problem.what for problem in problems_in(root, allow_shared=allow_shared, own_uuid=own_uuid)),
    ]
    if differences:
        raise NotProven(
            "the domain that libvirt made is not the one that was asked for, and was not resumed: "
            f"{'; '.join(differences)}.",
            remedy="look for a hook script or another program that changes domains on that host; "
            "`virsh dumpxml` shows them",
            domain=(root.findtext("name") or "").strip(),
        )


def _ownership(root: Element, ownership: Ownership) -> Iterator[str]:
    found = ownership_in(root)
    if found != ownership:
        yield f"its metadata says {found or 'nothing of ours'} instead of {ownership}"


def _disks(root: Element, overlays: Sequence[Overlay], allow_shared: frozenset[str]) -> Iterator[str]:
    wanted = {overlay.target: overlay for overlay in overlays}
    for disk in root.iterfind("devices/disk"):
        target = target_of(disk)
        overlay = wanted.pop(target, None)
        if overlay is not None:
            yield from _overlay(disk, overlay)
        elif is_written(disk, allow_shared) and disk.find("source") is not None:
            yield f"disk {target} can be written to and is not this start's own"
    yield from (f"disk {target} is missing" for target in wanted)


def _overlay(disk: Element, overlay: Overlay) -> Iterator[str]:
    source, chain = source_of(disk), chain_of(disk)
    here = None if source is None else (source.kind, source.path, source.format)
    if here != ("file", overlay.path, overlay.format):
        yield f"disk {overlay.target} is on {here} instead of its own file {overlay.path}"
    if chain != overlay.chain:
        yield f"disk {overlay.target} stands on {chain} instead of {overlay.chain}"
    if disk.find("mirror") is not None:
        yield f"disk {overlay.target} is being copied elsewhere"


def _vars(root: Element, vars_path: str | None, allow_shared: frozenset[str]) -> Iterator[str]:
    nvram = root.find("os/nvram")
    source = None if nvram is None else nvram.find("source")
    path = None if nvram is None else (nvram.text or "").strip()
    if source is not None:
        path = source.get("file")
    if vars_path is not None:
        if path != vars_path:
            yield f"its UEFI variables are in {path} instead of {vars_path}"
    elif has_vars(root) and NVRAM not in allow_shared:
        yield f"its UEFI variables are in {path}, which is not this start's own"
