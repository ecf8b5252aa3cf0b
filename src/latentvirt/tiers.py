"""The quickest way to a running guest that works: thaw it, else boot it, and freeze it for the next time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import attrs
from twisted.internet import defer

from latentvirt import domainxml
from latentvirt.claim import Claim
from latentvirt.errors import (
    BadFrozenImage,
    CannotThaw,
    ConfigError,
    HostError,
    HostFull,
    HostUnreachable,
    LatentvirtError,
    NotFound,
    StartCancelled,
)
from latentvirt.freezing import freeze
from latentvirt.frozen import FrozenImage, FrozenStore
from latentvirt.guest import FREEZE, Attaching, Identity, Ready
from latentvirt.guestowner import Owner
from latentvirt.host import Host
from latentvirt.listening import Listening
from latentvirt.livedomain import LiveDomain
from latentvirt.names import Ownership
from latentvirt.planning import Plan
from latentvirt.rehearsing import REHEARSE_S, Rehearsal
from latentvirt.storage import Storage
from latentvirt.undertaking import Undertaking

ANSWER_S = 20.0
"""How long a thawed guest may take to say that it attaches; it was running already when it was frozen."""

NOT_NOTED = "[latentvirt: the guest's name and SSH host keys could not be noted"


@attrs.define(eq=False)
class Tiers:
    """Bring up one machine's guest; one domain after the other may have to live for that.

    Args:
        owner: the machine.
        host: where it runs.
        storage: where its files go; None if it has none of its own.
        plan: what it is to be.
        claim: the place that it takes.
        frozen: the frozen images of its directory; None to boot only.
        work: does the steps.
        clock: for durations and pauses (IReactorTime).
        now: seconds since the epoch.
        claimed: tells of a start's id whether a build has its VM.
        let_run: lets the paused domain of a UUID and an owner run, if it may beside the others.
    """

    owner: Owner
    host: Host
    storage: Storage | None
    plan: Plan
    claim: Claim
    frozen: FrozenStore | None
    work: Undertaking
    clock: Any
    now: Callable[[], float]
    claimed: Callable[[str], bool]
    let_run: Callable[[str, Ownership], Awaitable[None]]

    live: LiveDomain | None = attrs.field(init=False, default=None)
    """The domain that lives now."""
    ears: Listening | None = attrs.field(init=False, default=None)
    """Console and channel of the newest domain; what was heard is kept after its end."""
    _network_address: str | None = attrs.field(init=False, default=None)
    _to_freeze: bool = attrs.field(init=False, default=False)
    _prepared: defer.Deferred[None] | None = attrs.field(init=False, default=None)
    _rehearsal: Rehearsal | None = attrs.field(init=False, default=None)
    _answer: Any = attrs.field(init=False, default=None)
    """A timer that runs for as long as a thawed guest has not answered."""

    # Which tier

    async def begin(self) -> None:
        """Bring the guest to where it runs, or waits.

        Raises:
            LatentvirtError: what went wrong; what there is of a domain is the caller's to end.
        """
        network = domainxml.network_of(self.plan.xml)
        if network.kind == "network" and self.host.connection.is_local:
            try:
                self._network_address = await self.host.network_address(network.name)
            except NotFound as error:
                raise ConfigError(
                    f"there is no network {network.name!r}: {error.what}",
                    host=self.host.uri,
                    remedy=f"virsh -c '{self.host.uri}' net-list --all shows those that are there",
                ) from error
        why_not = self._why_not_thaw()
        image = None
        if why_not is None and self.frozen is not None:
            image = self.frozen.find(self.claim.slot, self.plan.fingerprint)
        if image is None:
            await self._boot(why_not)
        elif not await self._thaw(image):
            await self._boot(self._why_not_thaw())

    def _why_not_thaw(self) -> str | None:
        if self.plan.spec.start == "boot":
            return "start='boot'"
        if self.plan.hindrance is not None:
            return self.plan.hindrance
        if self.frozen is None:
            return "it has no directory for frozen images"
        refusal = self.frozen.refusal(self.plan.fingerprint)
        return None if refusal is None else f"freezing it did not work a while ago: {refusal}"

    async def _boot(self, why: str | None) -> None:
        """Boot; without a reason for that, the guest is frozen as soon as it is ready."""
        self._refuse_to_boot(why)
        self._to_freeze = why is None
        if why is None:
            self.owner.listener.tier(
                "freeze", "there is no frozen image that fits yet; it boots, and is frozen then"
            )
        else:
            self.owner.listener.tier("boot", why)
        live = self._new_live(thawed=False)
        await live.boot()
        await live.resume()

    def _refuse_to_boot(self, why: str | None) -> None:
        """Raise an error if a VM is to be thawed and nothing else, and there is a reason why it cannot be."""
        if why is not None and (self.plan.spec.start == "thaw" or self.owner.holding):
            raise CannotThaw(
                f"this VM can only boot: {why}",
                host=self.host.uri,
                remedy="write start='auto' to let it boot, or remove what stands in the way",
            )

    async def _thaw(self, image: FrozenImage) -> bool:
        """Thaw; False if the image is of no use, and was discarded."""
        assert self.frozen is not None
        self.owner.listener.tier("thaw", f"from the frozen image {image.start} of {image.slot}")
        live = self._new_live(thawed=True)
        try:
            await live.thaw(image, self.frozen)
        except BadFrozenImage as error:
            await self._discard(image, str(error))
            return False
        except HostUnreachable:
            # A wrong header can end libvirtd itself; another try with the same image could do so again.
            self.frozen.distrust(image)
            raise
        if self.owner.holding:
            rehearsal = self._rehearsal = Rehearsal(live, self.clock)
            self.owner.held()
            if self._rehearsal is rehearsal:  # else a build has waited for it, and has it by now
                self.owner.in_background(self._rehearse(rehearsal, image))
            return True
        await self.go_on()
        return True

    async def go_on(self) -> None:
        """Let a thawed guest run, tell it at once who it is, and see to it that it answers."""
        live = self.live
        assert live is not None
        rehearsal, self._rehearsal = self._rehearsal, None
        if rehearsal is not None:
            await rehearsal.call_off()
        self._answer = self.clock.callLater(ANSWER_S, self._no_answer, f"it was silent for {ANSWER_S:g} s")
        try:
            if not live.resumed:
                await live.resume()
            await live.listening.tell_identity()
        except LatentvirtError as error:
            if self._answer is None:
                return  # it was heard to be of no use, and is being replaced
            of_host = isinstance(error, HostUnreachable) or not isinstance(error, HostError)
            if of_host or rehearsal is not None:  # the image of what stood by was good
                raise
            self._no_answer(str(error))

    async def _rehearse(self, rehearsal: Rehearsal, image: FrozenImage) -> None:
        """Let a guest that stands by rehearse; one that does not answer would be of no use to a build."""
        assert self.frozen is not None
        try:
            if await rehearsal.go_through():
                if self._rehearsal is rehearsal:  # else a build has it already, and will see
                    self.frozen.proved_good(self.plan.fingerprint)
                return
        except HostFull:
            return  # then it waits as it is
        why = f"the thawed guest did not answer within {REHEARSE_S:g} s"
        self.owner.fail(why)
        self.frozen.proved_bad(self.plan.fingerprint)
        await self._discard(image, why)

    def _new_live(self, *, thawed: bool) -> LiveDomain:
        ownership = self.claim.begin()
        ears = self.ears = Listening(
            self.host,
            self,
            identify=self._identity,
            start=ownership.start,
            clock=self.clock,
            now=self.now,
            secrets=self.owner.secrets,
            thawed=thawed,
        )
        auth = self._identity() if self.plan.spec.identity == "metadata" else None
        if auth is not None:
            ears.hide(auth.password)
        self.live = LiveDomain(
            host=self.host,
            storage=self.storage,
            plan=self.plan,
            ownership=ownership,
            listening=ears,
            news=self.owner.news,
            step=self.work.step,
            claimed=self.claimed,
            let_run=self.let_run,
            auth=auth,
            worker=self.owner.worker,
        )
        return self.live

    def _identity(self) -> Identity:
        return self.owner.identify(domainxml.network_of(self.plan.xml), self._network_address)

    # What the guest says

    def console(self, lines: list[str]) -> None:
        """The guest wrote to its console."""
        self.owner.listener.console(lines)

    def ready(self, told: Ready) -> bool:
        """The guest has booted and asks who it is; it is told now, unless it is to be frozen first."""
        self.owner.listener.ready(told)
        if not self._to_freeze:
            return not self.owner.holding
        self._to_freeze = False
        if FREEZE not in told.can:
            why = f"the guest's helper (version {told.helper}) cannot be frozen"
            if self.owner.holding or self.plan.spec.start == "thaw":
                self.owner.fail(why)
                return False
            self.owner.listener.tier("boot", why)
            return True
        self.owner.in_background(self._freeze())
        return False

    def wait_no_more(self) -> None:
        """Let what waits for the guest's word go on, and come to its end."""
        self.prepared()
        self.rehearsed()

    def prepared(self) -> None:
        """The guest has made itself ready to be frozen."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            prepared.callback(None)

    def rehearsed(self) -> None:
        """The guest has rehearsed its attachment, or cannot."""
        if self._rehearsal is not None:
            self._rehearsal.replied()

    def attaching(self, told: Attaching, worker: str) -> None:
        """The guest took its identity, and may have told its SSH host keys."""
        self.answered()
        if self.live is not None and (told.keys or worker != self.live.worker):
            noting = defer.ensureDeferred(self.live.note_guest(domainxml.GuestMark(worker, told.keys)))
            noting.addErrback(lambda failure: self.console([f"{NOT_NOTED}: {failure.value}]"]))
        took = self.ears.since_told if self.ears is not None else 0.0
        self.owner.listener.progress("guest attaches", took, "")

    def panicked(self, line: str) -> None:
        """The guest's kernel panics; many domains have no panic device, and the console tells as well."""
        self.owner.useless(f"the guest's system crashed: {line}")

    # Freeze, and fall back

    async def _freeze(self) -> None:
        live, frozen = self.live, self.frozen
        assert live is not None
        assert frozen is not None
        self._prepared = defer.Deferred()
        try:
            image = await freeze(live, frozen, self._prepared, self.work.step, self.clock)
        except (HostUnreachable, StartCancelled):
            raise
        except LatentvirtError as error:
            frozen.refuse(self.plan.fingerprint, error.what)
            self._refuse_to_boot(f"freezing it failed: {error}")
            await self._go_on_unfrozen(live, str(error))
            return
        self.claim.over(live.ownership)
        if not await self._thaw(image):
            frozen.refuse(self.plan.fingerprint, "what was frozen could not be thawed")
            await self._boot(self._why_not_thaw())
        if live.held is not None and self.live is not None:
            await self.host.set_hold(self.live.uuid, live.held, only=self.live.ownership)

    async def _go_on_unfrozen(self, live: LiveDomain, why: str) -> None:
        """Let a build have the VM that could not be frozen; if there is none left, boot another."""
        if not live.saved:
            self.owner.listener.tier("boot", f"it could not be frozen and goes on as it is: {why}")
            try:
                await live.go_on()
                await live.listening.tell_identity()
                return
            except HostUnreachable:
                raise
            except LatentvirtError as error:
                why = str(error)
        await self.end()
        await self._boot(f"it could not be frozen, and boots once more: {why}")

    def answered(self) -> None:
        """Hear that the guest has taken its identity."""
        if self._stop_waiting() and self.frozen is not None:
            self.frozen.proved_good(self.plan.fingerprint)

    def _stop_waiting(self) -> bool:
        """Wait no longer for a thawed guest's answer; False if it was not waited for."""
        answer, self._answer = self._answer, None
        if answer is not None and answer.active():
            answer.cancel()
        return answer is not None

    def useless(self, why: str) -> bool:
        """Hear that the guest is of no use; True if it was just thawed, and is replaced by one that boots."""
        if self._answer is None:
            return False
        self._no_answer(why)
        return True

    def _no_answer(self, why: str) -> None:
        self._stop_waiting()
        self.owner.in_background(self._fall_back(why))

    async def _fall_back(self, why: str) -> None:
        image = self.live.image if self.live is not None else None
        assert image is not None
        assert self.frozen is not None
        self.frozen.proved_bad(self.plan.fingerprint)
        await self._discard(image, f"the thawed guest did not answer: {why}")
        await self._boot(self._why_not_thaw())

    async def _discard(self, image: FrozenImage, why: str) -> None:
        assert self.frozen is not None
        self.owner.listener.tier(
            "boot", f"the frozen image {image.start} is of no use and was discarded: {why}"
        )
        await self.end()
        await self.frozen.discard(image)

    async def end(self) -> None:
        """End the domain that lives, and remove all that it had."""
        self._stop_waiting()
        live = self.live
        if live is not None:
            await live.end()
            self.claim.over(live.ownership)
            self.live = None
