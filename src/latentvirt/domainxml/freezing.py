"""What a domain's XML says about freezing it: what stands in the way, and what a memory image depends on."""

from __future__ import annotations

from lxml import etree

from latentvirt.domainxml.disks import is_written, source_of, target_of
from latentvirt.domainxml.parse import Element, parse, remove
from latentvirt.domainxml.remembering import remembered

OWN_TO_A_START = ("name", "uuid", "metadata", "os/nvram")
"""What differs from start to start without a memory image being any different for it."""

FIRMWARE_AND_KERNEL = ("os/kernel", "os/initrd", "os/dtb", "os/loader")

_UNSAVABLE = (
    ("devices/filesystem", "a shared folder cannot be saved with the memory"),
    ("devices/hostdev", "a device of the host's is passed through, and cannot be saved with the memory"),
    ("devices/interface[@type='hostdev']", "a network card of the host's is passed through"),
    ("devices/interface[@type='vhostuser']", "a vhost-user network card cannot be saved with the memory"),
    ("devices/disk[@type='vhostuser']", "a vhost-user disk cannot be saved with the memory"),
    ("devices/shmem", "memory that is shared with others cannot be saved"),
    ("devices/tpm", "the state of a TPM cannot be kept with the memory"),
    ("devices/memory[@model='nvdimm']", "an nvdimm cannot be saved with the memory"),
    ("devices/memory[@model='virtio-pmem']", "a virtio-pmem device cannot be saved with the memory"),
    ("launchSecurity", "encrypted memory cannot be saved"),
)


@remembered
def hindrance(xml: str, *, allow_shared: frozenset[str]) -> str | None:
    """Say why a domain can only boot; None if nothing is seen that would keep it from being frozen.

    Args:
        xml: the domain's XML, before ours.
        allow_shared: targets of disks that stay as they are.
    """
    root = parse(xml)
    for path, why in _UNSAVABLE:
        if root.find(path) is not None:
            return why
    for disk in root.iterfind("devices/disk"):
        target = target_of(disk)
        if target in allow_shared and is_written(disk, frozenset()):
            # A frozen guest would go on with what it remembers of a disk that others have written to since.
            return f"disk {target} is shared with other builds, and a frozen guest remembers its old content"
    if "nvram" in allow_shared:
        return "the UEFI variables are shared with other builds"
    return None


@remembered
def essence(xml: str, *, overlaid: frozenset[str]) -> str:
    """Reduce a domain's XML to what a memory image depends on, in one form for all ways to write it.

    Args:
        xml: the domain's XML, before ours.
        overlaid: targets of the disks whose source each start replaces.
    """
    root = parse(xml)
    for path in OWN_TO_A_START:
        for element in root.findall(path):
            remove(element)
    for disk in root.iterfind("devices/disk"):
        if target_of(disk) in overlaid:
            for tag in ("source", "backingStore"):
                for element in disk.findall(tag):
                    remove(element)
    return str(etree.canonicalize(etree.tostring(root, encoding="unicode"), strip_text=True))


@remembered
def files_read(xml: str, *, overlaid: frozenset[str]) -> tuple[str, ...]:
    """List the files on the host that a guest starts from besides its overlaid disks.

    Args:
        xml: the domain's XML, before ours.
        overlaid: targets of the disks whose source each start replaces.
    """
    root = parse(xml)
    named = [_text(root, path) for path in FIRMWARE_AND_KERNEL]
    for disk in root.iterfind("devices/disk"):
        source = source_of(disk)
        if target_of(disk) not in overlaid and source is not None and source.kind == "file":
            named.append(source.path)
    return tuple(dict.fromkeys(path for path in named if path.startswith("/")))


def _text(root: Element, path: str) -> str:
    return (root.findtext(path) or "").strip()
