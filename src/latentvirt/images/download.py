"""One image brought from its vendor into the store: asked for, fetched, compared, and only then published.

What was fetched stays until it is whole, whatever happens, and the next try goes on from there. Beside it
lies what is known of it, so that no bytes of another file are put behind it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import attrs

from latentvirt.config import BYTES_PER_MIB
from latentvirt.durations import DAY_S
from latentvirt.errors import ImageError
from latentvirt.images.head import HEAD_BYTES, format_of
from latentvirt.images.items import Item, without_password
from latentvirt.images.parts import getting, part_of
from latentvirt.images.reading import ON_MASTER, open_image
from latentvirt.images.store import CHUNK_BYTES, Entry, ImageStore
from latentvirt.images.vendor import Checksum, Offer, offer_of
from latentvirt.images.web import LATER, PARTIAL, RANGE_IS_WRONG, Passing, Web

if TYPE_CHECKING:
    import requests

DEFAULT_MAX_AGE_DAYS = 30
"""For so long an image is used before its vendor is asked whether there is a newer one."""

FORWARD_BYTES = BYTES_PER_MIB
"""A try that brought less has brought nothing on."""

How = Literal["kept", "unchanged", "new"]

_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class Listener(Protocol):
    """Hears how a download goes."""

    def say(self, line: str) -> None:
        """Hear what happens."""

    def progress(self, done: int, length: int | None) -> None:
        """Hear how many bytes there are, of how many; None if nobody knows."""


@attrs.frozen
class Pulled:
    """An image that is in the store.

    Args:
        entry: which.
        how: ``kept`` if nobody was asked, ``unchanged`` if its vendor has no newer one, ``new``.
    """

    entry: Entry
    how: How


def pull(
    item: Item,
    store: ImageStore,
    listener: Listener,
    *,
    refresh: bool = False,
    max_age_s: float = DEFAULT_MAX_AGE_DAYS * DAY_S,
) -> Pulled:
    """See to it that the store has an image.

    Args:
        item: which.
        store: takes it.
        listener: hears how it goes.
        refresh: whether its vendor is asked however young the stored one is.
        max_age_s: how old the stored one may be for its vendor not to be asked.

    Raises:
        ImageError: it cannot be had, or is not what it should be; the store is as it was.
    """
    asked_at, waited = time.time(), False

    def stored(since: float) -> Entry | None:
        entry = store.find(item.name, item.arch, item.kind)
        return entry if entry and _is_of(entry, item) and entry.checked >= since else None

    if not refresh and (entry := stored(asked_at - max_age_s)):
        return Pulled(entry, "kept")

    def waits() -> None:
        nonlocal waited
        waited = True
        listener.say(f"another process is getting {item.name} for {item.arch} already: waiting for it")

    with getting(store, (item.name, item.arch, item.kind), waits):
        # Who had the lock before may just have done all this.
        if waited and (entry := stored(asked_at if refresh else asked_at - max_age_s)):
            return Pulled(entry, "kept")
        known = stored(0.0)
        if item.path:
            return _from_file(item, store, listener, known)
        web = Web(listener.say)
        offer = offer_of(item, web)
        if known is not None and _is_unchanged(known, offer, web):
            return Pulled(store.confirm(known), "unchanged")
        return Pulled(_Download(item, offer, store, listener, web).run(), "new")


def _is_of(entry: Entry, item: Item) -> bool:
    """Whether an image is what the catalogue means today: it may have changed."""
    source = entry.source
    return (
        source.get("origin") == item.origin
        and item.sha256.lower() in ("", entry.digest)
        and (not item.sha512 or source.get("checksum") == f"sha512:{item.sha512.lower()}")
    )


def _is_unchanged(entry: Entry, offer: Offer, web: Web) -> bool:
    if offer.checksum is not None:
        return str(offer.checksum) == entry.source.get("checksum")

    def ask() -> str:
        # Some servers know no HEAD; of one that knows no ranges the rest is not read.
        with web.open(offer.url, {"Range": "bytes=0-0"}, also=frozenset({PARTIAL})) as response:
            return _validator(response)

    return web.patiently(ask) == entry.source.get("validator") != ""


def _from_file(item: Item, store: ImageStore, listener: Listener, known: Entry | None) -> Pulled:
    part, _ = part_of(store, (item.name, item.arch, item.kind))
    try:
        file, status = open_image(item.path)
        with open(file, "rb") as source:
            stamp = f"{status.st_size} bytes, written {status.st_mtime_ns}"
            if known is not None and known.source.get("validator") == stamp:
                return Pulled(store.confirm(known), "unchanged")
            with open(part, "wb") as target:
                done = 0
                while data := source.read(CHUNK_BYTES):
                    done += target.write(data)
                    listener.progress(done, status.st_size)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ImageError(
            f"the image {item.path} cannot be copied: {error.strerror}",
            remedy=f"correct path in {item.defined_in}; let this user read it, and make room in {store.root}",
        ) from error
    wanted = next(
        (Checksum(kind, one.lower()) for kind in ("sha512", "sha256") if (one := getattr(item, kind))), None
    )
    try:
        entry = _published(
            item, store, part, wanted, {"validator": stamp, "file": os.path.basename(item.path)}
        )
    finally:
        part.unlink(missing_ok=True)
    return Pulled(entry, "new")


class WrongSum(ImageError):
    """The bytes are not those that the vendor's list promises."""


