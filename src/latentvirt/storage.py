"""Overlays and the other files of a start, in a directory of our own on the VM's host.

The directory is ``<image folder>/latentvirt-<owner>``. On a host with libvirt's storage driver it is a pool,
and every file is created as a volume, so that the master touches no path itself; `qemu:///embed` has no
storage driver, is always local, and gets the same by qemu-img.
"""

from __future__ import annotations

import json
import os
import posixpath
import stat
import subprocess
from collections.abc import Sequence
from typing import Protocol
from xml.sax.saxutils import escape

import attrs
from twisted.internet import defer, task

from latentvirt.domainxml import Layer
from latentvirt.errors import AlreadyExists, HostError, HostUnreachable, ImageError, NotFound
from latentvirt.host import Host, ImageView
from latentvirt.names import FileName, Lease, directory_name, pool_name

FILE_MODE = "0600"
LONGEST_CHAIN = 32
PROBE_TRIES = 5
PROBE_PAUSE_S = 0.1


class Storage(Protocol):
    """Where the files of one owner on one host, in one folder, live."""

    @property
    def directory(self) -> str:
        """Path of our own directory on the host."""
        ...

    async def prepare(self) -> None:
        """See to it that the directory is there."""
        ...

    async def image(self, path: str) -> ImageView:
        """Look at an image of the person's.

        Raises:
            NotFound: there is none.
        """
        ...

    async def create_overlay(self, name: FileName, backing: Layer, capacity: int) -> str:
        """Create a qcow2 overlay over an image.

        Args:
            name: of the file.
            backing: the image; it is only read.
            capacity: bytes that the guest sees.

        Returns:
            The overlay's path on the host.
        """
        ...

    async def create_empty(self, name: FileName) -> str:
        """Create an empty file, to be filled by libvirt; returns its path on the host."""
        ...

    async def delete(self, name: str) -> None:
        """Delete a file of ours; one that is not there is done already."""
        ...

    async def names(self) -> list[str]:
        """List what lies in the directory."""
        ...

    async def renew_lease(self, until: int) -> None:
        """Say in the directory until when (seconds since the epoch) its owner claims it."""
        ...

    async def remove(self) -> None:
        """Remove the directory and the lease in it; what else is in it stays, and so does it then."""
        ...


def open_storage(host: Host, owner: str, folder: str) -> Storage:
    """Choose the kind of storage that a host has.

    Args:
        host: the host.
        owner: id of the master's installation.
        folder: the image folder on the host in which our directory goes.
    """
    return (EmbedStorage if host.connection.is_embed else PoolStorage)(host, owner, folder)


async def _delete_leases(storage: Storage, but: Lease | None = None) -> None:
    try:
        names = await storage.names()
    except NotFound:
        return  # there is no directory, or nobody can tell what is in it
    for name in names:
        if Lease.parse(name) not in (None, but):
            await storage.delete(name)


async def _renew_lease(storage: PoolStorage | EmbedStorage, lease: Lease) -> None:
    try:
        await storage.create_empty(lease)
    except AlreadyExists:
        pass  # renewed within the same second
    await _delete_leases(storage, but=lease)


