"""Freeze a booted guest: let it prepare, save its memory, and make an image of its start's files."""

from __future__ import annotations

import logging
from typing import Any

import attrs
from twisted.internet import defer

from latentvirt.errors import GuestFailed, HostUnreachable, LatentvirtError
from latentvirt.frozen import FrozenImage, FrozenStore
from latentvirt.livedomain import LiveDomain, Step

logger = logging.getLogger(__name__)

PREPARE_S = 90.0
"""How long a guest may take to make itself ready; the helper lets a system end its boot first, for 20 s."""


async def freeze(
    live: LiveDomain, store: FrozenStore, prepared: defer.Deferred[None], step: Step, clock: Any
) -> FrozenImage:
    """Freeze a guest that is ready and has not been told who it is; afterwards its domain is gone.

    Args:
        live: its domain.
        store: where the image is kept.
        prepared: fires when the guest says that it is ready to be frozen.
        step: does the steps.
        clock: for durations (IReactorTime).

    Raises:
        GuestFailed: the guest did not make itself ready.
        ImageError: the image is larger than all of them may be.
        HostError: the host did not let us; `LiveDomain.saved` says whether the domain is gone.
    """
    await live.listening.ask_to_prepare()
    await step("guest prepares", _in_time(prepared, clock))
    plan, ownership = live.plan, live.ownership
    draft = FrozenImage(
        slot=ownership.slot,
        start=ownership.start,
        lineage=plan.lineage,
        fingerprint=plan.fingerprint,
        seal="",
    )
    await live.save(draft.memory)
    files = draft.files(plan)
    await store.refuse_too_large(files)
    image = attrs.evolve(draft, seal=await store.seal(files))

    async def publish() -> None:
        await store.publish(image)
        live.keep_files()  # at once: also a start that is called off meanwhile leaves a whole image

    await step("publish the frozen image", publish())
    try:
        await store.discard_older(plan)
        await store.keep_within()
    except HostUnreachable:
        raise
    except LatentvirtError as error:
        logger.warning("%s: older frozen images stay until another is made: %s", live.host.uri, error)
    return image


async def _in_time(prepared: defer.Deferred[None], clock: Any) -> None:
    prepared.addTimeout(PREPARE_S, clock)
    try:
        await prepared
    except defer.TimeoutError as error:
        raise GuestFailed(f"the guest did not prepare to be frozen within {PREPARE_S:g} s") from error
