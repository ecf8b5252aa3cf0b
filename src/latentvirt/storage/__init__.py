"""Overlays and the other files of a start, in a directory of our own on the VM's host.

The directory is ``<image folder>/latentvirt-<owner>``. On a host with libvirt's storage driver it is a pool,
and every file is created as a volume, so that the master touches no path itself; `qemu:///embed` has no
storage driver, is always local, and gets the same by qemu-img.
"""

from __future__ import annotations

from latentvirt.host import Host
from latentvirt.storage.base import Storage
from latentvirt.storage.chain import LONGEST_CHAIN, Chain, backing_chain
from latentvirt.storage.embed import EmbedStorage
from latentvirt.storage.permissions import what_blocks
from latentvirt.storage.pool import PoolStorage


def open_storage(host: Host, owner: str, folder: str) -> Storage:
    """Choose the kind of storage that a host has.

    Args:
        host: the host.
        owner: id of the master's installation.
        folder: the image folder on the host in which our directory goes.
    """
    return (EmbedStorage if host.connection.is_embed else PoolStorage)(host, owner, folder)


__all__ = [
    "LONGEST_CHAIN",
    "Chain",
    "Storage",
    "backing_chain",
    "open_storage",
    "what_blocks",
]
