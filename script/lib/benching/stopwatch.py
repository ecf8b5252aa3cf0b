"""Runs inside the benchmark's master: asks for builds and tells when each thing happened.

The monotonic clock is the same for all processes of a machine, so that the benchmark can compare these times
with its own.
"""

from __future__ import annotations

import json
import time
from typing import Any

from buildbot.util.service import BuildbotService
from twisted.internet import defer, reactor
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python import log

from benching.figures import GUEST_ATTACHES

SOCKET = "stopwatch"
"""Name of the socket in the master's folder."""

NO_SOURCE = {"codebase": "", "repository": "", "project": "", "branch": None, "revision": None}

_watchers: list[Line] = []


class Line(LineOnlyReceiver):
    """One line of JSON a message, both ways."""

    delimiter = b"\n"

    def __init__(self, service: Stopwatch) -> None:
        self._service = service

    def connectionMade(self) -> None:  # noqa: N802
        """Tell this one from now on."""
        _watchers.append(self)

    def connectionLost(self, reason: Any = None) -> None:  # noqa: N802
        """Tell this one no more."""
        _watchers.remove(self)

    def lineReceived(self, line: bytes) -> None:  # noqa: N802
        """Ask for builds."""
        at = time.monotonic()
        for builder in json.loads(line)["request"]:
            tell("requested", at, builder=builder)
            asked = defer.ensureDeferred(self._service.ask(builder))
            asked.addErrback(log.err, f"asking for a build of {builder}")


def tell(event: str, at: float | None = None, **more: Any) -> None:
    """Tell whoever listens that something happened, now unless said otherwise."""
    text = json.dumps({"event": event, "at": time.monotonic() if at is None else at, **more})
    for watcher in _watchers:
        watcher.sendLine(text.encode())


class Stopwatch(BuildbotService):
    """Listens on a socket in the master's folder, and to the master's own events."""

    name = "stopwatch"

    async def _listen(self) -> None:
        factory = Factory.forProtocol(lambda: Line(self))
        self._port = reactor.listenUNIX(f"{self.master.basedir}/{SOCKET}", factory)
        consume = self.master.mq.startConsuming
        self._consumers = [
            await consume(self._worker, ("workers", None, None)),
            await consume(self._build, ("builds", None, "finished")),
        ]

    @defer.inlineCallbacks
    def startService(self) -> Any:  # noqa: N802
        """Begin."""
        yield super().startService()
        yield defer.ensureDeferred(self._listen())

    @defer.inlineCallbacks
    def stopService(self) -> Any:  # noqa: N802
        """End."""
        for consumer in self._consumers:
            yield consumer.stopConsuming()
        yield self._port.stopListening()
        yield super().stopService()

    async def ask(self, builder: str) -> None:
        """Ask for a build, as a scheduler does."""
        data = self.master.data
        number = await data.updates.findBuilderId(builder)
        await data.updates.addBuildset(
            waited_for=False,
            scheduler="stopwatch",
            sourcestamps=[NO_SOURCE],
            reason="benchmark",
            builderids=[number],
        )

    def _worker(self, key: tuple[str, ...], message: dict[str, Any]) -> None:
        events = {"connected": "attached", "disconnected": "detached"}
        if key[-1] in events:
            tell(events[key[-1]], worker=message["name"])

    def _build(self, key: tuple[str, ...], message: dict[str, Any]) -> None:
        defer.ensureDeferred(self._tell_build(message)).addErrback(log.err, "telling of a build")

    async def _tell_build(self, message: dict[str, Any]) -> None:
        builder = await self.master.data.get(("builders", message["builderid"]))
        tell("built", builder=builder["name"], build=message["buildid"], results=message["results"])


def tell_of_guests(listener: type) -> None:
    """Have latentvirt's listener of a start tell here, too, when its guest takes its identity."""
    progress = listener.progress  # type: ignore[attr-defined]

    def progress_and_tell(self: Any, step: str, seconds: float, note: str) -> None:
        if step == GUEST_ATTACHES:
            tell("attaching", worker=self._worker.name)
        progress(self, step, seconds, note)

    listener.progress = progress_and_tell  # type: ignore[attr-defined]


def timed(base: type) -> type:
    """Make of a latent worker's class one that tells when its start begins and ends."""

    class Timed(base):  # type: ignore[misc, valid-type]
        @defer.inlineCallbacks
        def start_instance(self, build: Any) -> Any:
            tell("starting", worker=self.name)
            result = yield super().start_instance(build)
            tell("started", worker=self.name)
            return result

    Timed.__name__ = base.__name__
    return Timed
