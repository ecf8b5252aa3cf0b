"""Where the images on this machine are."""

from __future__ import annotations

import os
from pathlib import Path

from latentvirt.errors import ConfigError
from latentvirt.showing import shown

ROOT_VARIABLE = "LATENTVIRT_IMAGES"
"""What in the environment names the folder of the store."""

SYSTEM_ROOT = "/var/lib/latentvirt/images"
"""Where root's images are."""


def default_root() -> Path:
    """Say where the store is, unless somebody says otherwise.

    Raises:
        ConfigError: the environment names what cannot be its folder, and would be taken for an empty one.
    """
    named = os.environ.get(ROOT_VARIABLE)
    if named:
        return _checked(named)
    if os.geteuid() == 0:
        return Path(SYSTEM_ROOT)
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(data) / "latentvirt" / "images"


def _checked(named: str) -> Path:
    if not os.path.isabs(named):
        wrong = "is no absolute path"
    elif os.path.exists(named) and not os.path.isdir(named):
        wrong = "is no folder"
    else:
        return Path(named)
    raise ConfigError(
        f"{ROOT_VARIABLE}={shown(named)} in the environment {wrong}",
        remedy="name a folder by its whole path, from / on (a ~ would be taken as it is), or unset it",
    )
