"""The XML of a start that is made of that of all its kind is the one that it would be by itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainxml.support import HERE, OWNERSHIP, UUID, capabilities
from domainxml.test_golden import REWRITES
from latentvirt.devices import Nic
from latentvirt.domainxml import (
    GuestMark,
    Layer,
    Overlay,
    OwnCards,
    generate,
    guest_of,
    rewrite,
    rewrite_for_start,
)
from latentvirt.names import FileName, Ownership, mac_of_slot
from latentvirt.sizes import Size

NAMES = ("minion1", "a&b <c>", "späť", "two\tparts")
CARDS = OwnCards("qemu:///system", 1)


def overlay_of(ownership: Ownership, target: str, *, ours: bool = False) -> Overlay:
    """Name a start's overlay."""
    name = FileName(ownership.slot, ownership.start, "overlay", target)
    return Overlay(target, f"/images & more/{name}", (Layer("/images/base", "qcow2", ours=ours),))


def generated() -> str:
    """Describe a domain with a network card that has no address yet."""
    return generate(
        name="a", uuid=UUID, capabilities=capabilities(), size=Size(), network=Nic("user"), virt_type="auto"
    )


@pytest.mark.parametrize("name", REWRITES)
@pytest.mark.parametrize("domain", NAMES)
def test_any_domain_comes_out_as_it_would_by_itself(name: str, domain: str) -> None:
    """Every kind of description, with every kind of name, is the same to the letter."""
    text = (HERE / "golden" / f"{name}.in.xml").read_text()
    given_ = {"vars_path": None, "own_cards": CARDS, "channel": True, **REWRITES[name]}
    given_ |= {"name": domain, "uuid": UUID, "ownership": OWNERSHIP}
    assert rewrite_for_start(text, **given_) == rewrite(text, **given_)


@pytest.mark.parametrize("worker", ["", "minion1", 'a "quoted" one', "a&b <c>"])
def test_a_workers_name_is_written_as_it_would_by_itself(worker: str) -> None:
    """Each start's metadata names its own worker, whatever is in that name, and none where there is none."""
    given_ = {"name": "a", "uuid": UUID, "ownership": OWNERSHIP, "overlays": [], "vars_path": None}
    given_ |= {"own_cards": CARDS, "channel": True, "worker": worker}
    text = rewrite_for_start(generated(), **given_)  # type: ignore[arg-type]
    assert text == rewrite(generated(), **given_)  # type: ignore[arg-type]
    assert guest_of(text) == (GuestMark(worker) if worker else None)


starts = st.builds(
    Ownership,
    st.just(OWNERSHIP.owner),
    st.sampled_from(["1", "a", "slot-2", "f0"]) | st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
    st.from_regex(r"[0-9a-f]{12}", fullmatch=True),
)


@given(starts, st.booleans(), st.sampled_from(["qemu:///system", "qemu+ssh://b/system"]))
def test_each_start_gets_its_own_words(ownership: Ownership, ours: bool, host: str) -> None:
    """One start after the other gets its own id, disk and address, whoever was first."""
    xml = generated()
    given_ = {
        "name": f"latentvirt-{ownership.slot}",
        "uuid": UUID,
        "ownership": ownership,
        "overlays": [overlay_of(ownership, "vda", ours=ours)],
        "vars_path": None,
        "channel": True,
        "own_cards": OwnCards(host, 1),
    }
    text = rewrite_for_start(xml, **given_)  # type: ignore[arg-type]
    assert text == rewrite(xml, **given_)  # type: ignore[arg-type]
    assert mac_of_slot(host, ownership.owner, ownership.slot, 0) in text
