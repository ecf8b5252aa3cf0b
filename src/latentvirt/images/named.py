"""Images that a master.cfg names: known or not, and which file on the master each one is just now."""

from __future__ import annotations

import platform

import attrs

from latentvirt.config import Image
from latentvirt.errors import ConfigError, ImageError
from latentvirt.images.catalogue import load_catalogue
from latentvirt.images.items import plain_arch
from latentvirt.images.reading import ON_MASTER, Identity
from latentvirt.images.store import BUILT, STOCK, Entry, ImageStore

AS_MASTER = "run as the master's user"


def check_named(image: Image) -> None:
    """Check that an image which has a name is known: by the catalogue, or since it is here.

    Raises:
        ConfigError: it is not; names the nearest.
        ImageError: the images that are here cannot be listed.
    """
    _name_of(image, ImageStore())


def _name_of(image: Image, store: ImageStore) -> str:
    catalogue = load_catalogue()
    try:
        return catalogue.name_of(image.called)
    except ConfigError:
        # What a person built from a file of their own is in no catalogue.
        return catalogue.name_of(image.called, also=[entry.name for entry in store.entries()])


@attrs.frozen
class Stored:
    """The file that an image is which has a name.

    Args:
        image: the same image by its path.
        entry: what the store knows of it.
        store: where it is.
    """

    image: Image
    entry: Entry
    store: ImageStore

    def check(self, identity: Identity) -> None:
        """Check what was read of the file: a disk that fails, or a person, may have changed it.

        Args:
            identity: what was read.

        Raises:
            ImageError: it is not what was stored.
        """
        entry = self.entry
        if identity.digest != entry.digest:
            why = f"its SHA-256 is {identity.digest}, not {entry.digest}"
            raise _damaged(self.store, entry.name, entry.arch, entry.kind, f"{self.image.path}: {why}")


def resolved(image: Image, host_arch: str) -> Stored:
    """Say which file an image is that has a name: the newest that was built, or got if it is stock; blocks.

    Args:
        image: the image.
        host_arch: architecture of the host that it is for.

    Returns:
        The file, which is not read yet.

    Raises:
        ConfigError: nobody knows the name.
        ImageError: it was not built yet, or not for that architecture.
    """
    store = ImageStore()
    entry = entry_of(image, host_arch, store)
    by_path = attrs.evolve(
        image,
        path=str(store.path_of(entry)),
        format=entry.format,
        name=entry.name,
        os_type=None,
        os_version=None,
        arch=entry.arch,
    )
    return Stored(by_path, entry, store)


def entry_of(image: Image, host_arch: str, store: ImageStore) -> Entry:
    """Find what the store has of an image that has a name; blocks.

    Args:
        image: the image.
        host_arch: architecture of the host that it is for.
        store: where to look.

    Raises:
        ConfigError: nobody knows the name.
        ImageError: it was not built or got yet, or not for that architecture, or is damaged.
    """
    name, arch = _name_of(image, store), plain_arch(image.arch or host_arch)
    kind = STOCK if image.stock else BUILT
    entry = store.find(name, arch, kind)
    if entry is not None:
        return entry
    damaged = next((one for one in store.damaged() if one.of == (name, arch, kind)), None)
    if damaged is not None:
        raise _damaged(store, name, arch, kind, f"{damaged.path}: {damaged.why}")
    done = "got" if image.stock else "built"
    raise ImageError(
        f"the image {name} for {arch} {ON_MASTER} was not {done} yet: {store.root} has none",
        remedy=_way_to(name, arch, kind, store),
    )


def _damaged(store: ImageStore, name: str, arch: str, kind: str, why: str) -> ImageError:
    remove = f"latentvirt image remove {name} --arch {arch} --kind {kind}"
    return ImageError(
        f"the image {name} for {arch} {ON_MASTER} is damaged: {why}",
        remedy=f"remove it ({remove}), and {_way_to(name, arch, kind, store)}",
    )


def _way_to(name: str, arch: str, kind: str, store: ImageStore) -> str:
    """Say how to get an image into the store."""
    items = load_catalogue().items
    item = items.get((name, arch))
    archs = sorted(one.arch for one in items.values() if one.name == name)
    pull, build = f"latentvirt image pull {name} --arch {arch}", f"latentvirt image build {name}"
    if item is None and archs:
        others = ", ".join(archs)
        return f"the catalogue has it for {others} only: ask for one with requires={{'arch': '{archs[0]}'}}"
    if kind == STOCK and (item is None or item.ready):
        return "there is only one that is ready for workers: leave cloud_init= and stock= out"
    if kind == STOCK or (item is not None and item.ready):
        return f"{AS_MASTER}: {pull}"
    if store.find(name, arch, STOCK) is None:
        build = f"{pull} && {build}" if item is not None else f"latentvirt image build PATH --name {name}"
    if arch != plain_arch(platform.machine()):
        return (
            f"make it on a machine of that architecture: {build}; then get it from there, by an entry of the "
            "catalogue with path and ready = true"
        )
    return f"{AS_MASTER}: {build}"
