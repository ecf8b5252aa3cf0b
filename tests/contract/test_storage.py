"""What a host and our storage on it do with files, on every libvirt that can be had."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from typing import Any
from xml.sax.saxutils import escape

import pytest
from twisted.internet import defer

from contract.backends import OURS, OWNER, STORAGE, Backend, Embed, Fake, InMemory
from latentvirt.domainxml import Layer
from latentvirt.errors import AlreadyExists, HostError, ImageError, NotFound
from latentvirt.host import Host
from latentvirt.names import FileName, Lease, directory_name, look_pool_name, pool_name
from latentvirt.storage import Storage, backing_chain, open_storage
from reactorthread import run

Able = Callable[..., None]

NAME = FileName(OURS.slot, OURS.start, "overlay", "vda")
DISK = FileName(OURS.slot, OURS.start, "disk", "vdb")
VARS = FileName(OURS.slot, OURS.start, "vars", "nvram")
MIB = 1024**2
PROBE = "latentvirt-contract-look"
ROUNDS = 10
"""How often a race is run: once would seldom show it."""


def _base(backend: Backend) -> Layer:
    return Layer(f"{backend.images}/base.qcow2", "qcow2")


def test_a_libvirt_without_directories_says_so(backend: Backend, host: Host) -> None:
    """Where no pool can be made over a directory, the error says what was tried."""
    if not isinstance(backend, InMemory):
        pytest.skip("this libvirt has directories")
    with pytest.raises(HostError, match="make the storage pool"):
        run(open_storage(host, OWNER, backend.images).prepare())


def test_our_directory_can_be_prepared_again(backend: Backend, storage: Storage) -> None:
    """To see to our directory is no error when it is there already."""
    run(storage.prepare())
    assert storage.directory == f"{backend.images}/{directory_name(OWNER)}"
    assert backend.listing(storage.directory) == []


def test_two_that_prepare_at_once(backend: Backend, host: Host, storage: Storage) -> None:
    """Starts that need the same new directory at the same moment do not get in each other's way."""

    async def at_once() -> None:
        twins = [open_storage(host, OWNER, backend.images) for _ in range(4)]
        waiting = [defer.ensureDeferred(twin.prepare()) for twin in twins]  # type: ignore[arg-type]
        for result, failure in await defer.DeferredList(waiting, consumeErrors=True):
            assert result, failure

    for _ in range(ROUNDS):
        run(storage.remove())
        run(at_once())


def test_one_that_prepares_while_others_look(backend: Backend, host: Host, storage: Storage) -> None:
    """A start that needs our directory is not disturbed by those who look what there is in it."""

    async def look() -> None:
        try:
            await open_storage(host, OWNER, backend.images).names()
        except NotFound:
            pass  # it looked before the directory was made

    async def at_once() -> None:
        preparing = open_storage(host, OWNER, backend.images).prepare()
        waiting = [defer.ensureDeferred(one) for one in (look(), preparing, look())]  # type: ignore[arg-type]
        for result, failure in await defer.DeferredList(waiting, consumeErrors=True):
            assert result, failure

    for _ in range(ROUNDS):
        run(storage.remove())
        run(at_once())


def _as_somebody_else(backend: Backend, storage: Storage) -> tuple[Any, Any]:
    """Make a file in our pool, and return another program's connection and that pool as it sees it."""
    if isinstance(backend, Embed):
        pytest.skip("there are no pools")
    run(storage.create_overlay(NAME, _base(backend), 4 * MIB))
    person = backend.direct()
    return person, person.storagePoolLookupByName(pool_name(OWNER, backend.images))


def test_a_pool_that_somebody_made_anew_is_ours_all_the_same(backend: Backend, storage: Storage) -> None:
    """When our pool was ended and made again behind us, under its name, files are made in it as before."""
    person, pool = _as_somebody_else(backend, storage)
    pool.destroy()
    target = f"<target><path>{storage.directory}</path></target>"
    person.storagePoolCreateXML(f"<pool type='dir'><name>{pool.name()}</name>{target}</pool>", 0)
    run(storage.create_empty(VARS))
    assert sorted(run(storage.names())) == sorted([str(NAME), str(VARS)])


