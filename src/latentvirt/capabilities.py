"""What a host can do for a domain that we describe, read from what libvirt says of it."""

from __future__ import annotations

import hashlib

import attrs
from lxml import etree

from latentvirt.errors import HostError

X86 = ("x86_64", "i686")
HARDWARE_VIRTUALISATION = frozenset({"vmx", "svm"})
"""Processor features of which KVM on x86 needs one."""

PREFERRED_MACHINE = {"x86_64": "q35", "i686": "q35", "aarch64": "virt", "armv7l": "virt", "riscv64": "virt"}

PANIC_X86 = "isa"

CPU_DIGITS = 16
"""Hexadecimal digits of the processor's digest."""

MEASURED = "counter"
"""The part of ``<cpu>`` that is measured at each of the host's boots, and comes out a little different."""


@attrs.frozen(kw_only=True)
class HostCapabilities:
    """What a host offers.

    Args:
        arch: as libvirt names it: ``x86_64``, ``aarch64``...
        machine: type of machine, with its version, so that a memory image stays usable after an upgrade.
        emulator: path of QEMU on the host.
        kvm: whether KVM really works there.
        vmgenid: whether a domain can have a generation id, which tells a guest that it was thawed.
        uefi: whether libvirt finds a UEFI firmware there by itself.
        maximum_cpu: whether an emulated processor can be asked for with all that QEMU emulates.
        panic_models: devices by which a guest can say that its kernel panicked.
        security_models: as in ``<secmodel>``: ``dac``, ``selinux``, ``apparmor``.
        cpu: a digest of the host's processor, which a restored guest goes on using; empty if unknown.
    """

    arch: str
    machine: str
    emulator: str
    kvm: bool
    vmgenid: bool = False
    uefi: bool = False
    maximum_cpu: bool = False
    panic_models: tuple[str, ...] = ()
    security_models: tuple[str, ...] = ()
    cpu: str = ""


def is_x86(arch: str) -> bool:
    """Whether an architecture is that of a PC."""
    return arch in X86


def read_capabilities(
    capabilities_xml: str | None,
    domain_capabilities_xml: str,
    *,
    kvm_domain_capabilities_xml: str | None,
    host_cpu_features: frozenset[str],
) -> HostCapabilities:
    """Read what a host offers.

    Args:
        capabilities_xml: what ``virsh capabilities`` prints; None takes the machine that the other names.
        domain_capabilities_xml: what ``virsh domcapabilities --virttype qemu`` prints.
        kvm_domain_capabilities_xml: the same for kvm; None if the host refused it.
        host_cpu_features: of the host's processor, as in ``/proc/cpuinfo`` or libvirt's ``<cpu>``.

    Raises:
        HostError: the answers cannot be read, or lack what every domain needs.
    """
    domain = _parse(domain_capabilities_xml, "domainCapabilities")
    host = None if capabilities_xml is None else _parse(capabilities_xml, "capabilities")
    arch, machine, emulator = (_text(domain, tag) for tag in ("arch", "machine", "path"))
    # A kernel can offer /dev/kvm without the processor's help and then hang every ordinary guest in it.
    kvm = kvm_domain_capabilities_xml is not None and (
        not is_x86(arch) or bool(HARDWARE_VIRTUALISATION & host_cpu_features)
    )
    return HostCapabilities(
        arch=arch,
        machine=_machine(host, arch) or machine,
        emulator=emulator,
        kvm=kvm,
        vmgenid=_supported(domain, "features/genid"),
        uefi="efi" in _values(domain, "os/enum[@name='firmware']/value"),
        maximum_cpu=_supported(domain, "cpu/mode[@name='maximum']"),
        panic_models=_panic_models(domain, arch),
        security_models=() if host is None else tuple(_values(host, "host/secmodel/model")),
        cpu=_cpu_digest(host),
    )


def cpu_features_of(xml: str) -> frozenset[str]:
    """Read the processor's features from ``virsh capabilities`` or from kvm's domain capabilities."""
    root = etree.fromstring(xml.encode(), _parser())
    found = [
        *root.iterfind("host/cpu/feature"),
        *root.iterfind("cpu/mode[@name='host-model']/feature[@policy='require']"),
    ]
    return frozenset(feature.get("name", "") for feature in found)


def _parser() -> etree.XMLParser:
    return etree.XMLParser(encoding="utf-8", resolve_entities=False, no_network=True, load_dtd=False)


def _parse(xml: str, tag: str) -> etree._Element:
    try:
        root = etree.fromstring(xml.encode(), _parser())
    except etree.XMLSyntaxError as error:
        raise HostError(f"the host's {tag} cannot be read: {error.msg}") from error
    if root.tag != tag:
        raise HostError(f"<{tag}> was expected of the host, and <{root.tag!s}> came")
    return root


def _text(root: etree._Element, tag: str) -> str:
    text = (root.findtext(tag) or "").strip()
    if not text:
        raise HostError(
            f"the host's domain capabilities have no <{tag}>",
            remedy="look at what `virsh domcapabilities` prints",
        )
    return text


def _values(root: etree._Element, path: str) -> list[str]:
    return [(value.text or "").strip() for value in root.iterfind(path)]


def _supported(root: etree._Element, path: str) -> bool:
    element = root.find(path)
    return element is not None and element.get("supported") == "yes"


def _machine(host: etree._Element | None, arch: str) -> str | None:
    wanted = PREFERRED_MACHINE.get(arch)
    if host is None or wanted is None:
        return None
    for machine in host.iterfind(f"guest/arch[@name='{arch}']/machine"):
        if machine.text == wanted:
            return machine.get("canonical") or wanted
    return None


def _cpu_digest(host: etree._Element | None) -> str:
    cpu = None if host is None else host.find("host/cpu")
    if cpu is None:
        return ""
    return hashlib.sha256(repr(_sorted(cpu)).encode()).hexdigest()[:CPU_DIGITS]


def _sorted(element: etree._Element) -> tuple[object, ...]:
    """Bring an element into a form in which the order of attributes and children makes no difference."""
    children = sorted(repr(_sorted(child)) for child in element.iterchildren("*") if child.tag != MEASURED)
    return (element.tag, sorted(element.items()), (element.text or "").strip(), children)


def _panic_models(domain: etree._Element, arch: str) -> tuple[str, ...]:
    # Older libvirt does not list the models; the ISA device is in every PC that QEMU makes.
    if domain.find("devices/panic") is None:
        return (PANIC_X86,) if is_x86(arch) else ()
    return tuple(_values(domain, "devices/panic/enum[@name='model']/value"))
