"""Pools, volumes and images, as libvirt's storage driver has them; all of it blocks, for a thread."""

from __future__ import annotations

import errno
import posixpath
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.sax.saxutils import escape

import libvirt

from latentvirt.errors import AlreadyExists, HostError, NoFolder, NotFound
from latentvirt.host.views import ImageView
from latentvirt.host.xmlread import read, text_at
from latentvirt.names import is_look_pool

DIRECTORY_MODE = "0711"
"""QEMU's user must pass through our directory, and nobody needs to list it."""

POOL_TRIES = 10
"""How often a pool is tried to be made where others make it at the same moment."""
POOL_PAUSE_S = 0.05
"""Pause before such a try: what is in the way is there for a moment, as a pool over no directory is."""

FOLDER_LOOKS = 3
"""How often in a row a folder must be said not to be there: others may take libvirt's own files along."""

_AVAILABLE = 3
"""Where the free bytes stand in what libvirt tells of a pool."""


def ensure_pool(connection: Any, name: str, path: str, *, make: bool) -> None:
    """See to the active pool over a directory, and to the directory itself if it may be made."""
    flags = libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD if make else 0
    for tries_left in reversed(range(POOL_TRIES)):
        try:
            _ensure_pool(connection, name, path, flags)
        except libvirt.libvirtError as error:
            if not make and _says(error, errno.ENOENT):
                raise NotFound(f"there is no directory {path}", code=error.get_error_code()) from error
            if not tries_left or not _says_another_makes_it(error):
                raise
            time.sleep(POOL_PAUSE_S)
        else:
            break


def _says_another_makes_it(error: libvirt.libvirtError) -> bool:
    """Whether two that make one pool may be told this; libvirt has no code of its own for that."""
    return error.get_error_code() in (
        libvirt.VIR_ERR_OPERATION_FAILED,
        libvirt.VIR_ERR_OPERATION_INVALID,
        libvirt.VIR_ERR_NO_STORAGE_POOL,
    ) or _says(error, errno.ENOENT)  # who gives up takes the other's state file along


def _ensure_pool(connection: Any, name: str, path: str, flags: int) -> None:
    xml = (
        f"<pool type='dir'><name>{escape(name)}</name><target><path>{escape(path)}</path>"
        f"<permissions><mode>{DIRECTORY_MODE}</mode></permissions></target></pool>"
    )
    try:
        pool = connection.storagePoolLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_POOL:
            raise
        if flags:
            _check_folder(connection, posixpath.dirname(path), f"{name}-look")
        connection.storagePoolCreateXML(xml, flags)
        return
    if not pool.isActive():
        pool.create(flags)


def _check_folder(connection: Any, folder: str, probe_pool: str) -> None:
    """Make sure that a folder is there: libvirt would make it, and all above it, without a word.

    Raises:
        NoFolder: it is not.
    """
    if folder in list_pools(connection).values():
        return
    xml = (
        f"<pool type='dir'><name>{escape(probe_pool)}</name>"
        f"<target><path>{escape(folder)}</path></target></pool>"
    )
    for looks_left in reversed(range(FOLDER_LOOKS)):
        try:
            connection.storagePoolCreateXML(xml, 0).destroy()
        except libvirt.libvirtError as error:
            if not _says(error, errno.ENOENT):
                return  # whatever else is wrong with it will be said when our directory is made in it
            if not looks_left:
                raise NoFolder(f"there is no folder {folder}", code=error.get_error_code()) from error
            time.sleep(POOL_PAUSE_S)
        else:
            return


def remove_pool(connection: Any, name: str) -> bool:
    """Remove a pool and its directory, if that is empty; says whether the directory is gone."""
    try:
        pool = connection.storagePoolLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
            return True
        raise
    # Only a defined pool outlives its end, and only one that has ended can delete its directory.
    pool = connection.storagePoolDefineXML(pool.XMLDesc(libvirt.VIR_STORAGE_XML_INACTIVE), 0)
    if pool.isActive():
        pool.destroy()
    try:
        pool.delete(libvirt.VIR_STORAGE_POOL_DELETE_NORMAL)
    except libvirt.libvirtError as error:
        if _says(error, errno.ENOTEMPTY, errno.EEXIST):
            return False
        if not _says(error, errno.ENOENT):
            raise
    finally:
        pool.undefine()
    return True


def list_pools(connection: Any) -> dict[str, str]:
    """List the active pools: name to directory."""
    active = _pools(connection, libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE)
    return {str(pool.name()): directory for pool, directory in active}


