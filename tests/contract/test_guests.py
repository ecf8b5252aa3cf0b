"""What a host knows of guests, and notes about them, on every libvirt that can be had."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from contract.backends import OURS, STARTS, Backend, Fake, domain_xml
from latentvirt.domainxml import GuestMark, guest_mark, guest_of, ownership_of
from latentvirt.errors import HostError
from latentvirt.host import Host
from latentvirt.hostkeys import HostKey
from latentvirt.names import GUEST_NAMESPACE, GUEST_PREFIX
from reactorthread import run

Able = Callable[..., None]

MARK = GuestMark(
    "minion <1> & co",
    (HostKey.parse("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG1hdGVyaWFs"),),  # type: ignore[arg-type]
)


def test_notes_in_the_metadata_stand_beside_whose_it_is(host: Host, able: Able) -> None:
    """What is written of a guest is read back by any process, replaced, removed, and whose it is stays."""
    able(STARTS)
    uuid = run(host.create(domain_xml("noted"), name="noted")).uuid

    def note(xml: str | None) -> GuestMark | None:
        run(host.set_metadata(uuid, xml, prefix=GUEST_PREFIX, namespace=GUEST_NAMESPACE))
        live = run(host.description(uuid))
        assert ownership_of(live) == OURS
        return guest_of(live)

    assert note(guest_mark(MARK)) == MARK
    other = GuestMark("other", MARK.keys)
    assert note(guest_mark(other)) == other
    assert note(None) is None


def test_addresses_that_nobody_knows(host: Host, able: Able) -> None:
    """A guest without a network, or an agent, has no addresses, and that is no error."""
    able(STARTS)
    uuid = run(host.create(domain_xml("nowhere"), name="nowhere")).uuid
    assert [run(host.addresses(uuid, source)) for source in ("lease", "agent", "arp")] == [(), (), ()]


def test_addresses_of_use_are_told(backend: Backend, host: Host, fake: Fake) -> None:
    """IPv4 comes first; the loopback, link-local ones and what is no address are left out."""
    uuid = run(host.create(domain_xml("reached"), name="reached")).uuid
    fake.host.domains[uuid].addresses[0] = [
        "fe80::1",
        "fd00::2",
        "127.0.0.1",
        "-oProxyCommand=x",
        "192.0.2.7",
    ]
    assert run(host.addresses(uuid, "lease")) == ("192.0.2.7", "fd00::2")


def test_a_picture_of_the_screen(host: Host, able: Able) -> None:
    """A domain with a video device has a picture; one without is refused."""
    able(STARTS)
    blind = run(host.create(domain_xml("blind"), name="blind")).uuid
    with pytest.raises(HostError, match="could not take a picture"):
        run(host.screenshot(blind))
    xml = domain_xml("seen").replace("<devices>", "<devices><video><model type='vga'/></video>")
    seen = run(host.create(xml, name="seen")).uuid
    run(host.resume(seen))
    kind, picture = run(host.screenshot(seen))
    assert kind in ("image/x-portable-pixmap", "image/png")
    assert picture.startswith(b"P6" if kind.endswith("pixmap") else b"\x89PNG")