def test_a_pool_that_somebody_stopped_is_started(backend: Backend, storage: Storage) -> None:
    """When somebody defined our pool and stopped it, it is started again for the next file."""
    person, pool = _as_somebody_else(backend, storage)
    person.storagePoolDefineXML(pool.XMLDesc(0), 0)
    pool.destroy()
    try:
        run(storage.create_empty(VARS))
        assert sorted(run(storage.names())) == sorted([str(NAME), str(VARS)])
    finally:
        pool.destroy()
        pool.undefine()


def test_an_overlay_is_made_and_deleted(backend: Backend, storage: Storage) -> None:
    """An overlay lies in our directory, has the format, size and backing asked for, and goes when told."""
    path = run(storage.create_overlay(NAME, _base(backend), 4 * MIB))
    assert path == posixpath.join(storage.directory, str(NAME))
    assert run(storage.names()) == [str(NAME)]
    seen = run(storage.image(path))
    assert (seen.format, seen.capacity) == ("qcow2", 4 * MIB)
    assert (seen.backing, seen.backing_format) == (_base(backend).path, "qcow2")
    assert "0600" in seen.owner
    run(storage.delete(str(NAME)))
    run(storage.delete(str(NAME)))
    assert run(storage.names()) == []


def test_an_overlay_never_replaces_a_file(backend: Backend, storage: Storage) -> None:
    """A name that is taken is refused, and the file stays what it was."""
    path = run(storage.create_overlay(NAME, _base(backend), 4 * MIB))
    with pytest.raises(AlreadyExists):
        run(storage.create_overlay(NAME, _base(backend), 8 * MIB))
    with pytest.raises(AlreadyExists):
        run(storage.create_empty(NAME))
    assert run(storage.image(path)).capacity == 4 * MIB


@pytest.mark.parametrize("format", ["qcow2", "raw"])
def test_an_empty_disk_is_made_and_deleted(backend: Backend, storage: Storage, format: str) -> None:
    """An extra disk lies in our directory, stands on nothing, takes next to no room, and goes when told."""
    path = run(storage.create_disk(DISK, format, 4 * MIB))
    assert path == posixpath.join(storage.directory, str(DISK))
    seen = run(storage.image(path))
    assert (seen.format, seen.capacity, seen.backing) == (format, 4 * MIB, None)
    assert "0600" in seen.owner
    if not isinstance(backend, Fake):  # its files have no holes
        assert run(storage.size(str(DISK))) < MIB
    with pytest.raises(AlreadyExists):
        run(storage.create_disk(DISK, format, MIB))
    run(storage.delete(str(DISK)))
    assert run(storage.names()) == []


def test_an_overlay_without_its_base_is_not_made(backend: Backend, storage: Storage) -> None:
    """A missing base image is an error that names it, and leaves no file."""
    with pytest.raises(HostError, match="/nonexistent/base"):
        run(storage.create_overlay(NAME, Layer("/nonexistent/base", "qcow2"), MIB))
    assert run(storage.names()) == []


def test_an_empty_file(backend: Backend, storage: Storage) -> None:
    """The file for UEFI variables is ours, in our directory, and closed to others."""
    path = run(storage.create_empty(VARS))
    assert path == posixpath.join(storage.directory, str(VARS))
    assert backend.listing(storage.directory) == [str(VARS)]
    assert "0600" in run(storage.image(path)).owner


def test_names_are_those_of_now(backend: Backend, storage: Storage) -> None:
    """What somebody put into our directory by hand is seen."""
    backend.add_image("by-hand", folder=storage.directory)
    assert run(storage.names()) == ["by-hand"]


