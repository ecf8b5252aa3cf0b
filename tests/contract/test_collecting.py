"""Copied images that are removed when nothing needs them, on every libvirt that can be had."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from twisted.internet import defer

from contract.backends import OURS, OWNER, STARTS, Backend, InMemory, domain_xml
from latentvirt.domainxml import Layer
from latentvirt.errors import NotFound
from latentvirt.host import Host
from latentvirt.images import collecting
from latentvirt.images.collecting import Collection
from latentvirt.images.naming import CopyName, Listing, LockName, directory_in, pool_over
from latentvirt.images.root import ROOT_VARIABLE
from latentvirt.images.shelf import Shelf, open_shelf
from latentvirt.names import FileName, is_look_pool
from latentvirt.storage import Storage, open_storage
from reactorthread import run

LOOKER = "00000000000000aa"
ANOTHER = "fedcba9876543210"
COPIES = 30
MIB = 1024**2
REMOVED_WHEN_KILLED = 10

COMMAND = f"""
import sys, time
from latentvirt.cli import main
from latentvirt.host import storage
from latentvirt.images import collecting
from latentvirt.images.naming import CopyName
from latentvirt.images.shelf import PoolShelf

point, removed = sys.argv[1], 0
look, delete = storage._make_look_pool, PoolShelf.delete

def stop():
    print("stands still", file=sys.stderr, flush=True)
    time.sleep(3600)

def look_and_stop(*arguments):
    look(*arguments)
    stop()

async def delete_and_stop(shelf, name):
    global removed
    if removed == {REMOVED_WHEN_KILLED}:
        stop()
    await delete(shelf, name)
    removed += CopyName.parse(name) is not None

if point == "looking":
    storage._make_look_pool = look_and_stop
if point == "removing":
    PoolShelf.delete = delete_and_stop
if point != "waiting":
    collecting.GRACE_S = 0.0
main(sys.argv[2:])
"""
"""The command, which stands still at a point, or not; where it waits by itself it is as it is for people."""


class Killed(Exception):
    """Like the end of the process."""


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "GRACE_S", 0.0)


class Scene:
    """A shelf of thirty images, whole ones by number."""

    def __init__(self, backend: Backend, host: Host, shelf: Shelf, storages: list[Storage]) -> None:
        self.backend = backend
        self.host = host
        self.shelf = shelf
        self.storages = storages
        self.names = [CopyName(f"{number:064x}", f"{number:012x}", "qcow2") for number in range(COPIES)]

    def path(self, number: int) -> str:
        """Where a copy lies."""
        return self.shelf.path_of(str(self.names[number]))

    def stand(self, number: int, owner: int, kind: str = "overlay", start: str = OURS.start) -> FileName:
        """Let an overlay of a master stand on a copy."""
        name = FileName(f"slot{number}", start, kind, "vda")
        run(self.storages[owner].create_overlay(name, Layer(self.path(number), "qcow2"), MIB))
        return name

    def collection(self, wanted: dict[int, str] | None = None) -> Collection:
        """Make a collection that spares some."""
        named = {self.names[number].digest: why for number, why in (wanted or {}).items()}
        return Collection(self.host, self.backend.images, named, LOOKER)

    def there(self) -> set[int]:
        """Which copies a start would choose."""
        names = run(self.shelf.names())
        numbered = enumerate(self.names)
        return {number for number, name in numbered if Listing.of(name.digest, names).ready == (name,)}

    def left(self) -> list[str]:
        """Name what lies there beside whole copies and their markers."""
        whole = {name for number in self.there() for name in self._files(number)}
        return sorted(set(run(self.shelf.names())) - whole)

    def _files(self, number: int) -> list[str]:
        return [str(self.names[number]), self.names[number].marker]


@pytest.fixture
def scene(backend: Backend, host: Host) -> Iterator[Scene]:
    """Thirty images, two masters' directories."""
    if isinstance(backend, InMemory):
        pytest.skip("this libvirt has no directories")
    shelf = open_shelf(host, backend.images)
    storages = [open_storage(host, owner, backend.images) for owner in (OWNER, ANOTHER)]
    for storage in storages:
        run(storage.prepare())
    run(shelf.names())
    opened = Scene(backend, host, shelf, storages)
    for name in opened.names:
        backend.add_image(str(name), folder=directory_in(backend.images))
        run(shelf.create(name.marker))
    yield opened

    async def clear() -> None:
        for storage in storages:
            await storage.prepare()
            for name in await storage.names():
                await storage.delete(name)
            await storage.remove()
        for name in await shelf.names():
            await shelf.delete(name)
        if not host.connection.is_embed:
            await host.remove_pool(pool_over(backend.images))

    run(clear())
    shutil.rmtree(directory_in(backend.images), ignore_errors=True)


