"""One image brought to one host: looked for, locked, sent, compared, and only then made an image.

Volumes cannot be renamed, and creating one of a name that is taken fails. So a lock is a volume that only one
can create; a copy has a name that nobody else uses; and the marker that makes it an image is created last. A
lock whose holder is dead is not taken away, since two could do that at once: its next turn is created.
"""

from __future__ import annotations

import hashlib
import logging
import posixpath
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
from twisted.internet import defer, task
from twisted.python.failure import Failure

from latentvirt.config import BYTES_PER_MIB, Image
from latentvirt.errors import (
    AlreadyExists,
    HostError,
    HostTimeout,
    HostUnreachable,
    ImageError,
    LatentvirtError,
    NotFound,
)
from latentvirt.flights import Say
from latentvirt.images.naming import CopyName, Listing, LockName
from latentvirt.images.reading import Identity
from latentvirt.images.shelf import Read, Shelf
from latentvirt.images.source import Source
from latentvirt.images.telling import Telling
from latentvirt.images.unbroken import unbroken
from latentvirt.storage.base import NAME_ANOTHER

logger = logging.getLogger(__name__)

POLL_S = 2.0
"""How often who waits for another master's copy looks how far it got."""

STALLED_S = 60.0
"""A lock is dead when nothing of its copy has changed for so long; no clock but the onlooker's counts."""

RENEW_S = 15.0
"""How often a lock takes its next turn while the copy is read back, when nothing else changes."""

READ_BACK = "read-back"


@attrs.define(eq=False)
class Place:
    """What a master knows of one shelf; it lives as long as the master.

    Args:
        shelf: the directory.
        permit: one copy at a time.
        left: locks that we could not remove, by name, as they were: nobody holds them.
    """

    shelf: Shelf
    permit: defer.DeferredLock
    left: dict[str, str] = attrs.field(factory=dict)

    @property
    def uri(self) -> str:
        """Of the host."""
        return self.shelf.host.uri


@attrs.frozen
class Found:
    """A copy that is an image.

    Args:
        name: of its file.
        modified: tells this content from another.
        made: whether it was made just now.
    """

    name: CopyName
    modified: str
    made: bool = False


@attrs.define
class _Lock:
    """A lock that we hold.

    Args:
        name: its name.
        modified: as it was when we made it; another holder's is another.
    """

    name: LockName
    modified: str


