"""The images on this machine: kept by digest, found by name, published whole or not at all.

It is plain, blocking Python, for commands and for threads. What it holds::

    blobs/<sha256>.<format>           what is in images, never written to again
    names/<name>.<arch>.<kind>.json   which of them has which name, written last
    scratch/                          files under way, on the same file system
    locks/                            one file for each thing that is done by one process at a time

A blob that no name leads to is none of the images any more, and may be removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote

import attrs

from latentvirt.config import IMAGE_FORMATS
from latentvirt.errors import ImageError
from latentvirt.images.root import ROOT_VARIABLE, default_root
from latentvirt.showing import shown

STOCK = "stock"
"""As its vendor made it."""

BUILT = "built"
"""Made ready for workers."""

KINDS = (STOCK, BUILT)

BLOB_MODE = 0o444
"""An image is read by everybody who may pass the folders above it, and written by nobody."""

CHUNK_BYTES = 1024 * 1024

YEAR_10000_S = 253402300800
"""The first time whose date has more digits than people's calendars and libraries know."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._+-]{0,99}")
_ARCH = re.compile(r"[a-z0-9][a-z0-9_-]{0,30}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_DIGEST_BYTES = re.compile(_DIGEST.pattern.encode())


def _is_time(seconds: object) -> bool:
    """Whether it can be a time since 1970 that has a date."""
    return isinstance(seconds, (int, float)) and 0 <= seconds < YEAR_10000_S


def is_name(name: object) -> bool:
    """Whether an image can be called so."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


@attrs.frozen
class Entry:
    """An image that the store has.

    Args:
        name: what people call it: ``debian-12``.
        arch: architecture, by libvirt's name: ``x86_64``.
        kind: ``stock`` or ``built``.
        format: ``qcow2`` or ``raw``.
        digest: SHA-256 of the file, in hexadecimal digits.
        size: of the file, in bytes.
        when: it was published, in seconds since 1970.
        checked: when it was last known to be the newest, likewise.
        source: where it came from, for people and for who looks for a newer one.
    """

    name: str
    arch: str
    kind: str
    format: str
    digest: str
    size: int
    when: float
    checked: float
    source: dict[str, Any] = attrs.field(factory=dict, hash=False)

    def check(self) -> None:
        """Check that its parts are what they should be, since they become names of files.

        Raises:
            ImageError: one is not.
        """
        wrong = [
            what
            for what, right in (
                ("name", is_name(self.name)),
                ("arch", isinstance(self.arch, str) and _ARCH.fullmatch(self.arch)),
                ("kind", self.kind in KINDS),
                ("format", self.format in IMAGE_FORMATS),
                ("digest", isinstance(self.digest, str) and _DIGEST.fullmatch(self.digest)),
                ("size", isinstance(self.size, int)),
                ("when", _is_time(self.when)),
                ("checked", _is_time(self.checked)),
                ("source", isinstance(self.source, dict)),
            )
            if not right
        ]
        if wrong:
            raise ImageError(
                f"an image cannot have {wrong[0]}={shown(getattr(self, wrong[0]))}",
                remedy="a name has small letters, digits and any of . _ + -",
            )


@attrs.frozen
class Damaged:
    """A name that leads nowhere.

    Args:
        path: of its file.
        why: what is wrong with it.
    """

    path: Path
    why: str

    @property
    def of(self) -> tuple[str, str, str] | None:
        """Name, architecture and kind of the image that it would be; None if it is no name at all."""
        parts = self.path.name.removesuffix(".json").rsplit(".", 2)
        return (unquote(parts[0]), unquote(parts[1]), parts[2]) if len(parts) == 3 else None


class ImageStore:
    """Keep images on this machine.

    Args:
        root: its folder, made when something is put into it; None for where it usually is.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self.root = default_root() if root is None else Path(root)

    # Looking

    def entries(self) -> list[Entry]:
        """List all images, by name; damaged files among the names are left out.

        Raises:
            ImageError: the store cannot be read.
        """
        found = [self._read(path) for path in self._names()]
        return [entry for entry in found if isinstance(entry, Entry)]

    def damaged(self) -> list[Damaged]:
        """List the names that cannot be read, or whose image is gone; raises as `entries`."""
        found = [self._read(path) for path in self._names()]
        return [entry for entry in found if isinstance(entry, Damaged)]

    def find(self, name: str, arch: str, kind: str) -> Entry | None:
        """Find an image; None if there is none, or what there is of it is damaged."""
        found = self._read(self._name_file(name, arch, kind))
        return found if isinstance(found, Entry) else None

    def path_of(self, entry: Entry) -> Path:
        """Say where an image's file is; it is never written to."""
        return self.root / "blobs" / f"{entry.digest}.{entry.format}"

    def is_named(self, digest: str) -> bool:
        """Whether a name leads to an image's file, or a damaged one may; raises as `entries`.

        Args:
            digest: SHA-256 of the file, in hexadecimal digits.
        """
        wanted = digest.encode()
        return any(not found or wanted in found for found in map(_digests_in, self._names()))

    # Changing

    def publish(
        self,
        temp_path: str | os.PathLike[str],
        *,
        name: str,
        arch: str,
        kind: str,
        format: str,
        source: dict[str, Any],
        digest: str | None = None,
    ) -> Entry:
        """Make a file an image of the store: the file is moved, and what had the name before loses it.

        Args:
            temp_path: a file in `scratch`.
            name: as in `Entry`.
            arch: as in `Entry`.
            kind: as in `Entry`.
            format: as in `Entry`.
            source: as in `Entry`; what JSON can hold.
            digest: SHA-256 of the file, if the caller has computed it; None reads the file.

        Raises:
            ImageError: the name cannot be one, or the files cannot be written.
        """
        path, now = Path(temp_path), time.time()
        with self._telling("publish", name):
            entry = Entry(
                name=name,
                arch=arch,
                kind=kind,
                format=format,
                digest=digest_of(path) if digest is None else digest,
                size=path.stat().st_size,
                when=now,
                checked=now,
                source=source,
            )
            entry.check()
            with self._locked(self._made(self.root) / "store.lock"):
                blob = self.path_of(entry)
                self._made(blob.parent)
                _synced(path)
                path.chmod(BLOB_MODE)
                path.replace(blob)
                _synced(blob.parent)
                self._write(entry)
        return entry

    def confirm(self, entry: Entry, *, source: dict[str, Any] | None = None) -> Entry:
        """Note that an image is still the newest.

        Args:
            entry: which.
            source: what is known of its source by now; None leaves that as it was.

        Raises:
            ImageError: the file cannot be written.
        """
        checked = attrs.evolve(entry, checked=time.time(), source=entry.source if source is None else source)
        with self._telling("note of", entry.name), self._locked(self.root / "store.lock"):
            self._write(checked)
        return checked

    def remove(self, name: str, arch: str, kind: str) -> bool:
        """Remove an image, and its file if no other name leads to it; says whether there was one.

        Raises:
            ImageError: the files cannot be removed.
        """
        path = self._name_file(name, arch, kind)
        if not path.exists():
            return False
        with self._telling("remove", name), self._locked(self.root / "store.lock"):
            found = self._read(path)
            path.unlink(missing_ok=True)
            if isinstance(found, Entry) and not self.is_named(found.digest):
                self.path_of(found).unlink(missing_ok=True)
        return True

    def scratch(self) -> Path:
        """Return the folder for files that are to be published; what is left in it is nobody's.

        Raises:
            ImageError: it cannot be made.
        """
        with self._telling("make files for", "images"):
            return self._made(self.root / "scratch")

    @contextlib.contextmanager
    def lock(self, key: str, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Let one process, and one thread in it, at a time do what has a key.

        It is let go of when its holder ends, however that ends.

        Args:
            key: what is to be done once, such as ``pull debian-12``.
            waits: called once if somebody else has it.

        Raises:
            ImageError: its file cannot be made.
        """
        with self._telling("lock", key):
            path = self._made(self.root / "locks") / quote(key, safe="")
        with self._locked(path, waits):
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Let nobody publish or remove anything meanwhile.

        Raises:
            ImageError: the store cannot be locked.
        """
        with self._telling("lock", "images"):
            path = self._made(self.root) / "store.lock"
        with self._locked(path):
            yield

    # Files

    def files(self, folder: str, ending: str) -> list[Path]:
        """List the files in one of its folders that end so; raises as `entries`."""
        with self._telling("look for", "images"), contextlib.suppress(FileNotFoundError):
            return sorted(path for path in (self.root / folder).iterdir() if path.name.endswith(ending))
        return []

    def _names(self) -> list[Path]:
        return self.files("names", ".json")

    def _name_file(self, name: str, arch: str, kind: str) -> Path:
        return self.root / "names" / f"{quote(name, safe='+')}.{quote(arch, safe='')}.{kind}.json"

    def _read(self, path: Path) -> Entry | Damaged | None:
        try:
            data = json.loads(path.read_bytes())
            entry = Entry(**{field.name: data[field.name] for field in attrs.fields(Entry)})
            entry.check()
            if self._name_file(entry.name, entry.arch, entry.kind) != path:
                return Damaged(path, "it is the file of another name")
            if self.path_of(entry).stat().st_size != entry.size:
                return Damaged(path, f"{self.path_of(entry)} does not hold {entry.size} bytes")
        except FileNotFoundError as error:
            return None if error.filename == str(path) else Damaged(path, f"{error.filename} is not there")
        except OSError as error:
            return Damaged(path, error.strerror or str(error))
        except ImageError as error:
            return Damaged(path, error.what)
        except (ValueError, TypeError, KeyError) as error:
            return Damaged(path, f"it cannot be read: {type(error).__name__}: {error}")
        return entry

    def _write(self, entry: Entry) -> None:
        """Write a name's file; with the store's lock."""
        temp = self._made(self.root / "scratch") / "name.json"
        temp.write_text(json.dumps(attrs.asdict(entry), indent=2, sort_keys=True) + "\n")
        _synced(temp)
        path = self._name_file(entry.name, entry.arch, entry.kind)
        self._made(path.parent)
        temp.replace(path)
        _synced(path.parent)

    def _made(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextlib.contextmanager
    def _locked(self, path: Path, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
        with self._opened(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waits()
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _opened(self, path: Path) -> IO[bytes]:
        with self._telling("lock", path.name):
            return path.open("ab")

    @contextlib.contextmanager
    def _telling(self, doing: str, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ImageError(
                f"could not {doing} {what} in the image store {self.root}: "
                f"{error.strerror or error} ({error.filename})",
                remedy=f"let this user read and write there, make room, or set {ROOT_VARIABLE}",
            ) from error


def digest_of(path: str | os.PathLike[str]) -> str:
    """Compute a file's SHA-256, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while data := file.read(CHUNK_BYTES):
            digest.update(data)
    return digest.hexdigest()


def _digests_in(name: Path) -> list[bytes]:
    """List the digests in a name's file; none if it is cut, or cannot be read: then nobody can tell."""
    try:
        return _DIGEST_BYTES.findall(name.read_bytes())
    except OSError:
        return []


def _synced(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
