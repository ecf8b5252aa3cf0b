"""A hold lives at its VM on the host, on every libvirt that can be had."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest

from contract.backends import DAEMON, OURS, STARTS, Backend, domain_xml
from latentvirt.errors import HostUnreachable, NotFound
from latentvirt.hold import Hold
from latentvirt.host import Host
from reactorthread import run

Able = Callable[..., None]

HOLD = Hold(until=4_000_000_000, by="anna@desk", why='<it\'s> a "core dump" & more, für später', worker="w1")


def test_a_hold_is_read_as_it_was_written(host: Host, able: Able) -> None:
    """What a person says is at the VM, whatever characters it has; it can be replaced, and taken away."""
    able(STARTS)
    uuid = run(host.create(domain_xml("held"), name="held")).uuid
    assert run(host.hold(uuid, only=OURS)) is None
    run(host.set_hold(uuid, None, only=OURS))
    for hold in (HOLD, attrs.evolve(HOLD, until=5, worker="")):
        run(host.set_hold(uuid, hold, only=OURS))
        assert run(host.hold(uuid, only=OURS)) == hold
    view = run(host.domain("held"))
    assert view is not None
    assert (view.ownership, view.hold) == (OURS, attrs.evolve(HOLD, until=5, worker=""))
    assert (view.held_at(4), view.held_at(5)) == (view.hold, None)
    run(host.set_hold(uuid, None, only=OURS))
    assert run(host.hold(uuid, only=OURS)) is None
    (again,) = [domain for domain in run(host.domains()) if domain.uuid == uuid]
    assert (again.ownership, again.hold) == (OURS, None)


def test_a_hold_is_no_other_starts(host: Host, able: Able) -> None:
    """Whoever has the UUID by now gets no hold that was meant for the one before; nor does what has ended."""
    able(STARTS)
    uuid = run(host.create(domain_xml("held"), name="held")).uuid
    other = attrs.evolve(OURS, start="f" * 12)
    run(host.set_hold(uuid, HOLD, only=OURS))
    assert run(host.hold(uuid, only=other)) is None
    with pytest.raises(NotFound):
        run(host.set_hold(uuid, None, only=other))
    assert run(host.hold(uuid, only=OURS)) == HOLD
    run(host.destroy(uuid))
    assert run(host.hold(uuid, only=OURS)) is None
    with pytest.raises(NotFound):
        run(host.set_hold(uuid, HOLD, only=OURS))


def test_a_hold_outlives_the_daemon(backend: Backend, host: Host, able: Able) -> None:
    """After a restart of libvirtd the VM is held still."""
    able(STARTS, DAEMON)
    uuid = run(host.create(domain_xml("held"), name="held")).uuid
    run(host.set_hold(uuid, HOLD, only=OURS))
    backend.lose_connection()
    while True:
        try:
            assert run(host.hold(uuid, only=OURS)) == HOLD
            return
        except HostUnreachable:
            pass  # the connection that broke; the next call opens another
