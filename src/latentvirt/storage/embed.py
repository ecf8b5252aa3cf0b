"""Storage of `qemu:///embed`, which has no storage driver and is always local: files, by qemu-img."""

from __future__ import annotations

import errno
import json
import os
import posixpath
import shutil
import subprocess

import attrs

from latentvirt.domainxml import Layer
from latentvirt.errors import AlreadyExists, HostError, ImageError, NotFound, Refused
from latentvirt.host import Host, ImageView
from latentvirt.names import FileName, Lease, directory_name
from latentvirt.storage.base import FILE_MODE, NAME_ANOTHER, delete_leases, no_folder, renew_lease
from latentvirt.storage.permissions import GONE, Unseen, owner_of

STAT_BLOCK_BYTES = 512
"""What `os.stat` counts a file's blocks in, whatever the file system's own blocks are."""

DIRECTORY_MODE = 0o711
"""QEMU's user must come through to the files, and nobody else needs to list them."""


def make_directory(directory: str, folder: str, host: str) -> None:
    """Make a directory of ours where it is not there yet.

    Args:
        directory: its path.
        folder: the person's image folder, in which it is to be.
        host: for error texts.

    Raises:
        ImageError: there is no such folder.
        Refused: the master's user may not write there.
    """
    try:
        os.mkdir(directory, DIRECTORY_MODE)
        os.chmod(directory, DIRECTORY_MODE)  # a daemon's umask, as Buildbot's is, would keep QEMU's user out
    except FileExistsError:
        pass
    except FileNotFoundError:
        raise no_folder(folder, host) from None
    except OSError as error:
        raise Refused(
            f"could not make the directory {directory}: {error.strerror}",
            host=host,
            remedy=f"let the master's user write to {folder}, or {NAME_ANOTHER}",
        ) from error


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
        await self.host.run_local(
            "make our directory", lambda: make_directory(self.directory, self.folder, self.host.uri)
        )

    def path_of(self, name: FileName) -> str:
        """Say where a file of ours lies."""
        return posixpath.join(self.directory, str(name))

    async def image(self, path: str) -> ImageView:
        """Look at an image, the person's or ours."""
        return await self.host.run_local("look at an image", lambda: _local_image(path, self.host.uri))

    async def why_unseen(self, path: str) -> Unseen:
        """Say that there is no such image: to look takes no right to read it."""
        return GONE

    async def create_overlay(self, name: FileName, backing: Layer, capacity: int) -> str:
        """Create a qcow2 overlay over an image."""
        below = ("-F", backing.format, "-b", backing.path)
        return await self._make("create an overlay", name, ("-f", "qcow2", *below), capacity)

    async def create_disk(self, name: FileName, format: str, capacity: int) -> str:
        """Create an empty disk, which stands on nothing."""
        return await self._make("create an empty disk", name, ("-f", format), capacity)

    async def _make(self, what: str, name: FileName, options: tuple[str, ...], capacity: int) -> str:
        path = self.path_of(name)

        def make() -> str:
            # Made first, since qemu-img would write over what is there, and let others read it for a moment.
            _make_file(path, self.host.uri)
            try:
                _qemu_img(self.host.uri, "create", "-q", *options, path, str(capacity))
            except BaseException:
                os.unlink(path)
                raise
            return path

        return await self.host.run_local(what, make)

    async def create_empty(self, name: FileName | Lease) -> str:
        """Create an empty file."""
        path = posixpath.join(self.directory, str(name))

        def make() -> str:
            _make_file(path, self.host.uri)
            return path

        return await self.host.run_local("create a file", make)

    async def copy(self, source: FileName, target: FileName) -> str:
        """Copy a file of ours."""
        path = self.path_of(target)

        def copy() -> str:
            _stat(self.path_of(source), self.host.uri)
            _make_file(path, self.host.uri)
            try:
                shutil.copyfile(self.path_of(source), path)
            except BaseException:
                os.unlink(path)
                raise
            return path

        return await self.host.run_local("copy a file", copy)

    async def modified(self, name: FileName) -> str:
        """Tell one content of a file of ours from another."""
        path = self.path_of(name)
        return await self.host.run_local("look at a file", lambda: _modified(_stat(path, self.host.uri)))

    async def size(self, name: str) -> int:
        """Say how many bytes a file of ours takes."""
        path = posixpath.join(self.directory, name)
        return await self.host.run_local("look at a file", lambda: _size(_stat(path, self.host.uri)))

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
        await renew_lease(self, Lease(until))

    async def remove(self) -> bool:
        """Remove the lease and the directory, and say whether that is gone."""
        await delete_leases(self)

        def remove() -> bool:
            try:
                os.rmdir(self.directory)
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                return False
            return True

        return await self.host.run_local("remove our directory", remove)


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
        raise Refused(
            "qemu-img is not installed", host=host, remedy="install it (Debian, Ubuntu: qemu-utils)"
        ) from None
    except subprocess.CalledProcessError as error:
        raise HostError(f"qemu-img {arguments[0]} failed: {error.stderr.strip()}", host=host) from error
    return done.stdout


def _stat(path: str, host: str) -> os.stat_result:
    try:
        return os.stat(path)
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}", host=host) from None
    except OSError as error:
        raise ImageError(f"cannot look at the file {path}: {error.strerror}", host=host) from error


def _size(status: os.stat_result) -> int:
    return status.st_blocks * STAT_BLOCK_BYTES


def _modified(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns}"


def _local_image(path: str, host: str) -> ImageView:
    status = _stat(path, host)
    # -U: a running VM may have the image open, and to look takes no lock.
    try:
        told = json.loads(_qemu_img(host, "info", "-U", "--output=json", path))
    except Refused:
        raise
    except HostError as error:
        raise ImageError(
            f"the image {path} cannot be read: {error.what}", host=host, remedy="check it with qemu-img info"
        ) from error
    backing = told.get("full-backing-filename") or told.get("backing-filename")
    return ImageView(
        path=path,
        format=told["format"],
        capacity=told["virtual-size"],
        backing=backing,
        backing_format=told.get("backing-filename-format"),
        owner=owner_of(status),
        size=_size(status),
        length=status.st_size,
        modified=_modified(status),
        stamp=f"{_modified(status)} {status.st_ctime_ns}",
    )
