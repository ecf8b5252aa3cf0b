"""Buildbot latent workers on libvirt: a VM nobody has used before for every build."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latentvirt._version import __version__
from latentvirt.config import Connection, Flavor, Size

if TYPE_CHECKING:
    from latentvirt.master.choosing import prefer_ready
    from latentvirt.master.worker import LibVirtWorker

__all__ = ["Connection", "Flavor", "LibVirtWorker", "Size", "__version__", "prefer_ready"]


def __getattr__(name: str) -> Any:
    # These bring Buildbot with them; the command line and the library below do without.
    if name == "LibVirtWorker":
        from latentvirt.master.worker import LibVirtWorker

        return LibVirtWorker
    if name == "prefer_ready":
        from latentvirt.master.choosing import prefer_ready

        return prefer_ready
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
