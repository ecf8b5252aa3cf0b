"""The bytes of an image as they are read, which must be those that it was known by."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile

import attrs

from latentvirt.config import Image
from latentvirt.errors import ImageError
from latentvirt.images.head import HEAD_BYTES

NO_FILE = -1
ON_MASTER = "on the master"


@attrs.frozen
class Identity:
    """What an image is, wherever it lies.

    Args:
        digest: SHA-256 of its file, in hexadecimal digits.
        length: of its file, in bytes.
        format: ``qcow2`` or ``raw``.
    """

    digest: str
    length: int
    format: str


class Changed(ImageError):
    """The image was another when it was read again."""

    def __init__(self, image: Image) -> None:
        super().__init__(
            f"the image {image} was changed while it was read",
            remedy="never write to an image in use: put a new one beside it and rename it over the old one",
        )


class Reader:
    """Read a file from its beginning, and refuse to end if its bytes are not those that it was to have.

    Args:
        file: its descriptor; closed when this is forgotten.
        image: for messages.
        identity: what it is to be; None for whatever it is.
    """

    def __init__(self, file: int, image: Image, identity: Identity | None = None) -> None:
        self._file = file
        self._image = image
        self._identity = identity
        self._digest = hashlib.sha256()
        self._read = 0

    def __del__(self) -> None:
        os.close(self._file)

    @property
    def digest(self) -> str:
        """Of what was read so far."""
        return self._digest.hexdigest()

    @property
    def count(self) -> int:
        """How many bytes were read so far."""
        return self._read

    def __call__(self, count: int) -> bytes:
        """Read; for a thread.

        Raises:
            Changed: the file has ended, or gone on, where it should not have, or held something else.
        """
        try:
            # Not at the file's own position, which others may share.
            data = os.pread(self._file, count, self._read)
        except OSError as error:
            raise unreadable(self._image, error) from error
        self._read += len(data)
        self._digest.update(data)
        wanted = self._identity
        if wanted is not None and (
            self._read > wanted.length
            or (not data and (self._read, self.digest) != (wanted.length, wanted.digest))
        ):
            raise Changed(self._image)
        return data


def open_image(path: str) -> tuple[int, os.stat_result]:
    """Open an image's file on this machine: its descriptor, and what it is.

    Raises:
        OSError: it cannot be opened.
        ImageError: it is no ordinary file, and may have no end.
    """
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe of that name is not waited for
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        os.close(file)
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "no ordinary file"
        raise ImageError(f"the image {path} {ON_MASTER} is {kind}", remedy="name the image file")
    return file, status


def unreadable(image: Image, error: OSError) -> ImageError:
    """Say that the master cannot read an image."""
    remedy = "let the master's user read it, and pass its folders; check its disk"
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        remedy = f"correct the path; for an image on another host write Image({image.path!r}, at=...)"
    return ImageError(f"the image {image.path} {ON_MASTER} cannot be read: {error.strerror}", remedy=remedy)


class Spool:
    """What was read from a host, in a file without a name that is gone with the last who uses it.

    Args:
        image: which, for messages.
        folder: in which the file is.

    Raises:
        ImageError: the folder is not there, or takes no file.
    """

    def __init__(self, image: Image, folder: str) -> None:
        self._image = image
        self._folder = folder
        self._file = NO_FILE
        try:
            with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
                self._file = os.dup(file.fileno())
        except OSError as error:
            raise self._no_room(error) from error
        self._digest = hashlib.sha256()
        self.length = 0

    def __del__(self) -> None:
        if self._file != NO_FILE:
            os.close(self._file)

    def _no_room(self, error: OSError) -> ImageError:
        return ImageError(
            f"the image {self._image} could not be passed on by way of {self._folder} {ON_MASTER}: "
            f"{error.strerror}",
            remedy="make room there, or set TMPDIR in the master's environment",
        )

    @property
    def digest(self) -> str:
        """Of what is in it."""
        return self._digest.hexdigest()

    def head(self) -> bytes:
        """Return its first bytes."""
        return os.pread(self._file, HEAD_BYTES, 0)

    def write(self, data: bytes) -> None:
        """Take bytes; for a thread."""
        self._digest.update(data)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            raise self._no_room(error) from error
        self.length += len(data)

    def reader(self, identity: Identity) -> Reader:
        """Begin to read it."""
        return Reader(os.dup(self._file), self._image, identity)
