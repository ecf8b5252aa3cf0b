"""Mending what is safe to mend: something is started or made, and nothing is changed or removed."""

from __future__ import annotations

import os

from latentvirt.doctor.finding import Fix
from latentvirt.host import Host
from latentvirt.images.naming import pool_over

LOOK = "-look"
"""Ends the name of a pool that is there for a moment only."""

FOLDER_MODE = 0o711
"""QEMU's user must pass through, and nobody needs to list it."""


async def mend(host: Host, fix: Fix) -> str:
    """Mend something on a host.

    Args:
        host: the host.
        fix: what to do.

    Returns:
        What was done, in one sentence.

    Raises:
        HostError: the host did not let us.
    """
    if fix.what == "start network":
        await host.start_network(fix.name)
        return f"started the network {fix.name}, which did not run"
    if fix.what == "start pool":
        await host.start_pool(fix.name)
        return f"started the storage pool {fix.name}, which did not run"
    if host.connection.is_embed:
        await host.run_local(f"make the folder {fix.name}", lambda: _make_folder(fix.name))
    else:
        await host.make_folder(fix.name, pool=f"{pool_over(fix.name)}{LOOK}")
    return f"made the folder {fix.name}, which was not there"


def _make_folder(path: str) -> None:
    os.makedirs(path, FOLDER_MODE)
