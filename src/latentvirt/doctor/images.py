"""Whether the images that workers have by name are on this machine, and how old they are."""

from __future__ import annotations

import time
from collections.abc import Sequence

from latentvirt.doctor.finding import Finding, fine, problem
from latentvirt.doctor.wanted import NamedImage
from latentvirt.durations import DAY_S
from latentvirt.errors import ImageError
from latentvirt.images.catalogue import load_catalogue
from latentvirt.images.download import DEFAULT_MAX_AGE_DAYS
from latentvirt.images.items import Item
from latentvirt.images.named import AS_MASTER, entry_of
from latentvirt.images.store import STOCK, Entry, ImageStore


def named_finding(uri: str, wanted: NamedImage, arch: str, now: float) -> Finding:
    """Say whether an image is there that has a name, and whether there may be a newer one; blocks.

    Args:
        uri: the host that it is for.
        wanted: the image.
        arch: the host's architecture.
        now: seconds since the epoch.

    Raises:
        ConfigError: the catalogue cannot be read any more, or has the name no more.
    """
    store, whose = ImageStore(), _whose(wanted.workers)
    try:
        entry = entry_of(wanted.image, arch, store)
    except ImageError as error:
        return problem(
            "image-not-here", uri, f"{error.what}, and {whose} cannot do without it", error.remedy or ""
        )
    what = f"the image {entry.name} for {entry.arch} is here for {whose}, and of {_day(entry.when)}"
    why, remedy = _staleness(entry, store, now)
    if why:
        return fine("image-old", uri, f"{what}; {why}", remedy)
    return fine("image-named", uri, what)


def _whose(workers: Sequence[str]) -> str:
    return f"the worker{'' if len(workers) == 1 else 's'} {', '.join(workers)}"


def _day(when: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(when))


def _staleness(entry: Entry, store: ImageStore, now: float) -> tuple[str, str]:
    """Say why there may be a newer image, and how to have it; nothing if there is no reason to think so."""
    source = entry.source.get("built_from")
    name, kind = (entry.name, entry.kind) if source is None else (source.get("name"), STOCK)
    item = load_catalogue().items.get((name, entry.arch))
    if item is None or item.kind != kind or _is_pinned(item):
        return "", ""
    pull, build = f"latentvirt image pull {name} --arch {entry.arch}", ""
    asked = entry.checked
    if source is not None:
        build = f"latentvirt image build {name}" + ("" if name == entry.name else f" --name {entry.name}")
        build += ", with the options that it was built with"
        stock = store.find(name, entry.arch, STOCK)
        if stock is not None and stock.digest != source.get("digest") and stock.when > entry.when:
            return f"it could be built from a newer one, of {_day(stock.when)}", f"{AS_MASTER}: {build}"
        asked = entry.when if stock is None else stock.checked
    if asked >= now - DEFAULT_MAX_AGE_DAYS * DAY_S:
        return "", ""
    days = f"{(now - asked) // DAY_S:.0f} days"
    return (
        f"its vendor was not asked for {days} whether there is a newer one",
        f"{AS_MASTER}: {' && '.join(filter(None, (pull, build)))}",
    )


def _is_pinned(item: Item) -> bool:
    """Whether the catalogue wants this very image, and no newer one."""
    return bool(item.path or item.serial or item.sha256 or item.sha512)


def varying_finding(uri: str, workers: Sequence[str]) -> Finding | None:
    """Say whose images cannot be looked for; None if there is no such worker.

    Args:
        uri: the host.
        workers: names of those whose base image depends on the build.
    """
    if not workers:
        return None
    return fine(
        "image-varies",
        uri,
        f"the base image of {_whose(workers)} depends on the build, so whether it is there is not known",
    )
