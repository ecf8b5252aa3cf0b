"""One VM's life: started or held ready, told who it is, watched, stopped."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import attrs
from twisted.internet import defer
from twisted.python.failure import Failure

from latentvirt.claim import Claim
from latentvirt.describing import domain_in
from latentvirt.errors import GuestFailed, HostUnreachable, LatentvirtError, NotFound, StartCancelled
from latentvirt.frozen import FrozenStore
from latentvirt.guestowner import Identify
from latentvirt.hold import Hold
from latentvirt.host import Condition, DomainNews, Host
from latentvirt.listening import Listener
from latentvirt.names import Ownership
from latentvirt.planning import Plan
from latentvirt.storage import Storage
from latentvirt.tiers import Tiers
from latentvirt.undertaking import Undertaking

HOLD_S = 600.0
"""How long a VM that is to stand by may take to boot."""

TAIL_LINES = 20
"""How much of the console goes into the message about a failed guest."""


@attrs.define(eq=False)
class Machine:
    """Start, watch and end one VM; it lives for one start.

    Args:
        host: where it runs.
        storage: where its files go; None if it has none of its own.
        plan: what it is to be.
        claim: the place that it takes.
        listener: who hears of it.
        identify: says who the guest is to be, given the network of its domain and the host's address there.
        clock: for durations and pauses (IReactorTime).
        now: seconds since the epoch.
        frozen: the frozen images of its directory; None to boot only.
        claimed: tells of a start's id whether a build has its VM.
        let_run: lets the paused domain of a UUID and an owner run, if it may beside the others; None lets
            all run.
        secrets: what must not be seen in the console's log.
        worker: name of the Buildbot worker that its guest will be; empty while nobody knows.
    """

    host: Host
    storage: Storage | None
    plan: Plan
    claim: Claim
    listener: Listener
    identify: Identify
    clock: Any
    now: Callable[[], float]
    frozen: FrozenStore | None = None
    claimed: Callable[[str], bool] = lambda start: False
    let_run: Callable[[str, Ownership], Awaitable[None]] | None = None
    secrets: tuple[str, ...] = ()
    worker: str = ""

    _tiers: Tiers = attrs.field(init=False)
    _work: Undertaking = attrs.field(init=False)
    _holding: defer.Deferred[None] | None = attrs.field(init=False, default=None)
    _over: bool = attrs.field(init=False, default=False)
    _told: bool = attrs.field(init=False, default=False)
    _stopping: bool = attrs.field(init=False, default=False)
    _ending: defer.DeferredLock = attrs.field(init=False, factory=defer.DeferredLock)
    _powered_off: list[defer.Deferred[None]] = attrs.field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        self._work = Undertaking(self._progress, self._undo, self.clock)
        self._tiers = Tiers(
            owner=self,
            host=self.host,
            storage=self.storage,
            plan=self.plan,
            claim=self.claim,
            frozen=self.frozen,
            work=self._work,
            clock=self.clock,
            now=self.now,
            claimed=self.claimed,
            let_run=self.let_run or (lambda uuid, _: self.host.resume(uuid)),
        )

    def _progress(self, step: str, seconds: float, note: str) -> None:
        self.listener.progress(step, seconds, note)

    @property
    def name(self) -> str:
        """The domain's name on the host."""
        return domain_in(self.plan.spec, self.claim.owner, self.claim.slot)

    # Start

    async def start(self) -> None:
        """Bring the VM to where its guest runs, or undo all that was done and say why not.

        A guest that is frozen first, or that does not answer after a thaw, goes on in the background.

        Raises:
            LatentvirtError: what went wrong; nothing of this start is left, or a later sweep sees to it.
        """
        await self._do(self._tiers.begin())

    async def hold(self) -> None:
        """Bring the VM to where it was frozen, freezing it first if need be, and let it wait there, paused.

        Raises:
            LatentvirtError: as for `start`.
        """
        held = self._holding = defer.Deferred()
        try:
            await self._do(self._tiers.begin())
        except BaseException:
            held.addErrback(lambda _: None)  # it says the same
            raise
        held.addTimeout(HOLD_S, self.clock)
        try:
            await held
        except defer.TimeoutError as error:
            raise GuestFailed(
                f"the guest was not ready to be frozen within {HOLD_S:g} s; without the guest helper it "
                "never is",
                host=self.host.uri,
                domain=self.name,
                remedy="install the guest helper (contrib/libvirt/guest), or leave standby= out",
            ) from error

    @property
    def holding(self) -> bool:
        """Whether the guest is to wait, paused, instead of being told who it is."""
        return self._holding is not None

    def held(self) -> None:
        """Hear that the guest waits, paused."""
        held, self._holding = self._holding, None
        if held is not None and not held.called:
            held.callback(None)

    async def wake(
        self,
        listener: Listener,
        identify: Identify,
        secrets: tuple[str, ...] = (),
        worker: str = "",
    ) -> None:
        """Let a VM that was held go on for a build.

        Args:
            listener: who hears of it from now on.
            identify: says who the guest is to be.
            secrets: what must not be seen in the console's log.
            worker: name of the Buildbot worker that the guest will be.

        Raises:
            LatentvirtError: as for `start`.
        """
        self.listener, self.identify, self.secrets, self.worker = listener, identify, secrets, worker
        if self._tiers.ears is not None:
            for secret in secrets:
                self._tiers.ears.hide(secret)
        listener.tier("standby", "it was thawed ahead of time")
        await self._do(self._tiers.go_on())

    def cancel(self, why: str) -> None:
        """Let a start that is under way stop at its next step.

        Args:
            why: for the error that `start` then raises.
        """
        self._work.cancel(why)

    async def _do(self, doing: Coroutine[Any, Any, None]) -> None:
        try:
            await self._work.do(doing)
        except LatentvirtError as error:
            raise error.placed(host=self.host.uri, domain=self.name) from error.__cause__

    async def _undo(self) -> None:
        self._over = True  # first: whoever looks for a VM that stands by must not take this one meanwhile
        if not self._stopping:  # else it is called off for that, and who stops it asks first who holds it
            await self._end()

    def in_background(self, doing: Coroutine[Any, Any, None]) -> None:
        """Do something that takes longer than the start; its failure is the machine's.

        Args:
            doing: what is done.
        """

        async def cared_for() -> None:
            try:
                await self._do(doing)
            except LatentvirtError as error:
                self._tell_failure(error)

        def not_ours(failure: Failure) -> None:
            self._tell_failure(GuestFailed(f"{type(failure.value).__name__}: {failure.value}"))

        defer.ensureDeferred(cared_for()).addErrback(not_ours)

    # News

    def news(self, news: DomainNews) -> None:
        """Hear what became of the domain.

        Args:
            news: what.
        """
        live = self._tiers.live
        if news.condition is Condition.HOST_LOST:
            if not self._over:
                self.listener.host_in_doubt(news.detail)
        elif news.condition in (Condition.ENDED, Condition.CRASHED):
            for waiter in self._powered_off:
                waiter.callback(None)
            self._powered_off.clear()
            self.useless(news.detail)
        elif news.condition.is_end:
            self.useless(news.detail)
        elif news.condition is Condition.HOST_BACK and live is not None:
            again = defer.ensureDeferred(live.listening.open_again(live.uuid))
            again.addErrback(
                lambda failure: self.fail(f"the guest cannot be heard any more: {failure.value}")
            )

    def useless(self, why: str) -> None:
        """Hear that the guest is of no more use; one that was just thawed is replaced.

        Args:
            why: what became of it.
        """
        if not self._over and not self._tiers.useless(why):
            self.fail(why)

    def fail(self, what: str) -> None:
        """Declare the machine of no use, and tell the listener, once.

        Args:
            what: why; what its user alone can see is a reason as well.
        """
        if not self._over:
            what = self._with_console(what)
            self._tell_failure(GuestFailed(what, host=self.host.uri, domain=self.name))

    def lose(self, what: str) -> None:
        """Declare the machine of no use because its host is lost, which is no fault of the guest's.

        Args:
            what: what became of the host.
        """
        if not self._over:
            what = self._with_console(what)
            self._tell_failure(HostUnreachable(what, host=self.host.uri, domain=self.name))

    def _with_console(self, what: str) -> str:
        ears = self._tiers.ears
        tail = ears.tail(TAIL_LINES) if ears is not None else []
        return what + ("\nThe console's last lines:\n  " + "\n  ".join(tail) if tail else "")

    async def what_became(self) -> str | None:
        """Look whether the VM has ended, and say how; None if it runs, or nobody knows."""
        live = self._tiers.live
        if live is None or not live.uuid:
            return None
        try:
            news = await self.host.news(live.uuid)
        except LatentvirtError:
            return None
        return news.detail if news.condition.is_end else None

    def _tell_failure(self, error: LatentvirtError) -> None:
        self._over = True
        self._work.cancel(error.what)
        told, self._told = self._told, True
        held, self._holding = self._holding, None
        if held is not None and not held.called:
            held.errback(error)
        elif not told:
            self.listener.failed(error)

    @property
    def failed_already(self) -> bool:
        """Whether the VM was found to be of no more use, or was stopped."""
        return self._over

    def rest_of_console(self) -> list[str]:
        """Return what belongs at the end of the console's log: how much was dropped, and the last lines."""
        ears = self._tiers.ears
        return [] if ears is None else ears.rest()

    async def attached(self) -> None:
        """Hear that the worker is attached: a person may take the console from now on."""
        self._tiers.answered()
        if self._tiers.ears is not None:
            await self._tiers.ears.let_go()

    # Stop

    async def stop(self, *, graceful_s: float = 0.0) -> Hold | None:
        """End the VM and remove all that it had; may be called again, and before any start.

        Args:
            graceful_s: seconds that the guest gets to power itself off.

        Returns:
            None when it is gone. Else until when it is held: it runs on, unwatched, and a later call ends it.

        Raises:
            LatentvirtError: the host did not let us; what is left is known by its names, and a later call, or
                the sweep, goes on there.
        """
        self._over = self._told = self._stopping = True
        # What a start has asked the host for may still come; only after that can it be undone.
        stopped = StartCancelled("the VM was stopped", host=self.host.uri, domain=self.name)
        self._tell_failure(stopped)
        self._tiers.wait_no_more()
        await self._work.over()
        held = await self.held_until()
        if held is not None and self._tiers.live is not None:
            if self.claim.password_of and not held.worker:
                held = await self.hold_until(attrs.evolve(held, worker=self.claim.password_of))
            await self._tiers.live.leave()
            return held
        await self._end(graceful_s)
        return None

    async def held_until(self) -> Hold | None:
        """Ask the host until when the VM is held; None if it is not, the time is up, or it has ended.

        Raises:
            HostError: the host does not tell.
        """
        live = self._tiers.live
        if live is None or not live.uuid:
            return None
        held = await self.host.hold(live.uuid, only=live.ownership)
        return held if held is not None and held.until > self.now() else None

    async def hold_until(self, wanted: Hold) -> Hold:
        """Hold the VM; a hold that somebody has set already is never made shorter.

        Args:
            wanted: until when, and why.

        Returns:
            What holds it now.

        Raises:
            HostError: the host did not let us, or the VM runs no more.
        """
        live = self._tiers.live
        if live is None or not live.uuid:
            raise NotFound("there is no VM any more to hold", host=self.host.uri, domain=self.name)
        there = await self.held_until()
        if there is not None and there.until >= wanted.until:
            wanted = attrs.evolve(there, worker=there.worker or wanted.worker)
        await self.host.set_hold(live.uuid, wanted, only=live.ownership)
        return wanted

    async def _end(self, graceful_s: float = 0.0) -> None:
        await self._ending.acquire()
        try:
            live = self._tiers.live
            if graceful_s > 0 and live is not None and live.resumed:
                await self._wait_for_power_off(live.uuid, graceful_s)
            await self._tiers.end()
        finally:
            self._ending.release()

    async def _wait_for_power_off(self, uuid: str, seconds: float) -> None:
        off: defer.Deferred[None] = defer.Deferred()
        self._powered_off.append(off)
        try:
            await self.host.shut_down(uuid)
            off.addTimeout(seconds, self.clock)
            await off
        except (LatentvirtError, defer.TimeoutError):
            pass  # it would not go by itself; then it is ended
        finally:
            if off in self._powered_off:
                self._powered_off.remove(off)