def _pools(connection: Any, which: int) -> Iterator[tuple[Any, str]]:
    """Yield pools, each with its directory; those that somebody makes for a look come and go."""
    for pool in connection.listAllStoragePools(which):
        try:
            xml = pool.XMLDesc(0)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
                continue  # it went after it was listed
            raise
        yield pool, text_at(xml, "target/path") or ""


def list_volumes(pool: Any) -> list[str]:
    """List a pool's volumes by name, as the directory holds them now; see `Host.volumes`."""
    _refresh(pool)
    return [str(name) for name in pool.listVolumes()]


def room(pool: Any) -> int:
    """Say how many bytes are free where a pool lies, as of now."""
    _refresh(pool)
    return int(pool.info()[_AVAILABLE])


def _refresh(pool: Any) -> None:
    """Let a pool look at its directory; where somebody is making a volume, it is what libvirt knows of.

    Raises:
        NotFound: somebody removed the directory; libvirt stops such a pool.
    """
    try:
        pool.refresh(0)
    except libvirt.libvirtError as error:
        if _says(error, errno.ENOENT):
            code = error.get_error_code()
            raise NotFound(f"the directory of the storage pool is gone: {error}", code=code) from error
        # "has asynchronous jobs running" has no code of its own; if it is worse, what follows fails, too.
        if error.get_error_code() != libvirt.VIR_ERR_INTERNAL_ERROR:
            raise


