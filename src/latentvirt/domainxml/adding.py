"""Adding disks and network cards to a domain's XML, and addresses for cards that were given none."""

from __future__ import annotations

import string
from collections.abc import Iterator

from lxml import etree

from latentvirt.devices import USER_NETWORK, Disk, Nic
from latentvirt.domainxml.disks import target_of
from latentvirt.domainxml.parse import Element, append, ensure, insert, line_of, parse, serialise
from latentvirt.domainxml.remembering import remembered
from latentvirt.errors import BadXML
from latentvirt.names import mac_of_slot

TARGET_PREFIX = {"virtio": "vd", "scsi": "sd", "sata": "sd"}
SCSI_MODEL = "virtio-scsi"
"""libvirt's own choice on a PC is one that today's systems have no driver for."""


@remembered
def with_devices(xml: str, disks: tuple[Disk, ...], nics: tuple[Nic, ...]) -> tuple[str, tuple[str, ...]]:
    """Add disks, still without a source, and network cards, after those that are there.

    Args:
        xml: the domain's XML.
        disks: as `read_disks` returns them.
        nics: as `read_nics` returns them.

    Returns:
        The domain's XML, and of each disk added its target.

    Raises:
        BadXML: the XML has a disk of the same serial or a network card of the same address already.
    """
    if not disks and not nics:
        return xml, ()
    root = parse(xml)
    devices = ensure(root, "devices")
    _refuse_taken(devices, "disk", "serial", {serial_of(disk): disk.serial for disk in disks})
    _refuse_taken(devices, "network card", "mac", {str(nic.mac): nic.mac for nic in nics})
    targets = []
    if any(disk.bus == "scsi" for disk in disks) and not _has_scsi(devices):
        append(devices, etree.Element("controller", type="scsi", model=SCSI_MODEL))
    for disk in disks:
        target = _next_target(devices, TARGET_PREFIX[disk.bus])
        _after_last(devices, "disk", disk_element(disk, target))
        targets.append(target)
    for nic in nics:
        _after_last(devices, "interface", interface_element(nic))
    return serialise(root), tuple(targets)


def serial_of(disk: Disk) -> str:
    """Say by what serial a disk is told from others."""
    return str(disk.serial)


def disk_element(disk: Disk, target: str) -> Element:
    """Describe a disk, but for its source."""
    element = etree.Element("disk", type="file", device="disk")
    etree.SubElement(element, "driver", name="qemu", type=disk.format, discard="unmap")
    etree.SubElement(element, "source")
    etree.SubElement(element, "target", dev=target, bus=disk.bus)
    etree.SubElement(element, "serial").text = serial_of(disk)
    return element


def interface_element(nic: Nic) -> Element:
    """Describe a network card."""
    kind = "bridge" if nic.bridge else "user" if nic.network == USER_NETWORK else "network"
    element = etree.Element("interface", type=kind)
    if nic.mac is not None:
        etree.SubElement(element, "mac", address=nic.mac)
    if kind != "user":
        etree.SubElement(element, "source", {kind: str(nic.bridge or nic.network)})
    etree.SubElement(element, "model", type=nic.model)
    return element


def give_macs(root: Element, host: str, owner: str, slot: str, count: int) -> None:
    """Give the last cards of a domain, where they have none, the addresses of its slot.

    Args:
        root: the domain.
        host: its host's URI.
        owner: whose it is.
        slot: the place that it takes.
        count: how many cards are not the person's own, from the last one on.
    """
    cards = root.findall("devices/interface")
    for number, card in enumerate(cards[len(cards) - count :] if count else ()):
        if card.find("mac") is None:
            insert(card, 0, etree.Element("mac", address=mac_of_slot(host, owner, slot, number)))


def _refuse_taken(devices: Element, what: str, key: str, wanted: dict[str, str | None]) -> None:
    for name, element in _taken(devices, key):
        if wanted.get(name) is not None:
            raise BadXML(
                f"a {what} with the {key} {name!r} is in the XML already, and one is to be added",
                line=line_of(element),
                remedy=f"give the added one another {key}",
            )


def _taken(devices: Element, key: str) -> Iterator[tuple[str, Element]]:
    for serial in devices.iterfind("disk/serial") if key == "serial" else ():
        yield (serial.text or "").strip(), serial
    for mac in devices.iterfind("interface/mac") if key == "mac" else ():
        yield mac.get("address", "").lower(), mac


def _has_scsi(devices: Element) -> bool:
    return (
        devices.find("controller[@type='scsi']") is not None
        or devices.find("disk/target[@bus='scsi']") is not None
    )


def _after_last(devices: Element, tag: str, element: Element) -> None:
    there = devices.findall(tag)
    position = devices.index(there[-1]) + 1 if there else len(devices)
    children = list(element)
    for child in children:
        element.remove(child)
    insert(devices, position, element)
    for child in children:  # indented by where the element is now
        append(element, child)


def _next_target(devices: Element, prefix: str) -> str:
    """Name the target after the last: a PC boots from the first, and that is to stay the person's."""
    used = [number_of(target_of(disk), prefix) for disk in devices.iterfind("disk")]
    return prefix + letters_of(max(used, default=-1) + 1)


def number_of(target: str, prefix: str) -> int:
    """Say which disk of its kind a target is, counted from 0; -1 if it is of another kind."""
    letters = target.removeprefix(prefix)
    if letters == target or not letters or any(letter not in string.ascii_lowercase for letter in letters):
        return -1
    number = 0
    for letter in letters:
        number = number * len(string.ascii_lowercase) + string.ascii_lowercase.index(letter) + 1
    return number - 1


def letters_of(number: int) -> str:
    """Write a disk's number, counted from 0, as Linux does: a to z, aa..."""
    letters = ""
    number += 1
    while number:
        number, place = divmod(number - 1, len(string.ascii_lowercase))
        letters = string.ascii_lowercase[place] + letters
    return letters
