"""What every kind of storage can do, and how a directory says until when its owner claims it."""

from __future__ import annotations

from typing import Protocol

from latentvirt.domainxml import Layer
from latentvirt.errors import AlreadyExists, ImageError, NotFound
from latentvirt.host import ImageView
from latentvirt.names import FileName, Lease
from latentvirt.storage.permissions import Unseen

FILE_MODE = "0600"

NAME_ANOTHER = (
    "name another folder: in master.cfg with hd_image= (base_image= if there is none) or images= of the "
    "Connection, on a command line with --folder"
)
"""What can be done about an image folder that will not do, whoever named it."""


class Storage(Protocol):
    """Where the files of one owner on one host, in one folder, live."""

    @property
    def directory(self) -> str:
        """Path of our own directory on the host."""
        ...

    async def prepare(self) -> None:
        """See to it that the directory is there.

        Raises:
            ImageError: the folder that it is to be made in is not there.
        """
        ...

    def path_of(self, name: FileName) -> str:
        """Say where on the host a file of ours lies, whether it is there or not."""
        ...

    async def image(self, path: str) -> ImageView:
        """Look at an image, the person's or ours.

        Raises:
            NotFound: there is none.
        """
        ...

    async def why_unseen(self, path: str) -> Unseen:
        """Say why there was no image to look at, as far as that is known."""
        ...

    async def create_overlay(self, name: FileName, backing: Layer, capacity: int) -> str:
        """Create a qcow2 overlay over an image.

        Args:
            name: of the file.
            backing: the image; it is only read.
            capacity: bytes that the guest sees.

        Returns:
            The overlay's path on the host.
        """
        ...

    async def create_disk(self, name: FileName, format: str, capacity: int) -> str:
        """Create an empty disk, which stands on nothing.

        Args:
            name: of the file.
            format: ``qcow2`` or ``raw``.
            capacity: bytes that the guest sees.

        Returns:
            Its path on the host.
        """
        ...

    async def create_empty(self, name: FileName | Lease) -> str:
        """Create an empty file, to be filled by libvirt; returns its path on the host."""
        ...

    async def copy(self, source: FileName, target: FileName) -> str:
        """Copy a file of ours.

        Args:
            source: the file.
            target: name of the copy.

        Returns:
            The copy's path on the host.

        Raises:
            NotFound: there is no such file.
            AlreadyExists: there is a file of the copy's name.
        """
        ...

    async def modified(self, name: FileName) -> str:
        """Tell one content of a file of ours from another, by its length and the time of its last write.

        Raises:
            NotFound: there is no such file.
        """
        ...

    async def size(self, name: str) -> int:
        """Say how many bytes a file of ours takes on the host's disk.

        Raises:
            NotFound: there is no such file.
        """
        ...

    async def delete(self, name: str) -> None:
        """Delete a file of ours; one that is not there is done already."""
        ...

    async def names(self) -> list[str]:
        """List what lies in the directory."""
        ...

    async def renew_lease(self, until: int) -> None:
        """Say in the directory until when (seconds since the epoch) its owner claims it."""
        ...

    async def remove(self) -> bool:
        """Remove the directory and the lease in it; what else is in it stays, and so does it then.

        Returns:
            Whether the directory is gone.
        """
        ...


def no_folder(folder: str, host: str) -> ImageError:
    """Say that the image folder is not there."""
    return ImageError(
        f"there is no folder {folder} on the host, and only a directory in it is ours to make",
        host=host,
        remedy=f"make the folder, or {NAME_ANOTHER}",
    )


async def delete_leases(storage: Storage, but: Lease | None = None) -> None:
    """Delete the leases in a directory.

    Args:
        storage: over the directory.
        but: the one that stays.
    """
    try:
        names = await storage.names()
    except NotFound:
        return  # there is no directory, or nobody can tell what is in it
    for name in names:
        if Lease.parse(name) not in (None, but):
            await storage.delete(name)


async def renew_lease(storage: Storage, lease: Lease) -> None:
    """Put a lease into a directory, and only then take the earlier ones out."""
    try:
        await storage.create_empty(lease)
    except AlreadyExists:
        pass  # renewed within the same second
    await delete_leases(storage, but=lease)
