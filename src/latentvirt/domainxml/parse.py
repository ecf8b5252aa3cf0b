"""Reading a domain's XML safely, writing it back unharmed, and the questions that every caller asks of it."""

from __future__ import annotations

import functools
from typing import TypeAlias, cast

import attrs
from lxml import etree

from latentvirt.amounts import BYTES_PER_MIB
from latentvirt.domainxml.remembering import remembered
from latentvirt.errors import BadXML

Element: TypeAlias = etree._Element

MAX_BYTES = 4 * 1024 * 1024
"""More than any domain's description; libvirt's own limit on an XML string in a call is the same."""

READ_AGAIN = 16
"""How many descriptions are kept read; a start asks several questions about its own, one after the other."""

INDENT = "  "
"""What libvirt indents by, for elements that are added where no neighbour shows the custom."""


def parse(xml: str) -> Element:
    """Read a domain's XML, with its comments, unknown elements and other namespaces.

    Nothing outside the text is read: no network, no files, no document type and so no entities.

    Args:
        xml: the whole description.

    Returns:
        The root, which is a ``domain``.

    Raises:
        BadXML: the text is malformed, too large, has a document type or is not a domain.
    """
    try:
        data = xml.encode("utf-8")
    except UnicodeEncodeError as error:
        line = xml.count("\n", 0, error.start) + 1
        raise BadXML("the XML has a character that UTF-8 cannot express", line=line) from error
    if len(data) > MAX_BYTES:
        raise BadXML(
            f"the XML is {len(data)} bytes long, and a domain's description is not",
            remedy="give the XML itself, as `virsh dumpxml` prints it",
        )
    # The text is decoded already, so whatever encoding its declaration names is no longer true.
    parser = etree.XMLParser(
        encoding="utf-8", resolve_entities=False, no_network=True, load_dtd=False, strip_cdata=False
    )
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        raise BadXML(
            f"the XML is malformed: {_reason(error)}",
            line=error.lineno or 0,
            remedy="mend that place; `xmllint FILE` shows it with its surroundings",
        ) from error
    if root.getroottree().docinfo.internalDTD is not None:
        raise BadXML(
            "the XML has a document type (<!DOCTYPE>)", line=1, remedy="remove it; libvirt needs none"
        )
    if root.tag != "domain":
        name = etree.QName(root)
        where = f" of the namespace {name.namespace!r}" if name.namespace else ""
        raise BadXML(
            f"the XML is a <{name.localname}>{where}, not a plain <domain>",
            line=line_of(root),
            remedy="give a domain's description, as `virsh dumpxml` prints it",
        )
    return root


@functools.lru_cache(maxsize=READ_AGAIN)
def parse_to_read(xml: str) -> Element:
    """Read a domain's XML, for questions only: who asks next about the same text gets the same elements.

    Raises:
        BadXML: as `parse` does.
    """
    return parse(xml)


def _reason(error: etree.XMLSyntaxError) -> str:
    # lxml adds the place to the parser's message; ours names the line already.
    return (error.msg or "it is empty").rsplit(", line ", 1)[0]


def serialise(root: Element) -> str:
    """Write a document back, with what stands before and after its root."""
    # The white space out there is not kept by the parser, so each comment gets a line of its own.
    parts = [*reversed(list(root.itersiblings(preceding=True))), root, *root.itersiblings()]
    return "".join(etree.tostring(part, encoding="unicode", with_tail=False) + "\n" for part in parts)


def line_of(element: Element) -> int:
    """Tell the line an element was read from, counted from 1; 0 for one that was not read."""
    return cast("int | None", element.sourceline) or 0


def ensure(parent: Element, tag: str) -> Element:
    """Find a child, or add an empty one."""
    child = parent.find(tag)
    return append(parent, etree.Element(tag)) if child is None else child


def append(parent: Element, child: Element) -> Element:
    """Add a child at the end, indented as its neighbours are."""
    if len(parent):
        last = parent[-1]
        closing = last.tail
        last.tail = parent.text if _is_indent(parent.text) else closing
        child.tail = closing
    else:
        outer = _indent_of(parent)
        parent.text = f"{outer}{INDENT}"
        child.tail = outer
    parent.append(child)
    return child


