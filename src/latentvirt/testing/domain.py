"""A fake virDomain; only what `latentvirt.host.Host` calls is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import libvirt
from lxml import etree

from latentvirt.testing import defaults
from latentvirt.testing.guest import CONSOLE
from latentvirt.testing.saving import save
from latentvirt.testing.state import FakeDomain
from latentvirt.testing.streams import FakeStream
from latentvirt.testing.transfers import FakePicture
from latentvirt.testing.trouble import libvirt_error

if TYPE_CHECKING:
    from latentvirt.testing.connection import VirConnect


class VirDomain:
    """A client's handle of a domain; what its names mean, libvirt's documentation says."""

    def __init__(self, connection: VirConnect, domain: FakeDomain) -> None:
        self._connection = connection
        self._domain = domain

    def _meet(self, method: str) -> FakeDomain:
        self._connection.meet(f"domain.{method}")
        here = self._connection.host.domains.get(self._domain.uuid)
        if here is None:
            raise libvirt_error(
                libvirt.VIR_ERR_NO_DOMAIN,
                f"Domain not found: no domain with matching uuid '{self._domain.uuid}' ({self._domain.name})",
            )
        return here

    def _running(self, method: str) -> FakeDomain:
        domain = self._meet(method)
        if not domain.active:
            raise libvirt_error(
                libvirt.VIR_ERR_OPERATION_INVALID, "Requested operation is not valid: domain is not running"
            )
        return domain

    def connect(self) -> VirConnect:
        return self._connection

    def name(self) -> str:
        return self._domain.name

    def UUIDString(self) -> str:
        return self._domain.uuid

    def ID(self) -> int:
        with self._domain.host.lock:
            live = self._domain.live
        return defaults.number_of(live) if live else -1

    def isActive(self) -> int:
        return int(self._meet("isActive").active)

    def isPersistent(self) -> int:
        return int(self._meet("isPersistent").definition is not None)

    def state(self, flags: int = 0) -> list[int]:
        domain = self._meet("state")
        return [domain.state, domain.reason]

    def diskErrors(self, flags: int = 0) -> dict[str, int]:
        return dict(self._running("diskErrors").disk_errors)

    def XMLDesc(self, flags: int = 0) -> str:
        domain = self._meet("XMLDesc")
        with domain.host.lock:
            wanted = domain.definition if flags & libvirt.VIR_DOMAIN_XML_INACTIVE else domain.live
            return wanted or domain.live or domain.definition or ""

    def metadata(self, type: int, uri: str, flags: int = 0) -> str:
        domain = self._running("metadata")
        with domain.host.lock:
            root = etree.fromstring(domain.live or "<domain/>")
        element = root.find(f"metadata/{{{uri}}}*")
        if element is None:
            raise libvirt_error(
                libvirt.VIR_ERR_NO_DOMAIN_METADATA,
                "metadata not found: Requested metadata element is not present",
            )
        # libvirt hands the element out without its namespace.
        element.tag = etree.QName(element).localname
        etree.cleanup_namespaces(element)
        return etree.tostring(element, encoding="unicode", with_tail=False)

    def setMetadata(self, type: int, metadata: str | None, key: str, uri: str, flags: int = 0) -> int:
        domain = self._running("setMetadata")
        with domain.host.lock:
            root = etree.fromstring(domain.live or "<domain/>")
            place = root.find("metadata")
            if place is None:
                place = etree.SubElement(root, "metadata")
            for old in place.findall(f"{{{uri}}}*"):
                place.remove(old)
            if metadata is not None:
                # libvirt gives the element, and all that is in it, this namespace.
                new = etree.fromstring(f"<{key}:x xmlns:{key}='{uri}'>{metadata}</{key}:x>")[0]
                for element in new.iter():
                    element.tag = f"{{{uri}}}{element.tag}"
                place.append(new)
            domain.live = etree.tostring(root, encoding="unicode")
        return 0

    def interfaceAddresses(self, source: int, flags: int = 0) -> dict[str, Any]:
        addresses = self._running("interfaceAddresses").addresses
        if source == libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT and source not in addresses:
            raise libvirt_error(
                libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
                "Guest agent is not responding: QEMU guest agent is not connected",
            )
        return {
            f"vnet{number}": {"hwaddr": "", "addrs": [{"addr": address, "prefix": 24, "type": 0}]}
            for number, address in enumerate(addresses.get(source, ()))
        }

    def screenshot(self, stream: FakeStream, screen: int, flags: int = 0) -> str:
        domain = self._running("screenshot")
        if etree.fromstring(domain.live or "").find("devices/video") is None:
            raise libvirt_error(
                libvirt.VIR_ERR_OPERATION_INVALID,
                "Requested operation is not valid: no screens to take screenshot from",
            )
        stream.transfer = FakePicture(domain.screen)
        return "image/x-portable-pixmap"

    def resume(self) -> int:
        domain = self._running("resume")
        if domain.state == libvirt.VIR_DOMAIN_RUNNING:
            raise libvirt_error(
                libvirt.VIR_ERR_OPERATION_INVALID,
                "Requested operation is not valid: domain is already running",
            )
        domain.resume()
        return 0

    def suspend(self) -> int:
        domain = self._running("suspend")
        if domain.state != libvirt.VIR_DOMAIN_PAUSED:
            domain.pause()
        return 0

    def saveFlags(self, path: str, xml: str | None, flags: int = 0) -> int:
        save(self._running("saveFlags"), path)
        return 0

    def shutdown(self) -> int:
        domain = self._running("shutdown")
        if domain.guest is not None:
            domain.host.post(domain.guest.on_power_button)
        return 0

    def destroy(self) -> int:
        self._running("destroy").destroy()
        return 0

    def openConsole(self, device: str | None, stream: FakeStream, flags: int = 0) -> int:
        domain = self._running("openConsole")
        if etree.fromstring(domain.live or "").find("devices/console") is None:
            raise libvirt_error(
                libvirt.VIR_ERR_INTERNAL_ERROR, "internal error: cannot find character device <null>"
            )
        self._attach(domain, CONSOLE, stream, "Active console session exists for this domain")
        return 0

    def openChannel(self, name: str, stream: FakeStream, flags: int = 0) -> int:
        domain = self._running("openChannel")
        targets = etree.fromstring(domain.live or "").iterfind("devices/channel/target")
        if name not in [target.get("name") for target in targets]:
            raise libvirt_error(libvirt.VIR_ERR_INTERNAL_ERROR, f"internal error: cannot find channel {name}")
        self._attach(domain, name, stream, "Active channel stream exists for this domain")
        return 0

    def _attach(self, domain: FakeDomain, port: str, stream: FakeStream, busy: str) -> None:
        with domain.host.lock:
            there = domain.port(port)
            if there.stream is not None and not there.stream.connection_broken:
                raise libvirt_error(libvirt.VIR_ERR_OPERATION_FAILED, f"operation failed: {busy}")
            stream.port = there
            there.attach(stream)
