"""A hold in a domain's metadata: an element of its own namespace, which anybody may set while it runs."""

from __future__ import annotations

from lxml import etree

from latentvirt.domainxml.parse import Element, remove
from latentvirt.hold import HOLD_NAMESPACE, Hold

_TAG = "hold"

END_OF_TIME = 10**11
"""More seconds since the epoch than we ever write."""


def hold_of_mark(xml: str) -> Hold | None:
    """Read a hold from its metadata element alone, as libvirt hands it out: without its namespace.

    Returns:
        None if it holds what we never write.
    """
    try:
        mark = etree.fromstring(xml, etree.XMLParser(resolve_entities=False, no_network=True))
        until = int(mark.get("until", ""))
    except (etree.XMLSyntaxError, ValueError):
        return None
    if not 0 <= until < END_OF_TIME:
        return None
    return Hold(until=until, by=mark.get("by", ""), why=mark.get("why", ""), worker=mark.get("worker", ""))


def mark_of_hold(hold: Hold) -> str:
    """Write a hold as its metadata element, without a namespace, as libvirt wants to be given it."""
    mark = etree.Element(_TAG, until=str(hold.until), by=hold.by, why=hold.why)
    if hold.worker:
        mark.set("worker", hold.worker)
    return etree.tostring(mark, encoding="unicode")


def drop_hold(root: Element) -> None:
    """Remove a hold from a description: it was another start's."""
    for mark in root.findall(f"metadata/{{{HOLD_NAMESPACE}}}*"):
        remove(mark)
