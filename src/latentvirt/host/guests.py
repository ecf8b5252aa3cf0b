"""A libvirt host's verbs about guests: notes in their metadata, their addresses, what their screens show."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

import libvirt

from latentvirt.host.caller import Caller
from latentvirt.host.codes import UNSUPPORTED
from latentvirt.host.deadlines import Deadlines

SOURCES = {
    "lease": libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
    "agent": libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT,
    "arp": libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP,
}
"""Who may know addresses: the DHCP server of a libvirt network, the guest itself, the host as neighbour."""

MOST_ADDRESSES = 32
PACKET_BYTES = 262_120
"""What a message of libvirt's holds."""
MOST_SCREEN_BYTES = 128 * 1024**2
"""More than any screen's picture: 5120 by 2880 points are 44 MB."""

_NOT_TOLD = {
    *UNSUPPORTED,
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
    libvirt.VIR_ERR_AGENT_UNSYNCED,
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
    libvirt.VIR_ERR_INTERNAL_ERROR,
    libvirt.VIR_ERR_NO_NETWORK,
    libvirt.VIR_ERR_OPERATION_FAILED,
    libvirt.VIR_ERR_OPERATION_INVALID,
    libvirt.VIR_ERR_SYSTEM_ERROR,
}
"""What libvirt says where a source knows nothing: no agent, or a mute one; no network driver, as on embed."""


class GuestVerbs(Caller):
    """The part of `Host` that deals with what is known of guests."""

    _deadlines: Deadlines

    async def set_metadata(self, uuid: str, xml: str | None, *, prefix: str, namespace: str) -> None:
        """Write one element into a live domain's metadata, in place of an earlier one of its namespace.

        It ends with the domain's run.

        Args:
            uuid: of the domain.
            xml: the element, without a namespace; None removes it.
            prefix: of its namespace.
            namespace: that it gets.
        """
        await self._on_domain(
            "write into the domain's metadata",
            uuid,
            lambda domain: domain.setMetadata(
                libvirt.VIR_DOMAIN_METADATA_ELEMENT,
                xml,
                prefix,
                namespace,
                libvirt.VIR_DOMAIN_AFFECT_LIVE,
            ),
        )

    async def addresses(self, uuid: str, source: str) -> tuple[str, ...]:
        """Tell a guest's addresses, as one of `SOURCES` knows them; those that only it can use are left out.

        Args:
            uuid: of the domain.
            source: ``lease``, ``agent`` or ``arp``.
        """

        def look(domain: Any) -> tuple[str, ...]:
            try:
                found = domain.interfaceAddresses(SOURCES[source], 0)
            except libvirt.libvirtError as error:
                if error.get_error_code() in _NOT_TOLD:
                    return ()
                raise
            return _usable(found)

        return await self._on_domain("ask for the guest's addresses", uuid, look)

    async def screenshot(self, uuid: str) -> tuple[str, bytes]:
        """Take a picture of a domain's first screen.

        Returns:
            Its media type, such as ``image/x-portable-pixmap``, and the picture.
        """

        def take(domain: Any) -> tuple[str, bytes]:
            stream = domain.connect().newStream(0)
            kind = str(domain.screenshot(stream, 0, 0))
            try:
                picture = bytearray()
                while data := stream.recv(PACKET_BYTES):
                    picture += data
                    if len(picture) > MOST_SCREEN_BYTES:
                        raise ValueError(f"the picture has more than {MOST_SCREEN_BYTES} bytes")
                stream.finish()
            except BaseException:
                _abort(stream)
                raise
            return kind, bytes(picture)

        return await self._on_domain(
            "take a picture of the screen", uuid, take, deadline_s=self._deadlines.create
        )


def _abort(stream: Any) -> None:
    try:
        stream.abort()
    except libvirt.libvirtError:
        pass  # it has ended, or the connection under it is gone


def _usable(found: dict[str, dict[str, Any]] | None) -> tuple[str, ...]:
    """Read what libvirt tells of interfaces; IPv4 comes first."""
    told: Iterable[Any] = (
        one.get("addr") for card in (found or {}).values() for one in card.get("addrs") or ()
    )
    usable = []
    for text in told:
        try:
            address = ipaddress.ip_address(str(text))
        except ValueError:
            continue
        if not (address.is_loopback or address.is_link_local or address.is_unspecified):
            usable.append(address)
    usable.sort(key=lambda address: address.version)
    return tuple(dict.fromkeys(map(str, usable)))[:MOST_ADDRESSES]
