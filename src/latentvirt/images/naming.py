"""What lies on a shelf, by name: copies, the markers that make them images, and locks."""

from __future__ import annotations

import hashlib
import posixpath
import re
import secrets

import attrs

DIRECTORY = "latentvirt-images"
"""Not one owner's: all masters share what is in it."""

_COPY = re.compile(r"([0-9a-f]{64})\.([0-9a-f]{12})\.(qcow2|raw)")
_MARKER = re.compile(r"([0-9a-f]{64})\.([0-9a-f]{12})\.ready")
_DOOMED = re.compile(r"([0-9a-f]{64})\.([0-9a-f]{12})\.(qcow2|raw)\.doomed")
_LOCK = re.compile(r"([0-9a-f]{64})\.lock\.(\d{1,9})")


def directory_in(folder: str) -> str:
    """Say where the shelf of an image folder is."""
    return posixpath.join(folder, DIRECTORY)


def pool_over(folder: str) -> str:
    """Name the libvirt pool over the shelf of an image folder; the same for every master."""
    return f"{DIRECTORY}-{hashlib.sha256(folder.encode()).hexdigest()[:8]}"


@attrs.frozen(order=True)
class CopyName:
    """The name of a copy, whole or not.

    Args:
        digest: SHA-256 of what it is to hold, in hexadecimal digits.
        nonce: of the one attempt to copy it.
        format: ``qcow2`` or ``raw``.
    """

    digest: str
    nonce: str
    format: str

    def __str__(self) -> str:
        return f"{self.digest}.{self.nonce}.{self.format}"

    @property
    def marker(self) -> str:
        """Name the empty file that makes it an image; it is written last."""
        return f"{self.digest}.{self.nonce}.ready"

    @property
    def doom(self) -> str:
        """Name the empty file that says that it will go unless somebody uses it; it outlives it."""
        return f"{self}.doomed"

    @classmethod
    def new(cls, digest: str, format: str) -> CopyName:
        """Name another attempt."""
        return cls(digest, secrets.token_hex(6), format)

    @classmethod
    def parse(cls, name: str) -> CopyName | None:
        """Read a name; None if it is not a copy's."""
        found = _COPY.fullmatch(name)
        return cls(*found.groups()) if found else None

    @classmethod
    def parse_doom(cls, name: str) -> CopyName | None:
        """Read which copy is doomed from the name of the file that says so; None if it is none."""
        found = _DOOMED.fullmatch(name)
        return cls(*found.groups()) if found else None


@attrs.frozen
class LockName:
    """The name of the empty file that says that somebody copies an image.

    Args:
        digest: of the image.
        turn: one more each time that it changes hands, or is renewed.
    """

    digest: str
    turn: int

    def __str__(self) -> str:
        return f"{self.digest}.lock.{self.turn}"

    @property
    def next(self) -> LockName:
        """Name the lock that comes after this one."""
        return LockName(self.digest, self.turn + 1)

    @classmethod
    def parse(cls, name: str) -> LockName | None:
        """Read a name; None if it is not a lock's."""
        found = _LOCK.fullmatch(name)
        return cls(found.group(1), int(found.group(2))) if found else None


@attrs.frozen
class Listing:
    """What a shelf has of one image.

    Args:
        ready: copies with a marker.
        unready: copies without one: under way, or given up.
        doomed: copies that will go, unless somebody uses them; with a marker or without.
        stray: markers without a copy, which mean nothing.
        locks: by turn.
    """

    ready: tuple[CopyName, ...]
    unready: tuple[CopyName, ...]
    doomed: tuple[CopyName, ...]
    stray: tuple[str, ...]
    locks: tuple[LockName, ...]

    @classmethod
    def of(cls, digest: str, names: list[str]) -> Listing:
        """Read all names on a shelf."""
        ours = {name for name in names if name.startswith(f"{digest}.")}
        known = sorted(copy for copy in map(CopyName.parse, ours) if copy is not None)
        doomed = {copy for copy in known if copy.doom in ours}
        copies = [copy for copy in known if copy not in doomed]
        markers = {name for name in ours if _MARKER.fullmatch(name)}
        locks = [lock for lock in map(LockName.parse, ours) if lock is not None]
        return cls(
            ready=tuple(copy for copy in copies if copy.marker in markers),
            unready=tuple(copy for copy in copies if copy.marker not in markers),
            doomed=tuple(sorted(doomed)),
            stray=tuple(sorted(markers - {copy.marker for copy in known})),
            locks=tuple(sorted(locks, key=lambda lock: lock.turn)),
        )