def test_the_lease_is_one_file(backend: Backend, storage: Storage) -> None:
    """To renew the lease, even twice within a second, leaves one lease and nothing else."""
    for until in (100, 200, 200):
        run(storage.renew_lease(until))
    assert run(storage.names()) == [str(Lease(200))]


def test_a_directory_with_something_foreign_in_it_stays(backend: Backend, storage: Storage) -> None:
    """Our directory is removed only when nothing but the lease is left in it; a retry later succeeds."""
    run(storage.renew_lease(100))
    run(storage.create_empty(VARS))
    assert not run(storage.remove())
    assert backend.listing(storage.directory) == [str(VARS)]
    run(storage.prepare())
    run(storage.delete(str(VARS)))
    assert run(storage.remove())
    assert backend.listing(storage.directory) is None


def test_remove_can_be_repeated(backend: Backend, storage: Storage) -> None:
    """To remove our directory when it is gone is no error."""
    run(storage.remove())
    run(storage.remove())


def test_delete_where_no_directory_is(backend: Backend, storage: Storage) -> None:
    """To delete or look for a file after our directory was removed does not make the directory anew."""
    run(storage.remove())
    run(storage.delete(str(NAME)))
    with pytest.raises(NotFound):
        run(storage.modified(NAME))
    assert backend.listing(storage.directory) is None


@pytest.mark.parametrize("format", ["qcow2", "raw"])
def test_an_image_of_the_person(backend: Backend, storage: Storage, format: str) -> None:
    """An image in a folder of the person's is seen for what it is."""
    path = backend.add_image(f"seen.{format}", format=format, folder=f"{backend.images}/person")
    seen = run(storage.image(path))
    assert (seen.path, seen.format, seen.capacity, seen.backing) == (path, format, MIB, None)


def test_looking_leaves_no_pool_behind(backend: Backend, host: Host, storage: Storage, able: Able) -> None:
    """A look at an image in a folder without a pool leaves that folder without a pool."""
    able(STORAGE)
    path = backend.add_image("lonely.qcow2", folder=f"{backend.images}/lonely")
    before = run(host.pools())
    run(storage.image(path))
    with pytest.raises(NotFound):
        run(storage.image(f"{backend.images}/lonely/missing.qcow2"))
    assert run(host.pools()) == before


def test_a_look_that_was_killed_is_in_nobodys_way(
    backend: Backend, host: Host, storage: Storage, able: Able
) -> None:
    """Where somebody's process died while it looked, others see what is there, and what came later."""
    able(STORAGE)
    folder = f"{backend.images}/killed"
    backend.add_image("early.qcow2", folder=folder)
    name = look_pool_name("f" * 16, folder)
    xml = f"<pool type='dir'><name>{name}</name><target><path>{escape(folder)}</path></target></pool>"
    left = backend.direct().storagePoolCreateXML(xml, 0)
    try:
        path = backend.add_image("late.qcow2", folder=folder)
        assert run(storage.image(path)).path == path
        assert sorted(run(host.folder(folder, probe_pool=PROBE))) == ["early.qcow2", "late.qcow2"]
    finally:
        left.destroy()


def test_many_looks_at_once(backend: Backend, host: Host, storage: Storage) -> None:
    """Starts that look at images in one folder at the same moment all see them."""
    path = backend.add_image("popular.qcow2", folder=f"{backend.images}/popular")

    async def all_at_once() -> None:
        others = [open_storage(host, f"{number:016x}", backend.images) for number in range(4)]
        waiting = [defer.ensureDeferred(other.image(path)) for other in others]  # type: ignore[arg-type]
        for result, seen in await defer.DeferredList(waiting, consumeErrors=True):
            assert result, seen
            assert seen.path == path

    run(all_at_once())


