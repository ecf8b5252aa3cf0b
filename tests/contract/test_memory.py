"""What a host does with a domain's memory, on every libvirt that can be had."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Callable

import attrs
import pytest

from contract.backends import OURS, STARTS, Backend, Fake, InMemory, domain_xml
from latentvirt.config import Connection
from latentvirt.domainxml import Overlay, ownership_of, prove, rewrite
from latentvirt.errors import HostError, HostTimeout, HostUnreachable, NotFound
from latentvirt.guest import Attaching, GuestReader, Identity, Message, Ready, identity_line
from latentvirt.host import Condition, Deadlines, Host
from latentvirt.names import CHANNEL_PORT, FileName, new_start
from latentvirt.storage import Storage, backing_chain
from reactorthread import Heard, run, start

Able = Callable[..., None]

MEMORY = FileName(OURS.slot, OURS.start, "memory", "ram")
DISK = FileName(OURS.slot, OURS.start, "overlay", "vda")
NAME = "frozen"


class Talk:
    """The host's end of a guest's channel."""

    def __init__(self, host: Host, uuid: str) -> None:
        self._host = host
        self._said: Heard[Message | str] = Heard()
        self._reader = GuestReader()
        self._channel = run(host.open_channel(uuid, CHANNEL_PORT, self._hear, self._ended))

    def _hear(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            self._said(message)

    def _ended(self) -> None:
        self._said("the channel has ended")

    def until(self, kind: type[Message]) -> None:
        """Wait until the guest has said something of a kind."""
        self._said.until(lambda said: any(isinstance(message, kind) for message in said))

    def identify(self) -> None:
        """Tell the guest who it is."""
        identity = Identity(name="minion7", password="once", master="10.0.2.2:9989")
        run(self._host.write(self._channel, identity_line(identity, start=OURS.start, now=0, thawed=True)))

    def end(self) -> None:
        """Let go of the channel."""
        run(self._host.close_stream(self._channel))


class Frozen:
    """A guest that was saved when it was ready, and what it needs to go on."""

    def __init__(self, backend: Backend, host: Host, storage: Storage) -> None:
        self._backend, self._host, self._storage = backend, host, storage
        base = run(self._chain(f"{backend.images}/base.qcow2"))
        self.disk = run(storage.create_overlay(DISK, base.layers[0], base.capacity))
        self.uuid = str(uuids.uuid4())
        xml = rewrite(
            domain_xml(NAME, "channel", disk=self.disk, uuid=self.uuid),
            ownership=OURS,
            overlays=[Overlay("vda", self.disk, base.layers)],
        )
        run(host.create(xml, name=NAME))
        talk = Talk(host, self.uuid)
        run(host.resume(self.uuid))
        talk.until(Ready)
        talk.end()
        run(host.pause(self.uuid))
        self.memory = run(storage.create_empty(MEMORY))

    async def _chain(self, path: str) -> object:
        return await backing_chain(self._storage, path, None, host=self._host.uri, role="image")

    def save(self) -> None:
        """Save it."""
        run(self._host.save(self.uuid, self.memory, name=NAME))

    def description(self) -> str:
        """Describe the domain to restore, with a disk of its own."""
        self.ownership = attrs.evolve(OURS, start=new_start())
        chain = run(self._chain(self.disk))
        name = FileName(OURS.slot, self.ownership.start, "overlay", "vda")
        path = run(self._storage.create_overlay(name, chain.layers[0], chain.capacity))
        self.overlays = [Overlay("vda", path, chain.layers)]
        saved = run(self._host.saved_xml(self.memory))
        return rewrite(saved, ownership=self.ownership, overlays=self.overlays)


@pytest.fixture
def frozen(backend: Backend, host: Host, storage: Storage, able: Able) -> Frozen:
    """A guest that is paused, about to be saved."""
    able(STARTS)
    return Frozen(backend, host, storage)


def test_a_paused_domain_stands_still_until_it_is_resumed(backend: Backend, host: Host, able: Able) -> None:
    """A running domain can be paused, also twice, and goes on when told."""
    able(STARTS)
    created = run(host.create(domain_xml("still"), name="still"))
    run(host.resume(created.uuid))
    run(host.pause(created.uuid))
    assert run(host.news(created.uuid)).condition is Condition.PAUSED
    run(host.pause(created.uuid))
    run(host.resume(created.uuid))
    assert run(host.news(created.uuid)).condition is Condition.RUNNING


def test_a_saved_guest_goes_on_as_often_as_wanted(host: Host, storage: Storage, frozen: Frozen) -> None:
    """Each restored domain is paused, proven, on its own disk, and its guest takes its identity."""
    frozen.save()
    assert run(host.domain(NAME)) is None
    before = run(storage.modified(MEMORY)), run(storage.modified(DISK))
    for _ in range(2):
        created = run(host.restore(frozen.memory, frozen.description(), name=NAME))
        assert created.uuid == frozen.uuid
        prove(
            created.xml,
            ownership=frozen.ownership,
            overlays=frozen.overlays,
            vars_path=None,
            allow_shared=frozenset({"qemu:commandline"}),
        )
        assert run(host.news(created.uuid)).condition is Condition.PAUSED
        talk = Talk(host, created.uuid)
        run(host.resume(created.uuid))
        talk.identify()
        talk.until(Attaching)
        talk.end()
        run(host.destroy(created.uuid))
    assert (run(storage.modified(MEMORY)), run(storage.modified(DISK))) == before


def test_a_save_that_fails_leaves_the_guest_as_it_was(backend: Backend, host: Host, frozen: Frozen) -> None:
    """Where the disk is full, the guest that was to be frozen can go on."""
    with backend.no_room(frozen.memory) as path, pytest.raises(HostError, match="could not save") as caught:
        run(host.save(frozen.uuid, path, name=NAME))
    assert (caught.value.host, caught.value.domain) == (backend.uri, NAME)
    assert run(host.news(frozen.uuid)).condition is Condition.PAUSED
    talk = Talk(host, frozen.uuid)
    run(host.resume(frozen.uuid))
    talk.identify()
    talk.until(Attaching)


def test_a_file_that_was_cut_is_not_restored(backend: Backend, host: Host, frozen: Frozen) -> None:
    """What lacks a part of the guest's memory is an error, and leaves no domain."""
    frozen.save()
    xml = frozen.description()
    backend.cut(frozen.memory)
    with pytest.raises(HostError, match="could not restore") as caught:
        run(host.restore(frozen.memory, xml, name=NAME))
    assert (caught.value.host, caught.value.domain) == (backend.uri, NAME)
    assert run(host.domain(NAME)) is None


