"""Who a guest is and what it told, in its live domain's metadata, where any process can read it."""

from __future__ import annotations

import attrs
from lxml import etree

from latentvirt.domainxml.parse import Element, append, ensure, parse
from latentvirt.hostkeys import MOST_KEYS, HostKey
from latentvirt.names import GUEST_NAMESPACE, GUEST_PREFIX

_GUEST = f"{{{GUEST_NAMESPACE}}}guest"
_KEY = f"{{{GUEST_NAMESPACE}}}key"


@attrs.frozen
class GuestMark:
    """What is known of the guest of a running domain.

    Args:
        worker: name of the Buildbot worker that it is.
        keys: its public SSH host keys; none if it has told none.
    """

    worker: str
    keys: tuple[HostKey, ...] = ()


def guest_mark(mark: GuestMark) -> str:
    """Write the element, without its namespace, as libvirt takes it."""
    root = etree.Element("guest", worker=mark.worker)
    for key in mark.keys:
        etree.SubElement(root, "key").text = str(key)
    return etree.tostring(root, encoding="unicode")


def set_worker(root: Element, worker: str) -> None:
    """Write into the description of a start which worker its guest will be, before that tells anything."""
    append(
        ensure(root, "metadata"), etree.Element(_GUEST, nsmap={GUEST_PREFIX: GUEST_NAMESPACE}, worker=worker)
    )


def guest_of(xml: str) -> GuestMark | None:
    """Read it from a live domain's XML; None if nothing is known.

    Args:
        xml: the whole description.

    Raises:
        BadXML: it cannot be read.
    """
    element = parse(xml).find(f"metadata/{_GUEST}")
    if element is None:
        return None
    told = [HostKey.parse(key.text) for key in element.findall(_KEY)[:MOST_KEYS]]
    return GuestMark(element.get("worker", ""), tuple(key for key in told if key is not None))
