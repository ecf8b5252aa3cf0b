"""The way to one host: opened once, opened again, and never waited for without a deadline."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import libvirt
from twisted.internet import defer

from latentvirt.errors import HostUnreachable, LatentvirtError
from latentvirt.host.codes import (
    change_from_lifecycle,
    error_from,
    news_from_io_error,
    news_from_lifecycle,
)
from latentvirt.host.deadlines import Deadlines
from latentvirt.host.driver import Driver
from latentvirt.host.further import CLOSE_S, MOST_CONNECTIONS, Further
from latentvirt.host.lane import Lane, Seat
from latentvirt.host.opened import Opened, open_connection
from latentvirt.host.pace import Pace
from latentvirt.host.views import Change
from latentvirt.host.watching import Watches

T = TypeVar("T")
logger = logging.getLogger(__name__)

CALLS_AT_A_TIME = 5
"""libvirtd serves so many of one client's calls at a time (max_client_requests); more would wait there."""


class Link:
    """Keep the connection to a host, and further ones while there is much to do, as long as the host lives.

    All methods are for the reactor's thread.

    Args:
        uri: libvirt's connection URI or alias.
        reactor: a Twisted reactor (IReactorTime, IReactorFromThreads).
        driver: opens connections.
        deadlines: how long calls may take.
        most: how many connections there may be while many calls are under way.
    """

    def __init__(
        self, uri: str, reactor: Any, driver: Driver, deadlines: Deadlines, most: int = MOST_CONNECTIONS
    ) -> None:
        self.uri = uri
        self.reactor = reactor
        self.deadlines = deadlines
        self.watches = Watches(self)
        self.on_change: Callable[[str, Change], object] = lambda uuid, change: None
        """Called with the UUID of each domain that starts or ends, whoever's it is, and which it was.

        And with an empty one when the connection breaks.
        """
        self.opens = 0
        """How many connections there have been; what was asked on an earlier one may be so no more."""
        self._driver = driver
        self._pace = Pace.of(reactor)
        self._lane = Lane(uri, reactor, CALLS_AT_A_TIME)
        # Opening has a thread to itself: a daemon that accepts and stays mute holds it for good, and
        # then one thread is what it costs.
        self._door = Lane(uri, reactor, 1)
        self._further = Further(
            uri,
            reactor,
            self._lane,
            most=most - 1,
            open_one=lambda: open_connection(uri, driver, {}, self._on_closed),
            open_s=deadlines.open,
            needed=lambda seat: seat in {kept for kept, _ in self._domains.values()},
        )
        self._domains: dict[str, tuple[Seat, Any]] = {}
        self._opened: Opened | None = None
        self._opening: list[defer.Deferred[Opened]] | None = None
        self.closed = False
        """Whether it was closed for good."""

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that is not known to be broken."""
        return self._opened is not None

    async def call(
        self,
        what: str,
        do: Callable[[Opened], T],
        *,
        deadline_s: float,
        domain: str = "",
        late: Callable[[T], object] | None = None,
        on: Seat | None = None,
    ) -> T:
        """Do something with a connection, on a thread, within a deadline.

        Args:
            what: what is being tried, for messages: "create the domain".
            do: takes the connection; runs on a thread.
            deadline_s: seconds that it may take.
            domain: name of the domain concerned, for messages.
            late: is given, on the thread, a result that came too late, to undo it.
            on: where it is best done.

        Raises:
            HostError: one of its kinds, for all that can go wrong.
        """
        first = await self._connected()

        def work(further: Opened | None) -> T:
            opened = further or first
            try:
                return do(opened)
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

        done = self._lane.run_seated(what, work, deadline_s=deadline_s, late=late, on=on)
        self._further.grow()
        try:
            return await done
        except HostUnreachable as error:
            # One that breaks takes the others along: who waits is told at once, and all that is kept goes.
            self._broke(first, str(error))
            raise

    async def on_domain(self, what: str, uuid: str, do: Callable[[Any], T], **how: Any) -> T:
        """Do something with a domain; one that was kept is not looked for.

        Args:
            what: as for `call`.
            uuid: of the domain.
            do: takes the virDomain; runs on a thread.
            how: more arguments of `call`.
        """
        seat, kept = self._domains.get(uuid, (None, None))

        def with_it(opened: Opened) -> T:
            there = kept is not None and kept.connect() is opened.connection
            return do(kept if there else opened.connection.lookupByUUIDString(uuid))

        return await self.call(what, with_it, on=seat, **how)

    def keep(self, uuid: str, domain: Any) -> None:
        """Keep what libvirt gave for a domain, until it ends or is forgotten.

        Args:
            uuid: of the domain.
            domain: the virDomain.
        """
        connection = domain.connect()
        if self._opened is not None and connection is self._opened.connection:
            self._domains[uuid] = (self._lane.first, domain)
        elif (seat := self._further.seat_of(connection)) is not None:
            self._domains[uuid] = (seat, domain)

    def forget(self, uuid: str) -> None:
        """Keep nothing for a domain any more."""
        self._domains.pop(uuid, None)

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
        if self.closed:
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
            if self.closed:
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

    # The three below run on libvirt's event thread: they hand on, in order, and do nothing else.

    def _on_closed(self, _: Any, reason: int, connection: Any) -> None:
        said = {
            libvirt.VIR_CONNECT_CLOSE_REASON_EOF: "libvirt closed the connection",
            libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE: "libvirt does not answer keep-alive messages",
        }.get(reason, "the connection broke")
        self._pace.arrive(partial(self._closed_by_far_end, connection, said))

    def _on_lifecycle(self, _: Any, domain: Any, event: int, detail: int, __: object) -> None:
        uuid = domain.UUIDString()
        news = news_from_lifecycle(event, detail)
        if news is not None:
            self._pace.arrive(partial(self.watches.tell, uuid, news))
        change = change_from_lifecycle(event, detail)
        if change is not None:
            self._pace.arrive(partial(self._changed, uuid, change))

    def _changed(self, uuid: str, change: Change) -> None:
        if change is not Change.BEGAN:
            self.forget(uuid)
        self.on_change(uuid, change)

    def _on_io_error(
        self, _: Any, domain: Any, path: str, __: str, action: int, reason: str, ___: object
    ) -> None:
        news = news_from_io_error(path, reason, action)
        if news is not None:
            self._pace.arrive(partial(self.watches.tell, domain.UUIDString(), news))

    def _closed_by_far_end(self, connection: Any, reason: str) -> None:
        opened = self._opened
        if opened is None:
            return
        if opened.connection is connection or self._further.seat_of(connection) is not None:
            self._broke(opened, reason)

    def _broke(self, opened: Opened, reason: str) -> None:
        if self._opened is not opened:
            return
        self._opened = None
        logger.warning("%s: %s", self.uri, reason)
        self._lane.fail_waiting(HostUnreachable(reason, host=self.uri))
        self._domains.clear()
        self._further.close()
        self._close_in_background(opened)
        self.on_change("", Change.UNHEARD)
        self.watches.broke(reason)

    def _close_in_background(self, opened: Opened) -> None:
        # Closing may block on a mute far end; nobody waits for it.
        self._door.run("close the broken connection", opened.close, deadline_s=CLOSE_S).addErrback(
            lambda _: None
        )

    async def close(self) -> None:
        """Close the connection for good; does not wait for a far end that is mute."""
        self.closed = True
        opened, self._opened = self._opened, None
        self._domains.clear()
        further = self._further.close()
        if opened is not None:
            try:
                await self._door.run("close the connection", opened.close, deadline_s=CLOSE_S)
            except LatentvirtError as error:
                logger.warning("%s", error)
        await further


def _alive(connection: Any) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False
