"""What a VM that somebody holds stands on, so that nothing of it is removed."""

from __future__ import annotations

import posixpath

from latentvirt import domainxml
from latentvirt.errors import NotFound
from latentvirt.host import DomainView, Host
from latentvirt.names import FileName


async def starts_below(host: Host, domain: DomainView) -> set[str]:
    """List the starts whose files a domain uses: its own, and that of the image it was thawed from.

    Args:
        host: where it runs.
        domain: one of latentvirt's.

    Raises:
        HostError: the host does not tell.
    """
    own = {domain.ownership.start} if domain.ownership is not None else set()
    try:
        xml = await host.description(domain.uuid)
    except NotFound:
        return own  # it has ended meanwhile
    names = [posixpath.basename(file) for _, files in domainxml.files_of_disks(xml) for file in files]
    return own | {parsed.start for name in names if (parsed := FileName.parse(name)) is not None}
