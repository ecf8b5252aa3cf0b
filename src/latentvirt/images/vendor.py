"""What a vendor offers today: the newest file, and the checksum that it must have."""

from __future__ import annotations

import fnmatch
import os
import posixpath
import re
import subprocess
import tempfile
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit

import attrs

from latentvirt.errors import ImageError
from latentvirt.images.items import Item, without_password
from latentvirt.images.web import Web

GPGV_S = 60.0
"""For so long a signature may be checked."""

_ALGORITHMS = {128: "sha512", 64: "sha256"}
"""By how many hexadecimal digits they have; weaker ones prove nothing."""

_GNU = re.compile(r"\\?([0-9a-fA-F]{64}|[0-9a-fA-F]{128})(?:\s+\*?(\S.*?))?\s*")
_BSD = re.compile(r"SHA(?:256|512)\s*\((.+)\)\s*=\s*([0-9a-fA-F]{64}|[0-9a-fA-F]{128})\s*")
_CHUNKS = re.compile(r"(\d+)")


@attrs.frozen
class Checksum:
    """What a file's bytes must come to.

    Args:
        algorithm: ``sha256`` or ``sha512``.
        digits: hexadecimal, in small letters.
    """

    algorithm: str
    digits: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digits}"


@attrs.frozen
class Offer:
    """A file that a vendor offers.

    Args:
        url: of it.
        file: its name, or what the vendor's list calls it, which may say which build it is.
        checksum: that it must have; None if nobody knows one.
    """

    url: str
    file: str
    checksum: Checksum | None


def offer_of(item: Item, web: Web) -> Offer:
    """Find out what a vendor offers today.

    Args:
        item: the image.
        web: asks the vendor.

    Raises:
        ImageError: its page or its list cannot be had, or does not have the image.
    """
    names: list[str] = []
    url = item.url
    if item.page:
        names = names_on(web.data(item.page).decode(errors="replace"))
        url = urljoin(item.page, newest(item.page, names, item.file))
    file = posixpath.basename(unquote(urlsplit(url).path))
    given = item.sha512 or item.sha256
    if given:
        return Offer(url, file, Checksum(_ALGORITHMS[len(given)], given.lower()))
    if not item.sums:
        return Offer(url, file, None)
    sums = item.sums.replace("{file}", file)
    if "*" in sums:
        sums = newest(item.page, names, sums)
    where = urljoin(url, sums)
    called, checksum = find_sum(_list(item, where, web), file, where)
    return Offer(url, called, checksum)


def _list(item: Item, where: str, web: Web) -> str:
    data = web.data(where, only_safe=not item.keyring)
    if item.keyring:
        signature = None
        if item.signature:
            beside = item.signature.replace("{file}", posixpath.basename(where))
            signature = web.data(urljoin(where, beside), only_safe=False)
        data = signed(data, signature, item.keyring, where)
    return data.decode(errors="replace")


# Pages


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for key, value in attributes:
            if tag == "a" and key == "href" and value:
                self.names.add(posixpath.basename(unquote(urlsplit(value).path)))


def names_on(page: str) -> list[str]:
    """List the names of the files that a page leads to."""
    links = _Links()
    links.feed(page)
    return sorted(links.names)


def newest(page: str, names: list[str], pattern: str) -> str:
    """Choose the newest file on a page; numbers in names count as numbers.

    Raises:
        ImageError: there is none.
    """
    found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        raise ImageError(
            f"the page {without_password(page)} has no file like {pattern}",
            remedy="look there with a browser; if the vendor has renamed or moved it, say so in a catalogue "
            "of your own",
        )
    return max(found, key=_by_number)


def _by_number(name: str) -> list[tuple[int, str]]:
    parts = _CHUNKS.split(name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


# Lists


def read_sums(text: str) -> list[tuple[str, Checksum]]:
    """Read a list of checksums, as GNU's and BSD's tools write them; a lone checksum has no name.

    What is not a line of such a list is passed over: comments, signatures, weaker checksums.
    """
    found = []
    for line in text.splitlines():
        gnu, bsd = _GNU.fullmatch(line), _BSD.fullmatch(line)
        if bsd is not None:
            name, digits = bsd.groups()
        elif gnu is not None:
            digits, name = gnu.groups()
        else:
            continue
        found.append((posixpath.basename(name or ""), Checksum(_ALGORITHMS[len(digits)], digits.lower())))
    return found


def find_sum(text: str, file: str, where: str) -> tuple[str, Checksum]:
    """Find a file's checksum, the strongest if there are several.

    A list that is but for this file, by its own name, may call it by a name that says which build it is.

    Returns:
        What the list calls the file, and its checksum.

    Raises:
        ImageError: it is not there.
    """
    sums = read_sums(text)
    found = [one for one in sums if one[0] == file]
    if not found and posixpath.basename(urlsplit(where).path).startswith(file) and len(sums) == 1:
        found = [(sums[0][0] or file, sums[0][1])]
    if not found:
        raise ImageError(
            f"the list {without_password(where)} has no SHA-256 or SHA-512 of {file}",
            remedy="look at it with a browser; name another list in a catalogue of your own, or pin sha256",
        )
    return max(found, key=lambda one: len(one[1].digits))


def signed(data: bytes, signature: bytes | None, keyring: str, where: str) -> bytes:
    """Return that part of a list which somebody signed whose key is in a keyring.

    Args:
        data: the list, clear-signed if there is no signature.
        signature: of the whole list; None if the list itself is signed.
        keyring: path of the keys, as gpgv takes them.
        where: URL of the list, for messages.

    Raises:
        ImageError: nobody did, or it cannot be checked.
    """
    if not os.access(keyring, os.R_OK):
        raise ImageError(
            f"the keyring {keyring} cannot be read", remedy="correct its path in the catalogue, or its mode"
        )
    with tempfile.TemporaryDirectory(prefix="latentvirt-gpgv-") as folder:
        listed = _written(folder, "list", data)
        files = [listed] if signature is None else [_written(folder, "signature", signature), listed]
        output = os.path.join(folder, "signed")
        command = ["gpgv", "--keyring", keyring, *(("--output", output) if signature is None else ()), *files]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=GPGV_S, check=False)
        except FileNotFoundError as error:
            raise ImageError(
                f"the signature of {without_password(where)} cannot be checked: there is no gpgv",
                remedy="install it (Debian: gpgv; Fedora: gnupg2), or leave the keyring out",
            ) from error
        except subprocess.TimeoutExpired as error:
            raise ImageError(f"gpgv does not end with {without_password(where)}") from error
        if done.returncode != 0:
            said = " ".join(done.stderr.split())
            raise ImageError(
                f"the list {without_password(where)} is not signed by a key in {keyring}: {said}",
                remedy="trust nothing that it says; check that the keyring is the vendor's newest",
            )
        if signature is not None:
            return data
        with open(output, "rb") as file:
            return file.read()


def _written(folder: str, name: str, data: bytes) -> str:
    path = os.path.join(folder, name)
    with open(path, "wb") as file:
        file.write(data)
    return path
