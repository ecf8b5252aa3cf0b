"""All images that one master brings to hosts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet import defer

from latentvirt.config import Connection, Image
from latentvirt.errors import NotFound
from latentvirt.flights import Flights, Say, say_nothing
from latentvirt.host import Host
from latentvirt.images.named import Stored, resolved
from latentvirt.images.reading import Changed, Identity
from latentvirt.images.shelf import open_shelf
from latentvirt.images.source import FileSource, Source, Sources
from latentvirt.images.threads import in_thread
from latentvirt.images.transfer import Found, Place, Transfer

COPIES_AT_A_TIME = 4
"""By one master; there is one at a time to each host."""

FRESH_S = 5.0
"""For so long what was seen is taken to be so still."""

TRIES_OF_AN_IMAGE = 3
"""How often an image that changes while it is read is begun anew."""


@attrs.frozen
class Brought:
    """An image on a host.

    Args:
        path: where it lies there.
        identity: what it is; None if it is used where it lies anyway, and nobody has read it.
        copied: whether it was brought there just now; else it was there.
    """

    path: str
    identity: Identity | None = None
    copied: bool = False


@attrs.define
class _Known:
    found: Found
    seen_at: float


class Library:
    """Bring images to hosts; it lives as long as the master.

    All methods are for the reactor's thread.

    Args:
        reactor: a Twisted reactor (IReactorTime, IReactorFromThreads).
        owner: id of the master's installation.
        host_of: finds the host of a `Connection`.
    """

    def __init__(self, reactor: Any, owner: str, host_of: Callable[[Connection], Host]) -> None:
        self._reactor = reactor
        self._sources = Sources(reactor, owner, host_of)
        self._permits = defer.DeferredSemaphore(COPIES_AT_A_TIME)
        self._places: dict[tuple[str, str], Place] = {}
        self._permit_of: dict[str, defer.DeferredLock] = {}
        self._copies: Flights[Found] = Flights()
        self._known: dict[tuple[str, str, Identity], _Known] = {}
        self._identities: dict[Image, tuple[Identity, float]] = {}

    async def path_on(self, host: Host, folder: str, image: Image, say: Say = say_nothing) -> str:
        """Say where an image lies on a host; as `bring`, and return no more than that."""
        return (await self.bring(host, folder, image, say)).path

    async def bring(self, host: Host, folder: str, image: Image, say: Say = say_nothing) -> Brought:
        """See to it that an image is on a host: bring it there if it is not there yet.

        Who waits may be cancelled; a copy under way goes on as long as somebody else waits for it.

        Args:
            host: where it is needed.
            folder: the image folder there; the copy lies in a directory in it that all masters share.
            image: which.
            say: takes lines for the build's page, at most one in two seconds.

        Returns:
            Where it is.

        Raises:
            ConfigError: the image's arguments cannot be right.
            ImageError: it is not there, was not built yet, is damaged, cannot be copied, or there is no room
                for it.
            HostError: one of the hosts failed.
        """
        image.check()
        stored: Stored | None = None
        if image.called:
            arch = (await host.capabilities()).arch
            named = image
            stored = await in_thread(self._reactor, lambda _: resolved(named, arch))
            image = stored.image
        if image.at is not None and image.at.uri == host.uri:
            return Brought(image.path)
        place = self._place(host, folder)
        for left in reversed(range(TRIES_OF_AN_IMAGE)):
            source = self._sources.of(image)
            try:
                identity = await self._identity(image, source, say)
                if stored is not None:
                    stored.check(identity)
                found = await self._bring(place, folder, image, identity, source, say)
                return Brought(place.shelf.path_of(str(found.name)), identity, found.made)
            except Changed:
                self._sources.forget()
                self._identities.clear()
                if not left:
                    raise
        raise AssertionError("the last try returns or raises")

    async def over(self) -> None:
        """Wait until no copy is under way, also those that nobody waits for and that clear up."""
        await self._copies.over()

    def _place(self, host: Host, folder: str) -> Place:
        key = (host.uri, folder)
        known = self._places.get(key)
        if known is None or known.shelf.host is not host:
            permit = self._permit_of.setdefault(host.uri, defer.DeferredLock())
            known = self._places[key] = Place(open_shelf(host, folder), permit)
        return known

    async def _identity(self, image: Image, source: Source, say: Say) -> Identity:
        if isinstance(source, FileSource):
            return await source.identify(say)  # which asks no host
        identity, seen_at = self._identities.get(image, (None, 0.0))
        if identity is None or self._reactor.seconds() - seen_at >= FRESH_S:
            identity = await source.identify(say)
            self._identities[image] = (identity, self._reactor.seconds())
        return identity

    async def _bring(
        self, place: Place, folder: str, image: Image, identity: Identity, source: Source, say: Say
    ) -> Found:
        key = (place.uri, folder, identity)
        there = await self._still_there(place, key)
        if there is not None:
            return there

        async def bring(say: Say) -> Found:
            return await Transfer(place, image, identity, source, self._permits, say, self._reactor).bring()

        found = await self._copies.join(key, bring, say)
        self._known[key] = _Known(attrs.evolve(found, made=False), self._reactor.seconds())
        return found

    async def _still_there(self, place: Place, key: tuple[str, str, Identity]) -> Found | None:
        """Look at a copy that was there; most starts ask the host no more than this."""
        known = self._known.get(key)
        if known is None:
            return None
        if self._reactor.seconds() - known.seen_at < FRESH_S:
            return known.found
        try:
            seen = await place.shelf.look(str(known.found.name))
            await place.shelf.look(known.found.name.marker)  # a copy without it may go at any time
        except NotFound:
            seen = None
        if seen is None or seen.modified != known.found.modified:
            if self._known.get(key) is known:  # else another start has found out as well, or copied it anew
                del self._known[key]
            return None
        known.seen_at = self._reactor.seconds()
        return known.found
