"""The images that are known by name: those built in, and what files of the person's own add or change.

Nothing here asks a vendor; what an image's page offers today is found out by `latentvirt.images.vendor`.
"""

from __future__ import annotations

import difflib
import functools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from latentvirt.errors import ConfigError
from latentvirt.images.items import Item, Table, check_table, items_of, mirrored, plain_arch, put_over, wrong
from latentvirt.showing import shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CATALOGUE_VARIABLE = "LATENTVIRT_CATALOGUE"
"""What in the environment names a further catalogue, whose word is the last."""

SYSTEM_CATALOGUE = "/etc/latentvirt/images.toml"

BUILT_IN = Path(__file__).with_name("catalogue.toml")

NEAREST = 3
"""How many names are shown to who wrote one that is not known."""


@attrs.frozen
class Catalogue:
    """All images that are known by name.

    Args:
        items: by name and architecture.
    """

    items: Mapping[tuple[str, str], Item]

    def __iter__(self) -> Iterator[Item]:
        return iter(sorted(self.items.values(), key=lambda item: (item.name, item.arch)))

    def name_of(self, called: str, *, also: Sequence[str] = (), here: bool = False) -> str:
        """Find the one name of an image that may be called otherwise.

        Args:
            called: its name, a codename (``bookworm``), or the distribution and either (``debian-bookworm``).
            also: names that the catalogue does not have.
            here: whether it must be one of those, which are on this machine.

        Raises:
            ConfigError: there is none; names the nearest.
        """
        wanted = called.lower()
        items = [item for item in self.items.values() if not here or item.name in also]
        if wanted in {*also, *(item.name for item in items)}:
            return wanted
        found = {item.name for item in items if wanted in item.names}
        if len(found) == 1:
            return found.pop()
        if found:
            raise ConfigError(
                f"the image {shown(called)} may be any of {', '.join(sorted(found))}",
                remedy="write one of these names",
            )
        known = {name for item in items for name in item.names} | set(also)
        near = difflib.get_close_matches(wanted, sorted(known), NEAREST)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        if here:
            raise ConfigError(
                f"there is no image {shown(called)} here{meant}",
                remedy="latentvirt image list names those that there are",
            )
        raise ConfigError(
            f"there is no image {shown(called)}{meant}",
            remedy="latentvirt image list --available names those that there are; a file of your own, "
            f"{SYSTEM_CATALOGUE}, adds to them",
        )

    def item(self, called: str, arch: str) -> Item:
        """Find an image.

        Args:
            called: as for `name_of`.
            arch: by any name.

        Raises:
            ConfigError: there is none of that name, or not for that architecture.
        """
        name, arch = self.name_of(called), plain_arch(arch)
        found = self.items.get((name, arch))
        if found is None:
            has = ", ".join(sorted(of for one, of in self.items if one == name))
            raise ConfigError(f"there is no image {name} for {arch}", remedy=f"there are some for {has}")
        return found


def user_files() -> list[Path]:
    """List the files of the person's own, whether they are there or not; later ones have the last word."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    files = [Path(SYSTEM_CATALOGUE), Path(home) / "latentvirt" / "images.toml"]
    named = os.environ.get(CATALOGUE_VARIABLE)
    return [*files, Path(named)] if named else files


def load_catalogue() -> Catalogue:
    """Read the catalogue that is built in and the person's own files.

    Raises:
        ConfigError: something in a file cannot be right; names file, entry and key.
    """
    named = os.environ.get(CATALOGUE_VARIABLE)
    if named and _stamp(Path(named)) is None:
        raise ConfigError(
            f"the catalogue {named} is not there", remedy=f"correct or unset {CATALOGUE_VARIABLE}"
        )
    stamps = ((str(path), _stamp(path)) for path in (BUILT_IN, *user_files()))
    return _load(tuple((file, stamp) for file, stamp in stamps if stamp is not None))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Tell a file from what it was before; None if it is not there."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(str(path), error) from error
    return status.st_mtime_ns, status.st_size, status.st_ino


@functools.lru_cache(maxsize=4)
def _load(files: tuple[tuple[str, object], ...]) -> Catalogue:
    """Read files; a master asks once for each of its workers."""
    tables: dict[str, Table] = {}
    said_in: dict[str, str] = {}
    mirrors: dict[str, str] = {}
    for file, _ in files:
        images, further = _read(file)
        mirrors |= further
        for name, table in images.items():
            tables[name] = put_over(tables.get(name, {}), table)
            said_in[name] = file
    items = [
        mirrored(item, mirrors)
        for name, table in tables.items()
        for item in items_of(name, table, said_in[name])
    ]
    return Catalogue({(item.name, item.arch): item for item in items})


def _unreadable(file: str, error: OSError) -> ConfigError:
    return ConfigError(
        f"{file} cannot be read: {error.strerror}",
        remedy="let this user read it, and pass its folders; if it is somebody else's, correct HOME or "
        "XDG_CONFIG_HOME (sudo -H)",
    )


def _read(file: str) -> tuple[dict[str, Table], dict[str, str]]:
    try:
        # Some editors begin a file with a byte order mark.
        data = tomllib.loads(Path(file).read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise _unreadable(file, error) from error
    except ValueError as error:
        raise ConfigError(
            f"{file} is no TOML: {error}",
            remedy="correct it there (it is to be in UTF-8), or move the file away",
        ) from error
    for key in data:
        if key not in ("images", "mirrors"):
            raise ConfigError(
                f"{file}: there is no table {shown(key)}", remedy="write [images.NAME], or [mirrors]"
            )
    images, mirrors = data.get("images", {}), data.get("mirrors", {})
    for what, tables in (("images", images), ("mirrors", mirrors)):
        if not isinstance(tables, dict):
            raise ConfigError(f"{file}: {what} is no table", remedy=f"write it as [{what}]")
    for prefix, other in mirrors.items():
        if not isinstance(other, str):
            raise wrong(file, "mirrors", prefix, other, 'write "https://vendor/" = "https://mirror/"')
    for name, table in images.items():
        check_table(file, name, table)
    return images, mirrors
