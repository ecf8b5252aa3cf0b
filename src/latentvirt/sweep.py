"""Remove what an owner's earlier processes left on a host, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs

from latentvirt.errors import ImageError
from latentvirt.host import Host
from latentvirt.names import FileName
from latentvirt.storage import open_storage

FROZEN = "frozen"
"""Kind of the file that makes a start's files a frozen image, which is kept."""


@attrs.frozen
class Swept:
    """What a sweep removed.

    Args:
        domains: names of the domains that were ended.
        files: names of the files that were deleted.
    """

    domains: tuple[str, ...]
    files: tuple[str, ...]

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
    domains = []
    for domain in await host.domains():
        held = domain.ownership
        # Asked now, not before the list was taken: a start may have begun meanwhile.
        if held is not None and held.owner == owner and not living(held.start):
            # A predefined domain keeps its UUID: a start that began meanwhile may have it by now.
            await host.destroy(domain.uuid, only=held)
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
            if parsed is not None and parsed.start not in frozen and not living(parsed.start):
                await storage.delete(name)
                files.append(name)
    return Swept(tuple(domains), tuple(files))
