"""Fake storage pools and volumes; only what `latentvirt.host.Host` calls is there."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Any

import attrs
import libvirt
from lxml import etree

from latentvirt.testing.files import FakeFile, FakePool
from latentvirt.testing.transfers import FakeDownload, FakeUpload
from latentvirt.testing.trouble import libvirt_error

if TYPE_CHECKING:
    from latentvirt.testing.connection import VirConnect
    from latentvirt.testing.streams import FakeStream

NS_PER_S = 10**9


class VirPool:
    """A client's handle of a pool; what its names mean, libvirt's documentation says."""

    def __init__(self, connection: VirConnect, pool: FakePool) -> None:
        self._connection = connection
        self._host = connection.host
        self._pool = pool

    def _meet(self, method: str, *, active: bool | None = None) -> FakePool:
        self._connection.meet(f"pool.{method}")
        pool = self._host.pools.get(self._pool.name)
        if pool is None or pool.uuid != self._pool.uuid:
            raise libvirt_error(
                libvirt.VIR_ERR_NO_STORAGE_POOL,
                "Storage pool not found: no storage pool with matching uuid "
                f"'{self._pool.uuid}' ({self._pool.name})",
            )
        if active is not None and pool.active is not active:
            said = "is not active" if active else "is still active"
            raise libvirt_error(
                libvirt.VIR_ERR_OPERATION_INVALID,
                f"Requested operation is not valid: storage pool '{pool.name}' {said}",
            )
        return pool

    def name(self) -> str:
        return self._pool.name

    def isActive(self) -> int:
        return int(self._meet("isActive").active)

    def autostart(self) -> int:
        return int(self._meet("autostart").persistent)

    def XMLDesc(self, flags: int = 0) -> str:
        pool = self._meet("XMLDesc")
        return (
            f"<pool type='dir'><name>{pool.name}</name><uuid>{pool.uuid}</uuid><target>"
            f"<path>{pool.path}</path><permissions><mode>{pool.mode}</mode></permissions></target></pool>"
        )

    def create(self, flags: int = 0) -> int:
        self._meet("create", active=False)
        self.start(flags)
        return 0

    def start(self, flags: int) -> None:
        """Become active; the fake's own."""
        pool = self._pool
        if flags & libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD:
            self._host.add_folder(pool.path)
        self._look(pool)
        pool.active = True

    def refresh(self, flags: int = 0) -> int:
        pool = self._meet("refresh", active=True)
        with self._host.lock:
            try:
                self._look(pool)
            except libvirt.libvirtError:
                self._stop(pool)
                raise
        return 0

    def _look(self, pool: FakePool) -> None:
        there = posixpath.normpath(pool.path)
        if there not in self._host.folders:
            raise libvirt_error(
                libvirt.VIR_ERR_SYSTEM_ERROR,
                f"cannot open directory '{pool.path}': No such file or directory",
                errno=2,
            )
        pool.seen = {}
        for name in self._host.listing(there):
            pool.see(name, self._host.files[posixpath.join(there, name)])
        for folder in self._host.folders:
            above, name = posixpath.split(folder)
            if above == there and name:
                pool.see(name, FakeFile(format="dir", capacity=0))

    def info(self) -> list[int]:
        self._meet("info")
        return [libvirt.VIR_STORAGE_POOL_RUNNING, self._host.free, 0, self._host.free]

    def destroy(self) -> int:
        with self._host.lock:
            self._stop(self._meet("destroy", active=True))
        return 0

    def _stop(self, pool: FakePool) -> None:
        pool.active = False
        if not pool.persistent:
            del self._host.pools[pool.name]

    def delete(self, flags: int = 0) -> int:
        pool = self._meet("delete", active=False)
        with self._host.lock:
            if self._host.listing(pool.path):
                raise libvirt_error(
                    libvirt.VIR_ERR_SYSTEM_ERROR,
                    f"failed to remove pool '{pool.path}': Directory not empty",
                    errno=39,
                )
            if pool.path not in self._host.folders:
                raise libvirt_error(
                    libvirt.VIR_ERR_SYSTEM_ERROR,
                    f"failed to remove pool '{pool.path}': No such file or directory",
                    errno=2,
                )
            self._host.folders.discard(pool.path)
        return 0

    def undefine(self) -> int:
        pool = self._meet("undefine", active=False)
        with self._host.lock:
            self._host.pools.pop(pool.name, None)
        return 0

    def listVolumes(self) -> list[str]:
        return sorted(self._meet("listVolumes", active=True).seen)

    def storageVolLookupByName(self, name: str) -> VirVolume:
        pool = self._meet("storageVolLookupByName", active=True)
        if name not in pool.seen:
            raise no_volume("name", name)
        return VirVolume(self._connection, pool, name)

    def createXML(self, xml: str, flags: int = 0) -> VirVolume:
        pool = self._meet("createXML", active=True)
        root = etree.fromstring(xml)
        name, found = root.findtext("name") or "", root.find("target/format")
        backing, backing_format = root.findtext("backingStore/path"), root.find("backingStore/format")
        path = posixpath.join(pool.path, name)
        with self._host.lock:
            self._check_new(pool, name, path, backing)
            format = "raw" if found is None else found.get("type", "raw")
            if self._host.full and format != "raw":
                raise libvirt_error(
                    libvirt.VIR_ERR_INTERNAL_ERROR,
                    "internal error: Child process (/usr/bin/qemu-img create) unexpected exit status 1: "
                    f"qemu-img: {path}: Could not resize file: No space left on device",
                )
            self._host.files[path] = FakeFile(
                format=format,
                capacity=int(root.findtext("capacity") or 0),
                backing=backing,
                backing_format=None if backing_format is None else backing_format.get("type"),
                mode=root.findtext("target/permissions/mode") or "0600",
            )
            pool.see(name, self._host.files[path])
        return VirVolume(self._connection, pool, name)

    def createXMLFrom(self, xml: str, source: VirVolume, flags: int = 0) -> VirVolume:
        pool = self._meet("createXMLFrom", active=True)
        root = etree.fromstring(xml)
        name = root.findtext("name") or ""
        path = posixpath.join(pool.path, name)
        with self._host.lock:
            original = self._host.files.get(source.path())
            if original is None:
                raise no_volume("path", source.path())
            if name in pool.seen:
                raise libvirt_error(
                    libvirt.VIR_ERR_INTERNAL_ERROR,
                    f"internal error: storage volume name '{name}' already in use.",
                )
            self._check_new(pool, name, path, None)
            if self._host.full:
                raise libvirt_error(
                    libvirt.VIR_ERR_SYSTEM_ERROR,
                    f"cannot extend file '{path}': No space left on device",
                    errno=28,
                )
            self._host.files[path] = attrs.evolve(
                original,
                mode=root.findtext("target/permissions/mode") or "0600",
                content=None if original.content is None else original.content[:],
            )
            self._host.files[path].touch()
            pool.see(name, self._host.files[path])
        return VirVolume(self._connection, pool, name)

    def _check_new(self, pool: FakePool, name: str, path: str, backing: str | None) -> None:
        if name in pool.seen:
            raise libvirt_error(libvirt.VIR_ERR_STORAGE_VOL_EXIST, f"storage volume '{name}' exists already")
        if path in self._host.files:
            raise libvirt_error(
                libvirt.VIR_ERR_OPERATION_INVALID,
                f"Requested operation is not valid: volume target path '{path}' already exists",
            )
        if backing is not None and backing not in self._host.files:
            raise libvirt_error(
                libvirt.VIR_ERR_SYSTEM_ERROR,
                f"inaccessible backing store volume {backing}: No such file or directory",
                errno=2,
            )


