"""Frozen images on a fake host, where several starts have to do with them at once, or one is called off."""

from __future__ import annotations

from collections.abc import Iterator

import libvirt
import pytest
from twisted.internet import defer

import reactorthread
from latentvirt.config import Connection
from latentvirt.frozen import FrozenImage, FrozenStore
from latentvirt.host import Host
from latentvirt.names import FileName
from latentvirt.storage import open_storage
from latentvirt.testing import FakeGuest, FakeLibvirt
from latentvirt.testing.domain import VirDomain
from latentvirt.testing.state import FakeDomain
from latentvirt.testing.trouble import Hang
from reactorthread import on_reactor, run
from stagemaster import StageMaster, close_stage, open_stage
from test_standby import LATENCY_S, a_worker, built
from test_worker import BASE, URI, _settle, _start

OWNER = "0123456789abcdef"
FOLDER = "/images"
SPACE = 1 << 30


@pytest.fixture
def master() -> Iterator[StageMaster]:
    """A master on a fake host with a base image, whose guests can be frozen."""
    opened = open_stage()
    host = opened.fake.inspect(URI)
    host.add_file(BASE)
    host.guests = lambda domain: FakeGuest(says_ready=True)
    yield opened
    close_stage(opened)


def test_an_image_that_is_just_published_when_its_build_is_stopped_is_whole(master: StageMaster) -> None:
    """A build that is stopped at that moment leaves an image that the next one thaws, and no half one."""
    trouble = master.fake.inspect(URI).trouble
    hangs: list[Hang] = []
    trouble.before_next("domain.saveFlags", lambda: hangs.append(trouble.hang("pool.createXML")))
    worker = a_worker(master, "a")
    _start(worker)
    while not hangs:
        on_reactor(lambda: None)
    assert hangs[0].entered.acquire(timeout=60)

    async def stop() -> None:
        await worker.stop_instance()

    run(stop())
    hangs[0].release()
    _settle(master)
    text = built(worker)
    assert "is of no use" not in text
    assert "tier thaw" in text


@pytest.mark.parametrize("heard", [False, True])
@pytest.mark.parametrize("befalls", ["kill", "panic"])
def test_a_build_whose_vm_dies_as_soon_as_it_is_thawed_gets_another(
    master: StageMaster, monkeypatch: pytest.MonkeyPatch, befalls: str, heard: bool
) -> None:
    """An image that kills its VM is replaced within the build, whether its end or our words come first."""
    host = master.fake.inspect(URI)
    worker = a_worker(master, "a")
    built(worker)
    resume = VirDomain.resume
    killed: list[FakeDomain] = []

    def resumed(domain: VirDomain) -> int:
        done = resume(domain)
        if not killed:
            killed.append(domain._domain)
            getattr(domain._domain, befalls)()
            if heard:
                host.settle()
                on_reactor(lambda: None)
        return done

    monkeypatch.setattr(VirDomain, "resume", resumed)
    host.trouble.latency_s = LATENCY_S
    text = built(worker)
    assert text.count("was discarded") == 1
    assert "tier thaw" in text[text.index("tier freeze") :]
    assert host.running() == []


def test_an_older_image_that_cannot_be_removed_keeps_no_build_from_thawing(master: StageMaster) -> None:
    """The host's refusal costs the new image nothing, and what it refused goes the next time."""
    host = master.fake.inspect(URI)
    worker = a_worker(master, "a")
    built(worker)
    host.files[BASE].touch()
    host.trouble.before_next(
        "domain.saveFlags",
        lambda: host.trouble.fail_next("volume.delete", libvirt.VIR_ERR_OPERATION_FAILED),
    )
    text = built(worker)
    assert "could not be frozen" not in text
    assert "tier thaw" in built(worker)
    host.files[BASE].touch()
    built(worker)
    names = map(FileName.parse, host.listing(f"/images/latentvirt-{master.hub.owner}"))
    assert len({name.start for name in names if name is not None}) == 1


class Scene:
    """A directory with frozen images, one a slot, and room for one of them.

    Args:
        count: how many there are.
    """

    def __init__(self, count: int) -> None:
        self.fake = FakeLibvirt()
        self.state = self.fake.inspect(URI)
        self.state.add_folder(FOLDER)
        reactor = reactorthread.start()
        self.host = Host(Connection(URI), reactor, driver=self.fake)
        self.storage = open_storage(self.host, OWNER, FOLDER)
        self.store = FrozenStore(self.storage, reactor.seconds, 0)
        self.images = [
            FrozenImage(
                slot=f"slot{number}",
                start=f"{number:012x}",
                lineage="01234567",
                fingerprint="0123456789abcdef",
                seal="0123456789ab",
            )
            for number in range(1, count + 1)
        ]
        run(self.storage.prepare())
        for image in self.images:
            run(self.storage.create_disk(image.memory, "qcow2", 1 << 20))
            run(self.store.publish(image))
        self.store.most_bytes = run(self.storage.size(str(self.images[0].memory)))

    def kept(self) -> list[str]:
        """Say of which starts there are files."""
        names = map(FileName.parse, self.state.listing(self.storage.directory))
        return sorted({name.start for name in names if name is not None})


def test_two_freezes_at_once_make_room_together(scene_of_four: Scene) -> None:
    """Two that look at the same time for what is over the limit find less there, and both go on."""
    scene = scene_of_four
    results: list[tuple[bool, object]] = []

    async def both() -> None:
        doing = [defer.ensureDeferred(scene.store.keep_within()) for _ in range(2)]
        results.extend(await defer.DeferredList(doing, consumeErrors=True))

    run(both())
    assert [good for good, _ in results] == [True, True], results
    assert scene.kept() == [scene.images[-1].start]


@pytest.fixture
def scene_of_four() -> Iterator[Scene]:
    """Four images where there is room for one."""
    scene = Scene(4)
    yield scene
    run(scene.host.close())
