"""Fake storage pools and volumes; only what `latentvirt.host.Host` calls is there."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

import libvirt
from lxml import etree

from latentvirt.testing.state import FakeFile, FakePool
from latentvirt.testing.trouble import libvirt_error

if TYPE_CHECKING:
    from latentvirt.testing.connection import VirConnect


class VirPool:
    """A client's handle of a pool; what its names mean, libvirt's documentation says."""

    def __init__(self, connection: VirConnect, pool: FakePool) -> None:
        self._connection = connection
        self._host = connection.host
        self._pool = pool

    def _meet(self, method: str, *, active: bool | None = None) -> FakePool:
        self._connection.meet(f"pool.{method}")
        pool = self._host.pools.get(self._pool.name)
        if pool is None:
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
        if pool.path not in self._host.folders:
            raise libvirt_error(
                libvirt.VIR_ERR_SYSTEM_ERROR,
                f"cannot open directory '{pool.path}': No such file or directory",
                errno=2,
            )
        pool.active = True
        pool.seen = set(self._host.listing(pool.path))

    def refresh(self, flags: int = 0) -> int:
        pool = self._meet("refresh", active=True)
        with self._host.lock:
            pool.seen = set(self._host.listing(pool.path))
        return 0

    def destroy(self) -> int:
        with self._host.lock:
            pool = self._meet("destroy", active=True)
            pool.active = False
            if not pool.persistent:
                del self._host.pools[pool.name]
        return 0

    def delete(self, flags: int = 0) -> int:
        pool = self._meet("delete", active=False)
        with self._host.lock:
            if self._host.listing(pool.path):
                raise libvirt_error(
                    libvirt.VIR_ERR_SYSTEM_ERROR,
                    f"failed to remove pool '{pool.path}': Directory not empty",
                    errno=39,
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
            raise libvirt_error(
                libvirt.VIR_ERR_NO_STORAGE_VOL,
                f"Storage volume not found: no storage vol with matching name '{name}'",
            )
        return VirVolume(self._connection, pool, name)

    def createXML(self, xml: str, flags: int = 0) -> VirVolume:
        pool = self._meet("createXML", active=True)
        root = etree.fromstring(xml)
        name, found = root.findtext("name") or "", root.find("target/format")
        backing, backing_format = root.findtext("backingStore/path"), root.find("backingStore/format")
        path = posixpath.join(pool.path, name)
        with self._host.lock:
            self._check_new(pool, name, path, backing)
            self._host.files[path] = FakeFile(
                format="raw" if found is None else found.get("type", "raw"),
                capacity=int(root.findtext("capacity") or 0),
                backing=backing,
                backing_format=None if backing_format is None else backing_format.get("type"),
                mode=root.findtext("target/permissions/mode") or "0600",
            )
            pool.seen.add(name)
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
            raise libvirt_error(
                libvirt.VIR_ERR_NO_STORAGE_VOL,
                f"Storage volume not found: no storage vol with matching key {path}",
            )
        return path

    def path(self) -> str:
        return self._meet("path")

    def storagePoolLookupByVolume(self) -> VirPool:
        self._meet("storagePoolLookupByVolume")
        return VirPool(self._connection, self._pool)

    def delete(self, flags: int = 0) -> int:
        path = self._meet("delete")
        with self._connection.host.lock:
            self._pool.seen.discard(self._name)
            self._connection.host.files.pop(path, None)
        return 0

    def XMLDesc(self, flags: int = 0) -> str:
        path = self._meet("XMLDesc")
        file = self._connection.host.files[path]
        backing = ""
        if file.backing is not None:
            format = f"<format type='{file.backing_format}'/>" if file.backing_format else ""
            backing = f"<backingStore><path>{file.backing}</path>{format}</backingStore>"
        return (
            f"<volume type='file'><name>{self._name}</name><capacity unit='bytes'>{file.capacity}</capacity>"
            f"<target><path>{path}</path><format type='{file.format}'/><permissions><mode>{file.mode}</mode>"
            f"<owner>0</owner><group>0</group></permissions></target>{backing}</volume>"
        )


def volume_at(connection: VirConnect, path: str) -> VirVolume:
    """Look for a volume by path in the active pools; the fake's own."""
    folder, name = posixpath.split(path)
    with connection.host.lock:
        for pool in connection.host.pools.values():
            if pool.active and pool.path == folder and name in pool.seen:
                return VirVolume(connection, pool, name)
    raise libvirt_error(
        libvirt.VIR_ERR_NO_STORAGE_VOL,
        f"Storage volume not found: no storage vol with matching path '{path}'",
    )
