"""A domain's disk that tells cloud-init what to do, and ports for what the guest says."""

from __future__ import annotations

from collections.abc import Sequence

from lxml import etree

from latentvirt.domainxml.parse import append, ensure, parse, serialise
from latentvirt.domainxml.rewrite import models_to_switch_off

OWNERS = "dac"
"""What changes a file's owner. Others give what is only read a label that all may share, and where one lacks
libvirt refuses its name here."""

SEED_DISK = "vdz"
"""The target of a seed's disk: behind all that a person may have."""


def with_seed(xml: str, *, seed: str, ports: Sequence[str] = (), own: bool = True) -> str:
    """Add a seed's disk, which the guest can only read, and virtio-serial ports.

    Args:
        xml: the domain's XML.
        seed: path of the seed on the host.
        ports: names of the ports.
        own: whether the seed is this VM's alone; libvirt leaves other files as they are.

    Raises:
        BadXML: the XML cannot be read.
    """
    root = parse(xml)
    devices = ensure(root, "devices")
    # A disk like the system's, since every image that boots can read that.
    disk = append(devices, etree.Element("disk", type="file", device="disk"))
    append(disk, etree.Element("driver", name="qemu", type="raw"))
    source = append(disk, etree.Element("source", file=seed))
    for model in () if own else models_to_switch_off(root, (OWNERS,)):
        append(source, etree.Element("seclabel", model=model, relabel="no"))
    append(disk, etree.Element("target", dev=SEED_DISK, bus="virtio"))
    append(disk, etree.Element("readonly"))
    for port in ports:
        channel = append(devices, etree.Element("channel", type="unix"))
        append(channel, etree.Element("target", type="virtio", name=port))
    return serialise(root)
