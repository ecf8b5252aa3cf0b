"""libvirt's numbers in our words: errors by code, and events by what they mean for a build."""

from __future__ import annotations

import errno
import re
from typing import Any

import libvirt

from latentvirt.errors import AlreadyExists, HostError, HostUnreachable, NotFound, Refused
from latentvirt.host.views import Change, Condition, DomainNews

_NOT_FOUND = {
    libvirt.VIR_ERR_NO_DOMAIN,
    libvirt.VIR_ERR_NO_NETWORK,
    libvirt.VIR_ERR_NO_STORAGE_POOL,
    libvirt.VIR_ERR_NO_STORAGE_VOL,
}
_EXISTS = {libvirt.VIR_ERR_DOM_EXIST, libvirt.VIR_ERR_STORAGE_VOL_EXIST}
_REFUSED = {
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    libvirt.VIR_ERR_INVALID_ARG,
    libvirt.VIR_ERR_XML_DETAIL,
    libvirt.VIR_ERR_XML_ERROR,
    libvirt.VIR_ERR_XML_INVALID_SCHEMA,
}
_CLOSED = {errno.EACCES, errno.ENOENT, errno.ENOTDIR, errno.EPERM, errno.EROFS}
"""What a host's system says to a path that is wrong, and will say again."""

_LONG_SOCKET = re.compile(r"UNIX socket path '.*' (?:is )?too long")
"""libvirt's words, and QEMU's own; there is no code for it."""

_SHORTEN = (
    "give that folder a shorter path: with qemu:///session it is below XDG_CONFIG_HOME, else ~/.config, of "
    "the user that libvirt runs as, whose daemon must be started anew; with qemu:///embed it is below root="
)

_UNREACHABLE = {
    libvirt.VIR_ERR_AUTH_CANCELLED,
    libvirt.VIR_ERR_AUTH_FAILED,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE,
    libvirt.VIR_ERR_INVALID_CONN,
    libvirt.VIR_ERR_LIBSSH,
    libvirt.VIR_ERR_NO_CONNECT,
    libvirt.VIR_ERR_RPC,
    libvirt.VIR_ERR_SSH,
}

MAY_BE_TAKEN = {
    libvirt.VIR_ERR_DOM_EXIST,
    libvirt.VIR_ERR_OPERATION_FAILED,
    libvirt.VIR_ERR_OPERATION_INVALID,
}
"""What libvirt says where another domain has the name, or runs already; most of it not of that alone."""

UNSUPPORTED = {libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_UNSUPPORTED}


def error_from(error: BaseException, what: str, *, host: str, domain: str = "") -> HostError:
    """Turn what a libvirt call raised into one of our errors.

    Args:
        error: a libvirtError, or whatever else: libvirt-python is known to raise SystemError.
        what: what was being tried.
        host: URI of the host.
        domain: name of the domain, if one was concerned.
    """
    code = error.get_error_code() if isinstance(error, libvirt.libvirtError) else None
    said = str(error) or type(error).__name__
    kind: type[HostError] = HostError
    if _LONG_SOCKET.search(said):
        return Refused(
            f"could not {what}: the folder in which libvirt makes the sockets of VMs has too long a path for "
            f"them: {said}",
            code=code or 0,
            remedy=_SHORTEN,
            host=host,
            domain=domain,
        )
    if code in _NOT_FOUND:
        kind = NotFound
    elif code in _EXISTS:
        kind = AlreadyExists
    elif code in _REFUSED or (
        code == libvirt.VIR_ERR_SYSTEM_ERROR and error.get_int1() in _CLOSED  # type: ignore[attr-defined]
    ):
        kind = Refused
    elif code in _UNREACHABLE:
        kind = HostUnreachable
    return kind(f"could not {what}: {said}", code=code or 0, host=host, domain=domain)


_STOPPED = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: "the guest powered itself off",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: "somebody destroyed the VM",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED: "the VM was migrated away",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED: "somebody saved the VM to a file",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: "the VM's QEMU process died",
}
_GUEST_CRASHED = "the guest's system crashed (panic)"
_SHUTOFF = {
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: "the guest powered itself off",
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: "somebody destroyed the VM",
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: "the VM's QEMU process died",
}
_GONE = "the VM is gone"


def news_from_lifecycle(event: int, detail: int) -> DomainNews | None:
    """Say what a lifecycle event means; None if it means nothing to a build."""
    if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
        if detail == libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED:
            return DomainNews(Condition.CRASHED, _GUEST_CRASHED)
        return DomainNews(Condition.ENDED, _STOPPED.get(detail, _GONE))
    if event == libvirt.VIR_DOMAIN_EVENT_CRASHED:
        return DomainNews(Condition.CRASHED, _GUEST_CRASHED)
    if event == libvirt.VIR_DOMAIN_EVENT_SUSPENDED and detail == libvirt.VIR_DOMAIN_EVENT_SUSPENDED_IOERROR:
        return DomainNews(Condition.IO_ERROR, "the VM was paused because a disk could not be written")
    if event == libvirt.VIR_DOMAIN_EVENT_SUSPENDED:
        return DomainNews(Condition.PAUSED, "the VM is paused")
    if event == libvirt.VIR_DOMAIN_EVENT_RESUMED:
        return DomainNews(Condition.RUNNING, "the VM runs")
    return None


def change_from_lifecycle(event: int, detail: int) -> Change | None:
    """Say what a lifecycle event means for the room on a host; None if it leaves it as it was."""
    if event == libvirt.VIR_DOMAIN_EVENT_STARTED:
        return Change.BEGAN
    if event != libvirt.VIR_DOMAIN_EVENT_STOPPED:
        return None
    return Change.SAVED if detail == libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED else Change.ENDED


def news_from_io_error(path: str, reason: str, action: int) -> DomainNews | None:
    """Say what an I/O error event means; None where the guest was told of it and goes on."""
    if action != libvirt.VIR_DOMAIN_EVENT_IO_ERROR_PAUSE:
        return None
    if reason == "enospc":
        return DomainNews(
            Condition.IO_ERROR, f"the VM was paused because the host's disk is full (no space for {path})"
        )
    return DomainNews(Condition.IO_ERROR, f"the VM was paused because {path} could not be written")


def news_from_state(domain: Any) -> DomainNews:
    """Read how a domain fares; blocks.

    Args:
        domain: a virDomain.
    """
    state, reason = domain.state()
    if state == libvirt.VIR_DOMAIN_CRASHED or (
        state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_CRASHED
    ):
        return DomainNews(Condition.CRASHED, _GUEST_CRASHED)
    if state == libvirt.VIR_DOMAIN_SHUTOFF:
        if reason == libvirt.VIR_DOMAIN_SHUTOFF_CRASHED:
            return DomainNews(Condition.CRASHED, _GUEST_CRASHED)
        return DomainNews(Condition.ENDED, _SHUTOFF.get(reason, _GONE))
    if state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR:
        full = libvirt.VIR_DOMAIN_DISK_ERROR_NO_SPACE in domain.diskErrors().values()
        return DomainNews(
            Condition.IO_ERROR,
            "the VM was paused because the host's disk is full"
            if full
            else "the VM was paused because a disk could not be written",
        )
    if state == libvirt.VIR_DOMAIN_PAUSED:
        return DomainNews(Condition.PAUSED, "the VM is paused")
    return DomainNews(Condition.RUNNING, "the VM runs")


GONE = DomainNews(Condition.ENDED, _GONE)
