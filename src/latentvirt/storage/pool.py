"""Storage on a host with libvirt's storage driver: a pool over the directory, a volume for each file."""

from __future__ import annotations

import posixpath
from collections.abc import Awaitable, Callable
from typing import TypeVar
from xml.sax.saxutils import escape

import attrs
from twisted.internet import defer, task

from latentvirt.domainxml import Layer
from latentvirt.errors import HostError, HostUnreachable, NoFolder, NotFound
from latentvirt.flights import Flights
from latentvirt.host import Host, ImageView
from latentvirt.names import FileName, Lease, directory_name, look_pool_name, pool_name
from latentvirt.storage.base import FILE_MODE, delete_leases, no_folder, renew_lease
from latentvirt.storage.permissions import GONE_OR_CLOSED, Unseen, why_unseen

T = TypeVar("T")

PROBE_TRIES = 20
PROBE_PAUSE_S = 0.1


@attrs.define(eq=False)
class PoolStorage:
    """Keep the files in a libvirt storage pool; see `Storage`."""

    host: Host
    owner: str
    folder: str
    directory: str = attrs.field(init=False)
    """Path of our own directory on the host."""
    _pool: str = attrs.field(init=False)
    _probing: defer.DeferredLock = attrs.field(init=False, factory=defer.DeferredLock)
    _prepared_on: int | None = attrs.field(init=False, default=None)
    _looks: Flights[ImageView] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.directory = posixpath.join(self.folder, directory_name(self.owner))
        self._pool = pool_name(self.owner, self.folder)
        self._looks = Flights(self.host.hand_on)

    async def prepare(self) -> None:
        """See to it that the directory and its pool are there; once per connection, see `_in_pool`."""
        if self._prepared_on == self.host.opens:
            return
        try:
            await self.host.ensure_pool(self._pool, self.directory)
        except NoFolder as error:
            raise no_folder(self.folder, self.host.uri) from error
        self._prepared_on = self.host.opens

    def path_of(self, name: FileName | Lease) -> str:
        """Say where on the host a file of ours lies."""
        return posixpath.join(self.directory, str(name))

    async def image(self, path: str) -> ImageView:
        """Look at an image; at one of the person's, once for all starts that ask at the same time."""
        folder, name = posixpath.split(path)
        if folder == self.directory:
            return await self._look(name)
        return await self._looks.join(path, lambda _: self._look_at_persons(path))

    async def _look_at_persons(self, path: str) -> ImageView:
        await self._probing.acquire()  # such a look may need a pool of its own
        try:
            for tries_left in reversed(range(PROBE_TRIES)):
                try:
                    return await self.host.image(path, probe_pool=look_pool_name(self.owner, self.folder))
                except (NotFound, HostUnreachable):
                    raise
                except HostError:
                    # Another master may be looking into the same folder just now.
                    if not tries_left:
                        raise
                    await task.deferLater(self.host.reactor, PROBE_PAUSE_S)
            raise AssertionError("the last try returns or raises")
        finally:
            self._probing.release()

    async def why_unseen(self, path: str) -> Unseen:
        """Say why there was no image to look at; on another machine nobody can tell."""
        uid = self.host.connection.local_uid
        if uid is None:
            return GONE_OR_CLOSED
        return await self.host.run_local("look at the image's path", lambda: why_unseen(path, uid))

    async def create_overlay(self, name: FileName, backing: Layer, capacity: int) -> str:
        """Create a qcow2 overlay over an image."""
        return await self._create(
            name,
            f"<volume><name>{name}</name><capacity unit='bytes'>{capacity}</capacity>"
            f"<allocation>0</allocation><target><format type='qcow2'/>"
            f"<permissions><mode>{FILE_MODE}</mode></permissions></target>"
            f"<backingStore><path>{escape(backing.path)}</path>"
            f"<format type='{escape(backing.format)}'/></backingStore></volume>",
        )

    async def create_disk(self, name: FileName, format: str, capacity: int) -> str:
        """Create an empty disk, which stands on nothing."""
        return await self._create(
            name,
            f"<volume><name>{name}</name><capacity unit='bytes'>{capacity}</capacity>"
            f"<allocation>0</allocation><target><format type='{escape(format)}'/>"
            f"<permissions><mode>{FILE_MODE}</mode></permissions></target></volume>",
        )

    async def create_empty(self, name: FileName | Lease) -> str:
        """Create an empty file."""
        return await self._create(
            name,
            f"<volume><name>{name}</name><capacity unit='bytes'>0</capacity><target><format type='raw'/>"
            f"<permissions><mode>{FILE_MODE}</mode></permissions></target></volume>",
        )

    async def copy(self, source: FileName, target: FileName) -> str:
        """Copy a file of ours."""
        return await self._in_pool(
            lambda: self.host.copy_volume(self._pool, str(source), str(target), mode=FILE_MODE)
        )

    async def modified(self, name: FileName) -> str:
        """Tell one content of a file of ours from another."""
        return (await self._look(str(name))).modified

    async def size(self, name: str) -> int:
        """Say how many bytes a file of ours takes."""
        return (await self._look(name)).size

    async def _look(self, name: str) -> ImageView:
        return await self._in_pool(lambda: self.host.volume(self._pool, name), make=False)

    async def _create(self, name: FileName | Lease, xml: str) -> str:
        await self._in_pool(lambda: self.host.create_volume(self._pool, xml))
        return self.path_of(name)

    async def _in_pool(self, do: Callable[[], Awaitable[T]], *, make: bool = True) -> T:
        try:
            return await do()
        except NotFound:
            # The pool went away behind us: libvirt was restarted, the host booted, or somebody stopped it.
            await self.host.ensure_pool(self._pool, self.directory, make=make)
            return await do()

    async def delete(self, name: str) -> None:
        """Delete a file of ours."""
        try:
            await self._in_pool(lambda: self.host.delete_volume(self._pool, name), make=False)
        except NotFound:
            pass  # there is not even the directory

    async def names(self) -> list[str]:
        """List what lies in the directory."""
        return await self._in_pool(lambda: self.host.volumes(self._pool), make=False)

    async def renew_lease(self, until: int) -> None:
        """Say in the directory until when its owner claims it."""
        await renew_lease(self, Lease(until))

    async def remove(self) -> bool:
        """Remove the lease, the pool and the directory, and say whether that is gone."""
        await delete_leases(self)
        self._prepared_on = None
        return await self.host.remove_pool(self._pool)
