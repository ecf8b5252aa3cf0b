"""A libvirt host's verbs for pools, volumes and images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from latentvirt.host import storage, transfers
from latentvirt.host.caller import Caller
from latentvirt.host.hauling import STALL_S
from latentvirt.host.views import ImageView

T = TypeVar("T")


class VolumeVerbs(Caller):
    """The part of `Host` that deals with files."""

    async def ensure_pool(self, name: str, path: str, *, make: bool = True) -> None:
        """See to the active pool over a directory.

        Args:
            name: of the pool.
            path: of the directory.
            make: whether the directory is made if it is not there.

        Raises:
            NoFolder: the directory would be made, and the folder for it is not there.
            NotFound: the directory is not there and is not to be made.
        """
        await self._call(
            f"make the storage pool over {path}",
            lambda c: storage.ensure_pool(c, name, path, make=make),
            deadline_s=self._deadlines.storage,
        )

    async def pools(self) -> dict[str, str]:
        """List the active pools: name to directory."""
        return await self._call("list the storage pools", storage.list_pools)

    async def remove_pool(self, name: str) -> bool:
        """Remove a pool and its directory; one that is not there is done already.

        Returns:
            Whether the directory is gone; it stays if there is something in it.
        """
        return await self._call(
            f"remove the storage pool {name}",
            lambda c: storage.remove_pool(c, name),
            deadline_s=self._deadlines.storage,
        )

    async def create_volume(self, pool: str, xml: str) -> None:
        """Create a volume.

        Raises:
            AlreadyExists: there is one of that name.
            NotFound: there is no such pool.
        """
        await self._in_pool("create a volume", pool, lambda p: p.createXML(xml, 0))

    async def volumes(self, pool: str) -> list[str]:
        """List a pool's volumes by name, as the directory holds them now.

        While a volume is being made libvirt does not look there; then it is what libvirt knows of.
        """
        return await self._in_pool("list the volumes", pool, storage.list_volumes)

    async def delete_volume(self, pool: str, name: str) -> None:
        """Delete a volume; one that is not there is done already.

        Raises:
            NotFound: there is no such pool, so that nobody can tell.
        """
        await self._in_pool(f"delete the volume {name}", pool, lambda p: storage.delete_volume(p, name))

    async def volume(self, pool: str, name: str) -> ImageView:
        """Look at a volume of a pool that only we change: the file as it is now, its format as it was made.

        Raises:
            NotFound: there is no such volume, or no such pool.
        """
        return await self._in_pool(
            f"look at the volume {name}", pool, lambda p: storage.look_at_volume(p, name)
        )

    async def copy_volume(self, pool: str, source: str, target: str, *, mode: str) -> str:
        """Copy a volume within its pool.

        Args:
            pool: name of the pool.
            source: the volume's name.
            target: the copy's name.
            mode: the copy's permissions, in octal digits.

        Returns:
            The copy's path on the host.

        Raises:
            NotFound: there is no such volume, or no such pool.
            AlreadyExists: there is a volume of the copy's name.
        """
        return await self._in_pool(
            f"copy the volume {source}", pool, lambda p: storage.copy_volume(p, source, target, mode)
        )

    async def volume_path(self, pool: str, name: str) -> str:
        """Say where a volume of the person's lies."""
        return await self._in_pool(
            f"look for the volume {name} in pool {pool}",
            pool,
            lambda p: str(p.storageVolLookupByName(name).path()),
        )

    async def image(self, path: str, *, probe_pool: str) -> ImageView:
        """Look at an image file on the host: its format, its size and what it stands on.

        A file in no active pool is seen through a pool that exists for the moment of the look.

        Args:
            path: of the file, on the host.
            probe_pool: name for that pool.

        Raises:
            NotFound: there is no such file.
        """
        return await self._call(
            f"look at the image {path}",
            lambda c: storage.look_at_image(c, path, probe_pool, self._known_images),
            deadline_s=self._deadlines.storage,
        )

    async def folder(self, path: str, *, probe_pool: str) -> list[str]:
        """List a person's folder: files and directories, by name.

        A folder in no active pool is seen through a pool that exists for the moment of the look.

        Args:
            path: of the folder, on the host.
            probe_pool: name for that pool.

        Raises:
            NotFound: there is no such folder.
        """
        return await self._call(
            f"list the folder {path}",
            lambda c: storage.list_folder(c, path, probe_pool),
            deadline_s=self._deadlines.storage,
        )

    async def room(self, pool: str) -> int:
        """Say how many bytes are free where a pool's directory lies.

        Raises:
            NotFound: there is no such pool.
        """
        return await self._in_pool("look how much room there is", pool, storage.room)

    async def _in_pool(self, what: str, pool: str, do: Callable[[Any], T]) -> T:
        return await self._link.call(
            what, lambda opened: opened.in_pool(pool, do), deadline_s=self._deadlines.storage
        )

    async def upload(
        self,
        pool: str,
        name: str,
        read: Callable[[int], bytes],
        length: int,
        *,
        rate: int | None = None,
        progress: Callable[[int, int], object] | None = None,
        stall_s: float = STALL_S,
    ) -> None:
        """Fill a volume, over a connection of its own; who waits may cancel it, and what went stays there.

        Args:
            pool: name of the pool.
            name: of the volume, which is empty.
            read: takes a number of bytes and returns at most so many, none at the end; called on a thread.
            length: of all that will be read, in bytes.
            rate: bytes that may be sent per second; None for any number.
            progress: called about once a second with the bytes sent and all bytes.
            stall_s: seconds that it may stand still.

        Raises:
            NotFound: there is no such volume, or no such pool.
            HostTimeout: it stood still for too long.
        """
        await self._haulage.run(
            f"fill the volume {name}",
            lambda c, haul: transfers.upload(c, pool, name, read, length, haul),
            total=length,
            rate=rate,
            progress=progress,
            stall_s=stall_s,
        )

    async def download(
        self,
        pool: str,
        name: str,
        write: Callable[[bytes], object],
        *,
        progress: Callable[[int, int], object] | None = None,
        stall_s: float = STALL_S,
    ) -> int:
        """Read a volume's file, over a connection of its own; who waits may cancel it.

        Args:
            pool: name of the pool.
            name: of the volume.
            write: takes the bytes; called on a thread.
            progress: called about once a second with the bytes read and all bytes.
            stall_s: seconds that it may stand still.

        Returns:
            How many bytes there were.

        Raises:
            NotFound: there is no such volume, or no such pool.
            HostTimeout: it stood still for too long.
        """
        return await self._haulage.run(
            f"read the volume {name}",
            lambda c, haul: transfers.download(c, pool, name, write, haul),
            progress=progress,
            stall_s=stall_s,
        )

    async def download_image(
        self,
        path: str,
        write: Callable[[bytes], object],
        *,
        probe_pool: str,
        progress: Callable[[int, int], object] | None = None,
        stall_s: float = STALL_S,
    ) -> int:
        """Read an image file on the host, through a pool for a moment if it is in none; see `download`.

        Args:
            path: of the file, on the host.
            write: takes the bytes; called on a thread.
            probe_pool: name for that pool.
            progress: called about once a second with the bytes read and all bytes.
            stall_s: seconds that it may stand still.

        Returns:
            How many bytes there were.

        Raises:
            NotFound: there is no such file.
            HostTimeout: it stood still for too long.
        """
        return await self._haulage.run(
            f"read the image {path}",
            lambda c, haul: transfers.download_image(c, path, probe_pool, write, haul),
            progress=progress,
            stall_s=stall_s,
        )
