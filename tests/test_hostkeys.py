"""SSH host keys as guests tell them, and as ssh is to know them."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentvirt.domainxml import GuestMark, guest_mark, guest_of, rewrite
from latentvirt.hostkeys import LONGEST_KEY, MOST_KEYS, HostKey, known_hosts, read_keys
from latentvirt.names import GUEST_NAMESPACE, Ownership


def key(kind: str = "ssh-ed25519", material: bytes = b"material") -> str:
    """Write a public key of a kind."""
    blob = len(kind).to_bytes(4, "big") + kind.encode() + material
    return f"{kind} {base64.b64encode(blob).decode()}"


INSIDE_IS_ANOTHER = f"ssh-rsa {key().split()[1]}"


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_what_ssh_keygen_makes_is_a_key(tmp_path: Path, kind: str) -> None:
    """A key is read as OpenSSH writes it, and loses only its comment."""
    made = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "a comment", "-f", made], check=True)
    text = made.with_suffix(".pub").read_text().strip()
    assert str(HostKey.parse(text)) == text.removesuffix(" a comment")


@pytest.mark.parametrize(
    "said",
    [
        None,
        7,
        "",
        "ssh-ed25519",
        "ssh-ed25519 ",
        "ssh-ed25519 not-base64!",
        "ssh-ed25519 é",
        key("ssh-ed25519", b""),
        key("ssh-dss"),
        INSIDE_IS_ANOTHER,
        key("ssh-rsa", b"x" * LONGEST_KEY),
        f"{key()}\nevil.example ssh-ed25519 AAAA".replace(" ", "\t"),
        f"@cert-authority {key()}",
    ],
)
def test_what_is_no_key_is_passed_over(said: object) -> None:
    """A guest cannot put anything but a well-formed key into a known_hosts file."""
    assert read_keys([said, key()]) == (HostKey(*key().split()),)


@given(st.text(max_size=200))
def test_a_key_is_one_line_whatever_a_guest_says(more: str) -> None:
    """What stands behind a key, a line end included, is dropped or makes it no key."""
    keys = read_keys([f"{key()} {more}", f"{key()}{more}"])
    for line in known_hosts(["vm"], keys).splitlines():
        assert line.split(" ")[:2] == ["vm", "ssh-ed25519"]
        assert len(line.split(" ")) == 3


def test_keys_are_bounded() -> None:
    """Of many keys the first ones count, and each once."""
    many = [key(material=bytes([number])) for number in range(100)]
    assert len(read_keys(many)) == MOST_KEYS
    assert read_keys([key()] * 3) == read_keys([key()])
    assert read_keys(key()) == read_keys({"ssh": key()}) == ()


def test_only_names_that_mean_themselves_are_written() -> None:
    """A domain whose name ssh would take for a pattern, a marker or a list is not known by it."""
    names = ["vm-1", "*", "!x", "a,b", "@revoked", "|1|x", "#x", "two words", "-x", "fd00::2", "vm-1", ""]
    assert known_hosts(names, read_keys([key()])) == f"vm-1,fd00::2 {key()}\n"
    assert known_hosts(["*"], read_keys([key()])) == known_hosts(["vm"], ()) == ""


def test_what_a_guest_told_is_read_from_its_domains_metadata() -> None:
    """The keys that were written into the metadata are read back; what somebody else wrote there is not."""
    mark = GuestMark("wörker <1>", read_keys([key(), key("ssh-rsa")]))
    element = guest_mark(mark).replace("<guest ", f"<guest xmlns='{GUEST_NAMESPACE}' ")
    assert guest_of(f"<domain><metadata>{element}</metadata></domain>") == mark
    assert guest_of("<domain/>") is None
    spoilt = element.replace("ssh-rsa ", "* ssh-rsa ")
    read = guest_of(f"<domain><metadata>{spoilt}</metadata></domain>")
    assert read is not None
    assert read.keys == mark.keys[:1]


def test_a_start_forgets_what_another_vms_guest_told() -> None:
    """XML that a person copied from a running VM does not make that one's keys known for the next."""
    element = guest_mark(GuestMark("w", read_keys([key()])))
    element = element.replace("<guest ", f"<guest xmlns='{GUEST_NAMESPACE}' ")
    xml = f"<domain><name>vm</name><metadata>{element}</metadata></domain>"
    assert guest_of(xml) is not None
    ownership = Ownership("0123456789abcdef", "slot1", "0a1b2c3d4e5f")
    assert guest_of(rewrite(xml, ownership=ownership, overlays=[])) is None