def delete_volume(pool: Any, name: str) -> None:
    """Delete a volume; one that is not there is done already."""
    try:
        pool.storageVolLookupByName(name).delete(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
            raise


def look_at_volume(pool: Any, name: str) -> ImageView:
    """Look at a volume; its format and backing are those that libvirt saw when it first saw the file."""
    return _image_view(pool.storageVolLookupByName(name))


def copy_volume(pool: Any, source: str, target: str, mode: str) -> str:
    """Copy a volume; returns the copy's path."""
    original = pool.storageVolLookupByName(source)
    format = _image_view(original).format
    xml = (
        f"<volume><name>{escape(target)}</name><capacity unit='bytes'>0</capacity><target>"
        f"<format type='{escape(format)}'/><permissions><mode>{mode}</mode></permissions></target></volume>"
    )
    try:
        return str(pool.createXMLFrom(xml, original, 0).path())
    except libvirt.libvirtError as error:
        # A name that is taken has no code of its own here, so look; what fails half-way libvirt removes.
        if target in pool.listVolumes():
            raise AlreadyExists(f"there is a volume {target} already") from error
        raise


def look_at_image(connection: Any, path: str, probe_pool: str, known: dict[str, str]) -> ImageView:
    """Look at an image file, through a pool that exists for the moment of the look if there is no other.

    Args:
        connection: a virConnect.
        path: of the file, on the host.
        probe_pool: name for that pool.
        known: stamps, by path, of the files that libvirt's pools are known to have seen; added to.
    """
    try:
        return _look(connection, path, probe_pool, known)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
            # The file was seen through another master's pool, which was there for a moment only.
            raise HostError(f"could not look at the image {path}: somebody else was looking") from error
        raise


def _look(connection: Any, path: str, probe_pool: str, known: dict[str, str]) -> ImageView:
    try:
        return _seen_anew(connection, path, known)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
            raise
    with _through_a_pool(connection, path, probe_pool) as volume:
        return _image_view(volume, path)


@contextmanager
def volume_at(connection: Any, path: str, probe_pool: str) -> Iterator[Any]:
    """Yield the volume that a file is, if need be through a pool that exists as long as the context.

    Args:
        connection: a virConnect.
        path: of the file, on the host.
        probe_pool: name for that pool.
    """
    try:
        volume = connection.storageVolLookupByPath(path)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
            raise
    else:
        yield volume
        return
    with _through_a_pool(connection, path, probe_pool) as volume:
        yield volume


@contextmanager
def _through_a_pool(connection: Any, path: str, probe_pool: str) -> Iterator[Any]:
    """Yield the volume of a file that no active pool has seen."""
    with _pool_over(connection, path, probe_pool) as pool:
        yield pool.storageVolLookupByName(posixpath.basename(path))


@contextmanager
def _pool_over(connection: Any, path: str, probe_pool: str) -> Iterator[Any]:
    """Yield an active pool that has seen what is in a file's folder now."""
    pool, ours = _look_pool(connection, path, probe_pool)
    try:
        yield pool
    finally:
        if ours:
            pool.destroy()


def _look_pool(connection: Any, path: str, probe_pool: str) -> tuple[Any, bool]:
    """Find or make that pool, and say whether it goes after the look."""
    try:
        return _make_look_pool(connection, probe_pool, path), True
    except libvirt.libvirtError:
        pass  # one has this folder already, or ours was left there by a process that died while it looked
    for tries_left in reversed(range(POOL_TRIES)):
        theirs = _in_the_way(connection, probe_pool, posixpath.dirname(path))
        if theirs is None:
            break
        # Another's look takes a moment; if it does not end, its process has died.
        if not is_look_pool(theirs.name()) or not tries_left:
            # It has not seen the file yet; two pools on one folder would be worse.
            theirs.refresh(0)
            return theirs, False
        time.sleep(POOL_PAUSE_S)
    if _is_defined_over(connection, posixpath.dirname(path)):
        # libvirt would refuse a second pool over that folder, though that one does not run; it is a person's,
        # so it is not started. What libvirt compares is the spelling.
        path = posixpath.join(posixpath.dirname(path), posixpath.curdir, posixpath.basename(path))
    return _make_look_pool(connection, probe_pool, path), True


def _is_defined_over(connection: Any, folder: str) -> bool:
    """Whether a pool over a folder is defined and does not run."""
    pools = _pools(connection, libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_INACTIVE)
    return any(directory == folder for _, directory in pools)


def list_folder(connection: Any, folder: str, probe_pool: str) -> list[str]:
    """List a person's folder: files and directories, by name; see `Host.folder`."""
    with _pool_over(connection, posixpath.join(folder, ""), probe_pool) as pool:
        return [str(name) for name in pool.listVolumes()]


def _make_look_pool(connection: Any, name: str, path: str) -> Any:
    """Make a pool over a file's folder."""
    xml = (
        f"<pool type='dir'><name>{escape(name)}</name>"
        f"<target><path>{escape(posixpath.dirname(path))}</path></target></pool>"
    )
    try:
        return connection.storagePoolCreateXML(xml, 0)
    except libvirt.libvirtError as error:
        if _says(error, errno.ENOENT):
            code = error.get_error_code()
            raise NotFound(f"could not look at {path}: {error}", code=code) from error
        raise


def _in_the_way(connection: Any, probe_pool: str, folder: str) -> Any | None:
    """Find somebody's pool over a folder; one of ours that was left there goes."""
    found = None
    for pool, directory in _pools(connection, libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
        if pool.name() == probe_pool:
            pool.destroy()
        elif posixpath.normpath(directory) == folder:
            found = pool
    return found


def _says(error: libvirt.libvirtError, *numbers: int) -> bool:
    """Whether the host's system said one of these."""
    return error.get_error_code() == libvirt.VIR_ERR_SYSTEM_ERROR and error.get_int1() in numbers


def _seen_anew(connection: Any, path: str, known: dict[str, str]) -> ImageView:
    """See a file in an active pool, which reads its format and backing at a refresh only."""
    volume = connection.storageVolLookupByPath(path)
    view = _image_view(volume, path)
    if known.get(path) == view.stamp:
        return view
    try:
        volume.storagePoolLookupByVolume().refresh(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_INTERNAL_ERROR:
            raise
        # Somebody is uploading into that pool, maybe for long: better what it knows than no build meanwhile.
        return view
    view = _image_view(connection.storageVolLookupByPath(path), path)
    known[path] = view.stamp
    return view


def _image_view(volume: Any, path: str = "") -> ImageView:
    root = read(volume.XMLDesc(0))
    permissions = root.find("target/permissions")
    owner = ""
    if permissions is not None:
        owner = "owner {}:{} mode {}".format(
            *(permissions.findtext(part, "?") for part in ("owner", "group", "mode"))
        )
    found = root.find("target/format")
    backing_format = root.find("backingStore/format")
    length = root.findtext("physical") or root.findtext("capacity", "")
    modified, changed = (root.findtext(f"target/timestamps/{time}", "") for time in ("mtime", "ctime"))
    return ImageView(
        path=path or str(root.findtext("target/path", "")),
        format=str(found.get("type")) if found is not None else "raw",
        capacity=int(root.findtext("capacity", "0")),
        backing=_plain(root.findtext("backingStore/path")),
        backing_format=backing_format.get("type") if backing_format is not None else None,
        owner=owner,
        size=int(root.findtext("allocation", "0")),
        length=int(length or 0),
        modified=f"{length} {modified}",
        stamp=f"{length} {modified} {changed}",
    )


def _plain(path: str | None) -> str | None:
    """Spell what an image stands on as it is, whichever way the pool is spelled through which it was seen."""
    return path and path.replace("/./", "/")
