"""Turning a domain's XML into that of one start: its own disks, its mark, its port."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import attrs
from lxml import etree

from latentvirt.domainxml.adding import give_macs
from latentvirt.domainxml.disks import PATH_ATTRIBUTE, source_of, target_of
from latentvirt.domainxml.guestmark import set_worker
from latentvirt.domainxml.holding import drop_hold
from latentvirt.domainxml.ownership import set_ownership
from latentvirt.domainxml.parse import Element, append, ensure, insert, line_of, parse, remove, serialise
from latentvirt.errors import BadXML
from latentvirt.names import CHANNEL_PORT, Ownership

OVERLAY_FORMAT = "qcow2"

RELABELLING_MODELS = ("dac", "selinux")
"""Security models that change a file itself to let QEMU read it; AppArmor writes a profile instead."""

ENDINGS = {
    "on_poweroff": {"restart": "destroy", "rename-restart": "destroy"},
    "on_crash": {"restart": "destroy", "rename-restart": "destroy", "coredump-restart": "coredump-destroy"},
}
"""A guest that starts again by itself after its end would do so on used disks."""

LayerKind: TypeAlias = Literal["file", "block"]


@attrs.frozen
class Layer:
    """One image of a backing chain.

    Args:
        path: on the host.
        format: as in libvirt's XML: ``qcow2``, ``raw``...
        kind: ``file`` or ``block``.
        ours: whether it is a file of ours, which libvirt may give to the hypervisor's user; a live domain's
            XML does not say so, so that it makes no layer another.
    """

    path: str
    format: str
    kind: LayerKind = "file"
    ours: bool = attrs.field(default=False, eq=False)


@attrs.frozen
class Overlay:
    """The disk that one start writes to.

    Args:
        target: the disk's name in the domain.
        path: file made for this start.
        chain: all that it stands on, nearest first; empty for a disk that began empty.
        format: of the file.
    """

    target: str
    path: str
    chain: tuple[Layer, ...]
    format: str = OVERLAY_FORMAT


@attrs.frozen
class OwnCards:
    """Which network cards of a domain get addresses of its place on the host, where they have none.

    Args:
        host: the host's URI.
        count: how many, from the last one on.
    """

    host: str
    count: int


def rewrite(
    xml: str,
    *,
    ownership: Ownership,
    overlays: Sequence[Overlay],
    name: str | None = None,
    uuid: str | None = None,
    vars_path: str | None = None,
    channel: bool = True,
    relabel_off: Sequence[str] = RELABELLING_MODELS,
    own_cards: OwnCards | None = None,
    worker: str = "",
) -> str:
    """Make the XML of one start; all that is not named here stays as it was.

    Args:
        xml: the domain's XML.
        ownership: whose it is, for its metadata.
        overlays: the disks that this start writes to.
        name: the domain's name, if it is to have another.
        uuid: its UUID, if it is to have another.
        vars_path: file for this start's UEFI variables, if it has any.
        channel: whether the guest gets the port over which it learns who it is.
        relabel_off: security models that must leave the images below the overlays as they are.
        own_cards: the network cards that are not the person's own.
        worker: name of the Buildbot worker that its guest will be; empty if nobody knows yet.

    Raises:
        BadXML: the XML cannot be read, or lacks an overlay's disk.
    """
    root = parse(xml)
    for tag, value in (("name", name), ("uuid", uuid)):
        if value is not None:
            _set_identity(root, tag, value)
    set_ownership(root, ownership)
    if worker:
        set_worker(root, worker)
    drop_hold(root)
    for overlay in overlays:
        _set_overlay(_disk(root, overlay.target), overlay, models_to_switch_off(root, relabel_off))
    if vars_path is not None:
        _set_vars(root, vars_path)
    if own_cards is not None:
        give_macs(root, own_cards.host, ownership.owner, ownership.slot, own_cards.count)
    for tag, changes in ENDINGS.items():
        for ending in root.findall(tag):
            action = (ending.text or "").strip()
            ending.text = changes.get(action, ending.text)
    if channel:
        _add_channel(root)
    return serialise(root)


def _set_identity(root: Element, tag: str, value: str) -> None:
    element = root.find(tag)
    if element is None:
        element = etree.Element(tag)
        insert(root, 0 if tag == "name" else 1, element)
    element.text = value


def _disk(root: Element, target: str) -> Element:
    for disk in root.iterfind("devices/disk"):
        if target_of(disk) == target:
            return disk
    raise BadXML(f"the XML has no disk with the target {target}", line=line_of(root))


def models_to_switch_off(root: Element, models: Sequence[str]) -> tuple[str, ...]:
    """Say of which security models a domain's single image can be told that it is to stay as it is.

    Args:
        root: the domain.
        models: those that there are.
    """
    # Where the whole domain is not relabelled, libvirt refuses a word about it on a single image.
    settled = {
        label.get("model")
        for label in root.iterfind("seclabel")
        if label.get("relabel") == "no" or label.get("type") == "none"
    }
    return tuple(model for model in models if model not in settled)


def _set_overlay(disk: Element, overlay: Overlay, models: Sequence[str]) -> None:
    old = disk.find("source")
    position = disk.index(old) if old is not None else 0
    for tag in ("source", "backingStore", "transient", "mirror"):
        for element in disk.findall(tag):
            remove(element)
    disk.set("type", "file")
    driver = disk.find("driver")
    if driver is None:
        driver = etree.Element("driver")
        insert(disk, 0, driver)
        position += 1
    driver.set("name", "qemu")
    driver.set("type", overlay.format)
    source = etree.Element("source", file=overlay.path)
    insert(disk, min(position, len(disk)), source)
    insert(disk, disk.index(source) + 1, etree.Element("backingStore"))
    _fill_chain(disk.find("backingStore"), overlay.chain, models)


def _fill_chain(store: Element | None, chain: Sequence[Layer], models: Sequence[str]) -> None:
    """Write a chain out to its end, which an empty element marks: libvirt then looks into no image itself."""
    for layer in chain:
        assert store is not None
        store.set("type", layer.kind)
        append(store, etree.Element("format", type=layer.format))
        source = append(store, etree.Element("source", {PATH_ATTRIBUTE[layer.kind]: layer.path}))
        for model in () if layer.ours else models:
            # Else libvirt gives the image to the hypervisor's user, and never gives it back.
            append(source, etree.Element("seclabel", model=model, relabel="no"))
        store = append(store, etree.Element("backingStore"))


def _set_vars(root: Element, path: str) -> None:
    os = ensure(root, "os")
    nvram = ensure(os, "nvram")
    for child in list(nvram):
        remove(child)
    nvram.attrib.pop("type", "")
    nvram.text = path


def _add_channel(root: Element) -> None:
    devices = ensure(root, "devices")
    if devices.find(f"channel/target[@name='{CHANNEL_PORT}']") is not None:
        return
    port = append(devices, etree.Element("channel", type="unix"))
    append(port, etree.Element("target", type="virtio", name=CHANNEL_PORT))


def chain_of(disk: Element) -> tuple[Layer, ...] | None:
    """Read a disk's backing chain from the XML; None if it is not written out to its end."""
    layers = []
    store = disk.find("backingStore")
    while store is not None and len(store):
        source, format = source_of(store), store.find("format")
        if source is None or source.kind == "volume":
            return None
        layers.append(Layer(source.path, "" if format is None else format.get("type", ""), source.kind))
        store = store.find("backingStore")
    return None if store is None else tuple(layers)


def files_of_disks(live_xml: str) -> list[tuple[str, tuple[str, ...]]]:
    """List the disks of a running domain that are files, each with the images that it stands on.

    Args:
        live_xml: the domain's XML, as libvirt made it.

    Returns:
        Of each its target and the paths of its files, the one that the guest writes to first.
    """
    found = []
    for disk in parse(live_xml).findall("devices/disk"):
        source = source_of(disk)
        below = chain_of(disk) or ()
        if source is not None:
            found.append((target_of(disk), (source.path, *(layer.path for layer in below))))
    return found
