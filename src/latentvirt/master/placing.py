"""Which host a build's start goes to: promises for builds that are about to start, and whose turn it is."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Hashable, Sequence
from typing import TYPE_CHECKING

import attrs

from latentvirt.claim import Claim
from latentvirt.hosts import Hosts
from latentvirt.line import EXPIRES_S, Line
from latentvirt.master.record import HostRecord, Promise
from latentvirt.placement import STANDBY_FITS, Amounts, HostView, Rule, Wish, choose, explain, out_of_use
from latentvirt.spec import MachineSpec

if TYPE_CHECKING:
    from latentvirt.master.hub import Hub

logger = logging.getLogger(__name__)

RESERVATION_S = 30.0
"""How long a yes to Buildbot holds a place; the start that it was for follows within moments, or never."""

COURTESY_S = 2.0
"""How long room that a VM of ours has left on a full host is another master's, if one was seen there.

Both hear of the end at the same moment, but who has just used the place is quicker to take it again: it need
not boot there.
"""

ASK_AGAIN_S = EXPIRES_S / 3
"""How often Buildbot is told to look at builds that wait, so that one that was given up loses its turn."""

HOSTS_NAMED = 3
"""Of how many hosts that are out of use is told why, where a build waits for them."""


@attrs.frozen(kw_only=True)
class Need:
    """What the start of a build asks of hosts.

    Args:
        worker: name of the worker.
        hosts: those that it may go to.
        wish: how much room, and on what kind of host.
        spec: what the VM is to be.
        builder: name of the builder whose build it is; empty if that is not known.
    """

    worker: str
    hosts: Hosts
    wish: Wish
    spec: MachineSpec
    builder: str = attrs.field(default="", eq=False)

    def __deepcopy__(self, memo: object) -> Need:
        return self  # nothing in it ever changes; Buildbot keeps a copy for each VM

    @property
    def room(self) -> Amounts:
        """What it takes."""
        return self.wish.amounts

    @property
    def waiter(self) -> Hashable:
        """Who waits if there is no room: Buildbot does not say which build it asks for.

        Builds of one builder that ask for the same are served by Buildbot in their order.
        """
        return self.builder, self.wish


@attrs.frozen
class _Wait:
    """How long somebody has waited, when they asked last (the reactor's seconds), and what was told of it."""

    since: float
    asked: float
    told: str = ""


@attrs.frozen
class _Kept:
    """Room that is kept for a start under way, until it has its place or has come to nothing."""

    need: Need
    record: HostRecord
    promise: Promise


class Placing:
    """Choose hosts for starts; there is one of it per hub.

    Args:
        hub: the hub.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._lines: dict[Hosts, Line] = {}
        self._last_line: tuple[Hosts, Line] | None = None
        self._waiting: dict[Hashable, _Wait] = {}
        self._promised: dict[str, HostRecord] = {}
        self._kept: dict[str, _Kept] = {}
        self._sizes: dict[str, Amounts] = {}
        self._asking = False
        self._expiring = False

    @property
    def _now(self) -> float:
        return float(self._hub.master.reactor.seconds())

    def _views(self, need: Need, records: Sequence[HostRecord]) -> list[HostView]:
        now = self._now
        ready = self._hub.standbys.readiness(need.spec)
        promised = self._promised.get(need.worker)
        some_are_held = self._hub.holds.are_any
        views = []
        for record in records:
            view = record.view(now)
            if some_are_held or record.held or record is promised or view.uri in ready:
                view = self._seen_by(need, record, view, ready.get(view.uri, 0))
            views.append(view)
        return views

    def _seen_by(self, need: Need, record: HostRecord, view: HostView, readiness: int) -> HostView:
        why_not = record.why_not(need.worker, self._now) or self._hub.holds.why_not(need, record)
        used = record.used(self._now, need.worker)
        return attrs.evolve(
            view,
            # Standbys give way to builds, but for the one that this build takes.
            used=used + need.room if readiness == STANDBY_FITS else used,
            usable=not why_not,
            why_not=why_not,
            readiness=readiness,
        )

    # A domain that is defined on its host says there how large it is; before, that is a guess.

    def learn(self, need: Need, room: Amounts) -> None:
        """Note how large a worker's domain was found to be, which nobody had said.

        Args:
            need: what its start asked for.
            room: what its VM takes.
        """
        self._sizes[need.worker] = room

    def _as_known(self, need: Need) -> Need:
        size = self._sizes.get(need.worker) if need.spec.kind == "auto" else None
        if size is None:
            return need
        return attrs.evolve(need, wish=attrs.evolve(need.wish, memory=size.memory, vcpus=size.vcpus))

    # Promises

    def reserve(self, need: Need) -> bool:
        """Promise a build's start room on the host that suits it best; False if there is none now.

        Args:
            need: what it asks for.
        """
        need = self._as_known(need)
        record = self._choose(need, ())
        if record is None:
            return False
        self.withdraw(need)
        record.promise(need.worker, self._now + RESERVATION_S, need.room)
        self._promised[need.worker] = record
        self._expire_later(RESERVATION_S)
        return True

    def _expire_later(self, seconds: float) -> None:
        # One call for all promises: most of them are kept at once, and a call for each would lie about.
        if not self._expiring:
            self._expiring = True
            self._hub.master.reactor.callLater(seconds, self._expire)

    def _expire(self) -> None:
        self._expiring = False
        now, expired = self._now, False
        for worker, record in list(self._promised.items()):
            promise = record.reserved.get(worker)
            if promise is not None and promise.until > now:
                self._expire_later(promise.until - now)  # those that follow were made later
                break
            del self._promised[worker]
            record.withdraw(worker)
            expired = True
        if expired:
            self._hub.wake()

    def withdraw(self, need: Need) -> None:
        """Take back what a worker was promised, and what was kept for its start."""
        record, kept = self._promised.pop(need.worker, None), self._kept.pop(need.worker, None)
        if record is not None:
            record.withdraw(need.worker)
        if kept is not None:
            kept.record.withdraw(need.worker, kept.promise)

    def over(self, need: Need) -> None:
        """Keep no room for a start that has ended, whichever way; a later one of its worker keeps its own."""
        kept = self._kept.get(need.worker)
        if kept is not None and kept.need is need:
            self.withdraw(need)

    def take(self, need: Need, avoid: Collection[str] = ()) -> HostRecord | None:
        """Say where a start goes: to the host that promised it room, else to the one that suits it best.

        Room is kept for it there (`keep`), however long its image takes to get there.

        Args:
            need: what it asks for.
            avoid: URIs of hosts on which it came to nothing.

        Returns:
            The host; None if there is no room.
        """
        record = self._promised.get(need.worker)
        holds = (
            record is not None
            and need.worker in record.reserved
            and record.host.uri not in avoid
            and any(record.host.uri == connection.uri for connection in need.hosts.connections)
        )
        self.withdraw(need)
        if not holds:
            # One that is named by itself is it: Buildbot has started a build without asking.
            one = need.hosts.is_one and not avoid
            record = self._hub.know(need.hosts)[0] if one else self._choose(self._as_known(need), avoid)
        if record is not None:
            self.keep(need, record)
        return record

    def keep(self, need: Need, record: HostRecord) -> None:
        """Keep room for a start on a host until `withdraw` or `over`."""
        promise = record.promise(need.worker, math.inf, self._as_known(need).room)
        self._kept[need.worker] = _Kept(need, record, promise)

    def freed(self, record: HostRecord, claim: Claim) -> None:
        """Hear that a place is free; if others wanted it as well, it is their turn for a moment.

        Args:
            record: the host.
            claim: what had the place.
        """
        if not record.room.contested or record.has_room_for(claim.room + claim.room, self._now):
            return
        record.room.contested = False
        if record.yields is not None:
            record.yields.cancel()  # it would cut this turn short
        record.yields = self._hub.master.reactor.callLater(COURTESY_S, self._our_turn, record)

    def _our_turn(self, record: HostRecord) -> None:
        record.yields = None
        self._hub.wake()
        self._hub.standbys.tend(record)

    def impossible(self, need: Need) -> str | None:
        """Say why no host could ever take a start; None if one could."""
        views = (record.view(self._now) for record in self._hub.know(need.hosts))
        return explain(views, self._as_known(need).wish)

    def has_room(self, need: Need, record: HostRecord) -> bool:
        """Say whether a start fits on a host now, when standbys have given way, its own promise left out."""
        used = record.used(self._now, need.worker) + self._as_known(need).room
        return used.fits(record.room.limits)

    def _choose(self, need: Need, avoid: Collection[str]) -> HostRecord | None:
        records = self._hub.know(need.hosts)
        views = self._views(need, records)
        now = self._now
        rule = Rule(spread=need.hosts.spread, prefer=dict(need.hosts.prefer))
        line = self._line(need.hosts)
        who = need.waiter
        before = self._waiting.get(who, _Wait(now, now))
        since = before.since
        chosen = choose(line.as_seen_by(who, since, views, now), need.wish, rule, avoid)
        if chosen is None:
            line.refused(who, since, need.wish, now)
            self._waiting[who] = _Wait(since, now, self._told(before, need, views))
            self._ask_again()
            return None
        line.gone(who)
        self._waiting.pop(who, None)
        return self._hub.records[chosen.uri]

    def _told(self, wait: _Wait, need: Need, views: Sequence[HostView]) -> str:
        """Tell once why a build has waited for a while, unless its hosts are full: that ends by itself."""
        out = out_of_use(views, need.wish) if self._now - wait.since >= ASK_AGAIN_S else []
        if not out:
            return wait.told
        named = [f"{view.uri}: {view.why_not}" for view in out[:HOSTS_NAMED]]
        more = [f"and {len(out) - HOSTS_NAMED} more"] if len(out) > HOSTS_NAMED else []
        why = "; ".join([*named, *more])
        if why != wait.told:
            builds = f"builds of {need.builder}" if need.builder else f"builds for {need.worker}"
            logger.warning("%s wait, for no host that could take them is in use: %s", builds, why)
        return why

    def _line(self, hosts: Hosts) -> Line:
        # Workers share one list of hosts, and to look a hundred of them up takes a while.
        if self._last_line is None or self._last_line[0] is not hosts:
            self._last_line = hosts, self._lines.setdefault(hosts, Line())
        return self._last_line[1]

    def _ask_again(self) -> None:
        if not self._asking:
            self._asking = True
            self._hub.master.reactor.callLater(ASK_AGAIN_S, self._asked)

    def _asked(self) -> None:
        self._asking = False
        given_up = self._now - EXPIRES_S
        self._waiting = {who: wait for who, wait in self._waiting.items() if wait.asked > given_up}
        if self._waiting:
            self._ask_again()
        self._hub.wake()
