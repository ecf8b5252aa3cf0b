"""A host that is slow, mute, or gone: what it costs, and whom (on the fake)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import libvirt
import pytest
from twisted.internet import defer

from contract.backends import OURS, domain_xml
from latentvirt.config import Connection
from latentvirt.errors import BadXML, HostError, HostTimeout, HostUnreachable
from latentvirt.host import Condition, Deadlines, DomainNews, Host
from latentvirt.host.link import CALLS_AT_A_TIME
from latentvirt.host.watching import RECONNECT_PAUSE_S
from latentvirt.names import METADATA_NAMESPACE, Ownership
from latentvirt.testing import FakeLibvirt
from latentvirt.testing.trouble import connection_lost
from reactorthread import Heard, on_reactor, run, start

XML = (
    "<domain type='qemu'><name>guest</name><uuid>6f2c9f0e-58f2-4e3b-9d8e-0d6f4c1f7a21</uuid>"
    "<memory>1024</memory><devices/></domain>"
)
SHORT = Deadlines(open=0.2, call=0.2, create=0.2, storage=0.2)
LONG = Deadlines(open=60, call=60, create=60, storage=60)


@pytest.fixture
def fake() -> FakeLibvirt:
    """A fake libvirt."""
    return FakeLibvirt()


@pytest.fixture
def hosts(fake: FakeLibvirt) -> Iterator[Any]:
    """Makes hosts on it, and closes them."""
    made = []

    def make(deadlines: Deadlines = LONG, uri: str = "qemu:///system") -> Host:
        host = Host(Connection(uri), start(), driver=fake, deadlines=deadlines)
        made.append(host)
        return host

    yield make
    for host in made:
        run(host.close())


def _began(doing: Any) -> defer.Deferred[Any]:
    return on_reactor(lambda: defer.ensureDeferred(doing))


async def _outcome(waiting: defer.Deferred[Any]) -> Any:
    return await waiting


def test_a_call_that_hangs_fails_in_time_and_others_go_on(fake: FakeLibvirt, hosts: Any) -> None:
    """A call without answer fails at its deadline, with a way out; the next call goes well."""
    host = hosts(SHORT)
    run(host.open())
    hang = fake.inspector.trouble.hang("getCapabilities")
    with pytest.raises(HostTimeout, match=r"did not answer within 0.2 s when asked to read.*What to do"):
        run(host.capabilities())
    assert run(host.domains()) == []
    hang.release()


def test_a_hung_host_does_not_hold_up_another(fake: FakeLibvirt, hosts: Any) -> None:
    """While every call to one host hangs, another host answers."""
    mute, other = hosts(), hosts(uri="qemu:///session")
    run(mute.open())
    hang = fake.inspector.trouble.hang("listAllDomains")
    waiting = [_began(mute.domains()) for _ in range(CALLS_AT_A_TIME)]
    for _ in waiting:
        assert hang.entered.acquire(timeout=60)
    assert run(other.domains()) == []
    hang.release()
    for one in waiting:
        assert run(_outcome(one)) == []


def test_when_all_calls_hang_the_next_fails_at_once(fake: FakeLibvirt, hosts: Any) -> None:
    """Once as many calls hang as a host may have, further ones fail without a wait, until one comes back."""
    host = hosts(Deadlines(open=60, call=60, create=0.2, storage=60))
    run(host.open())
    # Broken connections let go of their calls on the fake; what hangs here hangs outside of any.
    hang = fake.inspector.trouble.hang("local")

    def stuck() -> None:
        hang.wait(lambda: False)

    waiting = [_began(host.run_local("be stuck", stuck, deadline_s=0.2)) for _ in range(CALLS_AT_A_TIME)]
    for one in waiting:
        with pytest.raises(HostTimeout):
            run(_outcome(one))
    with pytest.raises(HostTimeout, match="have not come back"):
        run(host.domain("x"), timeout=5)
    hang.release()
    while True:
        try:
            assert run(host.domain("x"), timeout=5) is None
            break
        except HostTimeout:
            continue


def test_what_comes_too_late_is_undone(fake: FakeLibvirt, hosts: Any) -> None:
    """A domain that libvirt made after we had given it up does not stay."""
    host = hosts(SHORT)
    run(host.open())
    destroyed = Heard[str]()
    trouble = fake.inspector.trouble
    hang = trouble.hang("createXML")
    trouble.before_next("domain.destroy", lambda: destroyed("destroyed"))
    creating = _began(host.create(XML, name="guest"))
    hang.entered.acquire(timeout=60)
    with pytest.raises(HostTimeout):
        run(_outcome(creating))
    hang.release()
    destroyed.until(lambda said: said == ["destroyed"])
    while fake.inspector.running():
        run(host.domains())


def test_opening_a_mute_daemon_costs_one_thread(fake: FakeLibvirt, hosts: Any) -> None:
    """A daemon that accepts and stays mute: who waits fails in time, later callers at once."""
    host = hosts(SHORT)
    hang = fake.inspector.trouble.hang("open")
    first, second = _began(host.domains()), _began(host.domains())
    for waiting in (first, second):
        with pytest.raises(HostTimeout, match="open the connection"):
            run(_outcome(waiting))
    with pytest.raises(HostTimeout, match="have not come back"):
        run(host.domains(), timeout=5)
    assert fake.inspector.trouble.calls.count("open") == 1
    hang.release()


def test_a_connection_that_came_too_late_is_closed(fake: FakeLibvirt, hosts: Any) -> None:
    """A connection that opens after it was given up does not stay open."""
    host = hosts(SHORT)
    closed = Heard[str]()
    fake.inspector.trouble.before_next("close", lambda: closed("closed"))
    hang = fake.inspector.trouble.hang("open")
    with pytest.raises(HostTimeout):
        run(host.open())
    hang.release()
    closed.until(lambda said: said == ["closed"])


def test_a_host_that_is_down_says_how_to_look(fake: FakeLibvirt, hosts: Any) -> None:
    """An unreachable host is named, with a command to try."""
    fake.inspector.reachable = False
    host = hosts()
    with pytest.raises(HostUnreachable, match=r"virsh -c 'qemu:///system' list"):
        run(host.domains())
    fake.inspector.reachable = True
    assert run(host.domains()) == []


def test_whatever_libvirt_raises_is_ours(fake: FakeLibvirt, hosts: Any) -> None:
    """Exceptions that are none of libvirt's, which its binding is known to raise, are wrapped."""
    host = hosts()
    fake.inspector.trouble.fail_next("listAllDomains", SystemError("returned NULL without setting an error"))
    with pytest.raises(HostError, match="could not list the domains: returned NULL"):
        run(host.domains())


