"""How a guest can be reached from outside, as far as its domain's XML says."""

from __future__ import annotations

import re

import attrs

from latentvirt.domainxml.parse import parse

QEMU_ARGUMENT = "{http://libvirt.org/schemas/domain/qemu/1.0}arg"
LOOPBACK = "127.0.0.1"
EVERYWHERE = ("", "0.0.0.0", "::")

_HOST_FORWARD = re.compile(r"hostfwd=tcp:([^:,]*):(\d{1,5})-[^:,]*:(\d{1,5})(?=,|$)")


@attrs.frozen
class Forward:
    """A port of the host that leads to one of the guest's.

    Args:
        address: that the host listens on.
        port: the host's.
    """

    address: str
    port: int


def forward_to(xml: str, port: int) -> Forward | None:
    """Find a TCP port of the host that leads to one of the guest's; None if there is none.

    Args:
        xml: the live domain's description.
        port: the guest's.

    Raises:
        BadXML: it cannot be read.
    """
    root = parse(xml)
    for forward in root.iterfind("devices/interface/portForward[@proto='tcp']"):
        for ports in forward.iterfind("range[@start]"):
            first = int(ports.get("start", ""))
            last, to = int(ports.get("end", first)), int(ports.get("to", first))
            if ports.get("exclude") != "yes" and to <= port <= to + last - first:
                return _forward(forward.get("address", ""), first + port - to)
    for argument in root.iter(QEMU_ARGUMENT):
        for address, outside, inside in _HOST_FORWARD.findall(argument.get("value", "")):
            if int(inside) == port:
                return _forward(address, int(outside))
    return None


def _forward(address: str, port: int) -> Forward:
    return Forward(LOOPBACK if address in EVERYWHERE else address, port)


def has_screen(xml: str) -> bool:
    """Tell whether the domain has a video device, and so something to take a picture of.

    Args:
        xml: the live domain's description.

    Raises:
        BadXML: it cannot be read.
    """
    models = [model.get("type") for model in parse(xml).iterfind("devices/video/model")]
    return any(model != "none" for model in models)


def can_be_reached(xml: str) -> bool:
    """Tell whether the domain has any network card that connections can come in by.

    Args:
        xml: the live domain's description.

    Raises:
        BadXML: it cannot be read.
    """
    return any(card.get("type") != "user" for card in parse(xml).iterfind("devices/interface"))
