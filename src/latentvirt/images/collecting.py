"""Copied images that nothing on a host needs any more: found, and removed in a way that no start can miss.

A start may have chosen a copy just before it is found unneeded. So the copy is doomed first, by an empty
file beside it, which makes it none that a start would choose; after a while, in which those that had chosen
it have made their overlays, it is looked at once more, and goes, or is what it was. Broken off at any point,
nothing that is needed is lost, and the next collection goes on.
"""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Mapping

import attrs
from twisted.internet import task

from latentvirt import domainxml
from latentvirt.errors import AlreadyExists, NotFound
from latentvirt.flights import Say, say_nothing
from latentvirt.host import Host
from latentvirt.images.naming import DIRECTORY, CopyName, Listing
from latentvirt.images.shelf import Shelf, open_shelf
from latentvirt.names import FileName, directory_name, directory_owner, look_pool_name
from latentvirt.storage import open_storage

GRACE_S = 60.0
"""How long a start may take, at most, from choosing a copy to the overlay that stands on it."""

OVERLAY = "overlay"


@attrs.frozen(kw_only=True)
class Copy:
    """A copied image on a host.

    Args:
        path: of its file.
        digest: SHA-256 of what it holds, in hexadecimal digits.
        size: of its file, in bytes.
        needed_by: what needs it; nothing does if empty.
    """

    path: str
    digest: str
    size: int
    needed_by: tuple[str, ...]


@attrs.define(eq=False)
class Collection:
    """Remove what is not needed of the copied images in one image folder of a host.

    Args:
        host: the host.
        folder: the image folder.
        wanted: why images are to stay though nothing there needs them now, by digest.
        looker: an id to look by, of 16 hexadecimal digits; no master's.
        say: takes lines on how far it got.
    """

    host: Host
    folder: str
    wanted: Mapping[str, str]
    looker: str
    say: Say = say_nothing

    async def look(self) -> list[Copy]:
        """List the copies, and what needs each.

        Raises:
            NotFound: there is no such folder.
            HostError: the host did not let us look.
        """
        there = await self._folder()
        if DIRECTORY not in there:
            return []
        shelf = open_shelf(self.host, self.folder)
        names = await shelf.names()
        needed = await self._needed(there)
        copies = []
        for name in sorted(copy for copy in map(CopyName.parse, names) if copy is not None):
            why = [*needed[shelf.path_of(str(name))], *self._why_kept(name, names)]
            try:
                size = (await shelf.look(str(name))).length
            except NotFound:
                continue  # it went meanwhile
            copies.append(
                Copy(path=shelf.path_of(str(name)), digest=name.digest, size=size, needed_by=tuple(why))
            )
        return copies

    async def collect(self) -> list[Copy]:
        """Remove the copies that nothing needs.

        Returns:
            Those that were removed.

        Raises:
            NotFound: there is no such folder.
            HostError: the host did not let us; another time it goes on there.
        """
        copies = await self.look()
        if not copies and DIRECTORY not in await self._folder():
            return []
        shelf = open_shelf(self.host, self.folder)
        names = set(await shelf.names())
        for copy in copies:
            if copy.needed_by:
                await self._spare(shelf, self._name(copy), names)
        going = [copy for copy in copies if not copy.needed_by]
        for copy in going:
            await self._doom(shelf, self._name(copy))
        if going:
            self.say(f"{len(going)} to go; waiting {GRACE_S:g} s for starts that have just chosen one")
            await task.deferLater(self.host.reactor, GRACE_S)
        removed = []
        needed = {copy.path: copy.needed_by for copy in await self.look()} if going else {}
        for copy in going:
            if needed.get(copy.path):
                await self._spare(shelf, self._name(copy), {self._name(copy).doom})
            else:
                await self._remove(shelf, self._name(copy))
                removed.append(copy)
        left = await shelf.names()
        for name in left:
            doomed = CopyName.parse_doom(name)
            if doomed is not None and str(doomed) not in left:
                await shelf.delete(name)  # what an earlier collection that was broken off left
        return removed

    @staticmethod
    def _name(copy: Copy) -> CopyName:
        name = CopyName.parse(posixpath.basename(copy.path))
        assert name is not None
        return name

    async def _doom(self, shelf: Shelf, name: CopyName) -> None:
        try:
            await shelf.create(name.doom)
        except AlreadyExists:
            pass  # an earlier collection was broken off
        await shelf.delete(name.marker)

    async def _spare(self, shelf: Shelf, name: CopyName, names: set[str]) -> None:
        """Make a doomed copy what it was: it is whole, or nothing would stand on it."""
        if name.doom not in names:
            return
        try:
            await shelf.create(name.marker)
        except AlreadyExists:
            pass
        await shelf.delete(name.doom)

    async def _remove(self, shelf: Shelf, name: CopyName) -> None:
        await shelf.delete(str(name))
        await shelf.delete(name.doom)

    # What needs a copy

    async def _folder(self) -> list[str]:
        if self.host.connection.is_embed:
            return await self.host.run_local(f"list the folder {self.folder}", self._local_folder)
        return await self.host.folder(self.folder, probe_pool=look_pool_name(self.looker, self.folder))

    def _local_folder(self) -> list[str]:
        try:
            return os.listdir(self.folder)
        except FileNotFoundError:
            raise NotFound(f"there is no folder {self.folder}", host=self.host.uri) from None

    def _why_kept(self, name: CopyName, names: list[str]) -> list[str]:
        listing = Listing.of(name.digest, names)
        if name in listing.unready and listing.locks:
            return ["it is being copied"]
        # Half a copy is wanted by nobody, and a doomed one may be that.
        return [self.wanted[name.digest]] if name.digest in self.wanted and name in listing.ready else []

    async def _needed(self, there: list[str]) -> defaultdict[str, list[str]]:
        """Say what stands on which file: domains, and the overlays in all masters' directories."""
        needed: defaultdict[str, list[str]] = defaultdict(list)
        for domain in await self.host.domains():
            try:
                disks = domainxml.files_of_disks(await self.host.description(domain.uuid))
            except NotFound:
                continue  # it has ended meanwhile
            for path in {path for _, files in disks for path in files}:
                needed[path].append(f"the domain {domain.name}")
        for owner in filter(None, map(directory_owner, there)):
            for path, name in await self._overlays(owner):
                needed[path].append(f"{directory_name(owner)}/{name}")
        return needed

    async def _overlays(self, owner: str) -> list[tuple[str, str]]:
        storage = open_storage(self.host, owner, self.folder)
        found = []
        try:
            names = await storage.names()
        except NotFound:
            return []  # its master removed it meanwhile
        for name in map(FileName.parse, names):
            if name is None or name.kind != OVERLAY:
                continue
            try:
                backing = (await storage.image(storage.path_of(name))).backing
            except NotFound:
                continue  # its build has ended meanwhile
            if backing is not None:
                found.append((backing, str(name)))
        return found
