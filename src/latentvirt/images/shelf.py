"""The directory on a host where copied images lie, for all masters: through libvirt, or on embed by hand."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar
from xml.sax.saxutils import escape

import attrs

from latentvirt.errors import AlreadyExists, HostError, NoFolder, NotFound
from latentvirt.host import Haul, Host
from latentvirt.images.naming import directory_in, pool_over
from latentvirt.storage.base import no_folder
from latentvirt.storage.embed import make_directory

T = TypeVar("T")
Read = Callable[[int], bytes]
Write = Callable[[bytes], object]
Progress = Callable[[int, int], object]

FILE_MODE = "0644"
"""QEMU's user must read a copy, and latentvirt never changes who owns it."""

CHUNK_BYTES = 256 * 1024


@attrs.frozen
class Seen:
    """A file at one moment.

    Args:
        length: its bytes.
        modified: tells one content from another.
    """

    length: int
    modified: str


class Shelf(Protocol):
    """What copying needs of the directory."""

    host: Host

    def path_of(self, name: str) -> str:
        """Say where on the host a file lies."""
        ...

    async def names(self) -> list[str]:
        """List what is there; the directory is made if it is not there."""
        ...

    async def create(self, name: str) -> None:
        """Create an empty file that all may read.

        Raises:
            AlreadyExists: there is one of that name.
        """
        ...

    async def look(self, name: str) -> Seen:
        """Look at a file.

        Raises:
            NotFound: there is none.
        """
        ...

    async def fill(self, name: str, read: Read, length: int, rate: int | None, progress: Progress) -> None:
        """Write into an empty file what a function, called on a thread, reads."""
        ...

    async def read_back(self, name: str, write: Write, progress: Progress) -> None:
        """Read a file and give it to a function, called on a thread."""
        ...

    async def delete(self, name: str) -> None:
        """Delete a file; one that is not there is done already."""
        ...

    async def room(self) -> int:
        """Say how many bytes are free there."""
        ...


def open_shelf(host: Host, folder: str) -> Shelf:
    """Choose the kind of shelf that a host has.

    Args:
        host: the host.
        folder: the image folder on the host.
    """
    return (LocalShelf if host.connection.is_embed else PoolShelf)(host, folder)


@attrs.define(eq=False)
class PoolShelf:
    """Keep the copies in a libvirt storage pool; see `Shelf`."""

    host: Host
    folder: str

    @property
    def _pool(self) -> str:
        return pool_over(self.folder)

    def path_of(self, name: str) -> str:
        """Say where on the host a file lies."""
        return posixpath.join(directory_in(self.folder), name)

    async def names(self) -> list[str]:
        """List what is there."""
        return await self._in_pool(lambda: self.host.volumes(self._pool))

    async def create(self, name: str) -> None:
        """Create an empty file."""
        xml = (
            f"<volume><name>{escape(name)}</name><capacity unit='bytes'>0</capacity><target>"
            f"<format type='raw'/><permissions><mode>{FILE_MODE}</mode></permissions></target></volume>"
        )
        try:
            await self._in_pool(lambda: self.host.create_volume(self._pool, xml))
        except (AlreadyExists, NotFound):
            raise
        except HostError as error:
            # A file that the pool has not seen yet has no code of its own, so look.
            if name in await self.names():
                raise AlreadyExists(f"there is a file {name} already", host=self.host.uri) from error
            raise

    async def look(self, name: str) -> Seen:
        """Look at a file."""
        view = await self._in_pool(lambda: self.host.volume(self._pool, name))
        return Seen(view.length, view.modified)

    async def fill(self, name: str, read: Read, length: int, rate: int | None, progress: Progress) -> None:
        """Write into an empty file."""
        await self.host.upload(self._pool, name, read, length, rate=rate, progress=progress)

    async def read_back(self, name: str, write: Write, progress: Progress) -> None:
        """Read a file."""
        await self.host.download(self._pool, name, write, progress=progress)

    async def delete(self, name: str) -> None:
        """Delete a file."""
        await self._in_pool(lambda: self.host.delete_volume(self._pool, name))

    async def room(self) -> int:
        """Say how many bytes are free there."""
        return await self._in_pool(lambda: self.host.room(self._pool))

    async def _in_pool(self, do: Callable[[], Awaitable[T]]) -> T:
        try:
            return await do()
        except NotFound:
            if await self._is_there():
                raise
            await self._make()
            return await do()

    async def _is_there(self) -> bool:
        """Whether the pool is; it is not before the first copy, and after the host was booted."""
        return self._pool in await self.host.pools()

    async def _make(self) -> None:
        try:
            await self.host.ensure_pool(self._pool, directory_in(self.folder))
        except NoFolder as error:
            raise no_folder(self.folder, self.host.uri) from error


@attrs.define(eq=False)
class LocalShelf:
    """Keep the copies in a local directory, for embed; see `Shelf`."""

    host: Host
    folder: str

    def path_of(self, name: str) -> str:
        """Say where a file lies."""
        return posixpath.join(directory_in(self.folder), name)

    async def names(self) -> list[str]:
        """List what is there."""

        def look() -> list[str]:
            directory = directory_in(self.folder)
            make_directory(directory, self.folder, self.host.uri)
            return sorted(os.listdir(directory))

        return await self.host.run_local("list the copied images", look)

    async def create(self, name: str) -> None:
        """Create an empty file."""
        path = self.path_of(name)

        def make() -> None:
            try:
                file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, int(FILE_MODE, 8))
            except FileExistsError:
                raise AlreadyExists(f"there is a file {path} already", host=self.host.uri) from None
            try:
                os.fchmod(file, int(FILE_MODE, 8))  # whatever the master's umask is
            finally:
                os.close(file)

        await self.host.run_local("create a file", make)

    async def look(self, name: str) -> Seen:
        """Look at a file."""
        path = self.path_of(name)

        def look() -> Seen:
            try:
                status = os.stat(path)
            except FileNotFoundError:
                raise NotFound(f"there is no file {path}", host=self.host.uri) from None
            return Seen(status.st_size, f"{status.st_size} {status.st_mtime_ns}")

        return await self.host.run_local("look at a file", look)

    async def fill(self, name: str, read: Read, length: int, rate: int | None, progress: Progress) -> None:
        """Write into an empty file."""
        path = self.path_of(name)

        def write(haul: Haul[None]) -> None:
            with open(path, "r+b", buffering=0) as file:
                while data := read(CHUNK_BYTES):
                    rest = memoryview(data)
                    while rest:
                        taken = file.write(rest)
                        rest = rest[taken:]
                        haul.note(taken)
                os.fsync(file.fileno())

        await self.host.haul_local(f"copy to {path}", write, total=length, rate=rate, progress=progress)

    async def read_back(self, name: str, write: Write, progress: Progress) -> None:
        """Read a file."""
        path = self.path_of(name)

        def read(haul: Haul[None]) -> None:
            with open(path, "rb", buffering=0) as file:
                haul.total = os.fstat(file.fileno()).st_size
                while data := file.read(CHUNK_BYTES):
                    write(data)
                    haul.note(len(data))

        await self.host.haul_local(f"read {path}", read, total=0, progress=progress)

    async def delete(self, name: str) -> None:
        """Delete a file."""

        def delete() -> None:
            try:
                os.unlink(self.path_of(name))
            except FileNotFoundError:
                pass

        await self.host.run_local("delete a file", delete)

    async def room(self) -> int:
        """Say how many bytes are free there."""

        def look() -> int:
            seen = os.statvfs(directory_in(self.folder))
            return seen.f_bavail * seen.f_frsize

        return await self.host.run_local("look how much room there is", look)
