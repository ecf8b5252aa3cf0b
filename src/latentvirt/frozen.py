"""Frozen images: a booted guest's memory and disks, kept in our directory for each build to go on from.

An image is the files of the start that booted it. What makes them one is an empty file beside them, written
last: its name says what the image is valid for, and what its files looked like then. A start's files without
it are a leftover like any other.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection

import attrs

from latentvirt.config import BYTES_PER_MIB
from latentvirt.errors import BadFrozenImage, ImageError, LatentvirtError, NotFound
from latentvirt.names import FileName
from latentvirt.planning import Plan, PlannedDisk
from latentvirt.storage import Storage

MEMORY = "ram"
VARS = "nvram"
SEAL_LENGTH = 12

UNUSED_S = 7 * 24 * 3600.0
"""After how long an image that no build wanted is removed."""

REFUSAL_S = 3600.0
"""How long a VM that could not be frozen is not tried again."""

_SEALED = re.compile(r"([0-9a-f]{8})-([0-9a-f]{16})-([0-9a-f]{12})")


@attrs.frozen(kw_only=True)
class FrozenImage:
    """A guest that was saved when it had booted, and had not yet learned who it is.

    Args:
        slot: the place that it was saved in; its domain has that place's name and address, so that it can
            only be thawed there.
        start: id of the start that booted it.
        lineage: as in `Plan`.
        fingerprint: as in `Plan`.
        seal: digest of what its files looked like.
    """

    slot: str
    start: str
    lineage: str
    fingerprint: str
    seal: str

    @classmethod
    def parse(cls, name: FileName) -> FrozenImage | None:
        """Read an image from the name of its marker; None if it is not one."""
        found = _SEALED.fullmatch(name.target) if name.kind == "frozen" else None
        if found is None:
            return None
        lineage, fingerprint, seal = found.groups()
        return cls(slot=name.slot, start=name.start, lineage=lineage, fingerprint=fingerprint, seal=seal)

    @property
    def marker(self) -> FileName:
        """The file that makes it one."""
        sealed = f"{self.lineage}-{self.fingerprint}-{self.seal}"
        return FileName(self.slot, self.start, "frozen", sealed)

    @property
    def memory(self) -> FileName:
        """The file that its memory is in."""
        return FileName(self.slot, self.start, "memory", MEMORY)

    @property
    def vars(self) -> FileName:
        """The file that its UEFI variables are in, if it has any."""
        return FileName(self.slot, self.start, "vars", VARS)

    def disk(self, disk: PlannedDisk) -> FileName:
        """The file that one of its disks is in."""
        return FileName(self.slot, self.start, disk.kind, disk.target)

    def files(self, plan: Plan) -> list[FileName]:
        """List its files but the marker."""
        files = [self.memory, *(self.disk(disk) for disk in plan.disks)]
        return [*files, self.vars] if plan.has_vars else files


@attrs.define(eq=False)
class FrozenStore:
    """Know the frozen images in one directory; it lives as long as its host's record.

    Args:
        storage: over the directory.
        seconds: a clock that only goes forward.
        most_bytes: how much room on the disk all images may take.
    """

    storage: Storage
    seconds: Callable[[], float]
    most_bytes: int
    _images: dict[str, FrozenImage] = attrs.field(init=False, factory=dict)
    _used: dict[str, float] = attrs.field(init=False, factory=dict)
    _lent: dict[str, set[str]] = attrs.field(init=False, factory=dict)
    """Which starts stand on an image, by the start that booted it."""
    _refused: dict[str, tuple[str, float]] = attrs.field(init=False, factory=dict)
    _undeleted: list[FrozenImage] = attrs.field(init=False, factory=list)
    """Images that no build has any more, and that could not be deleted yet."""
    _failed: set[str] = attrs.field(init=False, factory=set)
    _loaded: bool = attrs.field(init=False, default=False)

    async def load(self) -> None:
        """Find the images that earlier processes left; looked for once."""
        if self._loaded:
            return
        try:
            names = await self.storage.names()
        except NotFound:
            names = []
        for name in names:
            parsed = FileName.parse(name)
            image = FrozenImage.parse(parsed) if parsed is not None else None
            if image is not None:
                self._images.setdefault(image.start, image)
                self._used.setdefault(image.start, self.seconds())
        self._loaded = True

    # Which there are

    @property
    def is_empty(self) -> bool:
        """Whether there is no image."""
        return not self._images

    @property
    def count(self) -> int:
        """How many images there are."""
        return len(self._images)

    def find(self, slot: str, fingerprint: str) -> FrozenImage | None:
        """Return the newest image that can be thawed in a slot; None if there is none."""
        fitting = [
            image
            for image in self._images.values()
            if image.slot == slot and image.fingerprint == fingerprint and fingerprint
        ]
        return fitting[-1] if fitting else None

    def slots(self, fingerprint: str) -> set[str]:
        """Say in which slots something can be thawed."""
        return {image.slot for image in self._images.values() if image.fingerprint == fingerprint}

    def keeps(self, start: str) -> bool:
        """Whether a start's files are an image's, or below a VM that was thawed from it."""
        return start in self._images or start in self._lent

    def refuse(self, fingerprint: str, why: str) -> None:
        """Note that freezing failed, so that not every build tries it in vain."""
        self._refused[fingerprint] = (why, self.seconds() + REFUSAL_S)

    def refusal(self, fingerprint: str) -> str | None:
        """Say why freezing is not tried now; None if it is."""
        why, until = self._refused.get(fingerprint, ("", 0.0))
        return why if until > self.seconds() else None

    def proved_good(self, fingerprint: str) -> None:
        """Note that a guest was thawed and answered."""
        self._failed.discard(fingerprint)

    def proved_bad(self, fingerprint: str) -> None:
        """Note that a thawed guest was of no use; after the second in a row such guests boot for a while."""
        if fingerprint in self._failed:
            self.refuse(fingerprint, "two of its guests in a row did not answer after they were thawed")
        self._failed.add(fingerprint)

    def distrust(self, image: FrozenImage) -> None:
        """Let no build have an image any more, whose host was lost over it; it is deleted later."""
        if self._images.pop(image.start, None) is not None:
            self._undeleted.append(image)

    # Use

    async def seal(self, files: list[FileName]) -> str:
        """Digest what files look like: their sizes and the times of their last change."""
        seen = [await self.storage.modified(name) for name in files]
        return hashlib.sha256("\n".join(seen).encode()).hexdigest()[:SEAL_LENGTH]

    async def refuse_too_large(self, files: list[FileName]) -> None:
        """Refuse an image that would be over the limit by itself.

        Raises:
            ImageError: it is.
        """
        size = sum([await self.storage.size(str(name)) for name in files])
        if size > self.most_bytes:
            raise ImageError(
                f"the frozen image takes {size // BYTES_PER_MIB} MiB, and all of them may take "
                f"{self.most_bytes // BYTES_PER_MIB} MiB",
                remedy="raise frozen_space= of the Connection, or write start='boot'",
            )

    async def lend(self, image: FrozenImage, plan: Plan, start: str) -> None:
        """Check an image, and keep it for as long as a VM stands on it.

        Args:
            image: the image.
            plan: of the VM.
            start: id of the start that thaws it.

        Raises:
            BadFrozenImage: its files are not what they were when it was made.
        """
        self._lent.setdefault(image.start, set()).add(start)
        try:
            seal = await self.seal(image.files(plan))
        except NotFound as error:
            await self.take_back(image, start)
            raise BadFrozenImage(f"a file of it is missing: {error.what}") from error
        except LatentvirtError:
            await self.take_back(image, start)
            raise
        if seal != image.seal:
            await self.take_back(image, start)
            raise BadFrozenImage("its files have changed since it was made")
        self._used[image.start] = self.seconds()

    def stood_on(self, starts: Collection[str], start: str) -> None:
        """Hear that a VM of an earlier process runs still; what it stands on is kept for as long as that.

        Args:
            starts: whose files are below it.
            start: id of its own start.
        """
        for image in starts:
            if image != start:
                self._lent.setdefault(image, set()).add(start)

    async def take_back(self, image: FrozenImage, start: str) -> None:
        """Hear that a VM that stood on an image is gone."""
        self.leave({start})
        if image.start not in self._images and image.start not in self._lent:
            await self._delete(image)

    def leave(self, starts: Collection[str]) -> None:
        """Hear that starts are left to the sweep; so are the images that nothing else stands on.

        Args:
            starts: their ids.
        """
        for image, standing in list(self._lent.items()):
            standing.difference_update(starts)
            if not standing:
                del self._lent[image]

    async def publish(self, image: FrozenImage) -> None:
        """Make a start's files an image, now that all of them are there."""
        await self.storage.create_empty(image.marker)
        self._images[image.start] = image
        self._used[image.start] = self.seconds()

    # End

    async def discard(self, image: FrozenImage) -> None:
        """Let no build have an image any more, and delete it; below a VM its files stay as long as that."""
        self._images.pop(image.start, None)
        self._used.pop(image.start, None)
        try:
            # The marker first: what is left after a crash is then a leftover.
            await self.storage.delete(str(image.marker))
            if image.start not in self._lent:
                await self._delete(image)
        except LatentvirtError:
            self._undeleted.append(image)
            raise

    async def _delete(self, image: FrozenImage) -> None:
        for name in await self.storage.names():
            parsed = FileName.parse(name)
            if parsed is not None and parsed.start == image.start:
                await self.storage.delete(name)

    async def discard_older(self, plan: Plan) -> None:
        """Discard what was frozen of earlier versions of the same image, and what nobody wants."""
        while self._undeleted:
            await self.discard(self._undeleted.pop())
        longest = self.seconds() - UNUSED_S
        for image in list(self._images.values()):
            outdated = image.lineage == plan.lineage and image.fingerprint != plan.fingerprint
            if image.start in self._images and (outdated or self._used[image.start] < longest):
                await self.discard(image)

    async def keep_within(self) -> None:
        """Discard images, the one that was not used for the longest time first, until the rest fits."""
        sizes: dict[str, int] = {}
        for name in await self.storage.names():
            parsed = FileName.parse(name)
            if parsed is not None and parsed.start in self._images:
                try:
                    sizes[parsed.start] = sizes.get(parsed.start, 0) + await self.storage.size(name)
                except NotFound:
                    pass  # another freeze has just made room
        while sum(size for start, size in sizes.items() if start in self._images) > self.most_bytes:
            free = [start for start in sizes if start in self._images and start not in self._lent]
            if not free:
                break
            await self.discard(self._images[min(free, key=lambda start: self._used[start])])