def insert(parent: Element, position: int, child: Element) -> None:
    """Put a child before the one at a position, indented as its neighbours are."""
    if position >= len(parent):
        append(parent, child)
        return
    child.tail = parent.text if _is_indent(parent.text) else None
    parent.insert(position, child)


def remove(element: Element) -> int:
    """Take an element out with the white space before it, keeping what follows it.

    Returns:
        The position it had among its parent's children.
    """
    parent = element.getparent()
    assert parent is not None, "a root cannot be removed"
    position = parent.index(element)
    before = parent[position - 1].tail if position else parent.text
    after = element.tail or ""
    kept = after if _is_indent(before) else f"{before or ''}{after}"
    if position:
        parent[position - 1].tail = kept
    else:
        parent.text = kept
    element.tail = None
    parent.remove(element)
    return position


def _is_indent(text: str | None) -> bool:
    return text is None or not text.strip()


def _indent_of(element: Element) -> str:
    """What stands before an element's start tag: a newline and its depth."""
    depth = sum(1 for _ in element.iterancestors())
    previous = element.getprevious()
    parent = element.getparent()
    text = previous.tail if previous is not None else (parent.text if parent is not None else None)
    if text and "\n" in text and _is_indent(text):
        return "\n" + text.rsplit("\n", 1)[1]
    return "\n" + INDENT * depth


@remembered
def domain_name(xml: str) -> str | None:
    """Read the domain's name; None if the XML leaves it out."""
    return _text(parse_to_read(xml), "name")


@remembered
def domain_uuid(xml: str) -> str | None:
    """Read the domain's UUID as it is written; None if the XML leaves it out."""
    return _text(parse_to_read(xml), "uuid")


def _text(root: Element, tag: str) -> str | None:
    return (root.findtext(tag) or "").strip() or None


@attrs.frozen
class NetworkUse:
    """How a domain's first network interface reaches the world.

    Args:
        kind: ``user`` for user-mode networking, ``network`` for one of libvirt's, ``bridge``, ``other``, or
            ``none`` if there is no interface.
        name: of the network or the bridge.
    """

    kind: str
    name: str = ""


@remembered
def network_of(xml: str) -> NetworkUse:
    """Tell how the domain's first interface reaches the world."""
    interface = parse_to_read(xml).find("devices/interface")
    if interface is None:
        return NetworkUse("none")
    kind = interface.get("type", "")
    source = interface.find("source")
    if kind in ("network", "bridge"):
        return NetworkUse(kind, "" if source is None else source.get(kind, ""))
    return NetworkUse("user" if kind == "user" else "other")


STREAMABLE = ("pty", "unix")
"""Kinds of character device that virDomainOpenConsole can open."""


def console_of(xml: str) -> bool:
    """Tell whether the device that libvirt takes for the console can be opened as a stream."""
    devices = parse_to_read(xml).find("devices")
    if devices is None:
        return False
    # libvirt opens the first console, else the first serial port, and looks no further.
    device = devices.find("console")
    device = devices.find("serial") if device is None else device
    return device is not None and device.get("type") in STREAMABLE


BYTES_PER_UNIT: dict[str, int] = {
    **dict.fromkeys(("b", "byte", "bytes"), 1),
    **{name: 1024**power for power, letter in enumerate("kmgtpe", 1) for name in (letter, f"{letter}ib")},
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgtpe", 1)},
}
"""libvirt's units of memory, whose case it does not look at (its page on the domain's XML)."""


@remembered
def vcpus_of(xml: str) -> int:
    """Tell how many virtual processors a domain may have; libvirt gives it one where the XML does not say."""
    text = (parse_to_read(xml).findtext("vcpu") or "").strip()
    return int(text) if text.isdigit() else 1


@remembered
def memory_of(xml: str) -> int:
    """Tell how much memory a domain may take, in MiB, rounded up; 0 where the XML does not say."""
    element = parse_to_read(xml).find("memory")
    if element is None or not (element.text or "").strip().isdigit():
        return 0
    size = int((element.text or "").strip()) * BYTES_PER_UNIT.get(unit_of(element), 1)
    return -(-size // BYTES_PER_MIB)


def unit_of(memory: Element) -> str:
    """Name the unit of an amount of memory, in small letters: that of libvirt's where none is given."""
    return memory.get("unit", "KiB").lower()