@attrs.define(eq=False)
class PoolStorage:
    """Keep the files in a libvirt storage pool; see `Storage`."""

    host: Host
    owner: str
    folder: str
    _prepared: bool = False
    _probing: defer.DeferredLock = attrs.field(factory=defer.DeferredLock)

    @property
    def directory(self) -> str:
        """Path of our own directory on the host."""
        return posixpath.join(self.folder, directory_name(self.owner))

    @property
    def _pool(self) -> str:
        return pool_name(self.owner, self.folder)

    async def prepare(self) -> None:
        """See to it that the directory and its pool are there."""
        await self.host.ensure_pool(self._pool, self.directory)

    async def image(self, path: str) -> ImageView:
        """Look at an image of the person's, one look at a time: a look may need a pool of its own."""
        await self._probing.acquire()
        try:
            for tries_left in reversed(range(PROBE_TRIES)):
                try:
                    return await self.host.image(path, probe_pool=f"{self._pool}-look")
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

    async def create_overlay(self, name: FileName, backing: Layer, capacity: int) -> str:
        """Create a qcow2 overlay over an image."""
        return await self._create(
            f"<volume><name>{name}</name><capacity unit='bytes'>{capacity}</capacity>"
            f"<allocation>0</allocation><target><format type='qcow2'/>"
            f"<permissions><mode>{FILE_MODE}</mode></permissions></target>"
            f"<backingStore><path>{escape(backing.path)}</path>"
            f"<format type='{escape(backing.format)}'/></backingStore></volume>"
        )

    async def create_empty(self, name: FileName | Lease) -> str:
        """Create an empty file."""
        return await self._create(
            f"<volume><name>{name}</name><capacity unit='bytes'>0</capacity><target><format type='raw'/>"
            f"<permissions><mode>{FILE_MODE}</mode></permissions></target></volume>"
        )

    async def _create(self, xml: str) -> str:
        try:
            return await self.host.create_volume(self._pool, xml)
        except NotFound:
            # The pool went away behind us: libvirt was restarted, or somebody stopped it.
            await self.prepare()
            return await self.host.create_volume(self._pool, xml)

    async def delete(self, name: str) -> None:
        """Delete a file of ours."""
        await self.host.delete_volume(self._pool, name)

    async def names(self) -> list[str]:
        """List what lies in the directory."""
        return await self.host.volumes(self._pool)

    async def renew_lease(self, until: int) -> None:
        """Say in the directory until when its owner claims it."""
        await _renew_lease(self, Lease(until))

    async def remove(self) -> None:
        """Remove the lease, the pool and the directory."""
        await _delete_leases(self)
        await self.host.remove_pool(self._pool)


@attrs.define(eq=False)
class EmbedStorage:
    """Keep the files in a local directory, by qemu-img; see `Storage`."""

    host: Host
    owner: str
    folder: str

    @property
    def directory(self) -> str:
        """Path of our own directory."""
        return posixpath.join(self.folder, directory_name(self.owner))

    async def prepare(self) -> None:
        """See to it that the directory is there."""

        def make() -> None:
            try:
                os.mkdir(self.directory, 0o711)
            except FileExistsError:
                pass
            except OSError as error:
                raise HostError(
                    f"could not make the directory {self.directory}: {error.strerror}",
                    host=self.host.uri,
                    remedy=f"let the master's user write to {self.folder}, or name another hd_image",
                ) from error

        await self.host.run_local("make our directory", make)

    async def image(self, path: str) -> ImageView:
        """Look at an image of the person's."""
        return await self.host.run_local("look at an image", lambda: _local_image(path, self.host.uri))

    async def create_overlay(self, name: FileName, backing: Layer, capacity: int) -> str:
        """Create a qcow2 overlay over an image."""
        path = posixpath.join(self.directory, str(name))

        def make() -> str:
            # Made first, since qemu-img would write over what is there, and let others read it for a moment.
            _make_file(path, self.host.uri)
            try:
                _qemu_img(
                    self.host.uri,
                    "create", "-q", "-f", "qcow2", "-F", backing.format, "-b", backing.path,
                    path, str(capacity),
                )  # fmt: skip
            except BaseException:
                os.unlink(path)
                raise
            return path

        return await self.host.run_local("create an overlay", make)

    async def create_empty(self, name: FileName | Lease) -> str:
        """Create an empty file."""
        path = posixpath.join(self.directory, str(name))

        def make() -> str:
            _make_file(path, self.host.uri)
            return path

        return await self.host.run_local("create a file", make)

    async def delete(self, name: str) -> None:
        """Delete a file of ours."""

        def delete() -> None:
            try:
                os.unlink(posixpath.join(self.directory, name))
            except FileNotFoundError:
                pass

        await self.host.run_local("delete a file", delete)

    async def names(self) -> list[str]:
        """List what lies in the directory."""

        def look() -> list[str]:
            try:
                return sorted(os.listdir(self.directory))
            except FileNotFoundError:
                raise NotFound(f"there is no directory {self.directory}", host=self.host.uri) from None

        return await self.host.run_local("list our directory", look)

    async def renew_lease(self, until: int) -> None:
        """Say in the directory until when its owner claims it."""
        await _renew_lease(self, Lease(until))

    async def remove(self) -> None:
        """Remove the lease and the directory."""
        await _delete_leases(self)

        def remove() -> None:
            try:
                os.rmdir(self.directory)
            except FileNotFoundError:
                pass

        await self.host.run_local("remove our directory", remove)


