"""Reading a person's XML: what is refused, with which line, and the questions about it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainxml.support import UUID, domain
from latentvirt.domainxml import (
    NetworkUse,
    console_of,
    domain_name,
    domain_uuid,
    has_emulated_tpm,
    memory_of,
    network_of,
    parse,
    uses_vars,
)
from latentvirt.domainxml.parse import MAX_BYTES
from latentvirt.errors import BadXML

LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))


@pytest.mark.parametrize(
    ("xml", "line", "words"),
    [
        ("<domain type='kvm'>\n<name>a</nome>\n</domain>", 2, "malformed"),
        ("", 1, "malformed"),
        ("\n<?xml version='1.0'?><domain/>", 2, "malformed"),
        ("<domain>\n<name>a\x01</name></domain>", 2, "malformed"),
        ("<domain>\n\n<name>\ud800</name></domain>", 3, "UTF-8"),
        ("<network/>", 1, "<network>"),
        ("<domain xmlns='urn:other'/>", 1, "<domain>"),
        ("<!DOCTYPE domain><domain/>", 1, "DOCTYPE"),
        ("<!DOCTYPE domain SYSTEM 'file:///etc/passwd'><domain/>", 1, "DOCTYPE"),
        (f"<!DOCTYPE domain [<!ENTITY l0 'ha'>{LAUGHS}]><domain>&l11;</domain>", 1, "DOCTYPE|malformed"),
        (f"<!DOCTYPE domain [<!ENTITY l0 'ha'>{LAUGHS}]><domain a='&l11;'/>", 1, "malformed"),
        ("<domain>" + "<a>" * 300 + "</a>" * 300 + "</domain>", 1, "malformed"),
        (f"<domain><!--{'x' * MAX_BYTES}--></domain>", 0, "bytes long"),
    ],
)
def test_what_is_no_domain_is_refused_with_its_line(xml: str, line: int, words: str) -> None:
    """XML that cannot be read, or could read more than itself, is refused with the line."""
    with pytest.raises(BadXML, match=words) as caught:
        parse(xml)
    assert caught.value.line == line


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text makes the reader fail in any other way than by refusing it."""
    with pytest.raises(BadXML):
        parse(text)


def test_name_and_uuid_are_read() -> None:
    """The domain's name and UUID are read, and may be left out."""
    assert domain_name(domain()) == "small"
    assert domain_uuid(domain()) is None
    assert domain_uuid(domain(rest=f"<uuid> {UUID}\n</uuid>")) == UUID
    assert domain_name("<domain><name> </name></domain>") is None


@pytest.mark.parametrize(
    ("devices", "use"),
    [
        ("", NetworkUse("none")),
        ("<interface type='user'/>", NetworkUse("user")),
        ("<interface type='network'><source network='builds'/></interface>", NetworkUse("network", "builds")),
        ("<interface type='bridge'><source bridge='br0'/></interface>", NetworkUse("bridge", "br0")),
        ("<interface type='direct'><source dev='eth0'/></interface>", NetworkUse("other")),
        ("<interface type='user'/><interface type='network'/>", NetworkUse("user")),
    ],
)
def test_the_first_interface_says_how_the_guest_reaches_the_master(devices: str, use: NetworkUse) -> None:
    """The address that a guest is told follows from its first interface."""
    assert network_of(domain(devices)) == use


@pytest.mark.parametrize(
    ("devices", "streamable"),
    [
        ("", False),
        ("<serial type='pty'/>", True),
        ("<console type='pty'/>", True),
        ("<serial type='file'/><console type='file'/>", False),
        ("<serial type='pty'/><console type='tcp'/>", False),
        ("<serial type='unix'/>", True),
    ],
)
def test_only_a_console_that_libvirt_can_stream_is_one(devices: str, streamable: bool) -> None:
    """A console that libvirt cannot stream is known before anyone waits for its output."""
    assert console_of(domain(devices)) is streamable


def test_a_domain_without_devices_has_no_console() -> None:
    """A domain with nothing in it has no console either."""
    assert not console_of("<domain/>")


@pytest.mark.parametrize(
    ("os", "used"),
    [
        ("", False),
        (" firmware='efi'/>", True),
        (" firmware='bios'/>", False),
        ("><loader type='rom'>/bios.bin</loader></os>", False),
        ("><loader type='pflash' readonly='yes'>/code.fd</loader></os>", True),
        ("><loader type='pflash' readonly='yes' stateless='yes'>/code.fd</loader></os>", False),
        ("><loader>/code.fd</loader><nvram>/vars.fd</nvram></os>", True),
    ],
)
def test_uefi_variables_are_noticed(os: str, used: bool) -> None:
    """A start gets a file for UEFI variables exactly if its firmware has some."""
    assert uses_vars(domain(os=os)) is used


def test_a_domain_without_os_has_no_uefi_variables() -> None:
    """XML that leaves <os> out is not taken for UEFI."""
    assert not uses_vars("<domain/>")


def test_an_emulated_tpm_is_noticed() -> None:
    """Only a TPM whose state libvirt keeps by UUID asks for a UUID of its own."""
    assert has_emulated_tpm(domain("<tpm><backend type='emulator'/></tpm>"))
    assert not has_emulated_tpm(domain("<tpm><backend type='passthrough'/></tpm>"))
    assert not has_emulated_tpm(domain())


@pytest.mark.parametrize(
    ("amount", "mib"),
    [
        ("<memory>1048577</memory>", 1025),
        ("<memory unit='GiB'>2</memory>", 2048),
        ("<memory unit='gib'>2</memory>", 2048),
        ("<memory unit='g'>2</memory>", 2048),
        ("<memory unit='GB'>1</memory>", 954),
        ("<memory unit='bytes'>1</memory>", 1),
        ("", 0),
    ],
)
def test_memory_is_read_as_libvirt_does(amount: str, mib: int) -> None:
    """What a VM takes of its host is reckoned in whatever unit, and spelling of it, a person writes."""
    assert memory_of(f"<domain type='kvm'>{amount}</domain>") == mib
