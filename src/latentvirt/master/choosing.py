"""Which worker a build should go to."""

from __future__ import annotations

import random
from typing import Any

from latentvirt.master.worker import LibVirtWorker


def prefer_ready(builder: Any, workers: list[Any], request: Any) -> Any:
    """Choose the worker that can begin soonest; a builder's ``nextWorker``.

    First come those that are attached already, then those with a standby, then those with a frozen image,
    then the rest; among equals, chance decides, as it does in Buildbot.

    Args:
        builder: the builder.
        workers: those that could take the build (Buildbot's WorkerForBuilder).
        request: the build request.

    Returns:
        One of them; None if there is none.
    """
    if not workers:
        return None
    scores = [_score(candidate.worker) for candidate in workers]
    best = max(scores)
    return random.choice([worker for worker, score in zip(workers, scores, strict=True) if score == best])


def prefer_dynamic(builder: Any, workers: list[Any], request: Any) -> Any:
    """Choose a worker that has its VM of latentvirt, if one of them has; a builder's ``nextWorker``.

    Among those it chooses as `prefer_ready` does; static workers get what is left.

    Args:
        builder: the builder.
        workers: those that could take the build (Buildbot's WorkerForBuilder).
        request: the build request.

    Returns:
        One of them; None if there is none.
    """
    return prefer_ready(builder, _ours(workers, True) or workers, request)


def prefer_static(builder: Any, workers: list[Any], request: Any) -> Any:
    """Choose a worker that is no VM of latentvirt's, if one of them is free; a builder's ``nextWorker``.

    Args:
        builder: the builder.
        workers: those that could take the build (Buildbot's WorkerForBuilder).
        request: the build request.

    Returns:
        One of them; None if there is none.
    """
    return prefer_ready(builder, _ours(workers, False) or workers, request)


def _ours(workers: list[Any], ours: bool) -> list[Any]:
    return [worker for worker in workers if isinstance(worker.worker, LibVirtWorker) is ours]


ATTACHED = 3


def _score(worker: Any) -> int:
    if isinstance(worker, LibVirtWorker):
        return ATTACHED if worker.conn is not None else worker.readiness()
    return ATTACHED if worker.conn is not None else 0
