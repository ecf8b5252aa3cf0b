"""Finding a VM by its name, or its worker's, on the hosts that a command is about."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TypeVar, cast

import attrs
from twisted.internet import defer

from latentvirt import domainxml
from latentvirt.cli.asking import Answer, ask, not_found
from latentvirt.config import Connection
from latentvirt.errors import ConfigError, NotFound
from latentvirt.hold import Hold
from latentvirt.host import Condition, DomainUse, Driver, Host

T = TypeVar("T")

ENDS_WITH = "Exit status: 0 done, 1 there is no such VM or it was refused, 2 wrong command line."

STATES = {Condition.RUNNING: "running", Condition.PAUSED: "paused"}


@attrs.frozen
class Seen:
    """One VM at one moment.

    Args:
        use: what it takes.
        state: ``running``, ``paused`` (it stands by, or is just being started) or what is wrong with it.
        hold: until when it is held; None if it is not, or the time is up.
        worker: the Buildbot worker that its guest is; None if it is none, or stands by for one.
    """

    use: DomainUse
    state: str
    hold: Hold | None = None
    worker: str | None = None

    def is_called(self, name: str) -> bool:
        """Tell whether it is known by a name: its domain's or its worker's."""
        return name in (self.use.name, self.worker)


async def look_at_vms(host: Host) -> list[Seen]:
    """List the VMs that run on a host, or are paused, whoever's they are."""
    found = await host.usage()
    fares = await defer.gatherResults([defer.ensureDeferred(host.news(use.uuid)) for use in found])
    holds = await defer.gatherResults([defer.ensureDeferred(_hold_of(host, use)) for use in found])
    workers = await defer.gatherResults([defer.ensureDeferred(_worker_of(host, use)) for use in found])
    return [
        Seen(use, STATES.get(news.condition, news.detail), hold, worker)
        for use, news, hold, worker in zip(found, fares, holds, workers, strict=True)
        if not news.condition.is_end
    ]


async def _hold_of(host: Host, use: DomainUse) -> Hold | None:
    hold = await host.hold(use.uuid, only=use.ownership) if use.ownership is not None else None
    return hold if hold is not None and hold.until > time.time() else None


async def _worker_of(host: Host, use: DomainUse) -> str | None:
    if use.ownership is None:
        return None
    try:
        mark = domainxml.guest_of(await host.description(use.uuid))
    except NotFound:
        return None  # it has ended meanwhile, which is told where something is done with it
    return mark.worker if mark is not None else None


def _the_one(answers: Sequence[Answer[list[Seen]]], name: str) -> tuple[str, Seen]:
    found = [(answer.uri, seen) for answer in answers for seen in answer.found or [] if seen.is_called(name)]
    if not found:
        raise not_found(f"VM of the name {name!r}", answers, "latentvirt vm list --all")
    refuse_several(name, [(seen.use.name, uri) for uri, seen in found])
    return found[0]


def refuse_several(name: str, found: Sequence[tuple[str, str]]) -> None:
    """Refuse a name by which several VMs are known.

    Args:
        name: as it was given.
        found: of each VM the name of its domain, and its host's URI.

    Raises:
        ConfigError: there are several.
    """
    if len(found) > 1:
        raise ConfigError(
            f"{name!r} can be any of {', '.join(f'{domain} on {uri}' for domain, uri in found)}",
            remedy="name its host with --connect, or its domain",
        )


async def find(
    connections: Sequence[Connection], name: str, driver: Driver | None
) -> tuple[Connection, Seen]:
    """Find one VM.

    Args:
        connections: the hosts that it may be on.
        name: of its domain, or of the worker that it is.
        driver: opens connections; libvirt's own if None.

    Raises:
        NotFound: it is on none of those that answered.
        ConfigError: several have one.
    """
    answers = await ask(connections, look_at_vms, driver)
    uri, seen = _the_one(answers, name)
    return next(connection for connection in connections if connection.uri == uri), seen


def only(answers: Sequence[Answer[T]]) -> T:
    """Return what the one host said that was asked, or raise why it said nothing."""
    (answer,) = answers
    if answer.error is not None:
        raise answer.error
    return cast(T, answer.found)
