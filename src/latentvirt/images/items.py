"""What one entry of a catalogue says, checked and made one image for each of its architectures."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import attrs

from latentvirt.config import IMAGE_FORMATS
from latentvirt.errors import ConfigError
from latentvirt.images.store import BUILT, STOCK, is_name
from latentvirt.requirements import ARCHITECTURES
from latentvirt.showing import shown

ANY_SERIAL = "*"

_SOURCES = ("path", "url", "page")
_OF_A_SOURCE = (*_SOURCES, "file", "pinned", "sums", "signature", "keyring", "sha256", "sha512", "unverified")
"""What no longer holds of an image when it comes from somewhere else."""

_TEXTS = ("os_type", "os_version", "format", "serial", *_OF_A_SOURCE[:-1])
_FLAGS = ("unverified", "ready")
KEYS = (*_TEXTS, *_FLAGS, "codenames", "arch")
"""All that an entry can say."""

_PLACE = re.compile(r"\{[^{}]*\}")
_PLACES = ("{arch}", "{version}", "{serial}")
_PLACES_OF = {
    **dict.fromkeys(("url", "page", "file", "pinned"), _PLACES),
    **dict.fromkeys(("sums", "signature"), (*_PLACES, "{file}")),
}
"""What is replaced in addresses, by their key; a path on this machine may have any other in it."""

_HEX_DIGITS = {"sha256": 64, "sha512": 128}

Table = dict[str, Any]


@attrs.frozen(kw_only=True)
class Item:
    """An image that can be had, for one architecture.

    Args:
        name: what the store calls it.
        arch: by libvirt's name.
        os_type: name of the distribution.
        os_version: its version.
        codenames: what else people call it.
        format: ``qcow2`` or ``raw``.
        serial: the vendor's build that is pinned; empty for the newest.
        path: of a file on this machine; empty if it is to be downloaded, by url or page.
        url: where it is; empty if page and file say so.
        page: a page that lists it, and ends in a slash.
        file: its name on that page; stars for what differs from build to build.
        sums: URL of a list of checksums, relative to the image, with ``{file}`` for its name.
        signature: URL of a signature of that list, likewise; empty if the list itself is signed.
        keyring: path of the keys by which it must be; empty trusts the list as it comes.
        sha256: that it must have; empty if the list says so.
        sha512: likewise.
        unverified: whether it need not have any.
        ready: whether workers can start from it as it is.
        defined_in: the file that said so last.
    """

    name: str
    arch: str
    os_type: str = ""
    os_version: str = ""
    codenames: tuple[str, ...] = ()
    format: str = "qcow2"
    serial: str = ""
    path: str = ""
    url: str = ""
    page: str = ""
    file: str = ""
    sums: str = ""
    signature: str = ""
    keyring: str = ""
    sha256: str = ""
    sha512: str = ""
    unverified: bool = False
    ready: bool = False
    defined_in: str = ""

    @property
    def kind(self) -> str:
        """What the store calls an image of this sort."""
        return BUILT if self.ready else STOCK

    @property
    def origin(self) -> str:
        """Where it comes from, for people: a path or a URL, without a password."""
        return self.path or without_password(self.url or f"{self.page}{self.file}")

    @property
    def names(self) -> frozenset[str]:
        """All that it may be called, in small letters."""
        called = {self.name, *self.codenames}
        if self.os_type:
            called |= {f"{self.os_type}-{part}" for part in (self.os_version, *self.codenames) if part}
        return frozenset(name.lower() for name in called)


def without_password(url: str) -> str:
    """Return a URL as it may be shown."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def plain_arch(arch: str) -> str:
    """Say what libvirt calls an architecture."""
    return ARCHITECTURES.get(arch.lower(), arch.lower())


def wrong(file: str, entry: str, key: str, value: object, remedy: str) -> ConfigError:
    """Say that a value cannot be right."""
    return ConfigError(f"{file}, [{entry}]: {key} = {shown(value)} cannot be right", remedy=remedy)


def check_table(file: str, name: str, table: object) -> None:
    """Check what an entry says, by itself.

    Raises:
        ConfigError: a key or a value cannot be right; names file, entry and key.
    """
    entry = f"images.{name}"
    if not is_name(name) or not isinstance(table, dict):
        raise ConfigError(
            f"{file}: [{entry}] is no image", remedy="a name has small letters, digits and any of . _ + -"
        )
    for key, value in table.items():
        if key in _TEXTS:
            _check_text(file, entry, key, value)
        elif key in _FLAGS:
            if not isinstance(value, bool):
                raise wrong(file, entry, key, value, "write true or false")
        elif key == "codenames":
            if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
                raise wrong(file, entry, key, value, 'write a list: ["bookworm"]')
        elif key == "arch":
            _check_arch(file, entry, value)
        else:
            near = difflib.get_close_matches(key, KEYS, 1)
            raise ConfigError(
                f"{file}, [{entry}]: there is no key {shown(key)}"
                + (f"; did you mean {near[0]!r}?" if near else ""),
                remedy=f"use {', '.join(sorted(KEYS))}",
            )


