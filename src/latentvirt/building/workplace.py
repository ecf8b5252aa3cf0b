"""The folder of one build among the store's scratch files, and what dead builds left there."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import attrs

from latentvirt.errors import ImageError
from latentvirt.images.root import ROOT_VARIABLE
from latentvirt.names import Ownership

PREFIX = "build-"
LOCK = "lock"
VM = "vm.json"
KEPT = "kept"
FOLDER_MODE = 0o711
"""QEMU's user must come through to the disks, and nobody else needs to list them."""


@attrs.frozen
class RunningVM:
    """The VM of a build, as it is noted before it exists.

    Args:
        uri: of the host.
        uuid: of the domain.
        ownership: its mark.
    """

    uri: str
    uuid: str
    ownership: Ownership


class Workplace:
    """Hold a folder of its own for one build; its lock lets go of it when the process ends, however it does.

    Args:
        path: of the folder.
        lock: its lock's file, locked.
    """

    def __init__(self, path: Path, lock: IO[bytes]) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def make(cls, scratch: Path) -> Workplace:
        """Make one.

        Raises:
            ImageError: that cannot be done.
        """
        try:
            path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=scratch))
            lock = (path / LOCK).open("wb")
            fcntl.flock(lock, fcntl.LOCK_EX)
            path.chmod(FOLDER_MODE)
        except OSError as error:
            raise ImageError(
                f"could not make a folder for the build in {scratch}: {error.strerror}",
                remedy=f"let this user write there, or name another folder in {ROOT_VARIABLE}",
            ) from error
        return cls(path, lock)

    @property
    def disk(self) -> Path:
        """What the guest writes to."""
        return self.path / "disk.qcow2"

    @property
    def seed(self) -> Path:
        """What the guest is told."""
        return self.path / "seed.iso"

    @property
    def vars(self) -> Path:
        """The guest's UEFI variables."""
        return self.path / "vars"

    @property
    def console(self) -> Path:
        """What the guest wrote to its console."""
        return self.path / "console.log"

    @property
    def image(self) -> Path:
        """What becomes of the disk."""
        return self.path / "image.qcow2"

    def note(self, vm: RunningVM) -> None:
        """Note the VM that will be here, for who has to clear up after us."""
        text = json.dumps({"uri": vm.uri, "uuid": vm.uuid, **attrs.asdict(vm.ownership)})
        (self.path / VM).write_text(text)

    def noted(self) -> RunningVM | None:
        """Read which VM was to be here; None if none was yet."""
        try:
            said = json.loads((self.path / VM).read_text())
            owned = Ownership(said["owner"], said["slot"], said["start"])
            return RunningVM(str(said["uri"]), str(said["uuid"]), owned)
        except (OSError, ValueError, KeyError, TypeError):
            return None  # the note is written before the VM is made

    def keep(self) -> None:
        """Leave all here, for a person to look at and to remove."""
        (self.path / KEPT).touch()
        self._lock.close()

    def remove(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def abandoned(scratch: Path) -> Iterator[Workplace]:
    """Find the folders of builds whose process has ended without removing them; each is locked for us."""
    for path in sorted(scratch.glob(f"{PREFIX}*")):
        if (path / KEPT).exists():
            continue
        try:
            # Not made where it is missing: the folder may have been removed, or be just in the making.
            lock = os.fdopen(os.open(path / LOCK, os.O_WRONLY), "wb")
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        yield Workplace(path, lock)
