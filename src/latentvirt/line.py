"""Builds that wait for room, by age; the oldest is kept room for, so that small ones do not starve large."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Sequence

import attrs

from latentvirt.placement import HostView, Wish, roomiest

EXPIRES_S = 30.0
"""How long a build is believed to wait after it was last refused; it may have been cancelled since."""


@attrs.define(eq=False)
class Waiter:
    """One build that waits.

    Args:
        key: names it.
        since: when it was asked for.
        number: tells those apart that were asked for at the same time: who was refused first is older.
        wish: what its VM needs.
        until: when it is forgotten unless it is refused again.
        host: URI of the host on which room is kept for it; empty if there is none yet.
        room: how much of that host was left when it was last looked at, as if the VM were there.
    """

    key: Hashable
    since: float
    number: int
    wish: Wish
    until: float
    host: str = ""
    room: float = 0.0


@attrs.define(eq=False)
class Line:
    """Keep in mind who waits, for one list of hosts.

    Builds of Buildbot come and ask; nobody tells when they will not come again. So each is noted when it is
    refused, and forgotten a while after that. Ages are compared as `since`: what is asked for first is
    oldest, however often its VM has failed since then.
    """

    _waiters: dict[Hashable, Waiter] = attrs.field(factory=dict, init=False)
    _by_age: list[tuple[float, int, Waiter]] = attrs.field(factory=list, init=False)
    _count: int = attrs.field(default=0, init=False)

    def refused(self, key: Hashable, since: float, wish: Wish, now: float) -> None:
        """Note that there was no room for a build, again or for the first time.

        Args:
            key: names the build, the same each time: its build request's number.
            since: when it was asked for, in seconds of any clock.
            wish: what its VM needs.
            now: in seconds of the clock that `earmark` is told.
        """
        waiter = self._waiters.get(key)
        if waiter is not None and waiter.since == since:
            if waiter.wish != wish:
                waiter.wish, waiter.host = wish, ""
            waiter.until = now + EXPIRES_S
            return
        self.gone(key)
        self._count += 1
        waiter = self._waiters[key] = Waiter(key, since, self._count, wish, now + EXPIRES_S)
        insort(self._by_age, (since, waiter.number, waiter))

    def gone(self, key: Hashable) -> None:
        """Note that a build waits no more: it has a place, or was cancelled. Unknown ones do no harm."""
        waiter = self._waiters.pop(key, None)
        if waiter is not None:
            del self._by_age[bisect_left(self._by_age, (waiter.since, waiter.number, waiter))]

    def earmark(self, hosts: Sequence[HostView], now: float) -> tuple[str, Wish] | None:
        """Say where room is kept, and how much.

        It is kept for the oldest build that some usable host could take if it were empty, on one host: where
        it fits now with the most room left, else where the least is missing. That host keeps the mark until
        the build fits somewhere, or until somebody takes room there or starts no longer go there. VMs that
        end on it are not followed by younger ones, so that the build waits no longer than those run that are
        there when it is chosen.

        Args:
            hosts: those of this line, as they are.
            now: in seconds.

        Returns:
            The host's URI, and what is kept free there; None if nobody waits.
        """
        waiter = self._first(hosts, now)
        return None if waiter is None else (waiter.host, waiter.wish)

    def as_seen_by(
        self, key: Hashable, since: float, hosts: Sequence[HostView], now: float
    ) -> Sequence[HostView]:
        """Show the hosts as a build is to see them: what is kept for an older one looks used.

        Args:
            key: names the build.
            since: when it was asked for.
            hosts: those of this line, as they are.
            now: in seconds.
        """
        waiter = self._first(hosts, now)
        if waiter is None or waiter.key == key or since < waiter.since:
            return hosts
        kept = waiter.wish.amounts
        return [
            attrs.evolve(host, used=host.used + kept) if host.uri == waiter.host else host for host in hosts
        ]

    def _first(self, hosts: Sequence[HostView], now: float) -> Waiter | None:
        """Find the oldest waiter for whom room can be kept, and keep it; forget those that have expired."""
        hopeless: set[Wish] = set()
        expired = []
        found = None
        for _, _, waiter in self._by_age:
            if waiter.until <= now:
                expired.append(waiter.key)
            elif waiter.wish not in hopeless:
                if _mark(waiter, hosts):
                    found = waiter
                    break
                hopeless.add(waiter.wish)
        for key in expired:
            self.gone(key)
        return found


def _mark(waiter: Waiter, hosts: Sequence[HostView]) -> bool:
    """Choose or confirm the host on which room is kept; False if none that is usable could take the VM."""
    found = roomiest(hosts, waiter.wish, waiter.host)
    if found is None:
        return False
    best, most, kept = found
    if most < 0 and kept is not None and kept >= waiter.room:
        waiter.room = kept
    else:
        waiter.host, waiter.room = best.uri, most
    return True
