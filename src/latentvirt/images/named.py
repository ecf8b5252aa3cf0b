"""Images that a master.cfg names: known or not, and which file on the master each one is just now."""

from __future__ import annotations

import attrs

from latentvirt.config import Image
from latentvirt.errors import ConfigError, ImageError
from latentvirt.images.catalogue import load_catalogue
from latentvirt.images.items import plain_arch
from latentvirt.images.reading import ON_MASTER
from latentvirt.images.store import BUILT, STOCK, ImageStore


def check_named(image: Image) -> None:
    """Check that an image which has a name is known: by the catalogue, or since it is here.

    Raises:
        ConfigError: it is not; names the nearest.
    """
    _name_of(image, ImageStore())


def _name_of(image: Image, store: ImageStore) -> str:
    catalogue = load_catalogue()
    try:
        return catalogue.name_of(image.called)
    except ConfigError:
        # What a person built from a file of their own is in no catalogue.
        return catalogue.name_of(image.called, also=[entry.name for entry in store.entries()])


def resolved(image: Image, host_arch: str) -> Image:
    """Say which file an image is that has a name: the newest that was built, or got if it is stock; blocks.

    Args:
        image: the image.
        host_arch: architecture of the host that it is for.

    Returns:
        The same image by its path.

    Raises:
        ConfigError: nobody knows the name.
        ImageError: it was not built yet, or not for that architecture.
    """
    store = ImageStore()
    name, arch = _name_of(image, store), plain_arch(image.arch or host_arch)
    entry = store.find(name, arch, STOCK if image.stock else BUILT)
    if entry is None and image.stock:
        raise ImageError(
            f"the image {name} for {arch} {ON_MASTER} was not got yet: {store.root} has none",
            remedy=f"run as the master's user: latentvirt image pull {name} --arch {arch}",
        )
    if entry is None:
        raise ImageError(
            f"the image {name} for {arch} {ON_MASTER} was not built yet: {store.root} has none",
            remedy=f"run as the master's user: latentvirt image build {name}",
        )
    path = str(store.path_of(entry))
    return attrs.evolve(
        image, path=path, format=entry.format, name=name, os_type=None, os_version=None, arch=arch
    )