def test_a_missing_image(backend: Backend, storage: Storage) -> None:
    """A base image that is not there, in a folder that is or is not there, is the configuration's fault."""
    for path in (f"{backend.images}/missing.qcow2", f"{backend.images}/no-folder/missing.qcow2"):
        with pytest.raises(NotFound):
            run(storage.image(path))
        with pytest.raises(ImageError, match=r"missing\.qcow2 is not there"):
            run(backing_chain(storage, path, None, host=backend.uri, role="base image"))


def test_a_chain_is_followed_to_its_end(backend: Backend, storage: Storage) -> None:
    """All images that a base image stands on are found, nearest first, with the size that a guest sees."""
    top = backend.add_image("top.qcow2", backing=_base(backend).path)
    chain = run(backing_chain(storage, top, None, host=backend.uri, role="base image"))
    assert chain.layers == (Layer(top, "qcow2"), _base(backend))
    assert chain.capacity == MIB


def test_a_replaced_image_is_seen_at_once(backend: Backend, storage: Storage, able: Able) -> None:
    """An image that was replaced is seen for what it is now, also in a pool of the person's own."""
    able(STORAGE)
    folder = f"{backend.images}/theirs"
    path = backend.add_image("replaced.qcow2", folder=folder)
    xml = f"<pool type='dir'><name>theirs</name><target><path>{escape(folder)}</path></target></pool>"
    pool = backend.direct().storagePoolCreateXML(xml, 0)
    try:
        before = run(storage.image(path))
        assert run(storage.image(path)) == before
        assert before.backing is None
        backend.add_image("replaced.qcow2", folder=folder, backing=_base(backend).path)
        after = run(storage.image(path))
        assert after.backing == _base(backend).path
        assert after.stamp != before.stamp
    finally:
        pool.destroy()


def test_a_written_file_is_told_from_one_that_was_not(backend: Backend, storage: Storage) -> None:
    """A write to a file of ours is seen, a change of its owner is told from it, a look changes nothing."""
    path = run(storage.create_overlay(NAME, _base(backend), MIB))
    assert path == storage.path_of(NAME)
    modified, stamp = run(storage.modified(NAME)), run(storage.image(path)).stamp
    assert (run(storage.modified(NAME)), run(storage.image(path)).stamp) == (modified, stamp)
    assert run(storage.image(path)).modified == modified
    backend.give_away(path)
    assert run(storage.modified(NAME)) == modified
    assert run(storage.image(path)).stamp != stamp
    backend.write(path)
    assert run(storage.modified(NAME)) != modified


def test_the_size_of_a_file(backend: Backend, storage: Storage) -> None:
    """A file of ours takes as much room as is written, not as much as its guest sees."""
    run(storage.create_overlay(NAME, _base(backend), 1024 * MIB))
    run(storage.create_empty(VARS))
    assert 0 < run(storage.size(str(NAME))) < 4 * MIB
    assert run(storage.size(str(VARS))) == 0


def test_a_file_that_is_not_there(storage: Storage) -> None:
    """A file of ours that somebody removed is NotFound to look at and to copy."""
    for looking in (storage.modified(NAME), storage.size(str(NAME)), storage.copy(NAME, VARS)):
        with pytest.raises(NotFound):
            run(looking)
    with pytest.raises(NotFound):
        run(storage.image(storage.path_of(NAME)))
    assert run(storage.names()) == []


def test_a_copy_of_a_file(backend: Backend, storage: Storage) -> None:
    """UEFI variables are copied with their content, closed to others, and never over what is there."""
    backend.write(run(storage.create_empty(VARS)))
    target = FileName(OURS.slot, "ffffffffffff", "vars", "nvram")
    path = run(storage.copy(VARS, target))
    assert path == storage.path_of(target)
    assert backend.same_content(storage.path_of(VARS), path)
    assert "0600" in run(storage.image(path)).owner
    with pytest.raises(AlreadyExists):
        run(storage.copy(VARS, target))
    run(storage.delete(str(VARS)))
    assert run(storage.names()) == [str(target)]


