"""Our mark in a domain's metadata: the only thing by which a domain is known to be ours."""

from __future__ import annotations

from lxml import etree

from latentvirt.domainxml.parse import Element, append, ensure, parse, remove, serialise
from latentvirt.errors import BadXML
from latentvirt.names import GUEST_NAMESPACE, METADATA_NAMESPACE, METADATA_PREFIX, Ownership

MARK = f"{{{METADATA_NAMESPACE}}}vm"

BUILDBOT_NAMESPACE = "http://buildbot.net/"
BUILDBOT_AUTH = f"{{{BUILDBOT_NAMESPACE}}}auth"


def ownership_of(xml: str) -> Ownership | None:
    """Read whose a domain is.

    Args:
        xml: the domain's XML, live or persistent.

    Returns:
        None if the mark is missing, is there twice or holds what we never write; also if the XML cannot be
        read: what cannot be read is not known to be ours.
    """
    try:
        return ownership_in(parse(xml))
    except BadXML:
        return None


def ownership_in(root: Element) -> Ownership | None:
    """Read whose a domain is; as `ownership_of`, of XML that is read already."""
    marks = root.findall(f"metadata/{MARK}")
    return _read(marks[0]) if len(marks) == 1 else None


def ownership_of_mark(xml: str) -> Ownership | None:
    """Read whose a domain is from our metadata element alone, as libvirt hands it out: without its namespace.

    Returns:
        None if it holds what we never write.
    """
    try:
        return _read(etree.fromstring(xml, etree.XMLParser(resolve_entities=False, no_network=True)))
    except (etree.XMLSyntaxError, ValueError):
        return None


def _read(mark: Element) -> Ownership | None:
    try:
        return Ownership(*(mark.get(key, "") for key in ("owner", "slot", "start")))
    except ValueError:
        return None


def set_ownership(root: Element, ownership: Ownership) -> None:
    """Write our mark into a domain, in place of an earlier one."""
    mark = etree.Element(MARK, nsmap={METADATA_PREFIX: METADATA_NAMESPACE})
    mark.set("owner", ownership.owner)
    mark.set("slot", ownership.slot)
    mark.set("start", ownership.start)
    _replace(root, mark)
    # What was told by the guest of a VM that this description was read from, this one's has not.
    for told in root.findall(f"metadata/{{{GUEST_NAMESPACE}}}*"):
        remove(told)


def with_auth(xml: str, username: str, password: str, master: str) -> str:
    """Write the in-tree worker's element into a domain, for all of libvirt's users to read.

    Args:
        xml: the domain's XML.
        username: the worker's name.
        password: what it logs in with.
        master: where it finds its master, ``host:port``.

    Raises:
        BadXML: the XML cannot be read.
    """
    root = parse(xml)
    element = etree.Element(BUILDBOT_AUTH, nsmap={"buildbot": BUILDBOT_NAMESPACE})
    for key, value in (("username", username), ("password", password), ("master", master)):
        element.set(key, value)
    _replace(root, element)
    return serialise(root)


def _replace(root: Element, element: Element) -> None:
    # libvirt allows one element per namespace in the metadata, and drops the rest without a word.
    metadata = ensure(root, "metadata")
    namespace = etree.QName(element).namespace
    for old in metadata.findall(f"{{{namespace}}}*"):
        remove(old)
    append(metadata, element)