class VirVolume:
    """A client's handle of a volume; what its names mean, libvirt's documentation says."""

    def __init__(self, connection: VirConnect, pool: FakePool, name: str) -> None:
        self._connection = connection
        self._pool = pool
        self._name = name

    def _meet(self, method: str) -> str:
        self._connection.meet(f"volume.{method}")
        path = posixpath.join(self._pool.path, self._name)
        if self._name not in self._pool.seen:
            raise no_volume("key", path)
        return path

    def path(self) -> str:
        return self._meet("path")

    def storagePoolLookupByVolume(self) -> VirPool:
        self._meet("storagePoolLookupByVolume")
        return VirPool(self._connection, self._pool)

    def infoFlags(self, flags: int = 0) -> list[int]:
        file = self._file(self._meet("infoFlags"))
        return [libvirt.VIR_STORAGE_VOL_FILE, file.capacity, file.length]

    def upload(self, stream: FakeStream, offset: int, length: int, flags: int = 0) -> int:
        file = self._file(self._meet("upload"))
        stream.transfer = FakeUpload(self._connection.host, self._pool, self._name, file, length)
        return 0

    def download(self, stream: FakeStream, offset: int, length: int, flags: int = 0) -> int:
        stream.transfer = FakeDownload(self._file(self._meet("download")))
        return 0

    def _file(self, path: str) -> FakeFile:
        file = self._connection.host.files.get(posixpath.normpath(path))
        if file is None:
            raise no_volume("path", path)
        return file

    def delete(self, flags: int = 0) -> int:
        path = self._meet("delete")
        with self._connection.host.lock:
            self._pool.seen.pop(self._name, None)
            removed = self._connection.host.files.pop(posixpath.normpath(path), None)
            self._connection.host.free += len((removed and removed.content) or b"")
        return 0

    def XMLDesc(self, flags: int = 0) -> str:
        path = self._meet("XMLDesc")
        file, seen = self._file(path), self._pool.seen[self._name]
        capacity = file.length if seen.format == "raw" else file.capacity
        backing = ""
        if seen.backing is not None:
            format = f"<format type='{seen.backing_format}'/>" if seen.backing_format else ""
            backing = f"<backingStore><path>{seen.backing}</path>{format}</backingStore>"
        return (
            f"<volume type='file'><name>{self._name}</name><capacity unit='bytes'>{capacity}</capacity>"
            f"<allocation unit='bytes'>{file.length}</allocation>"
            f"<physical unit='bytes'>{file.length}</physical>"
            f"<target><path>{path}</path><format type='{seen.format}'/><permissions><mode>{file.mode}</mode>"
            "<owner>0</owner><group>0</group></permissions><timestamps>"
            f"<mtime>{_seconds(file.modified)}</mtime><ctime>{_seconds(file.changed)}</ctime>"
            f"</timestamps></target>{backing}</volume>"
        )


def volume_at(connection: VirConnect, path: str) -> VirVolume:
    """Look for a volume by path in the active pools; the fake's own."""
    folder, name = posixpath.split(path)
    with connection.host.lock:
        for pool in connection.host.pools.values():
            if pool.active and pool.path == folder and name in pool.seen:
                return VirVolume(connection, pool, name)
    raise no_volume("path", path)


def no_volume(by: str, what: str) -> Any:
    """Make the error of a volume that is not there; the fake's own."""
    return libvirt_error(
        libvirt.VIR_ERR_NO_STORAGE_VOL,
        f"Storage volume not found: no storage vol with matching {by} '{what}'",
    )


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds // NS_PER_S}.{nanoseconds % NS_PER_S:09}"
