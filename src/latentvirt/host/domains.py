"""What libvirt tells of a domain, and how one ends; all of it blocks, for a thread of the host's."""

from __future__ import annotations

from typing import Any

import libvirt

from latentvirt.domainxml import hold_of_mark, ownership_of_mark
from latentvirt.hold import HOLD_NAMESPACE, Hold
from latentvirt.host.views import Created, DomainView
from latentvirt.names import METADATA_NAMESPACE, Ownership

_NOT_MARKED = {
    libvirt.VIR_ERR_NO_DOMAIN,
    libvirt.VIR_ERR_NO_DOMAIN_METADATA,
    libvirt.VIR_ERR_OPERATION_INVALID,
}
"""What libvirt says of a domain that has no mark of ours, does not run, or is not there."""


def view(domain: Any) -> DomainView:
    """See a domain at this moment."""
    mark = ownership(domain)
    return DomainView(
        name=str(domain.name()),
        uuid=str(domain.UUIDString()),
        # Asked last: a domain that ends meanwhile must not seem to run without a mark of ours.
        active=bool(domain.isActive()),
        persistent=bool(domain.isPersistent()),
        ownership=mark,
        hold=None if mark is None else hold(domain),
    )


def view_if_there(domain: Any) -> DomainView | None:
    """See a domain that was there a moment ago; None if it is gone."""
    try:
        return view(domain)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None  # it ended between the list and the look
        raise


def ownership(domain: Any) -> Ownership | None:
    """Read whose a running domain is; None if it is not ours, or not running. Raises if the host is lost."""
    try:
        return _mark(domain)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in _NOT_MARKED and not domain.connect().isAlive():
            raise
        return None  # it has none of ours, or ended while we looked


def is_surely(domain: Any, owned: Ownership) -> bool:
    """Say whether a running domain is one start's; raises if the host does not tell."""
    try:
        return _mark(domain) == owned
    except libvirt.libvirtError as error:
        if error.get_error_code() in _NOT_MARKED:
            return False
        raise


def _mark(domain: Any) -> Ownership | None:
    element = domain.metadata(
        libvirt.VIR_DOMAIN_METADATA_ELEMENT, METADATA_NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_LIVE
    )
    return ownership_of_mark(element)


def hold(domain: Any) -> Hold | None:
    """Read until when a running domain is held; raises if the host does not tell."""
    try:
        element = domain.metadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT, HOLD_NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_LIVE
        )
    except libvirt.libvirtError as error:
        if error.get_error_code() in _NOT_MARKED:
            return None
        raise
    return hold_of_mark(element)


def read_back(domain: Any) -> Created:
    """Read what libvirt made of a domain's description."""
    return Created(str(domain.UUIDString()), str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)))


def destroy(domain: Any) -> bool:
    """End a domain; one that ended by itself meanwhile is done already. Returns whether this ended it."""
    try:
        domain.destroy()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return False
        if _may_run(domain):
            raise
        return False
    return True


def _may_run(domain: Any) -> bool:
    """Whether a domain runs, or nobody can tell, as over a connection that broke."""
    try:
        return bool(domain.isActive())
    except libvirt.libvirtError as error:
        return bool(error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN)  # else it went away by itself
