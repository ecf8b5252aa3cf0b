"""The state of every host at a glance, as plain values, and what a program may change of it."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet import defer

from latentvirt.errors import ConfigError
from latentvirt.master.holds import HeldVM
from latentvirt.master.hub import Hub
from latentvirt.master.record import HostRecord


@attrs.frozen(kw_only=True)
class HostState:
    """One host at one moment.

    Args:
        uri: its URI or alias.
        labels: what a build may ask for.
        arch: its architecture; None until it was first reached.
        connected: whether there is a connection.
        why_not: why nothing is started there now; empty if it is in use.
        quarantined: whether that is because starts failed there far more often than elsewhere.
        drained: whether that is because a person said so.
        last_error: what went wrong there last; empty if nothing has.
        slots: how many VMs may run; None for no limit.
        builds: how many VMs builds of this master have there, those included that are starting or ending.
        held: the VMs whose builds are over, and that somebody holds.
        standbys: how many VMs stand by.
        frozen_images: how many VMs are frozen there.
        memory_mib: how much memory VMs may have; None if that is not known.
        memory_used_mib: how much they have, and were promised, everyone's together, standbys included.
        vcpus: how many virtual processors VMs may have; None if that is not known.
        vcpus_used: how many they have.
        starts: how many of the last starts are remembered.
        failures: how many of those came to nothing.
    """

    uri: str
    labels: dict[str, str]
    arch: str | None
    connected: bool
    why_not: str
    quarantined: bool
    drained: bool
    last_error: str
    slots: int | None
    builds: int
    held: tuple[HeldVM, ...]
    standbys: int
    frozen_images: int
    memory_mib: int | None
    memory_used_mib: int
    vcpus: float | None
    vcpus_used: float
    starts: int
    failures: int


async def _hub(master: Any) -> Hub:
    hub: Hub = await Hub.getService(master)
    return hub


def host_states(master: Any) -> defer.Deferred[list[HostState]]:
    """Tell how every host fares that a worker of a master has named.

    Args:
        master: the Buildbot master.
    """

    async def look() -> list[HostState]:
        hub = await _hub(master)
        return [_state(hub, record) for record in hub.records.values()]

    return defer.ensureDeferred(look())


def _state(hub: Hub, record: HostRecord) -> HostState:
    now, held = hub.master.reactor.seconds(), tuple(hub.holds.on(record))
    used, limits = record.used(now, with_standbys=True), record.room.limits
    return HostState(
        uri=record.host.uri,
        labels=dict(record.connection.labels),
        arch=record.room.arch,
        connected=record.host.is_open,
        why_not=record.why_not("", now),
        quarantined=record.quarantined is not None,
        drained=record.connection.drain or record.drained,
        last_error=record.last_error,
        slots=limits.slots,
        builds=record.in_use - len(held),
        held=held,
        standbys=len(record.standbys),
        frozen_images=sum(store.count for store in record.frozen.values()),
        memory_mib=limits.memory,
        memory_used_mib=used.memory,
        vcpus=limits.vcpus,
        vcpus_used=used.vcpus,
        starts=len(record.outcomes),
        failures=record.outcomes.count(False),
    )


def _named(hub: Hub, uri: str) -> HostRecord:
    if uri not in hub.records:
        known = ", ".join(hub.records) or "none"
        raise ConfigError(f"no worker names the host {uri!r}", remedy=f"name one of these: {known}")
    return hub.records[uri]


def drain(master: Any, uri: str, *, drained: bool = True) -> defer.Deferred[None]:
    """Take a host out of use, or back into it; builds that run there are left alone.

    Args:
        master: the Buildbot master.
        uri: the host's URI or alias, as in master.cfg.
        drained: False takes it back into use; one that ``Connection(drain=True)`` names stays out of it.

    Raises:
        ConfigError: no worker names that host.
    """

    async def change() -> None:
        hub = await _hub(master)
        record = _named(hub, uri)
        record.drained = drained
        if drained:
            await hub.standbys.end_all(record)
        else:
            hub.wake()

    return defer.ensureDeferred(change())


def release(master: Any, uri: str) -> defer.Deferred[None]:
    """Let a host out of quarantine at once.

    Args:
        master: the Buildbot master.
        uri: the host's URI or alias, as in master.cfg.

    Raises:
        ConfigError: no worker names that host.
    """

    async def change() -> None:
        hub = await _hub(master)
        hub.health.release(_named(hub, uri))

    return defer.ensureDeferred(change())
