"""Remove what an owner's earlier processes left on a host, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import attrs

from latentvirt.errors import ImageError
from latentvirt.host import DomainView, Host
from latentvirt.names import FileName
from latentvirt.sparing import starts_below
from latentvirt.storage import open_storage

FROZEN = "frozen"
"""Kind of the file that makes a start's files a frozen image, which is kept."""


@attrs.frozen
class Swept:
    """What a sweep removed.

    Args:
        domains: names of the domains that were ended.
        files: names of the files that were deleted.
        held: the domains that were spared with their files, since somebody holds them.
    """

    domains: tuple[str, ...]
    files: tuple[str, ...]
    held: tuple[DomainView, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.domains or self.files)


async def sweep(host: Host, owner: str, folders: Iterable[str], living: Callable[[str], bool]) -> Swept:
    """Remove an owner's domains and files that no living start claims.

    Args:
        host: where to look.
        owner: whose things to remove; others' are not touched.
        folders: image folders on the host in which the owner has had a directory.
        living: tells of a start's id whether that start is under way or its VM in use.

    Returns:
        What was removed.

    Raises:
        HostError: the host did not let us; the next sweep goes on there.
    """
    domains, spared, now = [], [], time.time()
    held: set[str] = set()
    for domain in await host.domains():
        mark = domain.ownership
        # Asked now, not before the list was taken: a start may have begun meanwhile.
        if mark is None or mark.owner != owner or living(mark.start):
            continue
        if domain.held_at(now) is not None:
            spared.append(domain)
            held |= await starts_below(host, domain)
            continue
        # A predefined domain keeps its UUID: a start that began meanwhile may have it by now.
        await host.destroy(domain.uuid, only=mark)
        domains.append(domain.name)
    files = []
    for folder in folders:
        storage = open_storage(host, owner, folder)
        try:
            await storage.prepare()
        except ImageError:
            continue  # somebody removed the folder, and what was in it
        names = await storage.names()
        parsed_names = [(name, FileName.parse(name)) for name in names]
        frozen = {parsed.start for _, parsed in parsed_names if parsed is not None and parsed.kind == FROZEN}
        for name, parsed in parsed_names:
            if parsed is not None and parsed.start not in frozen | held and not living(parsed.start):
                await storage.delete(name)
                files.append(name)
    return Swept(tuple(domains), tuple(files), tuple(spared))
