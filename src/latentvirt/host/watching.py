"""What becomes of the domains that somebody watches: by events, and by a look when the host is back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet import defer

from latentvirt.errors import HostUnreachable, LatentvirtError, NotFound
from latentvirt.host.codes import GONE, news_from_state
from latentvirt.host.views import Condition, DomainNews

if TYPE_CHECKING:
    from latentvirt.host.link import Link

logger = logging.getLogger(__name__)

RECONNECT_PAUSE_S = 0.5
LOOK_AGAIN_S = (2.0, 6.0, 12.0)  # pauses after a connection's return, before its domains are looked at anew

LOST_AFTER_S = 5.0
"""How long a broken connection may take to come back before the VMs there count as lost.

With the driver's keep-alive (8 s) a host that died is given up after 13 s, within the promised 15.
"""


@attrs.define(eq=False)
class Watch:
    """A subscription to the news of one domain; ends with `cancel`."""

    uuid: str
    tell: Callable[[DomainNews], object]
    _among: set[Watch]

    def cancel(self) -> None:
        """Hear no more."""
        self._among.discard(self)


class Watches:
    """Tell those who watch a host's domains; they live as long as its link.

    All methods are for the reactor's thread.

    Args:
        link: to the host.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._watches: set[Watch] = set()
        self._returning = False

    def add(self, uuid: str, tell: Callable[[DomainNews], object]) -> Watch:
        """Hear what becomes of a domain, the loss of its host included.

        Args:
            uuid: of the domain.
            tell: called on the reactor's thread.
        """
        watch = Watch(uuid, tell, self._watches)
        self._watches.add(watch)
        return watch

    def tell(self, uuid: str, news: DomainNews) -> None:
        """Hand on what an event says.

        Args:
            uuid: of the domain.
            news: what.
        """
        watches = [watch for watch in self._watches if watch.uuid == uuid]
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
                if watch in self._watches:
                    watch.tell(news)

    async def _state(self, uuid: str) -> DomainNews:
        """Look how a domain fares."""
        try:
            return await self._link.on_domain(
                "look at a domain again", uuid, news_from_state, deadline_s=self._link.deadlines.call
            )
        except NotFound:
            return GONE

    def broke(self, reason: str) -> None:
        """Hear that the connection broke; it is opened again if anybody watches.

        Args:
            reason: why.
        """
        if self._watches and not self._returning:
            self._returning = True
            defer.ensureDeferred(self._come_back(reason)).addErrback(
                lambda failure: logger.error("%s: watching ended: %s", self._link.uri, failure.getTraceback())
            )

    async def _come_back(self, reason: str) -> None:
        """Open the connection again and look at all that is watched, until that went well."""
        clock = self._link.reactor
        lost_at = clock.seconds() + LOST_AFTER_S
        told = False
        try:
            while self._watches and not self._link.closed:
                if not told and clock.seconds() >= lost_at:
                    told = True
                    for watch in list(self._watches):
                        watch.tell(DomainNews(Condition.HOST_LOST, f"the host was lost ({reason})"))
                try:
                    patience = RECONNECT_PAUSE_S if told else lost_at - clock.seconds()
                    await self._within(self._link.open(), patience)
                    await self._look_anew()
                    # It may break once more meanwhile, and is then looked at after that return.
                    defer.ensureDeferred(self._look_later(self._link.opens)).addErrback(lambda _: None)
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
        not_yet = HostUnreachable("not back yet", host=self._link.uri)
        timer = self._link.reactor.callLater(max(seconds, 0.0), first.errback, not_yet)

        def over(result: Any) -> None:
            if timer.active():
                timer.cancel()
                first.callback(result) if not hasattr(result, "check") else first.errback(result)

        done.addBoth(over)
        await first

    async def _pause(self, seconds: float) -> None:
        done: defer.Deferred[None] = defer.Deferred()
        self._link.reactor.callLater(seconds, done.callback, None)
        await done

    async def _look_later(self, opens: int) -> None:
        """Look for ends some more: of what ends while libvirtd takes up its VMs again, it may not tell."""
        for pause in LOOK_AGAIN_S:
            await self._pause(pause)
            if self._link.is_open and self._link.opens == opens:
                await self._look_anew(returning=False)

    async def _look_anew(self, *, returning: bool = True) -> None:
        """Tell every watch how its domain fares, or if it ended: what happened meanwhile sent no event."""
        for watch in list(self._watches):
            try:
                news = await self._state(watch.uuid)
            except HostUnreachable:
                raise
            except LatentvirtError as error:
                logger.warning("%s: a domain's state stays unknown: %s", self._link.uri, error)
                continue
            if returning and news is GONE:
                # Not by itself, as far as anybody can tell: hosts that crash come back without their VMs.
                news = DomainNews(Condition.HOST_LOST, "the host was away, and is back without the VM")
            if returning and watch in self._watches and not news.condition.is_end:
                watch.tell(DomainNews(Condition.HOST_BACK, "the host is back"))
            if watch in self._watches and (returning or news.condition.is_end):
                watch.tell(news)
