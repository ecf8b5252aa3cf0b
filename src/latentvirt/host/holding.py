"""A libvirt host's verbs for holds: who wants a VM kept, and until when."""

from __future__ import annotations

from typing import Any

import libvirt

from latentvirt.domainxml import mark_of_hold
from latentvirt.errors import NotFound
from latentvirt.hold import HOLD_NAMESPACE, HOLD_PREFIX, Hold
from latentvirt.host import domains
from latentvirt.host.caller import Caller
from latentvirt.names import Ownership


class HoldVerbs(Caller):
    """The part of `Host` that reads and writes holds."""

    async def hold(self, uuid: str, *, only: Ownership) -> Hold | None:
        """Read until when a start's domain is held, also if that is over.

        Args:
            uuid: of the domain.
            only: the start.

        Returns:
            None if it is not held, is another start's by now, or does not run.
        """

        def read(domain: Any) -> Hold | None:
            return domains.hold(domain) if domains.is_surely(domain, only) else None

        try:
            return await self._on_domain("see whether the domain is held", uuid, read)
        except NotFound:
            return None

    async def set_hold(self, uuid: str, hold: Hold | None, *, only: Ownership) -> None:
        """Write until when a start's domain is held, beside its mark; libvirtd keeps it as long as it runs.

        Args:
            uuid: of the domain.
            hold: what to write in place of what is there; None takes that away.
            only: the start.

        Raises:
            NotFound: that start's domain runs no more.
        """

        def write(domain: Any) -> bool:
            if not domains.is_surely(domain, only):
                return False
            if hold is None and domains.hold(domain) is None:
                return True
            domain.setMetadata(
                libvirt.VIR_DOMAIN_METADATA_ELEMENT,
                None if hold is None else mark_of_hold(hold),
                HOLD_PREFIX,
                HOLD_NAMESPACE,
                libvirt.VIR_DOMAIN_AFFECT_LIVE,
            )
            return True

        what = "hold the domain" if hold is not None else "release the domain"
        if not await self._on_domain(what, uuid, write):
            raise NotFound(f"could not {what}: it has ended meanwhile", host=self.uri)