def test_a_garbled_file_is_not_restored(backend: Backend, host: Host, frozen: Frozen) -> None:
    """What libvirt does not know as a saved domain is an error to read and to restore."""
    frozen.save()
    xml = frozen.description()
    backend.garble(frozen.memory)
    with pytest.raises(HostError, match="could not read the saved domain"):
        run(host.saved_xml(frozen.memory))
    with pytest.raises(HostError, match="could not restore"):
        run(host.restore(frozen.memory, xml, name=NAME))
    assert run(host.domain(NAME)) is None


def test_a_missing_file_is_not_restored(host: Host, frozen: Frozen, storage: Storage) -> None:
    """A file that is not there is an error that names it."""
    frozen.save()
    xml = frozen.description()
    run(storage.delete(str(MEMORY)))
    for trying in (host.saved_xml(frozen.memory), host.restore(frozen.memory, xml, name=NAME)):
        with pytest.raises(HostError, match="memory"):
            run(trying)


def test_another_domain_is_not_restored_from_it(host: Host, frozen: Frozen) -> None:
    """A description whose UUID or memory is not the saved guest's is refused."""
    frozen.save()
    xml = frozen.description()
    for wrong in (
        xml.replace(frozen.uuid, str(uuids.uuid4())),
        xml.replace(">131072</memory>", ">65536</memory>"),
    ):
        assert wrong != xml
        with pytest.raises(HostError, match="does not match"):
            run(host.restore(frozen.memory, wrong, name=NAME))
    assert run(host.domain(NAME)) is None


def test_a_name_that_runs_is_not_restored_over(host: Host, frozen: Frozen) -> None:
    """While a domain of that name runs, another is not restored, and the first one stays."""
    frozen.save()
    first = run(host.restore(frozen.memory, frozen.description(), name=NAME))
    with pytest.raises(HostError, match="already"):
        run(host.restore(frozen.memory, frozen.description(), name=NAME))
    view = run(host.domain(NAME))
    assert view is not None
    assert view.uuid == first.uuid
    assert view.ownership == ownership_of(first.xml)


