"""One domain of a machine: its files, created or restored paused, proven, heard, resumed, ended."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import attrs
from twisted.internet import defer

from latentvirt import domainxml
from latentvirt.describing import clear_place, domain_in
from latentvirt.errors import BadFrozenImage, ForeignDomain, HostError, HostUnreachable, ImageError
from latentvirt.frozen import FrozenImage, FrozenStore
from latentvirt.guest import Identity
from latentvirt.hold import Hold
from latentvirt.host import MAY_BE_TAKEN, Created, DomainNews, Host, Watch
from latentvirt.listening import Listening
from latentvirt.names import GUEST_NAMESPACE, GUEST_PREFIX, FileName, Ownership
from latentvirt.planning import Plan
from latentvirt.preparing import make_files, make_files_over
from latentvirt.spec import BY_CHANNEL
from latentvirt.storage import Storage, what_blocks

T = TypeVar("T")


class Step(Protocol):
    """Do one step of a start, tell how long it took, and stop there if the start was called off."""

    async def __call__(self, name: str, doing: Awaitable[T], note: str = "") -> T:
        """Do it."""
        ...


@attrs.define(eq=False)
class LiveDomain:
    """Bring one domain to life, and remove it and all that it had.

    Args:
        host: where.
        storage: where its files go; None if it has none of its own.
        plan: what it is to be.
        ownership: whose it is.
        listening: its console and channel.
        news: hears what becomes of it.
        step: does the steps.
        claimed: tells of a start's id whether a build has its VM.
        let_run: lets the paused domain of a UUID and an owner run, if it may beside the others.
        auth: what the in-tree worker's metadata element is to say, if it is to be there.
        worker: name of the Buildbot worker that its guest is; empty if its metadata does not say that yet.
    """

    host: Host
    storage: Storage | None
    plan: Plan
    ownership: Ownership
    listening: Listening
    news: Callable[[DomainNews], object]
    step: Step
    claimed: Callable[[str], bool]
    let_run: Callable[[str, Ownership], Awaitable[None]]
    auth: Identity | None = None
    worker: str = ""

    uuid: str = attrs.field(init=False, default="")
    resumed: bool = attrs.field(init=False, default=False)
    image: FrozenImage | None = attrs.field(init=False, default=None)
    saved: bool = attrs.field(init=False, default=False)
    held: Hold | None = attrs.field(init=False, default=None)
    """Until when it was held when it was saved: its mark goes with it."""
    _has_console: bool = attrs.field(init=False, default=False)
    _watch: Watch | None = attrs.field(init=False, default=None)
    _undo: list[Callable[[], Awaitable[object]]] = attrs.field(init=False, factory=list)
    _turn_to_end: defer.DeferredLock = attrs.field(init=False, factory=defer.DeferredLock)

    @property
    def name(self) -> str:
        """The domain's name on the host."""
        return domain_in(self.plan.spec, self.ownership.owner, self.ownership.slot)

    @property
    def _has_channel(self) -> bool:
        return self.plan.spec.identity in BY_CHANNEL

    async def boot(self) -> None:
        """Create it, paused before its first instruction, and attach to it."""
        plan = self.plan
        if plan.spec.kind == "xml":
            await self._clear_place()  # libvirt would take it for the new description of a defined domain
        overlays, vars_path = await self.step("overlay", self._make_files())
        await self.host.turn()
        xml = self._rewritten(plan.xml, self._new_uuid(), overlays, vars_path)
        await self.host.turn()
        created = await self.step("create", self._create(xml, fresh_vars=vars_path is not None))
        await self._begin(created, overlays, vars_path)

    async def thaw(self, image: FrozenImage, store: FrozenStore) -> None:
        """Restore it from a frozen image, paused where it was saved, and attach to it.

        Args:
            image: of the slot that this start has.
            store: that keeps it.

        Raises:
            BadFrozenImage: the image is not what it was, or the host cannot go on from it.
        """
        await self._clear_place()
        start = self.ownership.start
        await store.lend(image, self.plan, start)
        self._undo.append(lambda: store.take_back(image, start))
        self.image = image
        storage = store.storage
        overlays, vars_path = await self.step(
            "overlay", make_files_over(storage, self.plan, image, self.ownership, self._will_make)
        )
        memory = storage.path_of(image.memory)
        try:
            saved = await self.host.saved_xml(memory)
            uuid = domainxml.domain_uuid(saved)
        except HostUnreachable:
            raise
        except HostError as error:
            raise BadFrozenImage(f"its header cannot be read: {error.what}", code=error.code) from error
        xml = self._rewritten(saved, uuid or "", overlays, vars_path)
        created = await self.step("restore", self._restore(memory, xml))
        await self._begin(created, overlays, vars_path)

    async def resume(self) -> None:
        """Let its guest run.

        Raises:
            HostFull: there is no room for it beside what was created before.
        """
        await self.step("resume", self.let_run(self.uuid, self.ownership))
        self.resumed = True

    async def pause(self) -> None:
        """Let its guest stand still, with all that it has."""
        await self.step("pause", self.host.pause(self.uuid))
        self.resumed = False

    async def _clear_place(self) -> bool:
        return await clear_place(self.host, self.plan.spec, self.ownership, self.claimed)

    # Files

    def _will_make(self, name: FileName) -> None:
        storage = self.storage
        if storage is not None:
            self._undo.append(lambda: storage.delete(str(name)))

    async def _make_files(self) -> tuple[list[domainxml.Overlay], str | None]:
        if self.storage is None or not self.plan.spec.proven:
            return [], None
        return await make_files(self.storage, self.plan, self.ownership, self._will_make)

    # The domain

    def _new_uuid(self) -> str:
        spec, xml = self.plan.spec, self.plan.xml
        # TPM state is kept by UUID: one that nobody had before has none, and libvirt removes it at the end.
        fresh = spec.kind == "generated" or (spec.kind == "xml" and domainxml.has_emulated_tpm(xml))
        return (None if fresh else domainxml.domain_uuid(xml)) or str(uuids.uuid4())

    def _rewritten(
        self, xml: str, uuid: str, overlays: list[domainxml.Overlay], vars_path: str | None
    ) -> str:
        self.uuid = uuid
        rewritten = domainxml.rewrite_for_start(
            xml,
            name=self.name,
            uuid=uuid,
            ownership=self.ownership,
            overlays=overlays,
            vars_path=vars_path,
            channel=self._has_channel,
            own_cards=domainxml.OwnCards(self.host.uri, self.plan.spec.own_cards),
            worker=self.worker,
        )
        auth = self.auth
        return domainxml.with_auth(rewritten, auth.name, auth.password, auth.master) if auth else rewritten

    async def _create(self, xml: str, *, fresh_vars: bool) -> Created:
        self._undo.append(self._destroy)

        async def create() -> Created:
            return await self.host.create(
                xml, name=self.name, fresh_vars=fresh_vars, ownership=self.ownership
            )

        try:
            return await create()
        except HostUnreachable:
            raise
        except HostError as error:
            # Nearly always the place is free, so it is looked at only now.
            if await self._clear_place() or await self._is_free_now(error):
                return await create()
            if not error.remedy:
                await self._explain(error)
            raise

    async def _restore(self, memory: str, xml: str) -> Created:
        self._undo.append(self._destroy)
        try:
            return await self.host.restore(memory, xml, name=self.name, ownership=self.ownership)
        except HostUnreachable:
            raise
        except HostError as error:
            await self._explain_place(error)
            raise BadFrozenImage(
                f"the host cannot go on from it: {error.what}", code=error.code, host=self.host.uri
            ) from error

    async def _destroy(self) -> None:
        """End the domain if it is this start's: another's of the same UUID may run by now."""
        await self.host.destroy(self.uuid, only=self.ownership)

    async def _is_free_now(self, error: HostError) -> bool:
        """Say whether the name may have been taken, and is no more: a sweep ended what was left there."""
        if error.code not in MAY_BE_TAKEN:
            return False
        there = await self.host.domain(self.name)
        return there is None or not there.active

    async def _explain_place(self, error: HostError) -> None:
        """Find out whether the name was taken meanwhile; libvirt's codes do not tell."""
        there = await self.host.domain(self.name)
        if there is not None and there.active and there.ownership != self.ownership:
            raise ForeignDomain(
                f"another domain {self.name!r} was started meanwhile: {error.what}",
                host=self.host.uri,
                domain=self.name,
            ) from error

    async def _explain(self, error: HostError) -> None:
        base_image = self.plan.spec.base_image
        if base_image is not None and self.host.connection.is_local:
            blocked = await self.host.run_local("look at the image's path", lambda: what_blocks([base_image]))
            if blocked is not None:
                raise ImageError(
                    f"the VM could not be created, probably because {blocked}. libvirt said: {error.what}",
                    host=self.host.uri,
                    domain=self.name,
                    remedy="let others read the image and pass its folders (chmod o+r, o+x), or move it to "
                    "/var/lib/libvirt/images",
                ) from error

    async def _begin(
        self, created: Created, overlays: list[domainxml.Overlay], vars_path: str | None
    ) -> None:
        self._has_console = domainxml.console_of(self.plan.xml)
        listening = defer.ensureDeferred(self._listen())
        try:
            # It stands still until it is resumed, so it is proven while its host opens console and channel.
            await self._prove(created, overlays, vars_path)
        except BaseException:
            listening.addErrback(lambda _: None)
            await listening  # what is being opened can be closed only when it is there
            raise
        await self.step("attach console and channel", listening)

    async def _prove(
        self, created: Created, overlays: list[domainxml.Overlay], vars_path: str | None
    ) -> None:
        spec = self.plan.spec
        if not spec.proven:
            return
        await self.host.leisure()
        domainxml.prove(
            created.xml,
            ownership=self.ownership,
            overlays=overlays,
            vars_path=vars_path,
            allow_shared=spec.allow_shared,
            own_uuid=spec.own_uuid,
        )

    async def _listen(self) -> None:
        self._watch = self.host.watch(self.uuid, self.news)
        await self.listening.open(self.uuid, console=self._has_console, channel=self._has_channel)

    async def note_guest(self, mark: domainxml.GuestMark) -> None:
        """Write who its guest is, and what it told of itself, where any process can read it.

        Args:
            mark: who, and what it told.
        """
        self.worker = mark.worker
        await self.host.set_metadata(
            self.uuid, domainxml.guest_mark(mark), prefix=GUEST_PREFIX, namespace=GUEST_NAMESPACE
        )

    # Freeze

    async def save(self, memory: FileName) -> None:
        """Save its memory into a file of this start's; afterwards the domain is gone, and its files stay.

        Args:
            memory: name of the file.

        Raises:
            HostError: it could not be saved; it is as it was before, paused.
        """
        storage = self.storage
        assert storage is not None, "only a VM with files of its own is frozen"
        # Its end by the saving is no news.
        self.unwatch()
        await self.listening.close()
        await self.host.pause(self.uuid)
        self._will_make(memory)
        path = await self.step("make the memory file", storage.create_empty(memory))
        self.held = await self.host.hold(self.uuid, only=self.ownership)
        await self.step("save memory", self.host.save(self.uuid, path, name=self.name))
        self.saved = True

    async def go_on(self) -> None:
        """Let it go on after it could not be saved, as if nobody had tried."""
        await self._listen()
        await self.host.resume(self.uuid)

    def keep_files(self) -> None:
        """Leave its files where they are: they are a frozen image's now."""
        self._undo.clear()

    # End

    def unwatch(self) -> None:
        """Hear no more of what becomes of it."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    async def leave(self) -> None:
        """Leave it to itself: it runs on, and its console is free for a person."""
        self.unwatch()  # first: what is heard of it from now on is no news
        await self.listening.close()

    async def end(self) -> None:
        """End it and remove all that it had; may be repeated where the host did not let us."""
        await self.leave()
        await self._turn_to_end.acquire()
        try:
            while self._undo:
                await self._undo[-1]()
                self._undo.pop()
        finally:
            self._turn_to_end.release()
