"""The one boot of a build: the VM from its creation to its end, and what it says meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import attrs
from twisted.internet import defer

from latentvirt.building.recipe import BUILD_PORT
from latentvirt.building.report import Report
from latentvirt.console import ConsoleLog
from latentvirt.errors import GuestFailed, LatentvirtError
from latentvirt.host import ByteStream, Condition, DomainNews, Host
from latentvirt.names import Ownership

ALL_LINES = 10**9
LAST_WORDS_S = 2.0
"""How long what a guest said last may take to arrive after the news of its end."""


class Listener(Protocol):
    """Who hears how a build goes; all methods are called on the reactor's thread."""

    def step(self, text: str) -> None:
        """Something is begun."""
        ...

    def console(self, lines: list[str]) -> None:
        """The guest wrote to its console."""
        ...

    def tell(self, text: str) -> None:
        """Something is to be known that is no step."""
        ...


@attrs.define(eq=False)
class Boot:
    """Boot a guest that is to power itself off, and hear what it says.

    Args:
        host: where.
        listener: hears how it goes.
        keep: whether a guest that failed is left running.
        console_log: takes what the guest writes to its console, as it comes.
    """

    host: Host
    listener: Listener
    keep: bool
    console_log: Callable[[bytes], object]

    report: Report = attrs.field(init=False)
    kept: bool = attrs.field(init=False, default=False)
    _console: ConsoleLog = attrs.field(init=False, factory=lambda: ConsoleLog(head_lines=ALL_LINES))
    _streams: list[ByteStream] = attrs.field(init=False, factory=list)
    _over: defer.Deferred[None] = attrs.field(init=False, factory=defer.Deferred)
    _how: DomainNews | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self.report = Report(self.listener.step)

    async def run(self, xml: str, *, uuid: str, name: str, ownership: Ownership, timeout_s: float) -> None:
        """Boot it, and wait until it has powered itself off.

        Args:
            xml: the domain's description.
            uuid: its UUID there.
            name: its name there.
            ownership: its mark there.
            timeout_s: seconds that it may take.

        Raises:
            GuestFailed: it failed, or did not come to its end in time.
            HostError: the host failed.
        """
        watch = None
        try:
            await self.host.create(xml, name=name, ownership=ownership)
            watch = self.host.watch(uuid, self._news)
            self._streams.append(await self.host.open_console(uuid, self._on_console, lambda: None))
            channel = await self.host.open_channel(uuid, BUILD_PORT, self._on_channel, lambda: None)
            self._streams.append(channel)
            await self.host.resume(uuid)
            self.listener.step("booting")
            await self._wait(timeout_s)
            self._judge(name)
        except LatentvirtError as error:
            self.kept = self.keep and isinstance(error, GuestFailed) and self._how is None
            raise
        finally:
            if watch is not None:
                watch.cancel()
            for stream in self._streams:
                await self.host.close_stream(stream)
            if not self.kept:
                await self.host.destroy(uuid, only=ownership)

    def tail(self, lines: int) -> list[str]:
        """Return the last lines: of cloud-init's log if the guest told them, else of the console."""
        return self.report.log[-lines:] or self._console.tail(lines)

    async def _wait(self, timeout_s: float) -> None:
        reactor: Any = self.host.reactor
        timer = reactor.callLater(timeout_s, self._end)
        try:
            await self._over
        finally:
            if timer.active():
                timer.cancel()

    def _end(self) -> None:
        if not self._over.called:
            self._over.callback(None)

    def _judge(self, name: str) -> None:
        report, how = self.report, self._how
        where = {"host": self.host.uri, "domain": name}
        if report.failed is not None:
            raise GuestFailed(f"the guest failed: {report.failed}", **where)
        if how is None:
            raise GuestFailed(
                f"the guest was not done in time; the last that it said was: {report.step or 'nothing'}",
                remedy="give it more with --timeout (an emulated guest takes ten times as long), or see in "
                "what it wrote to its console what it waits for",
                **where,
            )
        if how.condition is not Condition.ENDED or not report.done:
            raise GuestFailed(
                f"the guest was not done, and {how.detail}; the last that it said was: "
                f"{report.step or 'nothing'}",
                remedy="" if report.step else "is cloud-init in the image, and its console the serial one?",
                **where,
            )

    def _news(self, news: DomainNews) -> None:
        if news.condition.is_end and self._how is None:
            self._how = news
            reactor: Any = self.host.reactor
            reactor.callLater(0 if self.report.done else LAST_WORDS_S, self._end)

    def _on_console(self, data: bytes) -> None:
        self.console_log(data)
        lines = self._console.feed(data)
        if lines:
            self.listener.console(lines)

    def _on_channel(self, data: bytes) -> None:
        self.report.feed(data)
        if self.keep and self.report.over:
            self._end()