def test_what_a_local_call_raises_is_ours(hosts: Any) -> None:
    """A refusal of the local file system is an error of ours that names what was tried."""

    def refuse() -> None:
        raise PermissionError(13, "Permission denied", "/images")

    with pytest.raises(HostError, match=r"could not list our directory.*Permission denied"):
        run(hosts().run_local("list our directory", refuse))


def test_a_domain_that_ends_while_the_list_is_made_is_left_out(fake: FakeLibvirt, hosts: Any) -> None:
    """A domain that goes between the list and the look at it does not spoil the list."""
    host = hosts()
    created = run(host.create(XML, name="guest"))
    domain = fake.inspector.domains[created.uuid]
    fake.inspector.trouble.before_next("domain.isActive", domain.destroy)
    assert run(host.domains()) == []


def test_a_failure_that_several_share_names_each_ones_vm() -> None:
    """Builds that a host fails together are each told of their own VM, with all else that is known."""
    shared = HostError("said no", code=38, remedy="ask again", host="qemu:///system")
    one, two = (shared.placed(host="elsewhere", domain=name) for name in ("one", "two"))
    assert str(one) == "[host qemu:///system, domain one] said no. What to do: ask again"
    assert str(two) == "[host qemu:///system, domain two] said no. What to do: ask again"
    assert one.code == 38
    bad = BadXML("no disk", line=3).placed(host="", domain="three")
    assert (str(bad), bad.line) == ("[domain three] line 3: no disk", 3)


def test_a_vm_is_not_taken_for_gone_when_the_host_does_not_tell(fake: FakeLibvirt, hosts: Any) -> None:
    """An end that breaks off while it is asked whose the VM is, fails, and can be repeated."""
    host = hosts()
    start_ = Ownership("0123456789abcdef", "slot1", "0a1b2c3d4e5f")
    marked = f"<metadata><l:vm xmlns:l='{METADATA_NAMESPACE}' {{}}/></metadata>".format(
        " ".join(f"{key}='{getattr(start_, key)}'" for key in ("owner", "slot", "start"))
    )
    created = run(host.create(XML.replace("<memory>", f"{marked}<memory>"), name="guest"))
    for code in (libvirt.VIR_ERR_RPC, libvirt.VIR_ERR_OPERATION_TIMEOUT):
        fake.inspector.trouble.fail_next("domain.metadata", code)
        with pytest.raises(HostError):
            run(host.destroy(created.uuid, only=start_))
    assert fake.inspector.running() == ["guest"]
    run(host.destroy(created.uuid, only=start_))
    assert fake.inspector.running() == []


