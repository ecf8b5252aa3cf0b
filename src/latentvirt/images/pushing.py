"""Images brought to hosts ahead of the first build that needs them, as a master would bring them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Protocol

import attrs
from twisted.internet import defer

from latentvirt.aliases import check_alias
from latentvirt.config import Connection, Image
from latentvirt.errors import HostUnreachable, LatentvirtError
from latentvirt.host import Driver, Host
from latentvirt.images.library import Brought, Library
from latentvirt.names import new_owner
from latentvirt.roots import check_root_is_there


@attrs.frozen
class Errand:
    """One image that is to be on one host.

    Args:
        connection: of the host.
        folder: the image folder there.
        image: which.
        archs: architectures of which the host may be; empty for any.
    """

    connection: Connection
    folder: str
    image: Image
    archs: frozenset[str] = frozenset()


@attrs.frozen
class Outcome:
    """What came of an errand.

    Args:
        errand: which.
        brought: the image on its host; None if it is not there, or if the host is of another architecture.
        error: why it is not there; None if nothing went wrong.
    """

    errand: Errand
    brought: Brought | None = None
    error: LatentvirtError | None = None


class Listener(Protocol):
    """Hears how errands go; of each host there is one under way at a time."""

    def begin(self, errand: Errand) -> None:
        """Hear that one is begun."""

    def say(self, errand: Errand, line: str) -> None:
        """Hear what happens, and how far it got (`latentvirt.images.telling.HowFar`)."""

    def end(self, errand: Errand) -> None:
        """Hear that it has ended, however that went."""


async def push(
    errands: Iterable[Errand], reactor: Any, driver: Driver | None, listener: Listener
) -> list[Outcome]:
    """Run errands: to several hosts at once, to each one after the other. Called off, it clears up first.

    Args:
        errands: the errands.
        reactor: a Twisted reactor.
        driver: opens connections; libvirt's own if None.
        listener: hears how they go.

    Returns:
        What came of each, by host; on a host that cannot be reached no more than one is tried.
    """
    hosts: dict[str, Host] = {}
    of_host: dict[str, list[Errand]] = {}
    for errand in errands:
        of_host.setdefault(errand.connection.uri, []).append(errand)

    def host_of(connection: Connection) -> Host:
        if connection.uri not in hosts:
            hosts[connection.uri] = Host(connection, reactor, driver=driver)
        return hosts[connection.uri]

    library = Library(reactor, new_owner(), host_of)
    # Before any of them is an image's source: what a person says of a connection is said of these.
    to = [(host_of(theirs[0].connection), theirs) for theirs in of_host.values()]
    try:
        going = [defer.ensureDeferred(_push_to(host, theirs, library, listener)) for host, theirs in to]
        outcomes = []
        for good, outcome in await defer.DeferredList(going, consumeErrors=True):
            if not good:
                raise outcome.value  # type: ignore[attr-defined]
            outcomes += outcome
        return outcomes
    finally:
        await library.over()
        await defer.DeferredList([defer.ensureDeferred(host.close()) for host in hosts.values()])


async def _push_to(
    host: Host, errands: Sequence[Errand], library: Library, listener: Listener
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for errand in errands:
        listener.begin(errand)
        try:
            check_alias(host.uri)
            check_root_is_there(host.uri)
            outcomes.append(await _run(errand, host, library, listener))
        except LatentvirtError as error:
            if isinstance(error, HostUnreachable) and error.host == host.uri:
                return outcomes + [Outcome(rest, error=error) for rest in errands[len(outcomes) :]]
            outcomes.append(Outcome(errand, error=error))
        finally:
            listener.end(errand)
    return outcomes


async def _run(errand: Errand, host: Host, library: Library, listener: Listener) -> Outcome:
    if errand.archs and (await host.capabilities()).arch not in errand.archs:
        return Outcome(errand)
    say = partial(listener.say, errand)
    return Outcome(errand, await library.bring(host, errand.folder, errand.image, say))
