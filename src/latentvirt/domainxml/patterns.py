"""The XML of one start, made of that of all starts of its kind: they differ in a few words."""

from __future__ import annotations

import secrets
import uuid as uuids
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

import attrs

from latentvirt.domainxml.remembering import remembered
from latentvirt.domainxml.rewrite import Overlay, OwnCards, rewrite
from latentvirt.names import Ownership, mac_of_slot

# Stand for the words that differ; they are made anew in each process, so that no description has them.
ANY_NAME = f"any-{secrets.token_hex(8)}"
ANY_SLOT = f"any-{secrets.token_hex(8)}"
ANY_START = secrets.token_hex(6)
ANY_UUID = str(uuids.uuid4())
ANY_WORKER = f"any-{secrets.token_hex(8)}"

IN_ATTRIBUTES = {'"': "&quot;"}
"""What is written otherwise there, besides what is everywhere."""


def rewrite_for_start(
    xml: str,
    *,
    name: str,
    uuid: str,
    ownership: Ownership,
    overlays: Sequence[Overlay],
    vars_path: str | None,
    channel: bool,
    own_cards: OwnCards,
    worker: str = "",
) -> str:
    """Make the XML of one start, as `rewrite` does, which is asked once for all that differ in ids only.

    Args:
        xml: the domain's XML.
        name: the domain's name.
        uuid: its UUID.
        ownership: whose it is, for its metadata.
        overlays: the disks that this start writes to.
        vars_path: file for this start's UEFI variables, if it has any.
        channel: whether the guest gets the port over which it learns who it is.
        own_cards: the network cards that are not the person's own.
        worker: name of the Buildbot worker that its guest will be; empty if nobody knows yet.

    Raises:
        BadXML: as `rewrite` does.
    """
    words = [(ANY_NAME, name), (ANY_UUID, uuid), (ANY_START, ownership.start), (ANY_SLOT, ownership.slot)]
    words.append((ANY_WORKER, worker))
    macs = list(_macs(own_cards, ownership))
    as_they_are = all(word.isprintable() and escape(word, IN_ATTRIBUTES) == word for _, word in words)
    if not as_they_are or any(mac in xml.lower() for mac, _ in macs):
        return rewrite(
            xml,
            name=name,
            uuid=uuid,
            ownership=ownership,
            overlays=overlays,
            vars_path=vars_path,
            channel=channel,
            own_cards=own_cards,
            worker=worker,
        )
    text = _pattern(
        xml,
        ownership.owner,
        tuple(attrs.evolve(overlay, path=_of_any(overlay.path, ownership)) for overlay in overlays),
        # A layer that is ours is equal to one that is not, and is written otherwise.
        tuple(layer.ours for overlay in overlays for layer in overlay.chain),
        None if vars_path is None else _of_any(vars_path, ownership),
        channel,
        own_cards,
        ANY_WORKER if worker else "",
    )
    for any_, word in (*macs, *words):
        text = text.replace(any_, word)
    return text


def _macs(own_cards: OwnCards, ownership: Ownership) -> Iterator[tuple[str, str]]:
    host, owner = own_cards.host, ownership.owner
    for number in range(own_cards.count):
        yield mac_of_slot(host, owner, ANY_SLOT, number), mac_of_slot(host, owner, ownership.slot, number)


def _of_any(path: str, ownership: Ownership) -> str:
    """Name the file that any start would have in this one's place."""
    return path.replace(f"{ownership.slot}.{ownership.start}.", f"{ANY_SLOT}.{ANY_START}.")


@remembered
def _pattern(
    xml: str,
    owner: str,
    overlays: tuple[Overlay, ...],
    ours: tuple[bool, ...],
    vars_path: str | None,
    channel: bool,
    own_cards: OwnCards,
    worker: str,
) -> str:
    return rewrite(
        xml,
        name=ANY_NAME,
        uuid=ANY_UUID,
        ownership=Ownership(owner, ANY_SLOT, ANY_START),
        overlays=overlays,
        vars_path=vars_path,
        channel=channel,
        own_cards=own_cards,
        worker=worker,
    )
