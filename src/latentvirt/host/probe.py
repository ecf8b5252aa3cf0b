"""What a host can run."""

from __future__ import annotations

from typing import Any

import libvirt
from lxml import etree

from latentvirt.capabilities import HostCapabilities, read_capabilities
from latentvirt.host.xmlread import read, text_at


def probe(connection: Any) -> HostCapabilities:
    """Ask a host what it can run; blocks, and is slow where libvirt has to probe QEMU."""
    capabilities = str(connection.getCapabilities())
    arch = text_at(capabilities, "host/cpu/arch")
    try:
        kvm = str(connection.getDomainCapabilities(None, arch, None, "kvm", 0))
    except libvirt.libvirtError:
        kvm = None
    emulated = str(connection.getDomainCapabilities(None, arch, None, "qemu", 0))
    return read_capabilities(
        capabilities,
        emulated,
        kvm_domain_capabilities_xml=kvm,
        host_cpu_features=_cpu_features(connection, capabilities),
    )


def _cpu_features(connection: Any, capabilities: str) -> frozenset[str]:
    cpu = read(capabilities).find("host/cpu")
    if cpu is None:
        return frozenset()
    described = etree.tostring(cpu, encoding="unicode")
    try:
        # A CPU model may imply vmx or svm without naming it; expanding names all.
        described = str(connection.baselineCPU([described], libvirt.VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES))
    except libvirt.libvirtError:
        pass  # then what is named must do
    found = read(described).iter("feature")
    return frozenset(str(f.get("name")) for f in found if f.get("policy") != "disable")
