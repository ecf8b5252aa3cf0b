"""What masters have on a host, and the removal of what belongs to one that is no more."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Collection, Iterable

import attrs

from latentvirt import domainxml
from latentvirt.errors import NotFound
from latentvirt.host import DomainView, Host
from latentvirt.names import FileName, Lease, directory_owner
from latentvirt.sparing import starts_below
from latentvirt.storage import open_storage


@attrs.frozen(kw_only=True)
class Estate:
    """All that one owner has on one host, as far as libvirt knows of it.

    Args:
        owner: id of a master's installation.
        until: until when it claims its directories (seconds since the epoch); None if it says so nowhere.
        domains: its VMs.
        files: its files, by image folder.
    """

    owner: str
    until: int | None
    domains: tuple[DomainView, ...]
    files: dict[str, tuple[str, ...]]

    @property
    def count(self) -> int:
        """How many files there are."""
        return sum(map(len, self.files.values()))


async def estates(host: Host, owners: Collection[str] = (), folders: Iterable[str] = ()) -> list[Estate]:
    """Find out whose VMs and directories a host has.

    Args:
        host: the host.
        owners: ids to look for in the folders, where libvirt does not know the directories: on embed, and on
            a host that was booted.
        folders: image folders.

    Raises:
        HostError: the host did not let us look.
    """
    domains: dict[str, list[DomainView]] = defaultdict(list)
    where: dict[str, set[str]] = defaultdict(set)
    directories = set() if host.connection.is_embed else set((await host.pools()).values())
    for domain in await host.domains():
        if domain.ownership is not None:
            domains[domain.ownership.owner].append(domain)
            directories |= await _directories_of(host, domain)
    for directory in directories:
        folder, name = posixpath.split(directory)
        owner = directory_owner(name)
        if owner is not None:
            where[owner].add(folder)
    for owner in owners:
        where[owner].update(folders)
    found = [await _estate(host, owner, domains[owner], where[owner]) for owner in sorted({*domains, *where})]
    # libvirt may know of a directory that somebody removed by hand.
    return [estate for estate in found if estate.domains or estate.files or estate.owner in owners]


async def _directories_of(host: Host, domain: DomainView) -> set[str]:
    try:
        disks = domainxml.files_of_disks(await host.description(domain.uuid))
    except NotFound:
        return set()  # it has ended meanwhile
    return {posixpath.dirname(file) for _, files in disks for file in files}


async def _estate(host: Host, owner: str, domains: list[DomainView], folders: set[str]) -> Estate:
    files, leases = {}, []
    for folder in sorted(folders):
        try:
            names = await open_storage(host, owner, folder).names()
        except NotFound:
            continue  # it has no directory there
        files[folder] = tuple(sorted(name for name in names if FileName.parse(name) is not None))
        leases += [lease.until for lease in map(Lease.parse, names) if lease is not None]
    return Estate(owner=owner, until=max(leases, default=None), domains=tuple(domains), files=files)


async def clear(host: Host, estate: Estate, now: float) -> list[str]:
    """End an owner's VMs, and remove its files and directories; what is held, and others' things, stay.

    Args:
        host: the host.
        estate: what the owner has there.
        now: seconds since the epoch.

    Returns:
        The directories that stay, since there are others' things in them.

    Raises:
        HostError: the host did not let us; another time it goes on there.
    """
    stay: list[str] = []
    spared: set[str] = set()
    for domain in estate.domains:
        if domain.held_at(now) is not None:
            spared |= await starts_below(host, domain)
        else:
            await host.destroy(domain.uuid, only=domain.ownership)
    for folder, names in estate.files.items():
        storage = open_storage(host, estate.owner, folder)
        for name in names:
            if (parsed := FileName.parse(name)) is not None and parsed.start not in spared:
                await storage.delete(name)
        if not spared and not await storage.remove():
            stay.append(storage.directory)
    return stay
