"""Fake networks; only what `latentvirt.host.Host` calls is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import libvirt

from latentvirt.testing.trouble import libvirt_error

if TYPE_CHECKING:
    from latentvirt.testing.connection import VirConnect


class VirNetwork:
    """A client's handle of a network; what its names mean, libvirt's documentation says."""

    def __init__(self, connection: VirConnect, name: str) -> None:
        self._connection = connection
        self._host = connection.host
        self._name = name

    def name(self) -> str:
        return self._name

    def isActive(self) -> int:
        self._connection.meet("network.isActive")
        return int(self._name not in self._host.stopped_networks)

    def autostart(self) -> int:
        self._connection.meet("network.autostart")
        return int(self._name not in self._host.networks_without_autostart)

    def create(self) -> int:
        self._connection.meet("network.create")
        with self._host.lock:
            if self._name not in self._host.stopped_networks:
                raise libvirt_error(
                    libvirt.VIR_ERR_OPERATION_INVALID,
                    "Requested operation is not valid: network is already active",
                )
            self._host.stopped_networks.discard(self._name)
        return 0

    def XMLDesc(self, flags: int = 0) -> str:
        self._connection.meet("network.XMLDesc")
        address = self._host.networks.get(self._name)
        dhcp = "" if self._name in self._host.networks_without_dhcp else "<dhcp/>"
        ip = f"<ip address='{address}' netmask='255.255.255.0'>{dhcp}</ip>" if address else ""
        return f"<network><name>{self._name}</name>{ip}</network>"
