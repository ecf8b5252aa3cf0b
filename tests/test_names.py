"""Names that say whose a thing is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentvirt.names import (
    OWNER_PATTERN,
    SLOT_PATTERN,
    START_PATTERN,
    FileName,
    Lease,
    Ownership,
    directory_name,
    directory_owner,
    generated_domain_name,
    new_owner,
    new_start,
    pool_name,
    slot_of_domain,
    slot_of_number,
)

OWNER = "0123456789abcdef"
START = "0a1b2c3d4e5f"

slots = st.from_regex(SLOT_PATTERN, fullmatch=True)
starts = st.from_regex(START_PATTERN, fullmatch=True)
owners = st.from_regex(OWNER_PATTERN, fullmatch=True)
kinds = st.sampled_from(["overlay", "vars"])
targets = st.from_regex(r"[A-Za-z0-9_-]{1,32}", fullmatch=True)


@given(slots, starts, kinds, targets)
def test_a_files_name_reads_back(slot: str, start: str, kind: str, target: str) -> None:
    """What is written into a file's name is read from it again."""
    name = FileName(slot, start, kind, target)
    assert FileName.parse(str(name)) == name


@given(st.integers(0, 10**12 - 1))
def test_a_lease_reads_back(until: int) -> None:
    """Until when a lease holds is read from its name again."""
    assert Lease.parse(str(Lease(until))) == Lease(until)


@given(owners)
def test_a_directory_reads_back(owner: str) -> None:
    """Whose a directory is, is read from its name again."""
    assert directory_owner(directory_name(owner)) == owner


@pytest.mark.parametrize(
    "name",
    [
        "",
        f"slot1.{START}.overlay.vda.bak",
        f"slot1.{START}.overlay.vda\n",
        f".slot1.{START}.overlay.vda",
        f"slot1.{START.upper()}.overlay.vda",
        f"slot1.{START}0.overlay.vda",
        f"slot1.{START}.image.vda",
        f"slot1.{START}.overlay.",
        f"slot.1.{START}.overlay.vda",
        f"slot1/{START}.overlay.vda",
    ],
)
def test_foreign_names_are_not_ours(name: str) -> None:
    """A file whose whole name does not read as ours is not ours."""
    assert FileName.parse(name) is None
    assert Lease.parse(name) is None


@pytest.mark.parametrize(
    "name", ["lease.", "lease.1x", "lease.-1", "Lease.1", "lease.1\n", "lease.1234567890123"]
)
def test_foreign_leases_are_not_ours(name: str) -> None:
    """A file whose whole name does not read as a lease is none."""
    assert Lease.parse(name) is None


@pytest.mark.parametrize(
    "name", ["latentvirt-", f"latentvirt-{OWNER}x", f"xlatentvirt-{OWNER}", f"latentvirt-{OWNER}\n"]
)
def test_foreign_directories_are_not_ours(name: str) -> None:
    """A directory whose whole name does not read as ours is not ours."""
    assert directory_owner(name) is None


@pytest.mark.parametrize(
    "parts", [("x", "s", START), (OWNER, "", START), (OWNER, "a b", START), (OWNER, "s", "0")]
)
def test_an_ownership_is_checked(parts: tuple[str, str, str]) -> None:
    """A mark with anything but an owner, a slot and a start in it cannot be made."""
    with pytest.raises(ValueError, match="must match regex"):
        Ownership(*parts)


@given(st.text(min_size=1, max_size=200))
def test_any_domains_slot_makes_a_readable_name(domain: str) -> None:
    """Whatever a domain is called, its slot can stand in a file's name."""
    name = FileName(slot_of_domain(domain), START, "overlay", "vda")
    assert FileName.parse(str(name)) == name


def test_similar_domains_have_different_slots() -> None:
    """Domains whose readable part is the same do not share a slot."""
    assert slot_of_domain("a b") != slot_of_domain("a_b")
    assert slot_of_domain("x" * 60) != slot_of_domain("x" * 61)


def test_random_ids_read_as_such() -> None:
    """New ids have the form that is recognised, and differ."""
    assert OWNER_PATTERN.fullmatch(new_owner())
    assert START_PATTERN.fullmatch(new_start())
    assert len({new_start() for _ in range(100)}) == 100


def test_names_made_of_an_owner() -> None:
    """Pools differ by folder, domains by slot."""
    assert pool_name(OWNER, "/a") != pool_name(OWNER, "/b")
    assert generated_domain_name(OWNER, slot_of_number(3)) == f"latentvirt-{OWNER}-slot3"