@attrs.define(eq=False)
class Transfer:
    """Bring one image to one shelf.

    Args:
        place: where to.
        image: for messages, and how it is to be verified.
        identity: what it is.
        source: where its bytes are.
        permits: copies that this master may make at a time.
        say: takes lines for the build's page.
        reactor: a Twisted reactor (IReactorTime).
    """

    place: Place
    image: Image
    identity: Identity
    source: Source
    permits: defer.DeferredSemaphore
    say: Say
    reactor: Any
    _state: object = None
    _since: float = 0.0

    async def bring(self) -> Found:
        """See to it that it is there.

        Raises:
            ImageError: there is no room for it, or it was changed meanwhile.
            HostError: the host failed.
        """
        waits = False
        while True:
            found, listing = await self._look()
            if found is not None:
                return found
            if not listing.locks or self._is_dead(listing):
                if self.place.permit.locked or not self.permits.tokens:
                    self.say(f"{self._doing}: waiting for other copies to end")
                await self.place.permit.acquire()
                try:
                    await self.permits.acquire()
                    try:
                        found = await self._lock_and_copy()
                    finally:
                        self.permits.release()
                finally:
                    self.place.permit.release()
                if found is not None:
                    return found
            if not waits:
                waits = True
                self.say(f"{self._doing}: another master is copying it already")
            await task.deferLater(self.reactor, POLL_S)

    @property
    def _doing(self) -> str:
        return f"copying {self.image.name or posixpath.basename(self.image.path)} to {self.place.uri}"

    # Looking

    async def _look(self) -> tuple[Found | None, Listing]:
        """Look for a whole copy, and note whether anything moves."""
        listing = Listing.of(self.identity.digest, await self.place.shelf.names())
        for copy in listing.ready:
            modified = await self._seen(str(copy), length=self.identity.length)
            if modified is not None and copy.format == self.identity.format:
                return Found(copy, modified), listing
        state = [(str(name), await self._seen(str(name))) for name in (*listing.locks, *listing.unready)]
        if state != self._state:
            self._state, self._since = state, self.reactor.seconds()
        return None, listing

    async def _seen(self, name: str, *, length: int | None = None) -> str | None:
        """Say how a file is now; None if it is not there, or not of a length."""
        try:
            seen = await self.place.shelf.look(name)
        except NotFound:
            return None
        return seen.modified if length in (None, seen.length) else None

    def _is_dead(self, listing: Listing) -> bool:
        states = dict(self._state) if isinstance(self._state, list) else {}
        left = self.place.left
        return self.reactor.seconds() - self._since >= STALLED_S or all(
            str(lock) in left and left[str(lock)] == states.get(str(lock)) for lock in listing.locks
        )

    # Copying

    async def _lock_and_copy(self) -> Found | None:
        """Copy it, unless somebody else does, or has done so meanwhile."""
        found, listing = await self._look()
        if found is not None or (listing.locks and not self._is_dead(listing)):
            return found
        # Before the lock, since this may take long, and a lock that does not move is taken for a dead one's.
        read = await self.source.open(self.identity, self.say)
        name = listing.locks[-1].next if listing.locks else LockName(self.identity.digest, 1)
        lock = await unbroken(self._create_lock(name), late=self._release)
        if lock is None:
            return None
        try:
            # Its last holder may have come to an end just before we took it.
            found, listing = await self._look()
            if found is None:
                await self._clear(listing, lock)
                found = await self._copy(lock, read)
            return found
        except HostUnreachable:
            raise
        except HostError as error:
            if await self._seen(str(lock.name)) == lock.modified:
                raise
            # We stood still for so long that another master has taken over, and removed what we had.
            self.say(f"{self._doing}: another master has taken it over ({error.what})")
            return None
        finally:
            await unbroken(self._release(lock))

    async def _create_lock(self, name: LockName) -> _Lock | None:
        try:
            await self.place.shelf.create(str(name))
        except AlreadyExists:
            return None
        return _Lock(name, await self._seen(str(name)) or "")

    async def _clear(self, listing: Listing, lock: _Lock) -> None:
        """Remove what earlier holders left."""
        for copy in listing.unready:
            self.say(f"{self._doing}: removing what an earlier, broken copy left")
            await self.place.shelf.delete(str(copy))
        for name in (*listing.stray, *(str(old) for old in listing.locks if old != lock.name)):
            await self.place.shelf.delete(name)

    async def _copy(self, lock: _Lock, read: Read) -> Found:
        shelf, identity = self.place.shelf, self.identity
        self._check_room(await shelf.room())
        name = CopyName.new(identity.digest, identity.format)
        try:
            await unbroken(shelf.create(str(name)))
            telling = Telling(self.reactor, self.say, self._doing)
            telling.progress(0, identity.length)
            began = self.reactor.seconds()
            rate = shelf.host.connection.copy_bytes_per_s
            await shelf.fill(str(name), read, identity.length, rate, telling.progress)
            modified = await self._verified(name, lock)
            if await self._seen(str(lock.name)) != lock.modified:
                raise self._failed("the lock is another's")
            await unbroken(shelf.create(name.marker))
            # Who takes over removes what has no marker, maybe just before it had one.
            if await self._seen(str(name)) != modified:
                raise self._failed("it was removed as soon as it was there")
        except BaseException as error:
            await unbroken(self._undo(name))
            if isinstance(error, HostError) and not isinstance(error, (HostUnreachable, NotFound)):
                # What libvirt says of a full disk has no code of its own.
                self._check_room(await shelf.room())
            raise
        took = self.reactor.seconds() - began
        self.say(f"{self._doing}: done, {-(-identity.length // BYTES_PER_MIB)} MiB in {took:.1f} s")
        return Found(name, modified, made=True)

    async def _verified(self, name: CopyName, lock: _Lock) -> str:
        """Compare what is there with what is to be; the bytes sent have been by now, as they were read."""
        seen = await self.place.shelf.look(str(name))
        if seen.length != self.identity.length:
            raise self._failed(f"{seen.length} of {self.identity.length} bytes are there")
        if self.image.verify == READ_BACK:
            digest = hashlib.sha256()
            telling = Telling(self.reactor, self.say, f"{self._doing}: reading it back")
            renewing = task.LoopingCall(lambda: defer.ensureDeferred(self._renew(lock)))
            renewing.clock = self.reactor
            ended = renewing.start(RENEW_S, now=False).addErrback(self._not_renewed)
            try:
                await self.place.shelf.read_back(str(name), digest.update, telling.progress)
            finally:
                if renewing.running:
                    renewing.stop()
                await ended  # the last one may be half-way
            if digest.hexdigest() != self.identity.digest:
                raise self._failed("the host gives other bytes back than it was sent")
        return seen.modified

    async def _renew(self, lock: _Lock) -> None:
        renewed = await self._create_lock(lock.name.next)
        if renewed is not None:
            old, lock.name, lock.modified = lock.name, renewed.name, renewed.modified
            await self.place.shelf.delete(str(old))

    def _not_renewed(self, failure: Failure) -> None:
        logger.warning("%s: a lock was not renewed: %s", self.place.uri, failure.value)

    def _failed(self, why: str) -> HostError:
        return HostError(
            f"could not copy the image {self.image}: {why}",
            host=self.place.uri,
            remedy=f"look at {self.place.shelf.path_of('')} and the disk there",
        )

    def _check_room(self, free: int) -> None:
        if free < self.identity.length:
            needed = -(-self.identity.length // BYTES_PER_MIB)
            raise ImageError(
                f"there is no room for the image {self.image}: it needs {needed} MiB, and "
                f"{free // BYTES_PER_MIB} MiB are free",
                host=self.place.uri,
                remedy=f"make room where {self.place.shelf.path_of('')} is, or {NAME_ANOTHER}",
            )

    # Undoing

    async def _undo(self, name: CopyName) -> None:
        """Remove a copy that came to nothing, its marker first."""

        async def remove() -> None:
            await self.place.shelf.delete(name.marker)
            await self.place.shelf.delete(str(name))

        try:
            await self._insist(remove)
        except LatentvirtError as error:
            logger.warning("%s: half a copy stays until the next one is made: %s", self.place.uri, error)

    async def _release(self, lock: _Lock | None) -> None:
        """Remove our lock, if it is still ours; whoever holds one of that name by now made it anew."""
        if lock is None:
            return
        name = str(lock.name)

        async def remove() -> None:
            if await self._seen(name) == lock.modified:
                await self.place.shelf.delete(name)

        try:
            await self._insist(remove)
        except LatentvirtError as error:
            self.place.left[name] = lock.modified
            logger.warning("%s: a lock stays until the next copy is made: %s", self.place.uri, error)

    async def _insist(self, remove: Callable[[], Awaitable[None]]) -> None:
        """Remove something, once more if the connection breaks meanwhile: then the next call opens another.

        Ctrl-C on a terminal ends the ssh under a connection, too: it gets there as to all of a command.
        """
        was_open = self.place.shelf.host.is_open
        try:
            await remove()
        except HostTimeout:
            raise
        except HostUnreachable:
            if not was_open:
                raise
            await remove()
