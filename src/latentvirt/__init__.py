"""Buildbot latent workers on libvirt: a VM nobody has used before for every build."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from latentvirt._version import __version__
from latentvirt.config import Connection, Image
from latentvirt.devices import Disk, Nic
from latentvirt.hosts import Hosts
from latentvirt.sizes import Flavor, Size

if TYPE_CHECKING:
    from latentvirt.master.choosing import prefer_dynamic, prefer_ready, prefer_static
    from latentvirt.master.glance import HostState, drain, host_states, release
    from latentvirt.master.many import workers
    from latentvirt.master.worker import LibVirtWorker

__all__ = [
    "Connection",
    "Disk",
    "Flavor",
    "HostState",
    "Hosts",
    "Image",
    "LibVirtWorker",
    "Nic",
    "Size",
    "__version__",
    "drain",
    "host_states",
    "prefer_dynamic",
    "prefer_ready",
    "prefer_static",
    "release",
    "workers",
]

_WITH_BUILDBOT = {
    "LibVirtWorker": "worker",
    "HostState": "glance",
    "drain": "glance",
    "host_states": "glance",
    "prefer_dynamic": "choosing",
    "prefer_ready": "choosing",
    "prefer_static": "choosing",
    "release": "glance",
    "workers": "many",
}
"""What brings Buildbot with it, and its module; the command line and the library below do without."""


def __getattr__(name: str) -> Any:
    if name in _WITH_BUILDBOT:
        return getattr(import_module(f"latentvirt.master.{_WITH_BUILDBOT[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