class NotStored(ImageError):
    """The store does not take them."""


def _published(
    item: Item, store: ImageStore, part: Path, wanted: Checksum | None, source: dict[str, Any]
) -> Entry:
    """Look at a file, and make it an image if it is one."""
    digests = {"sha256": hashlib.sha256(), "sha512": hashlib.sha512()}
    used = [digests[name] for name in {"sha256", wanted.algorithm if wanted else "sha256"}]
    with open(part, "rb") as file:
        head = file.read(HEAD_BYTES)
        file.seek(0)
        while data := file.read(CHUNK_BYTES):
            for digest in used:
                digest.update(data)
    if wanted is not None:
        came_to = digests[wanted.algorithm].hexdigest()
        if came_to != wanted.digits:
            raise WrongSum(
                f"the image {item.name} from {item.origin} is not what it should be: its "
                f"{wanted.algorithm} is {came_to}, not {wanted.digits}",
                remedy=f"nothing was published; see whether the file is whole, or correct "
                f"{wanted.algorithm} in {item.defined_in}"
                if item.path
                else "nothing was published, and what was downloaded is gone; the vendor may just be "
                "publishing a new one: try again in a while, and tell the vendor if that does not help",
            )
    length = part.stat().st_size
    format_of(head, length, given=item.format, path=item.origin, host="", where=ON_MASTER)
    return store.publish(
        part,
        name=item.name,
        arch=item.arch,
        kind=item.kind,
        format=item.format,
        source={"origin": item.origin, "checksum": str(wanted or ""), "serial": item.serial, **source},
        digest=digests["sha256"].hexdigest(),
    )


@attrs.frozen
class _Partial:
    """What is known of a file that was fetched in part.

    Args:
        url: where it comes from.
        checksum: that the whole is to have; empty if nobody knows.
        validator: tells this file from another at the same place; empty if the vendor gives none.
        length: of the whole; None if the vendor does not say.
    """

    url: str
    checksum: str
    validator: str
    length: int | None