def test_a_host_that_stays_away_is_told_to_those_who_watch(
    fake: FakeLibvirt, hosts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that does not come back in time is reported lost; when it returns, the truth follows."""
    monkeypatch.setattr("latentvirt.host.watching.LOST_AFTER_S", 0.2)
    monkeypatch.setattr("latentvirt.host.watching.RECONNECT_PAUSE_S", 0.05)
    host = hosts()
    created = run(host.create(XML, name="guest"))
    news: Heard[DomainNews] = Heard()
    on_reactor(lambda: host.watch(created.uuid, news))
    fake.inspector.reachable = False
    fake.inspector.break_connections(libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE)
    told = news.until(lambda said: any(item.condition is Condition.HOST_LOST for item in said))
    assert "keep-alive" in told[-1].detail
    fake.inspector.domains[created.uuid].power_off()
    fake.inspector.reachable = True
    news.until(lambda said: said[-1].condition is Condition.ENDED)


def test_a_host_that_opens_and_answers_nothing_is_asked_with_pauses(
    fake: FakeLibvirt, hosts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that lets us in and then breaks off each time is not opened again without a pause."""
    pauses = Heard[float]()
    pause = "latentvirt.host.watching.Watches._pause"

    async def note(link: Any, seconds: float) -> None:
        pauses(seconds)

    monkeypatch.setattr(pause, note)
    host = hosts()
    created = run(host.create(XML, name="guest"))
    news: Heard[DomainNews] = Heard()
    on_reactor(lambda: host.watch(created.uuid, news))
    opened = fake.inspector.trouble.calls.count("open")
    for _ in range(3):
        fake.inspector.trouble.fail_next("lookupByUUIDString", libvirt.VIR_ERR_RPC)
    fake.inspector.break_connections()
    news.until(lambda said: [item.condition for item in said] == [Condition.HOST_BACK, Condition.PAUSED])
    assert pauses.all[:3] == [RECONNECT_PAUSE_S] * 3
    assert fake.inspector.trouble.calls.count("open") == opened + 4


def test_whose_a_vm_is_is_not_made_up_when_the_connection_breaks(fake: FakeLibvirt, hosts: Any) -> None:
    """A VM of ours that is looked at over a connection that breaks is not taken for somebody else's."""
    created = run(hosts().create(domain_xml("guest"), name="guest"))

    def lose() -> None:
        fake.inspector.break_connections()
        raise connection_lost()

    host = hosts()
    fake.inspector.trouble.before_next("domain.metadata", lose)
    with pytest.raises(HostUnreachable):
        run(host.usage())
    assert [(use.uuid, use.ownership) for use in run(host.usage())] == [(created.uuid, OURS)]


def test_a_host_closed_while_it_opens_stays_closed(fake: FakeLibvirt, hosts: Any) -> None:
    """A connection that opens after its host was closed is closed, too."""
    host = hosts()
    hang = fake.inspector.trouble.hang("open")
    opening = _began(host.open())
    hang.entered.acquire(timeout=60)
    closed = Heard[str]()
    fake.inspector.trouble.before_next("close", lambda: closed("closed"))
    run(host.close())
    hang.release()
    with pytest.raises(HostUnreachable):
        run(_outcome(opening))
    closed.until(lambda said: said == ["closed"])


def test_capabilities_are_asked_for_once(fake: FakeLibvirt, hosts: Any) -> None:
    """Starts that need a host's capabilities at the same moment ask once; a failure is not remembered."""
    host = hosts()
    trouble = fake.inspector.trouble
    trouble.fail_next("getCapabilities", libvirt.VIR_ERR_OPERATION_FAILED)
    hang = trouble.hang("getCapabilities")
    waiting = [_began(host.capabilities()) for _ in range(5)]
    hang.release()
    with pytest.raises(HostError):
        run(_outcome(waiting[0]))
    assert {run(_outcome(one)).arch for one in waiting[1:]} == {"x86_64"}
    assert trouble.calls.count("getCapabilities") == 2


def test_any_number_may_wait_for_capabilities(fake: FakeLibvirt, hosts: Any) -> None:
    """However many starts wait for a host's capabilities at the same moment, all of them go on."""
    host = hosts()
    hang = fake.inspector.trouble.hang("getCapabilities")
    waiting = [_began(host.capabilities()) for _ in range(2 * sys.getrecursionlimit())]
    hang.release()
    assert {run(_outcome(one)).arch for one in waiting} == {"x86_64"}


def test_a_late_end_of_an_earlier_vm_ends_no_other(fake: FakeLibvirt, hosts: Any) -> None:
    """VMs thawed from one image have one UUID; that one has ended may be told when its successor runs."""
    host = hosts()
    created = run(host.create(XML, name="guest"))
    heard: Heard[DomainNews] = Heard()
    on_reactor(lambda: host.watch(created.uuid, heard))
    domain = fake.inspector.domain("guest")
    assert domain is not None
    stopped, destroyed = libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED
    fake.inspector.tell(libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, domain, stopped, destroyed)
    fake.inspector.settle()
    run(host.domains())
    run(host.domains())
    assert heard.all == []
    domain.kill()
    heard.until(lambda news: bool(news) and news[-1].condition is Condition.ENDED)
