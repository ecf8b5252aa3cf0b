"""A libvirt host's verbs for what a person has set up there: networks, pools, whom QEMU runs as."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from xml.sax.saxutils import escape

import libvirt

from latentvirt.host.caller import Caller
from latentvirt.host.codes import UNSUPPORTED
from latentvirt.host.storage import DIRECTORY_MODE
from latentvirt.host.views import NetworkView, PoolView
from latentvirt.host.xmlread import read

_LABEL = re.compile(r"\+?(\d+):\+?(\d+)")
"""How libvirt writes the user and group that QEMU runs as."""

_ELSEWHERE = frozenset({"bridge", "private", "vepa", "passthrough", "hostdev"})
"""Kinds of networks whose guests get their addresses from outside of the host."""


class InventoryVerbs(Caller):
    """The part of `Host` that tells what a person has set up there."""

    async def networks(self) -> tuple[NetworkView, ...]:
        """List all networks, by name, running or not; none where libvirt has no such driver."""
        return await self._call("list the networks", lambda c: tuple(sorted(_networks(c), key=_name)))

    async def start_network(self, name: str) -> None:
        """Start a network that is defined.

        Raises:
            NotFound: there is none of that name.
        """
        await self._call(
            f"start the network {name}",
            lambda c: c.networkLookupByName(name).create(),
            deadline_s=self._deadlines.create,
        )

    async def all_pools(self) -> tuple[PoolView, ...]:
        """List all storage pools, by name, running or not; none where libvirt has no such driver."""
        return await self._call("list the storage pools", lambda c: tuple(sorted(_pools(c), key=_name)))

    async def start_pool(self, name: str) -> None:
        """Start a storage pool that is defined.

        Raises:
            NotFound: there is none of that name.
        """
        await self._call(
            f"start the storage pool {name}",
            lambda c: c.storagePoolLookupByName(name).create(0),
            deadline_s=self._deadlines.storage,
        )

    async def make_folder(self, path: str, *, pool: str) -> None:
        """Make a folder through which all may pass, and those above it.

        Args:
            path: of the folder.
            pool: name for the pool that exists for that moment.
        """
        xml = (
            f"<pool type='dir'><name>{escape(pool)}</name><target><path>{escape(path)}</path>"
            f"<permissions><mode>{DIRECTORY_MODE}</mode></permissions></target></pool>"
        )

        def make(connection: Any) -> None:
            connection.storagePoolCreateXML(xml, libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD).destroy()

        await self._call(f"make the folder {path}", make, deadline_s=self._deadlines.storage)

    async def qemu_user(self) -> tuple[int, int] | None:
        """Say which user and group QEMU runs as, by number; None if that is whoever runs libvirt."""
        return await self._call(
            "read whom QEMU runs as",
            lambda c: _user(str(c.getCapabilities())),
            deadline_s=self._deadlines.create,
        )


def _name(view: NetworkView | PoolView) -> str:
    return view.name


def _networks(connection: Any) -> Iterator[NetworkView]:
    try:
        found = connection.listAllNetworks(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() in UNSUPPORTED:
            return
        raise
    for network in found:
        root = read(str(network.XMLDesc(0)))
        forward = root.find("forward")
        address = root.find("ip")
        yield NetworkView(
            name=str(network.name()),
            active=bool(network.isActive()),
            autostart=bool(network.autostart()),
            dhcp=root.find("ip/dhcp") is not None
            or (forward is not None and forward.get("mode", "nat") in _ELSEWHERE),
            address=None if address is None else address.get("address"),
        )


def _pools(connection: Any) -> Iterator[PoolView]:
    try:
        found = connection.listAllStoragePools(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() in UNSUPPORTED:
            return
        raise
    for pool in found:
        try:
            root = read(str(pool.XMLDesc(0)))
            active, autostart = bool(pool.isActive()), bool(pool.autostart())
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
                continue  # it was there for a moment only
            raise
        yield PoolView(
            name=str(pool.name()), path=root.findtext("target/path") or "", active=active, autostart=autostart
        )


def _user(capabilities: str) -> tuple[int, int] | None:
    for model in read(capabilities).iterfind("host/secmodel"):
        if model.findtext("model") == "dac":
            for label in model.iterfind("baselabel"):
                found = _LABEL.fullmatch((label.text or "").strip())
                if found is not None:
                    return int(found[1]), int(found[2])
    return None
