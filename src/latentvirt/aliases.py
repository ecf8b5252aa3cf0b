"""libvirt's ``uri_aliases``: which names of hosts there are, as far as that is known without connecting."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from latentvirt.errors import ConfigError

_LIST = re.compile(r"^\s*uri_aliases\s*=\s*\[(.*?)\]", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"^\s*#.*$", re.MULTILINE)
_ENTRY = re.compile(r"""(["'])(.*?)\1""")


def client_config() -> Path:
    """Say where libvirt's client reads its configuration: root the system's, others their own."""
    if os.geteuid() == 0:
        return Path("/etc/libvirt/libvirt.conf")
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "libvirt/libvirt.conf"


def read_aliases(text: str) -> dict[str, str]:
    """Read the aliases from the text of a libvirt.conf.

    Args:
        text: what the file holds; comments and other settings in it are passed over.

    Returns:
        URI by alias.
    """
    found = _LIST.search(_COMMENT.sub("", text))
    entries = [] if found is None else [entry for _, entry in _ENTRY.findall(found[1])]
    return dict(tuple(entry.split("=", 1)) for entry in entries if "=" in entry)


def check_alias(uri: str) -> None:
    """Refuse a name that is neither a URI nor one of libvirt's aliases.

    Args:
        uri: as the person wrote it.

    Raises:
        ConfigError: libvirt's configuration has no such alias, or one that leads nowhere.
    """
    if urlsplit(uri).scheme:
        return
    file = client_config()
    try:
        aliases = read_aliases(file.read_text(errors="replace"))
    except FileNotFoundError:
        aliases = {}
    except OSError:
        return  # whoever runs the master may be allowed to read it
    target = aliases.get(uri)
    if target is None:
        close = difflib.get_close_matches(uri, aliases, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"{uri!r} is no URI, and uri_aliases in {file} has no alias of that name{hint}",
            remedy=f"add '{uri}=qemu+ssh://user@host/system' to uri_aliases there, as the user who runs the "
            "master, or write the URI",
        )
    if not urlsplit(target).scheme:
        raise ConfigError(
            f"the alias {uri!r} in {file} stands for {target!r}, which is no URI",
            remedy=f"write {uri}=qemu+ssh://user@host/system there",
        )
