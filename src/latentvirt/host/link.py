"""The connection to one host: opened once, watched, opened again, and never waited for without a deadline."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import attrs
import libvirt
from twisted.internet import defer

from latentvirt.errors import HostUnreachable, LatentvirtError, NotFound
from latentvirt.host.codes import (
    GONE,
    error_from,
    news_from_io_error,
    news_from_lifecycle,
    news_from_state,
)
from latentvirt.host.deadlines import Deadlines
from latentvirt.host.driver import Driver
from latentvirt.host.lane import Lane
from latentvirt.host.opened import Opened, open_connection
from latentvirt.host.views import Condition, DomainNews

T = TypeVar("T")
logger = logging.getLogger(__name__)

CALLS_AT_A_TIME = 5
"""libvirtd serves so many of one client's calls at a time (max_client_requests); more would wait there."""

RECONNECT_PAUSE_S = 0.5
CLOSE_S = 1.0
LOOK_AGAIN_S = (2.0, 6.0, 12.0)  # pauses after a connection's return, before its domains are looked at anew

CHANGES = (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STOPPED)
"""Events after which other room is left on a host."""

LOST_AFTER_S = 5.0
"""How long a broken connection may take to come back before the VMs there count as lost.

With the driver's keep-alive (8 s) a host that died is given up after 13 s, within the promised 15.
"""


@attrs.define(eq=False)
class Watch:
    """A subscription to the news of one domain; ends with `cancel`."""

    uuid: str
    tell: Callable[[DomainNews], object]
    _link: Link

    def cancel(self) -> None:
        """Hear no more."""
        self._link.watches.discard(self)


