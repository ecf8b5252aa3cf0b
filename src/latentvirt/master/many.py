"""Many workers at once that differ in nothing but their names."""

from __future__ import annotations

from typing import Any

from buildbot import config

from latentvirt.master.worker import LibVirtWorker

LEAST_DIGITS = 3


def workers(prefix: str, count: int, *args: Any, password: Any, **kwargs: Any) -> list[LibVirtWorker]:
    """Make workers that share their hosts: any of them can have any build's VM.

    Args:
        prefix: what their names begin with; a number follows: ``vps001``, ``vps002``...
        count: how many there are.
        args: as for `LibVirtWorker` after name and password, the hosts first.
        password: as for `LibVirtWorker`.
        kwargs: as for `LibVirtWorker`.

    Returns:
        The workers, for ``c['workers']``.
    """
    if not isinstance(prefix, str):
        config.error(
            f"workers({prefix!r}, ...): names cannot begin with that. Write text: workers('vps', 32)"
        )
        return []
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        config.error(f"workers({prefix!r}): count={count!r} is not a number of workers. Write a whole number")
        return []
    digits = max(LEAST_DIGITS, len(str(count)))
    names = [f"{prefix}{number:0{digits}}" for number in range(1, count + 1)]
    return [LibVirtWorker(name, password, *args, **kwargs) for name in names]