def _make_file(path: str, host: str) -> None:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, int(FILE_MODE, 8)))
    except FileExistsError:
        raise AlreadyExists(f"there is a file {path} already", host=host) from None


def _qemu_img(host: str, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["qemu-img", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
        )
    except FileNotFoundError:
        raise HostError(
            "qemu-img is not installed", host=host, remedy="install it (Debian, Ubuntu: qemu-utils)"
        ) from None
    except subprocess.CalledProcessError as error:
        raise HostError(f"qemu-img {arguments[0]} failed: {error.stderr.strip()}", host=host) from error
    return done.stdout


def _local_image(path: str, host: str) -> ImageView:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise NotFound(f"there is no image {path}", host=host) from None
    except OSError as error:
        raise ImageError(f"cannot look at the image {path}: {error.strerror}", host=host) from error
    # -U: a running VM may have the image open, and to look takes no lock.
    told = json.loads(_qemu_img(host, "info", "-U", "--output=json", path))
    backing = told.get("full-backing-filename") or told.get("backing-filename")
    return ImageView(
        path=path,
        format=told["format"],
        capacity=told["virtual-size"],
        backing=backing,
        backing_format=told.get("backing-filename-format"),
        owner=_owner(status),
    )


def _owner(status: os.stat_result) -> str:
    return f"owner {status.st_uid}:{status.st_gid} mode {stat.S_IMODE(status.st_mode):04o}"


async def backing_chain(
    storage: Storage, path: str, given_format: str | None, *, host: str, role: str
) -> tuple[tuple[Layer, ...], int]:
    """Follow an image down to the one that stands alone.

    Args:
        storage: of the host where the image lies.
        path: of the image.
        given_format: what the person said that it is; None believes the image itself.
        host: URI, for messages.
        role: what the image is for, for messages: "base image".

    Returns:
        The chain, nearest first, and the bytes that a guest sees.

    Raises:
        ImageError: a link of the chain is missing, or the chain has no end.
    """
    layers: list[Layer] = []
    capacity = 0
    following: str | None = path
    wanted = given_format
    while following is not None:
        if len(layers) == LONGEST_CHAIN:
            raise ImageError(f"the {role} {path} stands on more than {LONGEST_CHAIN} images", host=host)
        try:
            seen = await storage.image(following)
        except NotFound as error:
            above = f" (it backs {layers[-1].path})" if layers else ""
            raise ImageError(
                f"the {role} {following} is not there{above}: {error.what}",
                host=host,
                remedy="check the path on that host; its folder must be there, too",
            ) from error
        layers.append(Layer(seen.path, wanted or seen.format))
        capacity = capacity or seen.capacity
        following, wanted = seen.backing, seen.backing_format
    return tuple(layers), capacity


def what_blocks(paths: Sequence[str]) -> str | None:
    """Say which component of local paths keeps a user without rights of its own from reading them.

    Args:
        paths: of image files on this machine.

    Returns:
        A clause such as "/home/buildbot (owner 1000:1000 mode 0700) cannot be passed"; None if all can be.
    """
    for path in paths:
        parts = path.strip("/").split("/")
        for depth in range(1, len(parts) + 1):
            component = "/" + "/".join(parts[:depth])
            try:
                status = os.stat(component)
            except OSError as error:
                return f"{component}: {error.strerror}"
            is_folder = stat.S_ISDIR(status.st_mode)
            if not status.st_mode & (stat.S_IXOTH if is_folder else stat.S_IROTH):
                verb = "passed" if is_folder else "read"
                return f"{component} ({_owner(status)}) cannot be {verb} by QEMU's own user"
    return None
