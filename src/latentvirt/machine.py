"""One VM's life: prepare, create paused, prove, resume, hear that it is ready, watch, destroy."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import attrs
from twisted.internet import defer

from latentvirt import domainxml
from latentvirt.describing import clear_place, describe, domain_of
from latentvirt.errors import (
    ForeignDomain,
    GuestFailed,
    HostError,
    HostUnreachable,
    ImageError,
    LatentvirtError,
    StartCancelled,
)
from latentvirt.guest import Identity
from latentvirt.host import Condition, Created, DomainNews, Host, Watch
from latentvirt.listening import Listener, Listening
from latentvirt.names import FileName, Ownership
from latentvirt.preparing import make_overlays, make_vars
from latentvirt.spec import MachineSpec
from latentvirt.storage import Storage, what_blocks

TAIL_LINES = 20
"""How much of the console goes into the message about a failed guest."""

T = TypeVar("T")


@attrs.define(eq=False)
class Machine:
    """Start, watch and end one VM; it lives for one start.

    Args:
        host: where it runs.
        storage: where its files go; None if it has none of its own.
        spec: what it is to be.
        ownership: whose it is, and the place that it takes.
        listener: who hears of it.
        identify: says who the guest is to be, given the network of its domain and the host's address there.
        clock: for durations and pauses (IReactorTime).
        now: seconds since the epoch.
        claimed: tells of a start's id whether a build has its VM.
        secrets: what must not be seen in the console's log.
    """

    host: Host
    storage: Storage | None
    spec: MachineSpec
    ownership: Ownership
    listener: Listener
    identify: Callable[[domainxml.NetworkUse, str | None], Identity]
    clock: Any
    now: Callable[[], float]
    claimed: Callable[[str], bool] = lambda start: False
    secrets: tuple[str, ...] = ()

    name: str = attrs.field(init=False, default="")
    _network: domainxml.NetworkUse = attrs.field(init=False, default=domainxml.NetworkUse("none"))
    _network_address: str | None = attrs.field(init=False, default=None)
    _undo: list[tuple[str, Callable[[], Awaitable[object]]]] = attrs.field(init=False, factory=list)
    _cancelled: str | None = attrs.field(init=False, default=None)
    _uuid: str | None = attrs.field(init=False, default=None)
    _watch: Watch | None = attrs.field(init=False, default=None)
    _listening: Listening = attrs.field(init=False)
    _resumed: bool = attrs.field(init=False, default=False)
    _over: bool = attrs.field(init=False, default=False)
    _starting: bool = attrs.field(init=False, default=False)
    _started: list[defer.Deferred[None]] = attrs.field(init=False, factory=list)
    _ending: defer.DeferredLock = attrs.field(init=False, factory=defer.DeferredLock)
    _ended: list[defer.Deferred[None]] = attrs.field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        self._listening = Listening(
            self.host,
            self.listener,
            identify=self._identity,
            panicked=self._panicked,
            start=self.ownership.start,
            clock=self.clock,
            now=self.now,
            secrets=self.secrets,
        )

    @property
    def _has_channel(self) -> bool:
        return self.spec.identity in ("auto", "channel")

    # Start

    async def start(self) -> None:
        """Bring the VM to where its guest runs, or undo all that was done and say why not.

        Raises:
            LatentvirtError: what went wrong; nothing of this start is left, or a later sweep sees to it.
        """
        self._starting = True
        try:
            await self._start()
        except BaseException as error:
            self._over = True
            try:
                await self._end()
            except LatentvirtError:
                # The host does not let us clean up now; the sweep knows this start by its names.
                pass
            if isinstance(error, LatentvirtError):
                error.domain = error.domain or self.name
            raise
        finally:
            self._starting = False
            waiting, self._started = self._started, []
            for waiter in waiting:
                waiter.callback(None)

    def cancel(self, why: str) -> None:
        """Let a start that is under way stop at its next step.

        Args:
            why: for the error that `start` then raises.
        """
        self._cancelled = why

    async def _step(self, name: str, doing: Awaitable[T], note: str = "") -> T:
        began = self.clock.seconds()
        result = await doing
        self.listener.progress(name, self.clock.seconds() - began, note)
        if self._cancelled is not None:
            raise StartCancelled(self._cancelled, host=self.host.uri, domain=self.name)
        return result

    async def _start(self) -> None:
        self.name = domain_of(self.spec, self.ownership)
        original = await self._step("describe", self._describe())
        await self._look_at_network(original)
        overlays, vars_path = await self._step("overlay", self._make_files(original))
        xml = self._rewritten(original, overlays, vars_path)
        created = await self._step("create", self._create(xml, fresh_vars=vars_path is not None))
        if self.spec.proven:
            domainxml.prove(
                created.xml,
                ownership=self.ownership,
                overlays=overlays,
                vars_path=vars_path,
                allow_shared=self.spec.allow_shared,
                own_uuid=self.spec.own_uuid,
            )
        await self._step("attach console and channel", self._listen(created))
        await self._step("resume", self.host.resume(created.uuid))
        self._resumed = True

    async def _describe(self) -> str:
        await clear_place(self.host, self.spec, self.ownership, self.claimed)
        return await describe(self.host, self.spec, self.ownership)

    async def _look_at_network(self, xml: str) -> None:
        self._network = domainxml.network_of(xml)
        if self._network.kind == "network" and self.host.connection.is_local:
            self._network_address = await self.host.network_address(self._network.name)

    async def _make_files(self, xml: str) -> tuple[list[domainxml.Overlay], str | None]:
        spec, storage = self.spec, self.storage
        if not spec.proven or storage is None:
            return [], None

        def will_make(name: FileName) -> None:
            self._undo.append((f"delete {name}", lambda: storage.delete(str(name))))

        overlays = await make_overlays(self.host, storage, spec, self.ownership, xml, will_make)
        return overlays, await make_vars(storage, spec, self.ownership, xml, will_make)

    def _rewritten(self, xml: str, overlays: list[domainxml.Overlay], vars_path: str | None) -> str:
        # TPM state is kept by UUID: one that nobody had before has none, and libvirt removes it at the end.
        fresh_uuid = self.spec.kind == "xml" and domainxml.has_emulated_tpm(xml)
        self._uuid = str(uuids.uuid4()) if fresh_uuid else domainxml.domain_uuid(xml)
        if self._uuid is None:
            self._uuid = str(uuids.uuid4())
        auth = self._identity() if self.spec.identity == "metadata" else None
        if auth is not None:
            self._listening.hide(auth.password)
        return domainxml.rewrite(
            xml,
            name=self.name,
            uuid=self._uuid,
            ownership=self.ownership,
            overlays=overlays,
            vars_path=vars_path,
            channel=self._has_channel,
            metadata_auth=(auth.name, auth.password, auth.master) if auth else None,
        )

    async def _create(self, xml: str, *, fresh_vars: bool) -> Created:
        uuid = self._uuid
        assert uuid is not None
        self._undo.append(("destroy the domain", lambda: self._destroy(uuid)))
        try:
            return await self.host.create(xml, name=self.name, fresh_vars=fresh_vars)
        except HostUnreachable:
            raise
        except HostError as error:
            await self._explain(error)
            raise

    async def _destroy(self, uuid: str) -> None:
        """End the domain if it is this start's: another's of the same UUID may run by now."""
        there = await self.host.domain(self.name)
        if there is not None and there.active and there.ownership == self.ownership:
            await self.host.destroy(uuid)

    async def _explain(self, error: HostError) -> None:
        """Find out why libvirt refused; its codes do not tell."""
        there = await self.host.domain(self.name)
        if there is not None and there.active and there.ownership != self.ownership:
            raise ForeignDomain(
                f"another domain {self.name!r} was started meanwhile: {error.what}",
                host=self.host.uri,
                domain=self.name,
            ) from error
        if self.spec.base_image is not None and self.host.connection.is_local:
            blocked = await self.host.run_local(
                "look at the image's path", lambda: what_blocks([str(self.spec.base_image)])
            )
            if blocked is not None:
                raise ImageError(
                    f"the VM could not be created, probably because {blocked}. libvirt said: {error.what}",
                    host=self.host.uri,
                    domain=self.name,
                    remedy="let others read the image and pass its folders (chmod o+r, o+x), or move it to "
                    "/var/lib/libvirt/images",
                ) from error

    # Console, channel, news

    async def _listen(self, created: Created) -> None:
        self._watch = self.host.watch(created.uuid, self._news)
        await self._listening.open(
            created.uuid, console=domainxml.console_of(created.xml), channel=self._has_channel
        )

    def _panicked(self, line: str) -> None:
        # Many domains have no panic device; the console tells as well.
        self.fail(f"the guest's system crashed: {line}")

    def _identity(self) -> Identity:
        return self.identify(self._network, self._network_address)

    def _news(self, news: DomainNews) -> None:
        if news.condition is Condition.HOST_LOST:
            if self._over:
                return
            self.listener.host_in_doubt(news.detail)
        elif news.condition in (Condition.ENDED, Condition.CRASHED):
            for waiter in self._ended:
                waiter.callback(None)
            self._ended.clear()
            self.fail(news.detail)
        elif news.condition.is_end:
            self.fail(news.detail)
        elif news.condition is Condition.HOST_BACK and self._uuid is not None:
            again = defer.ensureDeferred(self._listening.open_again(self._uuid))
            again.addErrback(
                lambda failure: self.fail(f"the guest cannot be heard any more: {failure.value}")
            )

    def fail(self, what: str) -> None:
        """Declare the machine of no use, and tell the listener, once.

        Args:
            what: why; what its user alone can see is a reason as well.
        """
        if self._over:
            return
        self._over = True
        tail = self._listening.tail(TAIL_LINES)
        if tail:
            what += "\nThe console's last lines:\n  " + "\n  ".join(tail)
        self.listener.failed(GuestFailed(what, host=self.host.uri, domain=self.name))

    @property
    def failed_already(self) -> bool:
        """Whether the VM was found to be of no more use, or was stopped."""
        return self._over

    def rest_of_console(self) -> list[str]:
        """Return what belongs at the end of the console's log: how much was dropped, and the last lines."""
        return self._listening.rest()

    async def release_console(self) -> None:
        """Let go of console and channel, so that a person can take the console."""
        await self._listening.close()

    # Stop

    async def stop(self, *, graceful_s: float = 0.0) -> None:
        """End the VM and remove all that it had; may be called again, and before any start.

        Args:
            graceful_s: seconds that the guest gets to power itself off.

        Raises:
            LatentvirtError: the host did not let us; what is left is known by its names, and a later call, or
                the sweep, goes on there.
        """
        self._over = True
        if self._starting:
            # What the start has asked the host for may still come; only after that can it be undone.
            self.cancel(self._cancelled or "the VM was stopped")
            waiter: defer.Deferred[None] = defer.Deferred()
            self._started.append(waiter)
            await waiter
        await self._end(graceful_s)

    async def _end(self, graceful_s: float = 0.0) -> None:
        await self._ending.acquire()
        try:
            if graceful_s > 0 and self._resumed and self._uuid is not None:
                await self._wait_for_power_off(self._uuid, graceful_s)
            await self.release_console()
            if self._watch is not None:
                self._watch.cancel()
                self._watch = None
            while self._undo:
                await self._undo[-1][1]()
                self._undo.pop()
        finally:
            self._ending.release()

    async def _wait_for_power_off(self, uuid: str, seconds: float) -> None:
        ended: defer.Deferred[None] = defer.Deferred()
        self._ended.append(ended)
        try:
            await self.host.shut_down(uuid)
            ended.addTimeout(seconds, self.clock)
            await ended
        except (LatentvirtError, defer.TimeoutError):
            pass  # it would not go by itself; then it is ended
        finally:
            if ended in self._ended:
                self._ended.remove(ended)
