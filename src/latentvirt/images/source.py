"""Where an image comes from: a file on the master, or one on another host, which is read first."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import attrs

from latentvirt.config import Connection, Image
from latentvirt.errors import ImageError, NotFound
from latentvirt.host import Host
from latentvirt.images.flights import Flights, Say
from latentvirt.images.head import HEAD_BYTES, format_of
from latentvirt.images.telling import Telling
from latentvirt.images.threads import in_thread
from latentvirt.names import look_pool_name
from latentvirt.storage import Storage, open_storage

CHUNK_BYTES = 1024 * 1024
DIRECTORY = "dir"

SPOOL_FOLDER = "/var/tmp"
"""Where large files pass through, unless TMPDIR says otherwise; /tmp is often memory."""

NO_FILE = -1

ON_MASTER = "on the master"
ON_HOST = "on that host"


@attrs.frozen
class Identity:
    """What an image is, wherever it lies.

    Args:
        digest: SHA-256 of its file, in hexadecimal digits.
        length: of its file, in bytes.
        format: ``qcow2`` or ``raw``.
    """

    digest: str
    length: int
    format: str


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


class Changed(ImageError):
    """The image was another when it was read again."""

    def __init__(self, image: Image) -> None:
        super().__init__(
            f"the image {image} was changed while it was read",
            remedy="never write to an image in use: put a new one beside it and rename it over the old one",
        )


class Reader:
    """Read a file from its beginning, and refuse to end if its bytes are not those that it was to have.

    Args:
        file: its descriptor; closed when this is forgotten.
        image: for messages.
        identity: what it is to be; None for whatever it is.
    """

    def __init__(self, file: int, image: Image, identity: Identity | None = None) -> None:
        self._file = file
        self._image = image
        self._identity = identity
        self._digest = hashlib.sha256()
        self._read = 0

    def __del__(self) -> None:
        os.close(self._file)

    @property
    def digest(self) -> str:
        """Of what was read so far."""
        return self._digest.hexdigest()

    def __call__(self, count: int) -> bytes:
        """Read; for a thread.

        Raises:
            Changed: the file has ended, or gone on, where it should not have, or held something else.
        """
        try:
            # Not at the file's own position, which others may share.
            data = os.pread(self._file, count, self._read)
        except OSError as error:
            raise _unreadable(self._image, error) from error
        self._read += len(data)
        self._digest.update(data)
        wanted = self._identity
        if wanted is not None and (
            self._read > wanted.length
            or (not data and (self._read, self.digest) != (wanted.length, wanted.digest))
        ):
            raise Changed(self._image)
        return data


def _unreadable(image: Image, error: OSError) -> ImageError:
    remedy = "let the master's user read it, and pass its folders; check its disk"
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        remedy = f"correct the path; for an image on another host write Image({image.path!r}, at=...)"
    return ImageError(f"the image {image.path} {ON_MASTER} cannot be read: {error.strerror}", remedy=remedy)


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
            return await in_thread(self.reactor, self._identify)

        return await self.flights.join(self.image, read, say)

    async def open(self, identity: Identity, say: Say) -> Callable[[int], bytes]:
        """Begin to read it."""
        return Reader(await in_thread(self.reactor, lambda _: self._opened()[0]), self.image, identity)

    def _opened(self) -> tuple[int, os.stat_result]:
        path = self.image.path
        try:
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe of that name is not waited for
        except OSError as error:
            raise _unreadable(self.image, error) from error
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            os.close(file)
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "no ordinary file"
            raise ImageError(f"the image {path} {ON_MASTER} is {kind}", remedy="name the image file")
        return file, status

    def _identify(self, given_up: threading.Event) -> Identity:
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
                pass
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


class Spool:
    """What was read from a host, in a file without a name that is gone with the last who uses it.

    Args:
        image: which, for messages.
        folder: in which the file is.

    Raises:
        ImageError: the folder is not there, or takes no file.
    """

    def __init__(self, image: Image, folder: str) -> None:
        self._image = image
        self._folder = folder
        self._file = NO_FILE
        try:
            with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
                self._file = os.dup(file.fileno())
        except OSError as error:
            raise self._no_room(error) from error
        self._digest = hashlib.sha256()
        self.length = 0

    def __del__(self) -> None:
        if self._file != NO_FILE:
            os.close(self._file)

    def _no_room(self, error: OSError) -> ImageError:
        return ImageError(
            f"the image {self._image} could not be passed on by way of {self._folder} {ON_MASTER}: "
            f"{error.strerror}",
            remedy="make room there, or set TMPDIR in the master's environment",
        )

    @property
    def digest(self) -> str:
        """Of what is in it."""
        return self._digest.hexdigest()

    def head(self) -> bytes:
        """Return its first bytes."""
        return os.pread(self._file, HEAD_BYTES, 0)

    def write(self, data: bytes) -> None:
        """Take bytes; for a thread."""
        self._digest.update(data)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            raise self._no_room(error) from error
        self.length += len(data)

    def reader(self, identity: Identity) -> Reader:
        """Begin to read it."""
        return Reader(os.dup(self._file), self._image, identity)


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
            raise ImageError(
                f"the image {path} is not there: {error.what}",
                host=self.host.uri,
                remedy="check the path on that host; its folder must be there, too",
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