def _check_text(file: str, entry: str, key: str, value: object) -> None:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise wrong(file, entry, key, value, "write a text in quotes")
    if key == "format" and value not in IMAGE_FORMATS:
        raise wrong(file, entry, key, value, f"write {' or '.join(IMAGE_FORMATS)}")
    if key in _HEX_DIGITS and not re.fullmatch(f"[0-9a-fA-F]{{{_HEX_DIGITS[key]}}}", value):
        raise wrong(file, entry, key, value, f"write {_HEX_DIGITS[key]} hexadecimal digits")
    if key in ("url", "page", "pinned") and urlsplit(value).scheme not in ("http", "https"):
        raise wrong(file, entry, key, value, "write an address with http or https; a file's is path")
    if key == "page" and not value.endswith("/"):
        raise wrong(file, entry, key, value, "write it with a slash at its end")
    unknown = [place for place in _PLACE.findall(value) if place not in _PLACES_OF.get(key, (place,))]
    if unknown:
        places = _PLACES_OF[key]
        raise wrong(
            file,
            entry,
            key,
            value,
            f"nothing is put in place of {unknown[0]}; write one of {', '.join(places)}",
        )
    if key == "file" and "/" in value:
        raise wrong(file, entry, key, value, "write a file's name, without its folder")


def _check_arch(file: str, entry: str, value: object) -> None:
    names: list[object] = []
    if isinstance(value, dict):
        names = list(value)
        for arch, of in value.items():
            if isinstance(of, dict):
                for key in of:
                    if key not in (*_OF_A_SOURCE, "name") or key in _FLAGS:
                        raise ConfigError(f"{file}, [{entry}.arch.{arch}]: there is no key {shown(key)}")
                    _check_text(file, f"{entry}.arch.{arch}", key, of[key])
            elif not isinstance(of, str) or not of:
                raise wrong(file, f"{entry}.arch", arch, of, "write what the vendor calls it")
    elif isinstance(value, list):
        names = value
    else:
        names = [value]
    if not names or not all(isinstance(name, str) and re.fullmatch("[a-z0-9_-]+", name) for name in names):
        raise wrong(file, entry, "arch", value, 'write "x86_64", or ["x86_64", "aarch64"]')


def put_over(below: Table, above: Table) -> Table:
    """Put what a later file says over what an earlier one did."""
    if any(key in above for key in _SOURCES):
        below = {key: value for key, value in below.items() if key not in _OF_A_SOURCE}
        if isinstance(below.get("arch"), dict):
            # What single architectures have elsewhere does not hold any more, either.
            below["arch"] = {
                arch: of.get("name", arch) if isinstance(of, dict) else of
                for arch, of in below["arch"].items()
            }
    return {**below, **above}


def items_of(name: str, table: Table, file: str) -> Iterator[Item]:
    """Make the images of an entry, one for each of its architectures.

    Args:
        name: of the entry.
        table: all that files say of it.
        file: the last that said something.

    Raises:
        ConfigError: its keys do not go together.
    """
    given = table.get("arch", "x86_64")
    archs: Table = given if isinstance(given, dict) else {}
    if not archs:
        archs = {arch: arch for arch in (given if isinstance(given, list) else [given])}
    for arch, of in archs.items():
        own = of if isinstance(of, dict) else {"name": of}
        merged = put_over({key: value for key, value in table.items() if key != "arch"}, own)
        yield _item(name, plain_arch(arch), merged.pop("name", arch), merged, file)


def _item(name: str, arch: str, vendors_arch: str, table: Table, file: str) -> Item:
    entry = f"images.{name}"
    if table.get("serial") and "pinned" in table:
        table["url"] = table["pinned"]
    table.pop("pinned", None)
    sources = [key for key in _SOURCES if key in table]
    if len(sources) != 1 or ("page" in table) != ("file" in table):
        raise ConfigError(
            f"{file}, [{entry}]: it has {' and '.join(sources) or 'no source'}",
            remedy="write one of path, url, or page and file together",
        )
    if "path" not in table and not any(key in table for key in ("sums", *_HEX_DIGITS, *_FLAGS[:1])):
        raise ConfigError(
            f"{file}, [{entry}]: nothing says what its checksum is",
            remedy="name a list with sums, or write sha256; or unverified = true, if you trust the way to it",
        )
    if "keyring" in table and "sums" not in table:
        raise ConfigError(f"{file}, [{entry}]: keyring has no list to check", remedy="name it with sums")
    if "serial" in table and not any("{serial}" in str(value) for value in table.values()):
        raise ConfigError(
            f"{file}, [{entry}]: serial has no place in it",
            remedy="write {serial} into url, or into file",
        )
    places = {
        "{arch}": vendors_arch,
        "{version}": table.get("os_version", ""),
        "{serial}": table.get("serial", ANY_SERIAL if "page" in table else "{serial}"),
    }
    for key in _OF_A_SOURCE:
        if isinstance(table.get(key), str):
            for place, value in places.items():
                table[key] = table[key].replace(place, value)
    for key in ("path", "keyring"):
        if key in table:
            # A file names its neighbours without saying where it is itself.
            table[key] = str(Path(file).parent / Path(table[key]).expanduser())
    if "url" in table and "{serial}" in table["url"]:
        raise wrong(file, entry, "url", table["url"], "say which build it is with serial")
    codenames = tuple(table.pop("codenames", ()))
    return Item(name=name, arch=arch, codenames=codenames, defined_in=file, **table)


def mirrored(item: Item, mirrors: Mapping[str, str]) -> Item:
    """Return an image as it is had from mirrors: beginnings of addresses, and what stands for them."""
    changed: dict[str, Any] = {}
    for key in ("url", "page", "sums", "signature"):
        value: str = getattr(item, key)
        # Of two that fit, the longer one says more.
        prefix = max((one for one in mirrors if value.startswith(one)), key=len, default=None)
        if prefix is not None:
            changed[key] = mirrors[prefix] + value.removeprefix(prefix)
    return attrs.evolve(item, **changed) if changed else item
