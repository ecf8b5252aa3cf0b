"""Stock images without preparation: what cloud-init is told to make of each VM, brought to the hosts."""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentvirt.building import serving
from latentvirt.config import Image
from latentvirt.errors import ConfigError
from latentvirt.images.cloudconfig import HEADER, read_cloud_config, written
from latentvirt.images.nocloud import seed_image
from latentvirt.images.threads import in_thread
from latentvirt.showing import shown
from latentvirt.spec import BY_CHANNEL

FOLDER = "latentvirt-seeds"
"""Below the base directory; what is in it can be made anew at any time."""

FORMAT = "raw"
REMEMBERED = 32
"""How many disks are not made again at each start."""


def read_cloud_init(given: Any, identity: str, base_image: Any) -> str | None:
    """Check the worker's argument ``cloud_init``.

    Args:
        given: True, a mapping as cloud-init has it, or None or False for images that are ready.
        identity: how the guest learns who it is.
        base_image: the stock image; None if none was named.

    Returns:
        What the person adds, as YAML; None if cloud-init has nothing to do.

    Raises:
        ConfigError: it cannot be right, or pycdlib is not installed.
    """
    if given is None or given is False:
        return None
    if given is not True and not isinstance(given, Mapping):
        raise ConfigError(
            f"cloud_init={shown(given)} is neither True nor a mapping",
            remedy="write True, or what is to be added to cloud-init's configuration: {'packages': ['make']}",
        )
    if identity not in BY_CHANNEL:
        raise ConfigError(
            f"identity={identity!r} needs an image that is ready for it, and cloud_init is for others",
            remedy="leave identity= out",
        )
    if base_image is None:
        raise ConfigError(
            "cloud_init= makes workers of a stock image, and there is no base_image",
            remedy="name one: base_image='debian-12'",
        )
    try:
        text = written({} if given is True else given)
    except Exception as error:  # whatever YAML has no words for
        raise ConfigError(
            f"cloud_init={shown(given)} cannot be written as YAML: {error}",
            remedy="use texts, numbers, lists and mappings",
        ) from error
    _made(text.decode())  # now, and not at the first build
    return text.decode()


@functools.lru_cache(maxsize=REMEMBERED)
def _made(cloud_init: str) -> bytes:
    return seed_image(serving(read_cloud_config(f"{HEADER}\n{cloud_init}".encode(), "cloud_init")))


async def seed_of(master: Any, cloud_init: str) -> Image:
    """Make the disk that tells cloud-init what to do, unless it is there and whole.

    Args:
        master: Buildbot's, in whose base directory it goes.
        cloud_init: what `read_cloud_init` returned.

    Raises:
        ConfigError: it cannot be made.
    """
    return await in_thread(master.reactor, lambda _: _seed(master.basedir, cloud_init))


def _seed(basedir: str, cloud_init: str) -> Image:
    content = _made(cloud_init)
    path = Path(basedir, FOLDER, f"{hashlib.sha256(content).hexdigest()}.iso")
    try:
        # A machine that loses its power may leave less of a file than was written into it.
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(content)
            os.replace(file.name, path)
    except OSError as error:
        raise ConfigError(
            f"the disk for cloud-init cannot be made: {path}: {error.strerror}",
            remedy="let the master's user write there",
        ) from error
    return Image(str(path), format=FORMAT)