def test_domains_that_are_gone(host: Host) -> None:
    """A domain that ended meanwhile is NotFound to pause and to save."""
    gone = str(uuids.uuid4())
    for trying in (host.pause(gone), host.save(gone, "/nowhere/memory", name="gone")):
        with pytest.raises(NotFound):
            run(trying)


def test_a_libvirt_that_cannot_save_paused_says_so(backend: Backend, host: Host) -> None:
    """A domain is never saved such that it would run when it is restored."""
    if not isinstance(backend, InMemory):
        pytest.skip("this libvirt can")
    view = run(host.domain("test"))
    assert view is not None
    with pytest.raises(HostError, match="could not save"):
        run(host.save(view.uuid, f"{backend.images}/memory", name="test"))
    assert run(host.news(view.uuid)).condition is Condition.RUNNING


def test_versions_and_memory(host: Host) -> None:
    """A host says which libvirt and hypervisor it has, and how much memory is there for new VMs."""
    versions, memory = run(host.versions()), run(host.memory())
    assert versions.libvirt > 1_000_000
    assert versions.hypervisor > 0
    assert 0 < memory.available <= memory.total


def test_a_processor_that_changed_while_the_host_was_away(fake: Fake, host: Host) -> None:
    """What a host can run is asked anew after the connection broke: it may have been upgraded."""
    before = run(host.capabilities())
    kept = fake.host.capabilities
    fake.host.capabilities = kept.replace("qemu64", "Haswell")
    try:
        assert run(host.capabilities()) == before
        fake.lose_connection()
        fake.host.settle()
        assert run(host.capabilities()).cpu not in ("", before.cpu)
    finally:
        fake.host.capabilities = kept


def test_a_daemon_that_dies_of_a_file(fake: Fake, host: Host, frozen: Frozen) -> None:
    """A wrong header that makes libvirt's daemon die is a lost host, and the next call finds it again."""
    frozen.save()
    xml = frozen.description()
    fake.host.files[frozen.memory].corrupt(kills=True)
    with pytest.raises(HostUnreachable, match="lost the connection while trying to restore"):
        run(host.restore(frozen.memory, xml, name=NAME))
    assert run(host.domain(NAME)) is None


def test_what_libvirts_binding_raises_by_mistake(fake: Fake, host: Host, frozen: Frozen) -> None:
    """Whatever a failed restore raises is an error of ours, with host and domain."""
    frozen.save()
    fake.host.trouble.fail_next("restoreFlags", SystemError("returned NULL without setting an error"))
    with pytest.raises(HostError, match="returned NULL") as caught:
        run(host.restore(frozen.memory, frozen.description(), name=NAME))
    assert (caught.value.host, caught.value.domain) == (fake.uri, NAME)


def test_a_restore_that_comes_too_late_leaves_nothing(fake: Fake, frozen: Frozen, hasty: Deadlines) -> None:
    """A domain that is restored after the deadline, which nobody waits for any more, is ended."""
    frozen.save()
    xml = frozen.description()
    host = Host(Connection(fake.uri), start(), driver=fake.driver, deadlines=hasty)
    hang = fake.host.trouble.hang("restoreFlags")
    with pytest.raises(HostTimeout, match="restore"):
        run(host.restore(frozen.memory, xml, name=NAME))
    ended = fake.host.trouble.calls.count("domain.destroy")
    hang.release()
    # The connection on which it hung is closed as well, before or after.
    while fake.host.trouble.calls.count("domain.destroy") == ended or NAME in fake.host.running():
        fake.host.settle()
    assert run(host.domain(NAME)) is None
    run(host.close())


def test_the_base_image_is_not_touched_by_a_start(
    fake: Fake, host: Host, storage: Storage, frozen: Frozen
) -> None:
    """Not even the times of a base image change when VMs start and end on it; see test_relabelling.py."""
    path = f"{fake.images}/base.qcow2"
    before = run(storage.image(path)).stamp
    frozen.save()
    run(host.restore(frozen.memory, frozen.description(), name=NAME))
    run(host.destroy(frozen.uuid))
    assert run(storage.image(path)).stamp == before
