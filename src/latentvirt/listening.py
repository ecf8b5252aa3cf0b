"""A VM's console and channel while it starts: lines for the log, and who the guest is for the guest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from twisted.internet import defer

from latentvirt.console import ConsoleLog
from latentvirt.errors import LatentvirtError
from latentvirt.guest import (
    Attaching,
    Complaint,
    GuestReader,
    Identity,
    Message,
    Prepared,
    Ready,
    Rehearsed,
    freeze_line,
    identity_line,
    rehearse_line,
)
from latentvirt.host import ByteStream, Host
from latentvirt.names import CHANNEL_PORT

HEAR_OUT_S = 2.0
"""How long a guest may still say that it attaches after it has: it goes another way than the connection."""

SHORTEST_SECRET = 16
"""Shorter lines of a private key are no secret, and may well be part of something else."""

SAY_AGAIN_S = 5.0
"""A guest that still says it is ready so long after it was told who it is, was not listening."""


class GuestListener(Protocol):
    """Who hears what a guest says; all methods are called on the reactor's thread."""

    def console(self, lines: list[str]) -> None:
        """The guest wrote to its console."""
        ...

    def ready(self, told: Ready) -> bool:
        """The guest has booted and asks who it is; True tells it now."""
        ...

    def prepared(self) -> None:
        """The guest has made itself ready to be frozen."""
        ...

    def rehearsed(self) -> None:
        """The guest has rehearsed its attachment, complains of what it was asked, or could not be heard."""
        ...

    def attaching(self, told: Attaching, worker: str) -> None:
        """The guest took its identity, that of this worker."""
        ...

    def panicked(self, line: str) -> None:
        """The guest's kernel wrote to its console that it panics."""
        ...


class Listener(Protocol):
    """Who hears how a machine's life goes; all methods are called on the reactor's thread."""

    def progress(self, step: str, seconds: float, note: str) -> None:
        """A step of the start is done."""
        ...

    def tier(self, name: str, why: str) -> None:
        """The start takes this tier: ``boot``, ``freeze``, ``thaw`` or ``standby``."""
        ...

    def console(self, lines: list[str]) -> None:
        """The guest wrote to its console."""
        ...

    def ready(self, told: Ready) -> None:
        """The guest has booted and asks who it is."""
        ...

    def failed(self, error: LatentvirtError) -> None:
        """The machine is of no more use; told at most once, and never for what `stop` does."""
        ...

    def host_in_doubt(self, detail: str) -> None:
        """The host's libvirt does not answer; whether the guest lives, only its own connection can tell."""
        ...


