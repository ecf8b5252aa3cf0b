"""Reading a domain back: what libvirt made must be what was asked for."""

from __future__ import annotations

import pytest

from domainxml.support import NOTHING, OWNERSHIP, domain, overlay
from latentvirt.domainxml import Overlay, ownership_of, prove, rewrite
from latentvirt.errors import NotProven
from latentvirt.names import Ownership

VARS = "/images/vars"
OVERLAYS = [overlay("vda")]
LIVE = rewrite(domain(os=" firmware='efi'/>"), ownership=OWNERSHIP, overlays=OVERLAYS, vars_path=VARS)


def proof(
    live: str,
    *,
    overlays: list[Overlay] = OVERLAYS,
    vars_path: str | None = VARS,
    allow: frozenset[str] = NOTHING,
) -> None:
    """Prove a domain as a start does."""
    prove(live, ownership=OWNERSHIP, overlays=overlays, vars_path=vars_path, allow_shared=allow)


def test_what_was_asked_for_is_proven() -> None:
    """A domain that is as the start made it passes."""
    proof(LIVE)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (OVERLAYS[0].path, "/images/hd.img", "is on .*hd.img"),
        ('<disk type="file">', '<disk type="block">', "is on None"),
        (' name="qemu" type="qcow2"/>', ' type="raw"/>', "is on .*'raw'"),
        ("/images/base.qcow2", "/images/other.qcow2", "stands on .*other.qcow2"),
        ('<format type="raw"/>', '<format type="qcow2"/>', "stands on"),
        ("<backingStore/>", "", "stands on None"),
        ('<target dev="vda"', '<mirror/><target dev="vda"', "copied elsewhere"),
        ('<target dev="vda"', '<target dev="vdz"', "vda is missing"),
        ("</devices>", "<disk><source file='/x'/><target dev='vdb'/></disk></devices>", "disk vdb"),
        ("</devices>", "<filesystem><target dir='/src'/></filesystem></devices>", "shared folder '/src'"),
        (f">{VARS}<", "><source file='/var/lib/libvirt/qemu/nvram/small_VARS.fd'/><", "small_VARS.fd"),
        (f"<nvram>{VARS}</nvram>", "", "variables are in None"),
        (OWNERSHIP.start, "ffffffffffff", "metadata says Ownership"),
        ("latentvirt:vm", "latentvirt:other", "metadata says nothing of ours"),
    ],
)
def test_whatever_differs_is_not_proven(old: str, new: str, words: str) -> None:
    """A domain that writes to anything else is not resumed, and the message says what it is."""
    assert old in LIVE
    with pytest.raises(NotProven, match=words):
        proof(LIVE.replace(old, new))


def test_what_is_allowed_is_not_held_against_a_domain() -> None:
    """Things that a person has allowed by name do not stop the start."""
    live = LIVE.replace(
        "</devices>",
        "<disk><source file='/x'/><target dev='vdb'/></disk><shmem name='a'/></devices>",
    ).replace(VARS, "/var/lib/libvirt/qemu/nvram/small_VARS.fd")
    proof(live, vars_path=None, allow=frozenset({"vdb", "shmem", "nvram"}))


def test_variables_that_nobody_made_are_not_proven() -> None:
    """A domain that turns out to have UEFI variables of its own is not resumed."""
    with pytest.raises(NotProven, match="not this start's own"):
        proof(LIVE, vars_path=None)


def test_an_empty_drive_is_nothing_to_prove() -> None:
    """A floppy drive without a floppy does not stop a start."""
    proof(LIVE.replace("</devices>", "<disk device='floppy'><target dev='fda'/></disk></devices>"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (OWNERSHIP.owner, "nothex"),
        (OWNERSHIP.slot, "../../etc"),
        (f'start="{OWNERSHIP.start}"', ""),
        ("urn:latentvirt:vm:1", "urn:latentvirt:vm:2"),
        ("</domain>", ""),
        ("<latentvirt:vm", '<vm xmlns="urn:latentvirt:vm:1"/><latentvirt:vm'),
    ],
)
def test_a_mark_that_we_never_write_is_not_ours(old: str, new: str) -> None:
    """A domain whose mark is malformed or doubled is nobody's of ours, and is left alone."""
    assert ownership_of(LIVE) == OWNERSHIP
    assert old in LIVE
    assert ownership_of(LIVE.replace(old, new)) is None


def test_a_mark_elsewhere_is_not_ours() -> None:
    """Our element outside of the metadata says nothing."""
    mark = '<vm xmlns="urn:latentvirt:vm:1" owner="{0.owner}" slot="{0.slot}" start="{0.start}"/>'
    assert ownership_of(domain(mark.format(Ownership("0" * 16, "a", "0" * 12)))) is None
