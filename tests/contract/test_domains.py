"""What a host does with domains, on every libvirt that can be had."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Callable

import pytest

from contract.backends import OURS, STARTS, Backend, domain_xml
from latentvirt.domainxml import ownership_of
from latentvirt.errors import HostError, NotFound, Refused
from latentvirt.host import Condition, Host
from reactorthread import run

Able = Callable[..., None]

IN_MEMORY_XML = "<domain type='test'><name>t</name><memory>1</memory><os><type>hvm</type></os></domain>"


def test_a_created_domain_is_paused_and_says_whose_it_is(backend: Backend, host: Host, able: Able) -> None:
    """A domain does not run before its live XML was read, and that XML carries our mark."""
    able(STARTS)
    uuid = str(uuids.uuid4())
    created = run(host.create(domain_xml("paused", uuid=uuid), name="paused"))
    assert created.uuid == uuid
    assert ownership_of(created.xml) == OURS
    assert run(host.news(uuid)).condition is Condition.PAUSED
    view = run(host.domain("paused"))
    assert view is not None
    assert (view.uuid, view.active, view.persistent, view.ownership) == (uuid, True, False, OURS)


def test_a_libvirt_that_cannot_create_paused_says_so(backend: Backend, host: Host) -> None:
    """A domain is never created running for want of a way to create it paused."""
    if STARTS in backend.can:
        pytest.skip("this libvirt can")
    with pytest.raises(HostError, match="could not create the domain"):
        run(
            host.create(
                "<domain type='test'><name>t</name><memory>1</memory><os><type>hvm</type></os></domain>",
                name="t",
            )
        )
    assert run(host.domain("t")) is None


def test_resume_lets_it_run(backend: Backend, host: Host, able: Able) -> None:
    """A resumed domain runs."""
    able(STARTS)
    created = run(host.create(domain_xml("resumed"), name="resumed"))
    run(host.resume(created.uuid))
    assert run(host.news(created.uuid)).condition is Condition.RUNNING


def test_destroy_can_be_repeated(backend: Backend, host: Host, able: Able) -> None:
    """To end a domain that has ended is no error, and leaves nothing of it."""
    able(STARTS)
    created = run(host.create(domain_xml("ended"), name="ended"))
    run(host.destroy(created.uuid))
    run(host.destroy(created.uuid))
    assert run(host.domain("ended")) is None
    assert run(host.news(created.uuid)).condition is Condition.ENDED


def test_destroy_of_what_never_was_is_done(host: Host) -> None:
    """To end a domain that never was is no error."""
    run(host.destroy(str(uuids.uuid4())))


def test_missing_domains(host: Host) -> None:
    """A missing domain is None to look for and NotFound to use."""
    assert run(host.domain("nobody")) is None
    with pytest.raises(NotFound) as caught:
        run(host.definition("nobody"))
    assert caught.value.domain == "nobody"
    with pytest.raises(NotFound):
        run(host.resume(str(uuids.uuid4())))


def test_a_name_that_runs_is_not_taken_over(backend: Backend, host: Host, able: Able) -> None:
    """A second domain of a running one's name is refused, and the running one goes on."""
    able(STARTS)
    first = run(host.create(domain_xml("taken", marked=None), name="taken"))
    for xml in (domain_xml("taken"), domain_xml("taken", uuid=first.uuid)):
        with pytest.raises(HostError) as caught:
            run(host.create(xml, name="taken"))
        assert caught.value.host == backend.uri
    view = run(host.domain("taken"))
    assert view is not None
    assert (view.uuid, view.active, view.ownership) == (first.uuid, True, None)


def test_domains_are_listed_with_their_owners(backend: Backend, host: Host, able: Able) -> None:
    """The list tells ours from foreign ones, and running ones from those that are only defined."""
    able(STARTS)
    run(host.create(domain_xml("ours"), name="ours"))
    run(host.create(domain_xml("foreign", marked=None), name="foreign"))
    backend.define(domain_xml("dormant"))
    found = {view.name: view for view in run(host.domains())}
    assert found["ours"].ownership == OURS
    assert found["foreign"].ownership is None
    dormant = found["dormant"]
    assert (dormant.active, dormant.persistent, dormant.ownership) == (False, True, None)


def test_the_definition_of_a_predefined_domain_stays(backend: Backend, host: Host, able: Able) -> None:
    """A start with changed XML runs changed, and the persistent definition reads as before."""
    able(STARTS)
    uuid = str(uuids.uuid4())
    backend.define(domain_xml("predefined", uuid=uuid, marked=None))
    before = run(host.definition("predefined"))
    created = run(host.create(domain_xml("predefined", "changed", uuid=uuid), name="predefined"))
    assert "changed" in created.xml
    assert run(host.definition("predefined")) == before
    run(host.destroy(uuid))
    assert run(host.definition("predefined")) == before
    view = run(host.domain("predefined"))
    assert view is not None
    assert (view.active, view.persistent) == (False, True)


def test_a_domain_whose_disk_is_missing_is_not_created(backend: Backend, host: Host, able: Able) -> None:
    """The error names the host, the domain and the missing file, and nothing is left."""
    able(STARTS)
    with pytest.raises(HostError, match="/nonexistent/disk") as caught:
        run(host.create(domain_xml("diskless", disk="/nonexistent/disk"), name="diskless"))
    assert (caught.value.host, caught.value.domain) == (backend.uri, "diskless")
    assert run(host.domain("diskless")) is None


def test_xml_that_libvirt_refuses(host: Host) -> None:
    """XML that libvirt cannot read is an error of ours, with libvirt's words."""
    with pytest.raises(HostError, match="could not create the domain"):
        run(host.create("<domain", name="broken"))


def test_a_value_that_libvirt_cannot_read_is_its_refusal(host: Host, able: Able) -> None:
    """Well-formed XML with a unit that there is none of is refused for good: another try would be in vain."""
    able(STARTS)
    xml = domain_xml("odd").replace("unit='MiB'", "unit='parsec'").replace('unit="MiB"', 'unit="parsec"')
    with pytest.raises(Refused, match="parsec"):
        run(host.create(xml, name="odd"))


def test_capabilities(backend: Backend, host: Host, able: Able) -> None:
    """A host says which machines it can run, and which QEMU runs them."""
    able(STARTS)
    found = run(host.capabilities())
    assert found.arch == "x86_64"
    assert found.machine.startswith("pc-q35")
    assert "qemu" in found.emulator


def test_a_missing_network(backend: Backend, host: Host) -> None:
    """A network that is not there, or a libvirt without networks, is an error of ours."""
    with pytest.raises(HostError) as caught:
        run(host.network_address("nowhere"))
    if backend.uri.startswith("qemu:///embed"):
        return
    assert isinstance(caught.value, NotFound)
