"""Where an image comes from: a file on the master, or one on another host, which is read first."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import attrs

from latentvirt.config import Connection, Image
from latentvirt.errors import ImageError, NotFound
from latentvirt.flights import Flights, Say
from latentvirt.host import Host
from latentvirt.images.head import HEAD_BYTES, format_of
from latentvirt.images.reading import ON_MASTER, Changed, Identity, Reader, Spool, open_image, unreadable
from latentvirt.images.telling import Telling
from latentvirt.images.threads import in_thread
from latentvirt.names import look_pool_name
from latentvirt.storage import Storage, open_storage

CHUNK_BYTES = 1024 * 1024
DIRECTORY = "dir"

SPOOL_FOLDER = "/var/tmp"
"""Where large files pass through, unless TMPDIR says otherwise; /tmp is often memory."""

ON_HOST = "on that host"


class Source(Protocol):
    """Where one image comes from."""

    async def identify(self, say: Say) -> Identity:
        """Say what the image is now; its bytes are read only if it has changed since they were last read.

        Raises:
            ImageError: it is not there, cannot be read, or cannot be copied.
        """
        ...

    async def open(self, identity: Identity, say: Say) -> Callable[[int], bytes]:
        """Begin to read it; what is returned is called on a thread with the bytes wanted."""
        ...


@attrs.define(eq=False)
class FileSource:
    """An image that is a file on the master.

    Args:
        image: which.
        reactor: a Twisted reactor.
        known: identities by path, size, time of last write, inode and given format; added to.
        flights: the readings under way.
    """

    image: Image
    reactor: Any
    known: dict[object, Identity]
    flights: Flights[Identity]

    async def identify(self, say: Say) -> Identity:
        """Say what it is now."""

        async def read(say: Say) -> Identity:
            what = f"reading {self.image.name or os.path.basename(self.image.path)}"
            telling = Telling(self.reactor, say, what, at_once=False)
            return await in_thread(self.reactor, lambda given_up: self._identify(given_up, telling))

        return await self.flights.join(self.image, read, say)

    async def open(self, identity: Identity, say: Say) -> Callable[[int], bytes]:
        """Begin to read it."""
        # On the thread: who is called off meanwhile must not leave a file open.
        return await in_thread(self.reactor, lambda _: Reader(self._opened()[0], self.image, identity))

    def _opened(self) -> tuple[int, os.stat_result]:
        try:
            return open_image(self.image.path)
        except OSError as error:
            raise unreadable(self.image, error) from error

    def _identify(self, given_up: threading.Event, telling: Telling) -> Identity:
        """Runs on a thread."""
        file, status = self._opened()
        reader = Reader(file, self.image)
        stamp = self._stamp(status)
        identity = self.known.get(stamp)
        if identity is None:
            format = format_of(
                Reader(os.dup(file), self.image)(HEAD_BYTES),
                status.st_size,
                given=self.image.format,
                path=self.image.path,
                host="",
                where=ON_MASTER,
            )
            while reader(CHUNK_BYTES) and not given_up.is_set():
                self.reactor.callFromThread(telling.progress, reader.count, status.st_size)
            identity = Identity(reader.digest, status.st_size, format)
            if self._stamp(os.fstat(file)) != stamp:
                raise Changed(self.image)
            if not given_up.is_set():
                self.known[stamp] = identity
        return identity

    def _stamp(self, status: os.stat_result) -> object:
        return (
            self.image.path,
            self.image.format,
            status.st_size,
            status.st_mtime_ns,
            status.st_ino,
            status.st_dev,
        )


@attrs.define(eq=False)
class HostSource:
    """An image on another host, which is read over libvirt's streams.

    Args:
        image: which.
        host: where it lies.
        storage: to look at it.
        known: identities by host, path, format and stamp; added to.
        flights: the readings under way.
        spools: what was read and is still used, by the same.
        probe_pool: name for a pool to look through.
    """

    image: Image
    host: Host
    storage: Storage
    known: dict[object, Identity]
    flights: Flights[Spool]
    spools: weakref.WeakValueDictionary[object, Spool]
    probe_pool: str
    _held: Spool | None = None

    async def identify(self, say: Say) -> Identity:
        """Say what it is now."""
        key, length = await self._look()
        identity = self.known.get(key)
        if identity is None:
            self._held = spool = await self._spooled(key, length, say)
            format = format_of(
                spool.head(),
                spool.length,
                given=self.image.format,
                path=self.image.path,
                host=self.host.uri,
                where=ON_HOST,
            )
            identity = self.known[key] = Identity(spool.digest, spool.length, format)
        return identity

    async def open(self, identity: Identity, say: Say) -> Callable[[int], bytes]:
        """Begin to read it."""
        if self._held is None:
            key, length = await self._look()
            self._held = await self._spooled(key, length, say)
        return self._held.reader(identity)

    async def _look(self) -> tuple[object, int]:
        path = self.image.path
        try:
            seen = await self.storage.image(path)
        except NotFound as error:
            why = await self.storage.why_unseen(path)
            raise ImageError(
                f"the image {path} {why.state}: {error.what}", host=self.host.uri, remedy=why.remedy
            ) from error
        if seen.format == DIRECTORY:
            raise ImageError(
                f"the image {path} is a directory", host=self.host.uri, remedy="name the image file in it"
            )
        if seen.backing is not None and self.image.format != "raw":
            raise ImageError(
                f"the image {path} {ON_HOST} stands on another image ({seen.backing}), and only one file is "
                "copied",
                host=self.host.uri,
                remedy="flatten it: qemu-img convert -O qcow2 OLD NEW, and name the new one",
            )
        return (self.host.uri, path, self.image.format, seen.stamp), seen.length

    async def _spooled(self, key: object, length: int, say: Say) -> Spool:
        spool = self.spools.get(key)
        if spool is None:

            async def read(say: Say) -> Spool:
                return await self._read(key, length, say)

            spool = await self.flights.join(key, read, say)
        return spool

    async def _read(self, key: object, length: int, say: Say) -> Spool:
        spool = Spool(self.image, os.environ.get("TMPDIR", SPOOL_FOLDER))
        telling = Telling(self.host.reactor, say, f"reading {self.image}")
        await self.host.download_image(
            self.image.path, spool.write, probe_pool=self.probe_pool, progress=telling.progress
        )
        if spool.length != length or (await self._look())[0] != key:
            raise Changed(self.image)
        self.spools[key] = spool
        return spool


@attrs.define(eq=False)
class Sources:
    """Know where images come from; it lives as long as the master.

    Args:
        reactor: a Twisted reactor.
        owner: id of the master's installation.
        host_of: finds the host of a `Connection`.
    """

    reactor: Any
    owner: str
    host_of: Callable[[Connection], Host]
    _known: dict[object, Identity] = attrs.field(factory=dict)
    _readings: Flights[Identity] = attrs.field(factory=Flights)
    _downloads: Flights[Spool] = attrs.field(factory=Flights)
    _spools: weakref.WeakValueDictionary[object, Spool] = attrs.field(factory=weakref.WeakValueDictionary)
    _storages: dict[tuple[str, str], Storage] = attrs.field(factory=dict)

    def forget(self) -> None:
        """Forget what images are: one of them was not what it was known as."""
        self._known.clear()

    def of(self, image: Image) -> Source:
        """Say where an image comes from; embed is on the master's own machine."""
        if image.at is None or image.at.is_embed:
            return FileSource(image, self.reactor, self._known, self._readings)
        folder = os.path.dirname(image.path)
        host = self.host_of(image.at)
        if (host.uri, folder) not in self._storages:
            # Its own name, so that its looks and those of starts do not take each other for leftovers.
            self._storages[host.uri, folder] = open_storage(host, self.owner, f"{folder}/source")
        return HostSource(
            image,
            host,
            self._storages[host.uri, folder],
            self._known,
            self._downloads,
            self._spools,
            look_pool_name(self.owner, f"{folder}/download"),
        )
