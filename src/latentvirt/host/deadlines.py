"""How long a host may take to answer."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Deadlines:
    """How long calls may take, in seconds.

    Args:
        open: opening a connection.
        call: a call that only looks, or changes little.
        create: creating a domain; libvirt may probe QEMU first, which takes 15 s where it cannot cache.
        storage: making or removing a volume or a pool.
        save: writing a domain's memory to a file, or reading it back.
    """

    open: float = 10.0
    call: float = 15.0
    create: float = 60.0
    storage: float = 60.0
    save: float = 300.0
