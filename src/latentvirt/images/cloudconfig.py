"""What cloud-init reads, as people write it: read with its own parser, and merged into what we tell it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from latentvirt.errors import ConfigError
from latentvirt.showing import shown

HEADER = "#cloud-config"
"""The first line of user-data that is a mapping in YAML."""

OTHER_FORMATS = {
    "#!": ("a script", "make it an entry of runcmd, or a file of write_files that an entry of runcmd calls"),
    "#include": ("a list of addresses", "write here what they have"),
    "#cloud-boothook": ("a boot hook", "make it an entry of bootcmd"),
    "#cloud-config-archive": ("an archive of several", "merge its parts into one #cloud-config"),
    "#cloud-config-jsonp": ("a JSON patch", "write what it leads to"),
    "#part-handler": ("a part handler", "leave it out"),
    "## template:": ("a template", "write what it leads to"),
    "Content-Type:": ("MIME of several parts", "merge its parts into one #cloud-config"),
    "From nobody": ("MIME of several parts", "merge its parts into one #cloud-config"),
    "MIME-Version:": ("MIME of several parts", "merge its parts into one #cloud-config"),
}
"""Beginnings of user-data that cloud-init takes and that cannot be merged; and what to do with each."""

GZIP = b"\x1f\x8b"


def read_cloud_config(data: bytes, where: str) -> dict[str, Any]:
    """Read a person's user-data.

    Args:
        data: the file's bytes.
        where: the file's name, for messages.

    Returns:
        The mapping; values are what cloud-init would see.

    Raises:
        ConfigError: it is not a mapping in YAML that begins with ``#cloud-config``.
    """
    if data.startswith(GZIP):
        raise ConfigError(f"the user-data {where} is compressed", remedy=f"unpack it: zcat {where}")
    text = _text(data, f"the user-data {where}")
    first = text.partition("\n")[0].rstrip()
    if first != HEADER:
        for beginning in sorted(OTHER_FORMATS, key=len, reverse=True):
            if first.lower().startswith(beginning.lower()):
                what, remedy = OTHER_FORMATS[beginning]
                raise ConfigError(f"the user-data {where} is {what}, which cannot be merged", remedy=remedy)
        raise ConfigError(
            f"the user-data {where} begins with {shown(first)}, and cloud-init would not read it",
            remedy=f"let its first line be {HEADER}, and the rest a mapping in YAML",
        )
    return _mapping(text, f"the user-data {where}")


def read_meta_data(data: bytes, where: str) -> dict[str, Any]:
    """Read a person's meta-data.

    Args:
        data: the file's bytes.
        where: the file's name, for messages.

    Raises:
        ConfigError: it is not a mapping in YAML.
    """
    return _mapping(_text(data, f"the meta-data {where}"), f"the meta-data {where}")


def merged(ours: Mapping[str, Any], theirs: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Merge what a person says into what we say.

    Of lists, theirs comes after ours; mappings are merged key by key; of all else, theirs counts. What is
    null is taken as not said.

    Args:
        ours: what we say.
        theirs: what the person says.
        what: theirs, for messages.

    Raises:
        ConfigError: one key has a list or a mapping in ours, and something else in theirs.
    """
    both: dict[str, Any] = dict(ours)
    for key, value in theirs.items():
        if value is None and key in both:
            continue
        mine = both.get(key)
        if isinstance(mine, Mapping):
            _same_kind(value, dict, "a mapping", key, what)
            both[key] = merged(mine, value, f"{key} in {what}")
        elif isinstance(mine, list):
            _same_kind(value, list, "a list", key, what)
            both[key] = [*mine, *value]
        else:
            both[key] = value
    return both


def written(value: Mapping[str, Any]) -> bytes:
    """Write a mapping as YAML; the same for equal mappings of one order."""
    text: str = yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, default_flow_style=False)
    return text.encode()


def _same_kind(value: object, kind: type, name: str, key: object, what: str) -> None:
    if not isinstance(value, kind):
        raise ConfigError(
            f"{key} in {what} is {shown(value)}, and must be {name}, since it is added to ours",
            remedy=f"write it as {name}",
        )


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} is not text in UTF-8: {error}", remedy="save it as UTF-8") from error


def _mapping(text: str, what: str) -> dict[str, Any]:
    try:
        said = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: a date such as 2026-13-01.
        raise ConfigError(f"{what} is not YAML: {' '.join(str(error).split())}", remedy="mend it") from error
    if said is None:
        return {}
    if not isinstance(said, dict):
        raise ConfigError(
            f"{what} is no mapping but {shown(said)}", remedy="write lines such as 'package_update: true'"
        )
    return said