def test_exactly_what_nothing_needs_goes(scene: Scene) -> None:
    """What overlays, frozen images, other masters and named images need stays; all else goes."""
    scene.stand(3, 0)
    scene.stand(7, 1)
    frozen = scene.stand(11, 0)
    over = FileName("slot12", OURS.start, "overlay", "vda")
    run(scene.storages[0].create_overlay(over, Layer(scene.storages[0].path_of(frozen), "qcow2"), MIB))
    run(scene.storages[0].create_empty(attrs.evolve(frozen, kind="frozen", target="x")))
    collection = scene.collection({20: "master.cfg names it"})
    looked = {copy.path: copy.needed_by for copy in run(collection.look())}
    assert looked[scene.path(20)] == ("master.cfg names it",)
    assert looked[scene.path(3)] == (f"latentvirt-{OWNER}/slot3.{OURS.start}.overlay.vda",)
    assert sum(not why for why in looked.values()) == COPIES - 4
    removed = run(collection.collect())
    assert {copy.path for copy in removed} == {scene.path(n) for n in range(COPIES)} - {
        scene.path(n) for n in (3, 7, 11, 20)
    }
    assert scene.there() == {3, 7, 11, 20}
    assert scene.left() == []
    assert run(collection.collect()) == []


def test_what_a_running_vm_needs_stays(scene: Scene) -> None:
    """A copy under a domain's disk stays, whoever's domain it is."""
    if STARTS not in scene.backend.can:
        pytest.skip("this libvirt has no starts")
    disk = scene.backend.add_image("persons.qcow2", backing=scene.path(5))
    created = run(scene.host.create(domain_xml("user", disk=disk, marked=None), name="user"))
    run(scene.collection().collect())
    assert scene.there() == {5}
    run(scene.host.destroy(created.uuid))
    run(scene.collection().collect())
    assert scene.there() == set()
    assert scene.left() == []


def test_a_start_that_had_just_chosen_an_image_keeps_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that a start begins to use while it is being collected is what it was before."""
    stood: list[FileName] = []

    def stand(*_: object) -> defer.Deferred[None]:
        async def build() -> None:
            name = FileName("slot9", OURS.start, "overlay", "vda")
            await scene.storages[1].create_overlay(name, Layer(scene.path(9), "qcow2"), MIB)
            stood.append(name)

        return defer.ensureDeferred(build())

    monkeypatch.setattr(collecting.task, "deferLater", stand)
    run(scene.collection().collect())
    assert stood
    assert scene.there() == {9}
    assert scene.left() == []


def test_a_doomed_image_is_none_that_a_start_would_choose(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a copy waits for its end no start takes it, and who copies it anew leaves it alone."""
    seen: list[Listing] = []

    def look(*_: object) -> defer.Deferred[None]:
        async def read() -> None:
            seen.append(Listing.of(scene.names[4].digest, await scene.shelf.names()))

        return defer.ensureDeferred(read())

    monkeypatch.setattr(collecting.task, "deferLater", look)
    run(scene.collection().collect())
    assert (seen[0].ready, seen[0].unready, seen[0].doomed) == ((), (), (scene.names[4],))


