"""A sensible domain for a host, from a size."""

from __future__ import annotations

from typing import Literal

from lxml import etree

from latentvirt.capabilities import PANIC_X86, HostCapabilities, is_x86
from latentvirt.devices import Nic, read_nic
from latentvirt.domainxml.adding import interface_element
from latentvirt.domainxml.parse import Element, serialise
from latentvirt.domainxml.remembering import remembered
from latentvirt.names import CHANNEL_PORT
from latentvirt.sizes import Size

AGENT_PORT = "org.qemu.guest_agent.0"
SYSTEM_DISK = "vda"
PLACEHOLDER = "/latentvirt/the-overlay-of-this-start"
"""Source of the generated system disk: nothing is there, so a domain with that disk cannot start."""


@remembered
def generate(
    *,
    name: str,
    uuid: str,
    capabilities: HostCapabilities,
    size: Size,
    network: str | Nic,
    virt_type: Literal["auto", "kvm", "qemu"],
) -> str:
    """Describe a domain for a host.

    Args:
        name: the domain's name.
        uuid: the domain's UUID.
        capabilities: what the host can do.
        size: memory and processors; the disk's size is its overlay's affair.
        network: its network card, or the name of a libvirt network, or ``user``.
        virt_type: ``kvm`` or ``qemu``, or ``auto`` for kvm where it really works.

    Returns:
        The domain's XML; its one disk has a source that is still to be replaced (`rewrite`).
    """
    kvm = capabilities.kvm if virt_type == "auto" else virt_type == "kvm"
    root = etree.Element("domain", type="kvm" if kvm else "qemu")
    _add(root, "name", name)
    _add(root, "uuid", uuid)
    if capabilities.vmgenid:
        _add(root, "genid")
    _add(root, "memory", str(size.memory), unit="MiB")
    _add(root, "vcpu", str(size.vcpus))
    _add_os(root, capabilities)
    if is_x86(capabilities.arch):
        features = _add(root, "features")
        _add(features, "acpi")
        _add(features, "apic")
    if kvm:
        _add(root, "cpu", mode="host-passthrough")
    elif capabilities.maximum_cpu:
        _add(root, "cpu", mode="maximum")
    _add(root, "clock", offset="utc")
    _add(root, "on_poweroff", "destroy")
    _add(root, "on_reboot", "restart")
    _add(root, "on_crash", "destroy")
    _add_devices(_add(root, "devices"), capabilities, read_nic(network))
    etree.indent(root, "  ")
    return serialise(root)


def _add(parent: Element, tag: str, text: str | None = None, **attributes: str) -> Element:
    element = etree.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _add_os(root: Element, capabilities: HostCapabilities) -> None:
    # A PC's BIOS boots any image with a boot loader; the other machines have nothing but UEFI.
    efi = {"firmware": "efi"} if capabilities.uefi and not is_x86(capabilities.arch) else {}
    os = _add(root, "os", **efi)
    _add(os, "type", "hvm", arch=capabilities.arch, machine=capabilities.machine)
    _add(os, "boot", dev="hd")


def _add_devices(devices: Element, capabilities: HostCapabilities, nic: Nic) -> None:
    _add(devices, "emulator", capabilities.emulator)
    disk = _add(devices, "disk", type="file", device="disk")
    # Without an error policy a full disk pauses the guest, which is noticed; other errors the guest sees.
    _add(disk, "driver", name="qemu", type="qcow2", discard="unmap")
    _add(disk, "source", file=PLACEHOLDER)
    _add(disk, "target", dev=SYSTEM_DISK, bus="virtio")
    _add(devices, "controller", type="usb", model="none")
    devices.append(interface_element(nic))
    _add(devices, "serial", type="pty")
    _add(devices, "console", type="pty")
    for port in (AGENT_PORT, CHANNEL_PORT):
        _add(_add(devices, "channel", type="unix"), "target", type="virtio", name=port)
    _add(_add(devices, "video"), "model", type="none")
    _add(devices, "memballoon", model="virtio")
    rng = _add(devices, "rng", model="virtio")
    _add(rng, "backend", "/dev/urandom", model="random")
    if PANIC_X86 in capabilities.panic_models:
        _add(devices, "panic", model=PANIC_X86)