@attrs.define(eq=False)
class _Download:
    """Fetch one file."""

    item: Item
    offer: Offer
    store: ImageStore
    listener: Listener
    web: Web

    def run(self) -> Entry:
        """Fetch it, compare it, and publish it."""
        part, note = part_of(self.store, (self.item.name, self.item.arch, self.item.kind))
        for again in (True, False):
            whole, resumed = self.web.patiently(lambda: self._fetch(part, note))
            source = {
                "url": without_password(self.offer.url),
                "file": self.offer.file,
                "validator": whole.validator,
            }
            try:
                with self._files(part):
                    entry = _published(self.item, self.store, part, self.offer.checksum, source)
            except WrongSum:
                _drop(part, note)
                if not resumed or not again:
                    raise
                self.listener.say("what was downloaded earlier does not go with the rest: beginning anew")
            except NotStored:
                raise
            except ImageError:
                _drop(part, note)
                raise
            else:
                note.unlink(missing_ok=True)
                return entry
        raise AssertionError("the last try returns or raises")

    def _fetch(self, part: Path, note: Path) -> tuple[_Partial, bool]:
        """Fetch what is missing; says what is known of the whole, and whether some of it was there."""
        known = self._known(part, note)
        have = part.stat().st_size if known is not None else 0
        if known is not None and have and have == known.length:
            return known, True
        headers = {}
        if known is not None and have:
            headers["Range"] = f"bytes={have}-"
            if known.validator:
                headers["If-Range"] = known.validator
        also = frozenset({PARTIAL, RANGE_IS_WRONG}) if headers else frozenset[int]()
        with self.web.open(self.offer.url, headers, also=also) as response:
            if response.status_code == RANGE_IS_WRONG:
                _drop(part, note)
                raise Passing(f"{self._where} has no more of it than is here already")
            at, length = _extent(response)
            if response.status_code == PARTIAL and at != have:
                _drop(part, note)
                raise Passing(f"{self._where} goes on in another place than it was asked to")
            if have and response.status_code == PARTIAL:
                self.listener.say(f"going on after {have // BYTES_PER_MIB} MiB that were here already")
            else:
                if have:
                    self.listener.say("the vendor sends it from its beginning again")
                _drop(part, note)
                have = 0
            now = _Partial(self.offer.url, str(self.offer.checksum or ""), _validator(response), length)
            with self._files(part):
                _check_room(part, length, have)
                note.write_text(json.dumps(attrs.asdict(now)))
                note.chmod(0o600)  # a URL may have a password in it
                self._receive(response, part, have, length)
        return now, have > 0

    @property
    def _where(self) -> str:
        return without_password(self.offer.url)

    def _known(self, part: Path, note: Path) -> _Partial | None:
        """Read what is known of what was fetched earlier; None, and it is gone, if that is of no use."""
        try:
            known = _Partial(**json.loads(note.read_bytes()))
            part.stat()
        except (OSError, ValueError, TypeError):
            known = None
        checksum = str(self.offer.checksum or "")
        # Without validator and checksum nothing would tell whether the rest belongs to it.
        of_this = known is not None and (known.url, known.checksum) == (self.offer.url, checksum)
        if known is not None and of_this and (known.validator or checksum):
            return known
        _drop(part, note)
        return None

    def _receive(self, response: requests.Response, part: Path, have: int, length: int | None) -> None:
        done = have
        with open(part, "ab") as file:
            self.listener.progress(done, length)
            try:
                for chunk in self.web.chunks(response):
                    done += len(chunk)
                    file.write(chunk)
                    self.listener.progress(done, length)
            except Passing as error:
                error.forward = done - have >= FORWARD_BYTES
                raise
        if length is not None and done < length:
            raise Passing(
                f"{self._where} ended after {done} of {length} bytes",
                remedy=LATER,
                forward=done - have >= FORWARD_BYTES,
            )

    @contextlib.contextmanager
    def _files(self, part: Path) -> Any:
        try:
            yield
        except OSError as error:
            raise NotStored(
                f"{part} cannot be written or read: {error.strerror or error}",
                remedy=f"make room in {self.store.root}; what was downloaded is kept",
            ) from error


def _check_room(part: Path, length: int | None, have: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if length is not None and free < length - have:
        raise ImageError(
            f"there is no room for {length // BYTES_PER_MIB} MiB in {part.parent}: "
            f"{free // BYTES_PER_MIB} MiB are free",
            remedy="make room there: latentvirt image list shows what it has, image remove removes it",
        )


def _extent(response: requests.Response) -> tuple[int, int | None]:
    """Say where an answer begins in the file, and how long the file is."""
    if response.status_code == PARTIAL:
        found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if found is None:
            return -1, None
        return int(found[1]), None if found[2] == "*" else int(found[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isascii() and length.isdigit() else None


def _validator(response: requests.Response) -> str:
    """Return what tells this file from another at the same place; a weak tag does not tell enough."""
    tag: str = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _drop(part: Path, note: Path) -> None:
    part.unlink(missing_ok=True)
    note.unlink(missing_ok=True)