class Link:
    """Keep one connection to a host; it lives as long as its host.

    All methods are for the reactor's thread.

    Args:
        uri: libvirt's connection URI or alias.
        reactor: a Twisted reactor (IReactorTime, IReactorFromThreads).
        driver: opens connections.
        deadlines: how long calls may take.
    """

    def __init__(self, uri: str, reactor: Any, driver: Driver, deadlines: Deadlines) -> None:
        self.uri = uri
        self.reactor = reactor
        self.deadlines = deadlines
        self.watches: set[Watch] = set()
        self.on_change: Callable[[str, bool], object] = lambda uuid, ended: None
        """Called with the UUID of each domain that starts or ends, whoever's it is, and whether it ended.

        And with an empty one when the connection breaks: whatever happens from then on is not heard of.
        """
        self.opens = 0
        """How many connections there have been; what was asked on an earlier one may be so no more."""
        self._driver = driver
        self._lane = Lane(uri, reactor, CALLS_AT_A_TIME)
        # Opening has a thread to itself: a daemon that accepts and stays mute holds it for good, and
        # then one thread is what it costs.
        self._door = Lane(uri, reactor, 1)
        self._opened: Opened | None = None
        self._opening: list[defer.Deferred[Opened]] | None = None
        self._returning = False
        self._closed = False

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that is not known to be broken."""
        return self._opened is not None

    async def call(
        self,
        what: str,
        do: Callable[[Any], T],
        *,
        deadline_s: float,
        domain: str = "",
        late: Callable[[T], object] | None = None,
    ) -> T:
        """Do something with the connection, on a thread, within a deadline.

        Args:
            what: what is being tried, for messages: "create the domain".
            do: takes the virConnect; runs on a thread.
            deadline_s: seconds that it may take.
            domain: name of the domain concerned, for messages.
            late: is given, on the thread, a result that came too late, to undo it.

        Raises:
            HostError: one of its kinds, for all that can go wrong.
        """
        opened = await self._connected()

        def work() -> T:
            try:
                return do(opened.connection)
            except LatentvirtError as error:
                error.host = error.host or self.uri
                raise
            except Exception as error:
                translated = error_from(error, what, host=self.uri, domain=domain)
                if not _alive(opened.connection):
                    raise HostUnreachable(
                        f"lost the connection while trying to {what}: {error}", host=self.uri, domain=domain
                    ) from error
                raise translated from error

        try:
            return await self._lane.run(what, work, deadline_s=deadline_s, late=late)
        except HostUnreachable as error:
            self._broke(opened, str(error))
            raise

    async def run(self, what: str, do: Callable[[], T], *, deadline_s: float) -> T:
        """Do something blocking on one of the host's threads that needs no connection.

        Raises:
            LatentvirtError: what `do` raises, as one of ours.
        """

        def work() -> T:
            try:
                return do()
            except LatentvirtError:
                raise
            except Exception as error:
                raise error_from(error, what, host=self.uri) from error

        return await self._lane.run(what, work, deadline_s=deadline_s)

    async def open(self) -> None:
        """Open the connection if there is none."""
        await self._connected()

    async def _connected(self) -> Opened:
        if self._closed:
            raise HostUnreachable("the connection was closed for good", host=self.uri)
        if self._opened is not None:
            return self._opened
        if self._opening is not None:
            waiter: defer.Deferred[Opened] = defer.Deferred()
            self._opening.append(waiter)
            return await waiter
        self._opening = []
        try:
            opened = await self._door.run(
                "open the connection", self._open, deadline_s=self.deadlines.open, late=Opened.close
            )
            if self._closed:
                self._close_in_background(opened)
                raise HostUnreachable("the connection was closed for good", host=self.uri)
        except BaseException as error:
            waiting, self._opening = self._opening, None
            failed = (
                error
                if isinstance(error, LatentvirtError)
                else error_from(error, "open the connection", host=self.uri)
            )
            for other in waiting:
                other.errback(failed)
            raise failed from error
        waiting, self._opening = self._opening, None
        self._opened = opened
        self.opens += 1
        for other in waiting:
            other.callback(opened)
        return opened

    def _open(self) -> Opened:
        """Runs on the door's thread."""
        hear: dict[int, Callable[..., object]] = {
            libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE: self._on_lifecycle,
            libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON: self._on_io_error,
        }
        return open_connection(self.uri, self._driver, hear, self._on_closed)

    # The three below run on libvirt's event thread: they hand on, and do nothing else.

    def _on_closed(self, _: Any, reason: int, connection: Any) -> None:
        said = {
            libvirt.VIR_CONNECT_CLOSE_REASON_EOF: "libvirt closed the connection",
            libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE: "libvirt does not answer keep-alive messages",
        }.get(reason, "the connection broke")
        self.reactor.callFromThread(self._closed_by_far_end, connection, said)

    def _on_lifecycle(self, _: Any, domain: Any, event: int, detail: int, __: object) -> None:
        uuid = domain.UUIDString()
        news = news_from_lifecycle(event, detail)
        if news is not None:
            self.reactor.callFromThread(self._tell, uuid, news)
        if event in CHANGES:
            self.reactor.callFromThread(self._changed, uuid, event == libvirt.VIR_DOMAIN_EVENT_STOPPED)

    def _changed(self, uuid: str, ended: bool) -> None:
        self.on_change(uuid, ended)

    def _on_io_error(
        self, _: Any, domain: Any, path: str, __: str, action: int, reason: str, ___: object
    ) -> None:
        news = news_from_io_error(path, reason, action)
        if news is not None:
            self.reactor.callFromThread(self._tell, domain.UUIDString(), news)

    def _tell(self, uuid: str, news: DomainNews) -> None:
        watches = [watch for watch in self.watches if watch.uuid == uuid]
        if watches and news.condition in (Condition.ENDED, Condition.CRASHED):
            # VMs that are thawed from one image have one UUID: this may come late, from the one before.
            confirmed = defer.ensureDeferred(self._tell_if_so(uuid, watches, news))
            confirmed.addErrback(lambda _: None)  # the host is gone, which its watches hear of
            return
        for watch in watches:
            watch.tell(news)

    async def _tell_if_so(self, uuid: str, watches: list[Watch], news: DomainNews) -> None:
        if (await self._state(uuid)).condition.is_end:
            for watch in watches:
                if watch in self.watches:
                    watch.tell(news)

    async def _state(self, uuid: str) -> DomainNews:
        """Look how a domain fares."""
        try:
            return await self.call(
                "look at a domain again",
                lambda connection: news_from_state(connection.lookupByUUIDString(uuid)),
                deadline_s=self.deadlines.call,
            )
        except NotFound:
            return GONE

    def watch(self, uuid: str, tell: Callable[[DomainNews], object]) -> Watch:
        """Hear what becomes of a domain, the loss of its host included.

        Args:
            uuid: of the domain.
            tell: called on the reactor's thread.
        """
        watch = Watch(uuid, tell, self)
        self.watches.add(watch)
        return watch

    def _closed_by_far_end(self, connection: Any, reason: str) -> None:
        if self._opened is not None and self._opened.connection is connection:
            self._broke(self._opened, reason)

    def _broke(self, opened: Opened, reason: str) -> None:
        if self._opened is not opened:
            return
        self._opened = None
        logger.warning("%s: %s", self.uri, reason)
        self._lane.fail_waiting(HostUnreachable(reason, host=self.uri))
        self._close_in_background(opened)
        self.on_change("", False)
        if self.watches and not self._returning:
            self._returning = True
            defer.ensureDeferred(self._come_back(reason)).addErrback(
                lambda failure: logger.error("%s: watching ended: %s", self.uri, failure.getTraceback())
            )

    def _close_in_background(self, opened: Opened) -> None:
        # Closing may block on a mute far end; nobody waits for it.
        self._door.run("close the broken connection", opened.close, deadline_s=CLOSE_S).addErrback(
            lambda _: None
        )

    async def _come_back(self, reason: str) -> None:
        """Open the connection again and look at all that is watched, until that went well."""
        lost_at = self.reactor.seconds() + LOST_AFTER_S
        told = False
        try:
            while self.watches and not self._closed:
                if not told and self.reactor.seconds() >= lost_at:
                    told = True
                    for watch in list(self.watches):
                        watch.tell(DomainNews(Condition.HOST_LOST, f"the host was lost ({reason})"))
                try:
                    patience = RECONNECT_PAUSE_S if told else lost_at - self.reactor.seconds()
                    await self._within(self._connected(), patience)
                    await self._look_anew()
                    # It may break once more meanwhile, and is then looked at after that return.
                    defer.ensureDeferred(self._look_later(self._opened)).addErrback(lambda _: None)
                except LatentvirtError:
                    # Also if it broke once more while we looked: a host may open and yet answer nothing.
                    await self._pause(RECONNECT_PAUSE_S)
                    continue
                return
        finally:
            self._returning = False

    async def _within(self, doing: Any, seconds: float) -> None:
        """Wait for something at most so long; it goes on by itself when the time is up."""
        done = defer.ensureDeferred(doing)
        first: defer.Deferred[None] = defer.Deferred()
        not_yet = HostUnreachable("not back yet", host=self.uri)
        timer = self.reactor.callLater(max(seconds, 0.0), first.errback, not_yet)

        def over(result: Any) -> None:
            if timer.active():
                timer.cancel()
                first.callback(result) if not hasattr(result, "check") else first.errback(result)

        done.addBoth(over)
        await first

    async def _pause(self, seconds: float) -> None:
        done: defer.Deferred[None] = defer.Deferred()
        self.reactor.callLater(seconds, done.callback, None)
        await done

    async def _look_later(self, opened: Opened | None) -> None:
        """Look for ends some more: of what ends while libvirtd takes up its VMs again, it may not tell."""
        for pause in LOOK_AGAIN_S:
            await self._pause(pause)
            if opened is not None and self._opened is opened:
                await self._look_anew(returning=False)

    async def _look_anew(self, *, returning: bool = True) -> None:
        """Tell every watch how its domain fares, or if it ended: what happened meanwhile sent no event."""
        for watch in list(self.watches):
            try:
                news = await self._state(watch.uuid)
            except HostUnreachable:
                raise
            except LatentvirtError as error:
                logger.warning("%s: a domain's state stays unknown: %s", self.uri, error)
                continue
            if returning and news is GONE:
                # Not by itself, as far as anybody can tell: hosts that crash come back without their VMs.
                news = DomainNews(Condition.HOST_LOST, "the host was away, and is back without the VM")
            if returning and watch in self.watches and not news.condition.is_end:
                watch.tell(DomainNews(Condition.HOST_BACK, "the host is back"))
            if watch in self.watches and (returning or news.condition.is_end):
                watch.tell(news)

    async def close(self) -> None:
        """Close the connection for good; does not wait for a far end that is mute."""
        self._closed = True
        opened, self._opened = self._opened, None
        if opened is not None:
            try:
                await self._door.run("close the connection", opened.close, deadline_s=CLOSE_S)
            except LatentvirtError as error:
                logger.warning("%s", error)


def _alive(connection: Any) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False
