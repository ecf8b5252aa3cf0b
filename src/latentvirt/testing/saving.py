"""How a fake host saves a domain's memory to a file and reads it back."""

from __future__ import annotations

import copy
import posixpath

import libvirt
from lxml import etree

from latentvirt.testing import defaults
from latentvirt.testing.files import SAVED_BYTES, FakeFile, FakeSave
from latentvirt.testing.guest import FakeGuest
from latentvirt.testing.state import FakeDomain, FakeHostState
from latentvirt.testing.trouble import connection_lost, libvirt_error

MUST_MATCH = ("name", "uuid", "memory")


def save(domain: FakeDomain, path: str) -> None:
    """Write a domain's memory to a file and end it; one that cannot be saved goes on as it was."""
    host = domain.host
    live = etree.fromstring(domain.live or "<domain/>")
    if live.find("devices/hostdev") is not None:
        raise libvirt_error(
            libvirt.VIR_ERR_OPERATION_INVALID,
            "Requested operation is not valid: cannot migrate a domain with <hostdev mode='subsystem'>",
        )
    if live.find("devices/filesystem") is not None:
        raise libvirt_error(
            libvirt.VIR_ERR_INTERNAL_ERROR,
            "internal error: unable to execute QEMU command 'migrate': Migration is disabled when VirtFS "
            "export path is mounted in the guest",
        )
    with host.lock:
        if posixpath.dirname(path) not in host.folders:
            raise libvirt_error(
                libvirt.VIR_ERR_SYSTEM_ERROR,
                f"Failed to create file '{path}': No such file or directory",
                errno=2,
            )
        file = host.files.setdefault(path, FakeFile(format="raw", length=0, mode="0600"))
        memory = FakeSave(defaults.dormant(domain.live or ""), _copy(domain.guest))
        file.save, file.length = memory, SAVED_BYTES
        file.touch()
        if host.full:
            file.truncate(SAVED_BYTES // 2)
            raise libvirt_error(
                libvirt.VIR_ERR_OPERATION_FAILED,
                "operation failed: /usr/lib/libvirt/libvirt_iohelper: failure with "
                f"{path}: Unable to write {path}: No space left on device",
            )
    domain.end(libvirt.VIR_DOMAIN_SHUTOFF_SAVED, libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED)


def read_saved(host: FakeHostState, path: str) -> FakeSave:
    """Read what libvirt reads of a saved domain's file."""
    with host.lock:
        file = host.files.get(path)
    if file is None:
        raise libvirt_error(
            libvirt.VIR_ERR_SYSTEM_ERROR, f"Failed to open file '{path}': No such file or directory", errno=2
        )
    if file.save is not None and file.save.kills:
        host.restart_daemon()
        raise connection_lost()
    return file.saved()


def check_target(saved: FakeSave, wanted: etree._Element) -> None:
    """Refuse a description that is not the saved domain's."""
    source = etree.fromstring(saved.xml)
    text = etree.tostring(wanted, encoding="unicode")
    target = etree.fromstring(defaults.normalised(text, uuid=wanted.findtext("uuid") or "", id=None))
    for tag in MUST_MATCH:
        if source.findtext(tag) != target.findtext(tag):
            raise libvirt_error(
                libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
                f"unsupported configuration: Target domain {tag} {target.findtext(tag)} does not match "
                f"source {source.findtext(tag)}",
            )


def restored_guest(saved: FakeSave) -> FakeGuest:
    """Make the guest of a restored domain: one that was restored twice is two guests, alike at first."""
    guest = _copy(saved.guest) or FakeGuest()
    guest.thaws += 1
    return guest


def _copy(guest: FakeGuest | None) -> FakeGuest | None:
    if guest is None:
        return None
    twin = copy.copy(guest)
    twin.domain = None
    return twin
