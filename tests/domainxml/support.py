"""Values that the tests of domain XML share."""

from __future__ import annotations

from pathlib import Path

from latentvirt.capabilities import HostCapabilities, read_capabilities
from latentvirt.domainxml import Layer, Overlay
from latentvirt.names import Ownership

HERE = Path(__file__).parent
OWNERSHIP = Ownership("0123456789abcdef", "minion1-1a2b3c4d", "0a1b2c3d4e5f")
UUID = "6f2c9f0e-58f2-4e3b-9d8e-0d6f4c1f7a21"
NOTHING: frozenset[str] = frozenset()

BASE_CHAIN = (Layer("/images/base.qcow2", "qcow2"), Layer("/dev/vg0/deep", "raw", "block"))


def overlay(target: str, *chain: Layer) -> Overlay:
    """Name an overlay as a start does; on the base image unless told otherwise."""
    name = f"{OWNERSHIP.slot}.{OWNERSHIP.start}.overlay.{target}"
    return Overlay(target, f"/images/latentvirt-{OWNERSHIP.owner}/{name}", chain or BASE_CHAIN)


def capabilities_text(name: str) -> str:
    """Read one of the stored answers of a host."""
    return (HERE / "capabilities" / f"{name}.xml").read_text()


def capabilities(*, kvm: bool = False) -> HostCapabilities:
    """Read the stored PC's capabilities."""
    return read_capabilities(
        capabilities_text("host"),
        capabilities_text("qemu"),
        kvm_domain_capabilities_xml=capabilities_text("kvm") if kvm else None,
        host_cpu_features=frozenset({"vmx"}),
    )


def domain(devices: str = "", *, os: str = "", rest: str = "") -> str:
    """Write a small domain with a system disk; what is given stands on lines of its own."""
    return (
        "<domain type='qemu'>\n<name>small</name>\n<memory unit='MiB'>64</memory>\n"
        f"<os{os or '><type>hvm</type></os>'}\n<devices>\n"
        "<disk type='file'><source file='/images/hd.img'/><target dev='vda' bus='virtio'/></disk>\n"
        f"{devices}\n</devices>\n{rest}\n</domain>"
    )