def test_a_collection_that_was_broken_off_is_gone_on_with(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a collection that ended half-way nothing that is needed is lost, and the next one ends it."""
    scene.stand(2, 0)

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(collecting.task, "deferLater", die)
        with pytest.raises(Killed):
            run(scene.collection().collect())
    assert scene.there() == {2}
    scene.stand(6, 1)  # by a start that had chosen it before
    deleted = 0
    delete = type(scene.shelf).delete

    async def delete_some(self: Shelf, name: str) -> None:
        nonlocal deleted
        deleted += 1
        if deleted > COPIES:
            raise Killed
        await delete(self, name)

    with monkeypatch.context() as patched:
        patched.setattr(type(scene.shelf), "delete", delete_some)
        with pytest.raises(Killed):
            run(scene.collection().collect())
    assert scene.there() == {2, 6}
    run(scene.collection().collect())
    assert scene.there() == {2, 6}
    assert scene.left() == []


def gc(scene: Scene, store: Path, point: str = "") -> subprocess.Popen[str]:
    """Run `latentvirt image gc` in a process of its own, until a point if one is named."""
    arguments = ["image", "gc", "-c", scene.host.uri, "--folder", scene.backend.images]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, point, *arguments],
        env={**os.environ, ROOT_VARIABLE: str(store)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_gc(scene: Scene, store: Path, point: str, says: str) -> None:
    """Run it until it says something, and end it there as nothing can hinder."""
    with gc(scene, store, point) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if says in line:
                break
        process.kill()
    assert process.returncode == -signal.SIGKILL, said


def test_a_collection_is_killed_and_run_again(scene: Scene, tmp_path: Path) -> None:
    """Killed as it looks, as it waits and as it removes, it has lost nothing; the next one ends it.

    All that it removes is what nothing needs: what masters and people have is as it was.
    """
    if scene.backend.driver is not None or scene.host.connection.is_embed:
        pytest.skip("another process cannot have this libvirt")
    scene.backend.define(domain_xml("persons", disk=scene.path(20), marked=None))
    scene.backend.add_image("persons.qcow2")
    scene.stand(3, 0)
    frozen = scene.stand(11, 0)
    run(scene.storages[0].create_empty(attrs.evolve(frozen, kind="frozen", target="x")))
    needed = {3, 11, 20}
    try:
        kill_gc(scene, tmp_path, "looking", "stands still")
        assert scene.there() == set(range(COPIES))
        kill_gc(scene, tmp_path, "waiting", "waiting 60 s")
        assert scene.there() == needed
        scene.stand(6, 1)  # by a start that had chosen it before
        needed.add(6)
        masters = [run(storage.names()) for storage in scene.storages]
        kill_gc(scene, tmp_path, "removing", "stands still")
        assert scene.there() == needed
        copies = [name for name in run(scene.shelf.names()) if CopyName.parse(name)]
        assert len(copies) == COPIES - REMOVED_WHEN_KILLED
        with gc(scene, tmp_path) as process:
            _, said = process.communicate()
        assert process.returncode == 0, said
        assert scene.there() == needed
        assert scene.left() == []
        assert [run(storage.names()) for storage in scene.storages] == masters
        assert "persons.qcow2" in (scene.backend.listing(scene.backend.images) or [])
    finally:
        person = scene.backend.direct()
        person.lookupByName("persons").undefine()
        for pool in person.listAllStoragePools(0):
            if is_look_pool(pool.name()):
                pool.destroy()  # of the look that was killed


def test_what_is_being_copied_stays(scene: Scene) -> None:
    """Half a copy stays as long as somebody holds its lock, and goes when nobody does."""
    half, lock = scene.names[8], LockName(scene.names[8].digest, 1)
    run(scene.shelf.delete(half.marker))
    run(scene.shelf.create(str(lock)))
    run(scene.collection().collect())
    assert scene.left() == sorted([str(half), str(lock)])
    run(scene.shelf.delete(str(lock)))
    run(scene.collection().collect())
    assert scene.left() == []


def test_half_a_copy_never_becomes_an_image(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a broken transfer left goes though its image is wanted, also after a collection was broken off."""
    half = scene.names[8]
    run(scene.shelf.delete(half.marker))
    wanted = dict.fromkeys(range(COPIES), "it is this machine's")

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(collecting.task, "deferLater", die)
        with pytest.raises(Killed):
            run(scene.collection(wanted).collect())
    assert half.doom in run(scene.shelf.names())
    run(scene.collection(wanted).collect())
    assert scene.there() == set(range(COPIES)) - {8}
    assert scene.left() == []


def test_a_folder_without_copies(backend: Backend, host: Host) -> None:
    """Where no image was ever copied to there is nothing to do, nor made; no folder is an error."""
    if isinstance(backend, InMemory):
        pytest.skip("this libvirt has no directories")
    assert run(Collection(host, backend.images, {}, LOOKER).collect()) == []
    assert backend.listing(directory_in(backend.images)) is None
    with pytest.raises(NotFound, match="nowhere"):
        run(Collection(host, f"{backend.images}/nowhere", {}, LOOKER).look())


def test_directories_that_libvirt_has_forgotten_are_looked_into(scene: Scene) -> None:
    """After a host was booted, when no pool of ours is there, what stands on a copy is found all the same."""
    if scene.host.connection.is_embed:
        pytest.skip("there are no pools")
    scene.stand(1, 1)
    person = scene.backend.direct()
    for pool in person.listAllStoragePools(0):
        pool.destroy()
    run(scene.collection().collect())
    assert scene.there() == {1}
