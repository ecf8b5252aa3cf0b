"""Consoles, channels and events, on every libvirt that can be had."""

from __future__ import annotations

import os
import uuid as uuids
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from twisted.internet import defer

from contract.backends import DAEMON, OURS, STARTS, Backend, Fake, domain_xml
from latentvirt.config import Connection
from latentvirt.errors import HostError
from latentvirt.guest import Attaching, GuestReader, Identity, Message, Ready, identity_line
from latentvirt.host import Condition, DomainNews, Host
from latentvirt.host.driver import LibvirtDriver
from latentvirt.host.further import MOST_CONNECTIONS
from latentvirt.names import CHANNEL_PORT
from reactorthread import Heard, on_reactor, run, start

Able = Callable[..., None]

MANY = 12
"""More than one connection takes calls at a time."""


def test_what_the_guest_writes_to_its_console_arrives(backend: Backend, host: Host, able: Able) -> None:
    """A console that is opened before the guest runs shows its first words."""
    able(STARTS)
    heard: Heard[bytes] = Heard()
    created = run(host.create(domain_xml("console"), name="console"))
    console = run(host.open_console(created.uuid, heard, lambda: None))
    run(host.resume(created.uuid))
    heard.until(lambda parts: b"latentvirt-busybox: up" in b"".join(parts))
    run(host.close_stream(console))


def test_a_console_has_one_reader(backend: Backend, host: Host, able: Able) -> None:
    """A console that somebody has is refused, and free again when he lets go."""
    able(STARTS)
    created = run(host.create(domain_xml("busy"), name="busy"))
    first = run(host.open_console(created.uuid, lambda _: None, lambda: None))
    with pytest.raises(HostError, match="Active console session exists"):
        run(host.open_console(created.uuid, lambda _: None, lambda: None))
    run(host.close_stream(first))
    run(host.close_stream(run(host.open_console(created.uuid, lambda _: None, lambda: None))))


def test_host_and_guest_talk_over_the_channel(backend: Backend, host: Host, able: Able) -> None:
    """The guest says ready, is told who it is, and says that it attaches."""
    able(STARTS)
    reader, messages, console = GuestReader(), Heard[Message](), Heard[bytes]()

    def hear(data: bytes) -> None:
        for message in reader.feed(data):
            messages(message)

    created = run(host.create(domain_xml("talker", "channel"), name="talker"))
    run(host.open_console(created.uuid, console, lambda: None))
    channel = run(host.open_channel(created.uuid, CHANNEL_PORT, hear, lambda: None))
    run(host.resume(created.uuid))
    messages.until(lambda said: any(isinstance(message, Ready) for message in said))
    identity = Identity(name="minion7", password="once", master="10.0.2.2:9989")
    run(host.write(channel, identity_line(identity, start="0a1b2c3d4e5f", now=0)))
    messages.until(lambda said: any(isinstance(message, Attaching) for message in said))
    console.until(lambda parts: b"identity: minion7" in b"".join(parts))
    run(host.close_stream(channel))


def test_a_channel_that_the_domain_lacks(backend: Backend, host: Host, able: Able) -> None:
    """To open a port that is not there is an error that names it."""
    able(STARTS)
    created = run(host.create(domain_xml("portless"), name="portless"))
    with pytest.raises(HostError, match=r"org\.example\.nothing"):
        run(host.open_channel(created.uuid, "org.example.nothing", lambda _: None, lambda: None))


def test_a_stream_ends_with_its_domain(backend: Backend, host: Host, able: Able) -> None:
    """Whoever reads a console hears that the domain ended."""
    able(STARTS)
    ended: Heard[str] = Heard()
    created = run(host.create(domain_xml("short"), name="short"))
    run(host.open_console(created.uuid, lambda _: None, lambda: ended("ended")))
    run(host.destroy(created.uuid))
    ended.until(lambda said: said == ["ended"])


def _watch(host: Host, uuid: str) -> Heard[DomainNews]:
    news: Heard[DomainNews] = Heard()
    on_reactor(lambda: host.watch(uuid, news))
    return news


def _ends(news: list[DomainNews]) -> bool:
    return any(item.condition.is_end for item in news)


@pytest.mark.parametrize(
    ("words", "condition", "detail"),
    [
        ("after=1:poweroff", Condition.ENDED, "powered itself off"),
        ("after=1:panic", Condition.CRASHED, "crashed"),
    ],
)
def test_a_watch_hears_how_a_guest_ended(
    backend: Backend, host: Host, able: Able, words: str, condition: Condition, detail: str
) -> None:
    """Power-off and panic reach the watch, told apart."""
    able(STARTS)
    created = run(host.create(domain_xml("watched", words), name="watched"))
    news = _watch(host, created.uuid)
    run(host.resume(created.uuid))
    told = news.until(_ends)
    end = next(item for item in told if item.condition.is_end)
    assert end.condition is condition
    assert detail in end.detail


def test_a_watch_hears_of_a_destroyer(backend: Backend, host: Host, able: Able) -> None:
    """That somebody else ended the domain reaches the watch."""
    able(STARTS)
    created = run(host.create(domain_xml("victim"), name="victim"))
    news = _watch(host, created.uuid)
    somebody = backend.direct()
    somebody.lookupByName("victim").destroy()
    told = news.until(_ends)
    assert told[-1] == DomainNews(Condition.ENDED, "somebody destroyed the VM")
    somebody.close()


