"""What else, besides disks, a guest can write to that outlives its start."""

from __future__ import annotations

from collections.abc import Iterator

from latentvirt.domainxml.parse import Element, line_of, parse
from latentvirt.domainxml.problems import Problem
from latentvirt.domainxml.qemuargs import argument_problems
from latentvirt.domainxml.remembering import remembered

NVRAM, TPM, NVDIMM, SHMEM, PSTORE, HOSTDEV = "nvram", "tpm", "nvdimm", "shmem", "pstore", "hostdev"
"""How ``allow_shared`` names what has no name of its own in the XML."""

PERSISTENT_MEMORY = ("nvdimm", "virtio-pmem")

UNNAMED_FOLDER = "filesystem"
"""How ``allow_shared`` names a folder whose XML gives no target directory."""


def freshness_problems(
    xml: str, *, allow_shared: frozenset[str], own_uuid: bool = False
) -> tuple[Problem, ...]:
    """List what would outlive a start of this domain, apart from its disks.

    Args:
        xml: the domain's XML, as written or live.
        allow_shared: names of what may.
        own_uuid: whether the domain gets a UUID that no start had before. libvirt keeps an emulated TPM's
            state by UUID, so that a predefined domain's starts share it.

    Returns:
        Empty if nothing would.
    """
    return problems_in(parse(xml), allow_shared=allow_shared, own_uuid=own_uuid)


def problems_in(root: Element, *, allow_shared: frozenset[str], own_uuid: bool) -> tuple[Problem, ...]:
    """List what would outlive a start; as `freshness_problems`, of XML that is read already."""
    found = [
        *_folders(root),
        *_memory(root),
        *_shared_memory(root),
        *_tpm(root, own_uuid=own_uuid),
        *_firmware(root),
        *_pstore(root),
        *_host_devices(root),
        *argument_problems(root),
    ]
    return tuple(problem for problem in found if problem.name not in allow_shared)


@remembered
def uses_vars(xml: str) -> bool:
    """Tell whether a start of this domain has UEFI variables, which need a file."""
    return has_vars(parse(xml))


def has_vars(root: Element) -> bool:
    """Tell whether a start has UEFI variables; as `uses_vars`, of XML that is read already."""
    os, loader = root.find("os"), root.find("os/loader")
    if os is None or (loader is not None and loader.get("stateless") == "yes"):
        return False
    return (
        os.get("firmware") == "efi"
        or os.find("nvram") is not None
        or (loader is not None and loader.get("type") == "pflash")
    )


@remembered
def has_emulated_tpm(xml: str) -> bool:
    """Tell whether the domain has a TPM whose state libvirt keeps under the domain's UUID."""
    return parse(xml).find("devices/tpm/backend[@type='emulator']") is not None


def _folders(root: Element) -> Iterator[Problem]:
    for folder in root.iterfind("devices/filesystem"):
        target = folder.find("target")
        name = (target.get("dir", "") if target is not None else "") or UNNAMED_FOLDER
        if folder.find("readonly") is None:
            yield Problem(
                name,
                line_of(folder),
                f"the shared folder {name!r} can be written to",
                ("mark it <readonly/>",),
            )


def _memory(root: Element) -> Iterator[Problem]:
    for memory in root.iterfind("devices/memory"):
        model = memory.get("model", "")
        if model in PERSISTENT_MEMORY and memory.find("target/readonly") is None:
            yield Problem(
                NVDIMM,
                line_of(memory),
                f"the {model} memory is a file on the host that the guest writes to",
                ("put <readonly/> into its <target>", "remove it"),
            )


def _shared_memory(root: Element) -> Iterator[Problem]:
    for memory in root.iterfind("devices/shmem"):
        yield Problem(
            SHMEM,
            line_of(memory),
            f"the shared memory {memory.get('name', '')!r} stays on the host",
            ("remove it",),
        )


def _tpm(root: Element, *, own_uuid: bool) -> Iterator[Problem]:
    for tpm in root.iterfind("devices/tpm"):
        backend = tpm.find("backend")
        kind = "" if backend is None else backend.get("type", "")
        remedies: tuple[str, ...] = ("remove the <tpm>",)
        if backend is None or kind != "emulator":
            what = f"the TPM of backend {kind!r} is the host's or another program's, and keeps its state"
            remedies = ("use <backend type='emulator' version='2.0'/>", *remedies)
        elif backend.get("persistent_state") == "yes":
            what = "the TPM's state is kept after the domain is gone (persistent_state='yes')"
            remedies = ("remove persistent_state", *remedies)
        elif backend.find("source") is not None:
            what = "the TPM's state is in a place of its own, which every start would use"
            remedies = ("remove the backend's <source>", *remedies)
        elif not own_uuid:
            what = "libvirt keeps the TPM's state by the domain's UUID, so that all starts would share it"
            remedies = ("give the domain as xml= (each start then has a UUID of its own)", *remedies)
        else:
            continue
        yield Problem(TPM, line_of(tpm), what, remedies)


def _firmware(root: Element) -> Iterator[Problem]:
    loader, nvram = root.find("os/loader"), root.find("os/nvram")
    if loader is not None and loader.get("type") == "pflash" and loader.get("readonly") != "yes":
        yield Problem(
            NVRAM,
            line_of(loader),
            "the firmware itself can be written to (<loader> without readonly='yes')",
            ("add readonly='yes' to the <loader>", "use <os firmware='efi'> without a <loader>"),
        )
    if nvram is not None and nvram.get("type", "file") != "file":
        yield Problem(
            NVRAM,
            line_of(nvram),
            f"the UEFI variables are on a source of type {nvram.get('type')!r}, the same for every start",
            ("remove the <nvram>; each start then gets a file from the firmware's template",),
        )


def _pstore(root: Element) -> Iterator[Problem]:
    for pstore in root.iterfind("devices/pstore"):
        what = "the <pstore> is a file on the host that the guest writes to"
        yield Problem(PSTORE, line_of(pstore), what, ("remove it",))


def _host_devices(root: Element) -> Iterator[Problem]:
    for device in root.iterfind("devices/hostdev"):
        kind = device.get("type", "")
        if kind != "mdev":  # a mediated device is made for one user at a time and reset between them
            yield Problem(
                HOSTDEV,
                line_of(device),
                f"the host's own {kind} device is given to the guest, with whatever it can store",
                ("remove the <hostdev>",),
            )
