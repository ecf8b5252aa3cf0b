"""What a host tells of its size and of what is in use, on every libvirt that can be had."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Callable

from contract.backends import OURS, STARTS, Backend, domain_xml
from latentvirt.host import Change, Host
from reactorthread import on_reactor, run

Able = Callable[..., None]


def test_a_host_says_how_large_it_is(host: Host) -> None:
    """A host has memory and processors."""
    node = run(host.node())
    assert node.memory > 0
    assert node.cpus > 0


def test_what_is_in_use_is_told_in_order(host: Host, able: Able) -> None:
    """Each running domain is told with its size, whose it is, and after those that were started before."""
    able(STARTS)
    first = run(host.create(domain_xml("first"), name="first"))
    second = run(host.create(domain_xml("second"), name="second"))
    for _ in range(2):  # the second time, whose they are is known
        found = {use.name: use for use in run(host.usage())}
        assert [found[name].uuid for name in ("first", "second")] == [first.uuid, second.uuid]
        assert found["first"].number < found["second"].number
        assert found["first"].ownership == OURS
        assert found["first"].memory >= 1
        assert found["first"].vcpus == 1
        names = list(found)
        assert names.index("first") < names.index("second")
    run(host.destroy(first.uuid))
    assert "first" not in {use.name for use in run(host.usage())}


def test_a_domain_of_the_same_uuid_is_seen_anew(host: Host, able: Able) -> None:
    """Whose a domain is, is not taken from an earlier one of its UUID."""
    able(STARTS)
    uuid = str(uuids.uuid4())
    run(host.create(domain_xml("again", uuid=uuid), name="again"))
    assert [use.ownership for use in run(host.usage()) if use.uuid == uuid] == [OURS]
    run(host.destroy(uuid))
    plain = domain_xml("again", uuid=uuid)
    plain = plain[: plain.index("<metadata>")] + plain[plain.index("</metadata>") + len("</metadata>") :]
    run(host.create(plain, name="again"))
    assert [use.ownership for use in run(host.usage()) if use.uuid == uuid] == [None]


def test_what_runs_without_paused_starts_is_told_too(backend: Backend, host: Host) -> None:
    """Also of a libvirt without statistics, or whose domains are not ours, what runs is told."""
    if STARTS in backend.can:
        run(host.create(domain_xml("any"), name="any"))
    assert [use for use in run(host.usage()) if use.memory > 0 and use.vcpus > 0]


def test_starts_and_ends_of_all_domains_are_heard(host: Host, able: Able) -> None:
    """Whatever starts or ends on the host is heard at once, although nobody watches it."""
    able(STARTS)
    heard: list[tuple[str, Change]] = []
    on_reactor(lambda: host.hear_of_domains(lambda uuid, change: heard.append((uuid, change))))
    created = run(host.create(domain_xml("heard"), name="heard"))
    run(host.destroy(created.uuid))
    while (created.uuid, Change.ENDED) not in heard:
        on_reactor(lambda: None)
    assert heard.index((created.uuid, Change.BEGAN)) < heard.index((created.uuid, Change.ENDED))