def test_a_full_disk_is_news(backend: Backend, host: Host, able: Able) -> None:
    """A guest that was paused because the host's disk is full is reported as that, not as one that waits."""
    able(STARTS)
    if not isinstance(backend, Fake):
        pytest.skip("a full disk on real QEMU belongs to the tests of whole builds")
    created = run(host.create(domain_xml("full", "after=1:fill"), name="full"))
    news = _watch(host, created.uuid)
    run(host.resume(created.uuid))
    told = news.until(_ends)
    assert any("disk is full" in item.detail for item in told)
    assert run(host.news(created.uuid)).condition is Condition.IO_ERROR


def test_a_watch_that_was_cancelled_hears_nothing(backend: Backend, host: Host, able: Able) -> None:
    """What happens after a watch was cancelled is not told to it."""
    able(STARTS)
    created = run(host.create(domain_xml("unwatched"), name="unwatched"))
    unwanted: Heard[DomainNews] = Heard()
    watch = on_reactor(lambda: host.watch(created.uuid, unwanted))
    wanted = _watch(host, created.uuid)
    on_reactor(watch.cancel)
    run(host.destroy(created.uuid))
    wanted.until(_ends)
    # What was on its way when the watch ended may still come; the end was told after that.
    assert not any(news.condition.is_end for news in unwanted.all)


def test_after_a_restart_of_the_daemon_the_watch_is_told_the_truth(
    backend: Backend, host: Host, able: Able
) -> None:
    """The connection comes back by itself, a living domain is known to live, and its end is heard."""
    able(STARTS, DAEMON)
    created = run(host.create(domain_xml("survivor"), name="survivor"))
    run(host.resume(created.uuid))
    news = _watch(host, created.uuid)
    backend.lose_connection()
    # The news of the return; that of the resume may come in late, before the connection breaks.
    news.until(lambda told: any(item.condition is Condition.HOST_BACK for item in told))
    assert not _ends(news.all)
    run(host.destroy(created.uuid))
    news.until(_ends)


def test_what_ended_while_nobody_looked_is_told_after_the_return(
    backend: Backend, host: Host, able: Able
) -> None:
    """An end that sent no event to us, because the connection was broken, is found by looking anew."""
    able(STARTS, DAEMON)
    if not isinstance(backend, Fake):
        pytest.skip("only the fake can end a domain in that very moment")
    created = run(host.create(domain_xml("lost"), name="lost"))
    news = _watch(host, created.uuid)
    backend.host.reachable = False
    backend.lose_connection()
    domain = backend.host.domain("lost")
    assert domain is not None
    domain.kill()
    backend.host.reachable = True
    news.until(_ends)


def test_a_closed_host_leaves_no_connection(backend: Backend, able: Able) -> None:
    """Closing a host closes its connection, event registrations or not: no socket, no ssh process is left."""
    able(DAEMON)

    def sockets() -> int:
        if isinstance(backend, Fake):
            return len(backend.host.connections)
        return len([fd for fd in os.listdir("/proc/self/fd") if _is_socket(fd)])

    before = sockets()
    for _ in range(3):
        host = Host(Connection(backend.uri), start(), driver=backend.driver)
        run(host.open())
        run(host.close())
    # A connection is closed on a thread of its own, which nobody waits for.
    while sockets() > before:
        on_reactor(lambda: None)


def _is_socket(fd: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    except OSError:
        return False


def test_a_uuid_that_nobody_has_is_gone(host: Host) -> None:
    """News of a domain that is not there say that it has ended."""
    assert run(host.news(str(uuids.uuid4()))).condition is Condition.ENDED


class CountingDriver:
    """A backend's driver, which counts the connections."""

    def __init__(self, backend: Backend) -> None:
        self._driver = backend.driver or LibvirtDriver()
        self.opened = 0

    def open(self, uri: str) -> Any:
        """Open one."""
        self.opened += 1
        return self._driver.open(uri)


def test_many_vms_at_once(backend: Backend, host: Host, able: Able) -> None:
    """VMs created at the same moment, over several connections, are each heard, resumed and ended."""
    able(STARTS)
    driver = CountingDriver(backend)
    busy = Host(Connection(backend.uri), start(), driver=driver)
    heard: list[Heard[bytes]] = [Heard() for _ in range(MANY)]

    async def begin(number: int) -> str:
        created = await busy.create(domain_xml(f"many{number}"), name=f"many{number}")
        await busy.open_console(created.uuid, heard[number], lambda: None)
        return created.uuid

    async def all_of(doing: Iterable[Any]) -> list[Any]:
        return await defer.gatherResults([defer.ensureDeferred(one) for one in doing], consumeErrors=True)

    uuids_ = run(all_of(begin(number) for number in range(MANY)))
    for number in (0, MANY - 1):
        run(busy.resume(uuids_[number]))
        heard[number].until(lambda parts: b"latentvirt-busybox: up" in b"".join(parts))
    assert {run(busy.news(uuid)).condition for uuid in uuids_[1:-1]} == {Condition.PAUSED}
    run(all_of(busy.destroy(uuid, only=OURS) for uuid in uuids_))
    assert [view.name for view in run(host.domains()) if view.name.startswith("many")] == []
    assert driver.opened <= MOST_CONNECTIONS
    if not busy.connection.is_in_process:
        assert driver.opened > 1
    run(busy.close())
