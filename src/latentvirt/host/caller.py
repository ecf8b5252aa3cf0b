"""How a host's verbs reach it: over one link, each within a deadline, with errors of ours."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from twisted.internet import defer

from latentvirt.capabilities import HostCapabilities
from latentvirt.config import Connection
from latentvirt.host.deadlines import Deadlines
from latentvirt.host.driver import Driver, LibvirtDriver
from latentvirt.host.further import MOST_CONNECTIONS
from latentvirt.host.hauling import Haul, Haulage
from latentvirt.host.link import Link
from latentvirt.host.pace import Pace
from latentvirt.host.probe import probe
from latentvirt.host.views import Versions
from latentvirt.names import Ownership

T = TypeVar("T")


class Caller:
    """Make calls to one host; `Host` is what it is for, and describes the arguments."""

    def __init__(
        self,
        connection: Connection,
        reactor: Any,
        *,
        driver: Driver | None = None,
        deadlines: Deadlines | None = None,
    ) -> None:
        self.connection = connection
        self.reactor = reactor
        self._pace = Pace.of(reactor)
        self._deadlines = deadlines or Deadlines()
        driver = driver or LibvirtDriver()
        # Drivers inside our own process serve any number of calls; embed may be opened a few times only.
        most = 1 if connection.is_in_process else MOST_CONNECTIONS
        self._link = Link(connection.uri, reactor, driver, self._deadlines, most)
        self._haulage = Haulage(connection.uri, reactor, driver)
        self._capabilities: HostCapabilities | None = None
        self._asked_on = 0
        self._asking = defer.DeferredLock()
        self._known_images: dict[str, str] = {}
        self._versions: tuple[int, Versions] | None = None
        self._marks: dict[tuple[str, int], Ownership | None] = {}

    @property
    def uri(self) -> str:
        """The host's name for libvirt, which messages use too."""
        return self.connection.uri

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that is not known to be broken."""
        return self._link.is_open

    @property
    def opens(self) -> int:
        """How many connections there have been; what was asked on an earlier one may be so no more."""
        return self._link.opens

    def hand_on(self, call: Callable[[], object]) -> None:
        """Make a call now, or soon if the reactor has much to do for hosts already; see `Pace`."""
        self._pace.hand_on(call)

    def turn(self) -> Awaitable[None]:
        """Wait until it is this start's turn: not at all, or longer if the reactor has much to do for hosts.

        Who has waited with many others for the same goes on after it, so that not all do so in one go.
        """
        return self._pace.turn()

    def leisure(self) -> Awaitable[None]:
        """Wait until the reactor has nothing else to do for hosts, or for a while; see `Pace`."""
        return self._pace.leisure()

    async def open(self) -> None:
        """Open the connection, if there is none."""
        await self._link.open()

    async def close(self) -> None:
        """Close the connection for good; transfers under way are given up."""
        self._haulage.close()
        await self._link.close()

    async def run_local(self, what: str, do: Callable[[], T], *, deadline_s: float | None = None) -> T:
        """Do something blocking on one of the host's threads; for embed's own storage."""
        return await self._link.run(what, do, deadline_s=deadline_s or self._deadlines.storage)

    async def haul_local(
        self,
        what: str,
        move: Callable[[Haul[T]], T],
        *,
        total: int,
        rate: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> T:
        """Move a file on a thread of its own; for embed's own storage, see `Haulage.run`."""
        return await self._haulage.run(
            what, lambda _, haul: move(haul), total=total, rate=rate, progress=progress
        )

    async def _call(
        self,
        what: str,
        do: Callable[[Any], T],
        *,
        deadline_s: float | None = None,
        domain: str = "",
        late: Callable[[T], object] | None = None,
    ) -> T:
        return await self._link.call(
            what,
            lambda opened: do(opened.connection),
            deadline_s=deadline_s or self._deadlines.call,
            domain=domain,
            late=late,
        )

    async def _on_domain(
        self,
        what: str,
        uuid: str,
        do: Callable[[Any], T],
        *,
        deadline_s: float | None = None,
        domain: str = "",
        late: Callable[[T], object] | None = None,
    ) -> T:
        return await self._link.on_domain(
            what, uuid, do, deadline_s=deadline_s or self._deadlines.call, domain=domain, late=late
        )

    async def capabilities(self) -> HostCapabilities:
        """Read what the host can run; asked once per connection, since probing QEMU is slow."""
        await self._asking.acquire()
        try:
            # A host that was away may have been upgraded meanwhile.
            await self._link.open()
            if self._capabilities is None or self._asked_on != self._link.opens:
                opens = self._link.opens
                self._capabilities = await self._call(
                    "read the host's capabilities", probe, deadline_s=self._deadlines.create
                )
                self._asked_on = opens
            return self._capabilities
        finally:
            # By itself each would begin the next within it, deeper and deeper, until Python has enough.
            self.hand_on(self._asking.release)