def test_files_are_found_after_the_pool_was_stopped(backend: Backend, storage: Storage, able: Able) -> None:
    """A host that was booted has our files and not our pool: they are found, and more can be made."""
    able(STORAGE)
    path = run(storage.create_overlay(NAME, _base(backend), MIB))
    modified = run(storage.modified(NAME))
    for used in (
        lambda: storage.modified(NAME),
        lambda: storage.image(path),
        lambda: storage.copy(NAME, VARS),
    ):
        backend.direct().storagePoolLookupByName(pool_name(OWNER, backend.images)).destroy()
        run(used())  # type: ignore[no-untyped-call]
    assert run(storage.modified(NAME)) == modified


def test_overlays_are_made_while_the_directory_is_listed(backend: Backend, storage: Storage) -> None:
    """A sweep that lists our directory does not make a start fail that creates its overlay meanwhile."""

    async def together() -> None:
        names = [FileName(f"slot{number}", OURS.start, "overlay", "vda") for number in range(12)]
        waiting = []
        for name in names:
            waiting.append(defer.ensureDeferred(storage.create_overlay(name, _base(backend), MIB)))  # type: ignore[arg-type]
            waiting.append(defer.ensureDeferred(storage.names()))  # type: ignore[arg-type]
        for result, failure in await defer.DeferredList(waiting, consumeErrors=True):
            assert result, failure
        assert sorted(await storage.names()) == sorted(str(name) for name in names)

    run(together())


def test_a_directory_that_was_removed_by_hand(backend: Backend, storage: Storage) -> None:
    """Our directory can go behind our back: it is NotFound to look at, removed already, and made anew."""
    run(storage.create_empty(VARS))
    backend.remove_folder(storage.directory)
    with pytest.raises(NotFound):
        run(storage.names())
    run(storage.prepare())
    run(storage.create_empty(VARS))
    assert run(storage.names()) == [str(VARS)]
    backend.remove_folder(storage.directory)
    assert run(storage.remove())
    assert run(storage.remove())
    assert backend.listing(storage.directory) is None


def test_a_folder_whose_pool_does_not_run(backend: Backend, host: Host, able: Able) -> None:
    """Under a pool that is defined and does not run, images are seen as elsewhere, and it stays so."""
    able(STORAGE)
    folder = f"{backend.images}/persons"
    base = backend.add_image("base.qcow2", folder=folder)
    top = backend.add_image(
        "top.qcow2", folder=folder, backing=base if isinstance(backend, Fake) else "base.qcow2"
    )
    target = f"<target><path>{escape(folder)}</path></target>"
    person = backend.direct()
    pool = person.storagePoolDefineXML(f"<pool type='dir'><name>persons</name>{target}</pool>", 0)
    try:
        for _ in range(2):
            assert sorted(run(host.folder(folder, probe_pool=PROBE))) == ["base.qcow2", "top.qcow2"]
            seen = run(host.image(top, probe_pool=PROBE))
            assert (seen.path, seen.format, seen.backing) == (top, "qcow2", base)
        got: list[bytes] = []
        run(host.download_image(base, got.append, probe_pool=PROBE))
        assert got
        with pytest.raises(NotFound):
            run(host.image(f"{folder}/none.qcow2", probe_pool=PROBE))
        assert not pool.isActive()
        assert not [path for path in run(host.pools()).values() if path.startswith(folder)]
    finally:
        pool.undefine()


def test_missing_pools_and_volumes(backend: Backend, host: Host) -> None:
    """What is not there is NotFound to look at; whether a volume is, nobody can tell without its pool."""
    if isinstance(backend, Embed):
        with pytest.raises(HostError):
            run(host.volume_path("no-such-pool", "x"))
        return
    with pytest.raises(NotFound):
        run(host.volume_path("no-such-pool", "x"))
    with pytest.raises(NotFound):
        run(host.volumes("no-such-pool"))
    with pytest.raises(NotFound):
        run(host.delete_volume("no-such-pool", "x"))
    run(host.remove_pool("no-such-pool"))