class Listening:
    """Listen to one VM from before its first instruction until its worker has attached.

    Args:
        host: where the VM runs.
        listener: hears what the guest says.
        identify: says who the guest is to be; asked when the guest asks.
        start: id of the start.
        clock: for durations (IReactorTime).
        now: seconds since the epoch, for the guest's clock.
        secrets: what must not be seen in the console's log.
        thawed: whether the guest is thawed, and has to become another VM than the one that was frozen; it may
            ask too early who it is, and is first told by `tell_identity`.
    """

    def __init__(
        self,
        host: Host,
        listener: GuestListener,
        *,
        identify: Callable[[], Identity],
        start: str,
        clock: Any,
        now: Callable[[], float],
        secrets: Iterable[str],
        thawed: bool,
    ) -> None:
        self._host = host
        self._listener = listener
        self._identify = identify
        self._start = start
        self._clock = clock
        self._now = now
        self._log = ConsoleLog(secrets)
        self._reader = GuestReader()
        self._console: ByteStream | None = None
        self._channel: ByteStream | None = None
        self._told_at: float | None = None
        self._worker = ""
        self._answered = False
        self._hearing_out: Any = None
        self._thawed = thawed
        self._open = False

    def hide(self, secret: str) -> None:
        """Keep one more secret out of the console's log from now on."""
        self._log.hide(secret)

    async def open(self, uuid: str, *, console: bool, channel: bool) -> None:
        """Attach to the domain's console and channel.

        Args:
            uuid: of the domain.
            console: whether it has a console that can be opened.
            channel: whether it has the channel.
        """
        self._open = True
        opening = []
        if console:
            opening.append(self._open_console(uuid))
        else:
            self._listener.console(["[latentvirt: this domain has no serial console that could be shown]"])
        if channel:
            opening.append(self._open_channel(uuid))
        # At once: where the host is far away, each costs a while. Both are waited for, whatever comes of one.
        opened = await defer.DeferredList(map(defer.ensureDeferred, opening), consumeErrors=True)
        for good, result in opened:
            if not good and self._open:
                raise result.value  # type: ignore[attr-defined]
        if not self._open:
            await self.close()  # nobody needs them any more: who let go of them did so before they were there

    async def _open_console(self, uuid: str) -> None:
        self._console = await self._host.open_console(uuid, self._on_console, lambda: None)

    async def _open_channel(self, uuid: str) -> None:
        self._channel = await self._host.open_channel(uuid, CHANNEL_PORT, self._on_channel, lambda: None)

    async def open_again(self, uuid: str) -> None:
        """Attach once more, after the streams ended with a connection to the host, which is back now.

        Args:
            uuid: of the domain.
        """
        if not self._open:
            return
        console, channel = self._console, self._channel
        for stream in (console, channel):
            if stream is not None:
                await self._host.close_stream(stream)
        if not self._open:
            return
        self._listener.console(["[latentvirt: the host was away; what was said meanwhile is not here]"])
        await self.open(uuid, console=console is not None, channel=channel is not None)
        self._listener.rehearsed()  # if it has meanwhile, nobody heard it

    def _on_console(self, data: bytes) -> None:
        lines = self._log.feed(data)
        if lines:
            self._listener.console(lines)
        if self._log.panic is not None:
            self._listener.panicked(self._log.panic)

    def _on_channel(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            self._hear(message)

    def _hear(self, message: Message) -> None:
        if isinstance(message, Complaint):
            self._listener.console(
                [self._log.redact(f"[latentvirt: the guest's helper says: {message.why}]")]
            )
            self._listener.rehearsed()
        elif isinstance(message, Attaching):
            # Once for each identity: a guest may say it as often as it likes.
            if self._told_at is not None and not self._answered:
                self._answered = True
                self._listener.attaching(message, self._worker)
        elif isinstance(message, Prepared):
            self._listener.prepared()
        elif isinstance(message, Rehearsed):
            self._listener.rehearsed()
        elif self._is_to_be_told and self._listener.ready(message):
            defer.ensureDeferred(self.tell_identity()).addErrback(self._told_badly)

    @property
    def _is_to_be_told(self) -> bool:
        """Whether a guest that asks who it is has not been told lately, and will not be unasked."""
        if self._told_at is None:
            return not self._thawed
        return bool(self._clock.seconds() - self._told_at > SAY_AGAIN_S)

    async def tell_identity(self) -> None:
        """Tell the guest who it is."""
        channel = self._channel
        if channel is None:
            return
        self._told_at = self._clock.seconds()
        identity = self._identify()
        self._worker, self._answered = identity.name, False
        self.hide(identity.password)
        if identity.ssh_host_key is not None:
            for part in identity.ssh_host_key.private.split("\n"):
                if len(part) >= SHORTEST_SECRET:
                    self.hide(part)
        line = identity_line(identity, start=self._start, now=self._now(), thawed=self._thawed)
        await self._host.write(channel, line)

    @property
    def since_told(self) -> float:
        """How many seconds ago the guest was told who it is; 0 if it was not."""
        return 0.0 if self._told_at is None else self._clock.seconds() - self._told_at

    async def ask_to_prepare(self) -> None:
        """Ask the guest to make its memory small, and to be silent, for it will be frozen."""
        if self._channel is not None:
            await self._host.write(self._channel, freeze_line())

    async def ask_to_rehearse(self) -> None:
        """Ask the guest to do once what it will do when it is told who it is."""
        if self._channel is not None:
            await self._host.write(self._channel, rehearse_line(now=self._now()))

    def _told_badly(self, failure: object) -> None:
        self._listener.console([f"[latentvirt: the guest could not be told who it is: {failure}]"])

    def tail(self, lines: int) -> list[str]:
        """Return the console's last lines, for a message."""
        return self._log.tail(lines)

    def rest(self) -> list[str]:
        """Return what belongs at the end of the console's log: how much was dropped, and the last lines."""
        return self._log.finish()

    async def let_go(self) -> None:
        """Let go of both once the worker is attached; a guest that is about to say so is heard out first."""
        if self._told_at is None or self._answered:
            await self.close()
            return
        await self._close_console()
        self._hearing_out = self._clock.callLater(
            HEAR_OUT_S, lambda: defer.ensureDeferred(self._close_channel())
        )

    async def close(self) -> None:
        """Let go of console and channel, so that a person can take the console."""
        hearing_out, self._hearing_out = self._hearing_out, None
        if hearing_out is not None and hearing_out.active():
            hearing_out.cancel()
        await self._close_console()
        await self._close_channel()

    async def _close_console(self) -> None:
        self._open = False
        console, self._console = self._console, None
        if console is not None:
            self._listener.console(self.rest())
            await self._host.close_stream(console)

    async def _close_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await self._host.close_stream(channel)
