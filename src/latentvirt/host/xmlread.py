"""Reading libvirt's own XML, of pools, volumes, networks and capabilities."""

from __future__ import annotations

from lxml import etree

_PARSER = etree.XMLParser(resolve_entities=False, no_network=True)


def read(xml: str) -> etree._Element:
    """Read what libvirt wrote."""
    return etree.fromstring(xml, _PARSER)


def text_at(xml: str, path: str) -> str | None:
    """Return the text of an element; None if there is none."""
    return read(xml).findtext(path)
