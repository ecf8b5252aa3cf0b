"""What holds for any XML that a person may write."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from domainxml.support import HERE, NOTHING, OWNERSHIP, UUID, overlay
from latentvirt.domainxml import Layer, Overlay, ownership_of, parse, prove, rewrite
from latentvirt.names import Ownership

PERSONS = (HERE / "golden" / "predefined.in.xml").read_text()
OVERLAYS = [overlay("vda"), overlay("vdb")]

words = st.from_regex(r"[a-zA-Z][a-zA-Z0-9]{0,8}", fullmatch=True)
texts = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=20)
NAMESPACE = "urn:example:{}"


def element(name: str, namespace: str | None, attributes: dict[str, str], text: str) -> etree._Element:
    """Make an element that neither libvirt nor latentvirt knows."""
    tag = f"{{{NAMESPACE.format(namespace)}}}{name}" if namespace else f"unknown-{name}"
    made = etree.Element(tag, attributes)
    made.text = text
    return made


def comment(text: str) -> etree._Element:
    """Make a comment, in which XML allows no double dash."""
    return etree.Comment(text.replace("-", "~"))


extras = st.one_of(
    st.builds(element, words, st.none() | words, st.dictionaries(words, texts, max_size=3), texts),
    st.builds(comment, texts),
    st.builds(etree.ProcessingInstruction, words.map("pi{}".format), words),
)
places = st.sampled_from(
    [
        ".",
        "metadata",
        "os",
        "devices",
        "devices/disk[1]",
        "devices/disk[2]",
        "devices/disk[3]",
        "devices/interface",
        "devices/channel",
    ]
)


def canonical(node: etree._Element) -> str:
    """Write a node so that equal ones are equal, wherever they stand."""
    if not isinstance(node.tag, str):
        return str(node)  # lxml 6 crashes when it is asked for the canonical form of a comment
    return etree.tostring(node, method="c14n", with_tail=False).decode()


def is_extra(node: etree._Element) -> bool:
    """Whether a node is one of those added to the person's domain."""
    return not isinstance(node.tag, str) or "unknown-" in node.tag or NAMESPACE.format("") in node.tag


@given(st.lists(st.tuples(places, st.integers(0, 9), extras), max_size=8), st.booleans())
def test_what_a_person_wrote_survives(
    additions: list[tuple[str, int, etree._Element]], renamed: bool
) -> None:
    """Whatever a person adds anywhere is still there, in the same place and order."""
    root = parse(PERSONS)
    survivors: dict[str, list[str]] = {}
    for place, position, extra in additions:
        parent = root.find(place)
        assert parent is not None
        parent.insert(position, deepcopy(extra))
    for place, _, _ in additions:
        parent = root.find(place)
        assert parent is not None
        survivors[place] = [canonical(child) for child in parent if is_extra(child)]
    after = parse(
        rewrite(
            etree.tostring(root, encoding="unicode"),
            ownership=OWNERSHIP,
            overlays=OVERLAYS,
            name="other" if renamed else None,
        )
    )
    for place, expected in survivors.items():
        parent = after.find(place)
        assert parent is not None
        assert [canonical(child) for child in parent if is_extra(child)] == expected


paths = words.map("/images/{}".format)
chains = st.lists(
    st.builds(Layer, paths, st.sampled_from(["qcow2", "raw"]), st.sampled_from(["file", "block"])), max_size=3
).map(tuple)
starts = st.builds(
    Ownership,
    st.from_regex(r"[0-9a-f]{16}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
    st.from_regex(r"[0-9a-f]{12}", fullmatch=True),
)


def both(make: Callable[[str], st.SearchStrategy[Overlay]]) -> st.SearchStrategy[list[Overlay]]:
    """Make an overlay for each writable disk of the person's domain."""
    return st.tuples(make("vda"), make("vdb")).map(list)


@given(starts, both(lambda target: st.builds(Overlay, st.just(target), paths, chains)), st.none() | paths)
def test_a_rewritten_domain_is_proven_and_stays_as_it_is(
    ownership: Ownership, overlays: list[Overlay], vars_path: str | None
) -> None:
    """What a start asks for is what it finds; asking again changes nothing."""
    once = rewrite(PERSONS, ownership=ownership, overlays=overlays, vars_path=vars_path, uuid=UUID)
    assert rewrite(once, ownership=ownership, overlays=overlays, vars_path=vars_path, uuid=UUID) == once
    assert ownership_of(once) == ownership
    prove(once, ownership=ownership, overlays=overlays, vars_path=vars_path, allow_shared=NOTHING)
