"""Images that are brought to a host, on every libvirt that can be had."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from twisted.internet import defer

import reactorthread
from contract.backends import OWNER, STORAGE, Backend, Daemon, Fake, InMemory
from latentvirt.config import Connection, Image
from latentvirt.errors import AlreadyExists, HostError, NotFound
from latentvirt.host import Host
from latentvirt.images import Library
from latentvirt.images import library as library_module
from latentvirt.images import transfer as transfer_module
from latentvirt.images.naming import directory_in, pool_over
from latentvirt.images.shelf import Shelf, open_shelf
from latentvirt.storage import open_storage
from reactorthread import run

Able = Callable[..., None]
MIB = 1024**2
LENGTH = 3 * MIB + 12345
POOL = "latentvirt-contract"


@pytest.fixture
def shelf(backend: Backend, host: Host) -> Iterator[Shelf]:
    """A shelf on the host; it is gone afterwards."""
    if isinstance(backend, InMemory):
        pytest.skip("this libvirt has no directories")
    opened = open_shelf(host, backend.images)
    run(opened.names())
    yield opened

    async def clear() -> None:
        for name in await opened.names():
            await opened.delete(name)
        if not host.connection.is_embed:
            await host.remove_pool(pool_over(backend.images))

    run(clear())
    shutil.rmtree(directory_in(backend.images), ignore_errors=True)
    assert backend.listing(directory_in(backend.images)) is None


@pytest.fixture
def pool(backend: Backend, host: Host, able: Able) -> Iterator[str]:
    """A pool with an empty volume."""
    able(STORAGE)
    run(host.ensure_pool(POOL, f"{backend.images}/pool"))
    run(host.create_volume(POOL, _volume("v")))
    yield POOL

    async def clear() -> None:
        for name in await host.volumes(POOL):
            await host.delete_volume(POOL, name)
        await host.remove_pool(POOL)

    run(clear())


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """An image on the master, a raw one."""
    path = tmp_path / "base.img"
    path.write_bytes(_content())
    return Image(str(path))


@pytest.fixture
def masters(backend: Backend, host: Host) -> Iterator[list[tuple[Library, Host]]]:
    """Two masters; on embed, which is one process's, both on one host."""
    reactor = reactorthread.start()
    hosts = [host, host]
    if not host.connection.is_embed:
        hosts[1] = Host(Connection(backend.uri), reactor, driver=backend.driver)
    yield [(Library(reactor, OWNER, lambda _, own=own: own), own) for own in hosts]  # type: ignore[misc]
    if hosts[1] is not host:
        run(hosts[1].close())


def _content(seed: bytes = b"x") -> bytes:
    return b"".join(hashlib.sha512(seed + b"%d" % number).digest() for number in range(LENGTH // 64 + 1))[
        :LENGTH
    ]


def _volume(name: str) -> str:
    return (
        f"<volume><name>{name}</name><capacity unit='bytes'>0</capacity><target><format type='raw'/>"
        "<permissions><mode>0644</mode></permissions></target></volume>"
    )


def _read(backend: Backend, path: str) -> bytes:
    return backend.host.files[path].read() if isinstance(backend, Fake) else Path(path).read_bytes()


def _reader(content: bytes) -> Callable[[int], bytes]:
    pieces = iter([content[start : start + 100_000] for start in range(0, len(content), 100_000)])
    return lambda count: next(pieces, b"")


def test_a_volume_is_filled_and_read(backend: Backend, host: Host, pool: str) -> None:
    """All bytes of a file get to the host and back."""
    run(host.upload(pool, "v", _reader(_content()), LENGTH))
    assert _read(backend, f"{backend.images}/pool/v") == _content()
    assert run(host.volume(pool, "v")).length == LENGTH
    got: list[bytes] = []
    assert run(host.download(pool, "v", got.append)) == LENGTH
    assert b"".join(got) == _content()


def test_more_bytes_than_were_announced(host: Host, pool: str) -> None:
    """A file that is longer than was said is not sent as a whole."""
    with pytest.raises(HostError):
        run(host.upload(pool, "v", _reader(_content()), LENGTH - 1))


def test_an_upload_that_is_called_off(host: Host, pool: str) -> None:
    """Whoever waits may call an upload off; the volume can be removed at once."""
    began: defer.Deferred[None] = defer.Deferred()
    reactor = reactorthread.start()
    told = []

    def endless(count: int) -> bytes:
        if not told:
            told.append(True)
            reactor.callFromThread(began.callback, None)
        return b"x" * count

    async def cancel() -> None:
        doing = defer.ensureDeferred(host.upload(pool, "v", endless, 1 << 40))
        doing.addErrback(lambda failure: failure.trap(defer.CancelledError))
        await began
        doing.cancel()
        await doing
        await host.delete_volume(pool, "v")
        assert await host.volumes(pool) == []

    run(cancel())


def test_a_reader_that_fails(host: Host, pool: str) -> None:
    """When the file that is sent cannot be read, the upload fails and says what was tried."""

    def broken(count: int) -> bytes:
        raise OSError("the disk is dying")

    with pytest.raises(HostError, match="could not fill the volume v: the disk is dying"):
        run(host.upload(pool, "v", broken, LENGTH))


def test_missing_volumes_and_images(backend: Backend, host: Host, pool: str) -> None:
    """What is not there is NotFound to fill and to read."""
    with pytest.raises(NotFound):
        run(host.upload(pool, "missing", _reader(b"x"), 1))
    with pytest.raises(NotFound):
        run(host.download("no-such-pool", "v", lambda data: None))
    for path in (f"{backend.images}/missing.qcow2", f"{backend.images}/no-folder/missing.qcow2"):
        with pytest.raises(NotFound):
            run(host.download_image(path, lambda data: None, probe_pool="latentvirt-contract-look"))


def test_an_image_in_no_pool_is_read(backend: Backend, host: Host, able: Able) -> None:
    """A person's image is read whole, and its folder is without a pool afterwards, as it was."""
    able(STORAGE)
    path = backend.add_image("read.qcow2", folder=f"{backend.images}/lone")
    before = run(host.pools())
    got: list[bytes] = []
    run(host.download_image(path, got.append, probe_pool="latentvirt-contract-look"))
    assert b"".join(got) == _read(backend, path)
    assert run(host.pools()) == before


def test_room(host: Host, pool: str) -> None:
    """A host says how much room there is on the disk of a pool."""
    assert run(host.room(pool)) > MIB
    with pytest.raises(NotFound):
        run(host.room("no-such-pool"))


def test_only_one_can_create_a_name(backend: Backend, shelf: Shelf) -> None:
    """A lock is made by one only, also where libvirt has not seen yet that it is there."""
    run(shelf.create("one"))
    with pytest.raises(AlreadyExists):
        run(shelf.create("one"))
    seen = run(shelf.look("one"))
    assert seen.length == 0
    if isinstance(backend, Fake):
        backend.host.add_file(shelf.path_of("two"))
    else:
        Path(shelf.path_of("two")).touch()
    with pytest.raises(AlreadyExists):
        run(shelf.create("two"))
    run(shelf.delete("one"))
    run(shelf.delete("one"))
    run(shelf.create("one"))
    assert run(shelf.look("one")) != seen  # whoever comes later is not taken for the first
    with pytest.raises(NotFound):
        run(shelf.look("missing"))


def test_an_image_is_brought(
    backend: Backend, shelf: Shelf, masters: list[tuple[Library, Host]], image: Image
) -> None:
    """An image of the master's gets to the host byte for byte, readable for QEMU, and can back an overlay."""
    library, host = masters[0]
    said: list[str] = []
    path = run(library.path_on(host, backend.images, image, said.append))
    digest = hashlib.sha256(_content()).hexdigest()
    assert path.startswith(f"{directory_in(backend.images)}/{digest}.")
    assert _read(backend, path) == _content()
    assert len(run(shelf.names())) == 2
    seen = run(open_storage(host, OWNER, backend.images).image(path))
    assert (seen.format, seen.capacity // MIB) == ("raw", LENGTH // MIB)
    assert "mode 0644" in seen.owner
    assert said[0] == f"copying base.img to {backend.uri}: 0 of 4 MiB"


def test_what_was_brought_is_known_as_what_it_is(
    backend: Backend, shelf: Shelf, masters: list[tuple[Library, Host]]
) -> None:
    """A qcow2 image that was copied is seen as qcow2, with the size that a guest sees."""
    library, host = masters[0]
    source = backend.add_image("source.qcow2")
    with tempfile.NamedTemporaryFile() as local:
        local.write(_read(backend, source))
        local.flush()
        path = run(library.path_on(host, backend.images, Image(local.name)))
    seen = run(open_storage(host, OWNER, backend.images).image(path))
    assert (seen.format, seen.capacity, seen.backing) == ("qcow2", MIB, None)


def test_two_masters_bring_one_image_once(
    backend: Backend,
    shelf: Shelf,
    masters: list[tuple[Library, Host]],
    image: Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Masters that need the same image on a host at the same moment make one copy of it."""
    monkeypatch.setattr(transfer_module, "POLL_S", 0.05)

    async def both() -> None:
        doing = [
            defer.ensureDeferred(library.path_on(host, backend.images, image)) for library, host in masters
        ]
        first, second = [await one for one in doing]
        assert first == second
        assert len(await shelf.names()) == 2

    run(both())


def test_a_broken_copy_is_taken_over(
    backend: Backend,
    shelf: Shelf,
    masters: list[tuple[Library, Host]],
    image: Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a master left that was killed while it copied is removed, and the image gets there."""
    monkeypatch.setattr(transfer_module, "POLL_S", 0.05)
    monkeypatch.setattr(transfer_module, "STALLED_S", 0.3)
    digest = hashlib.sha256(_content()).hexdigest()
    for name in (f"{digest}.lock.1", f"{digest}.0123456789ab.raw", f"{digest}.ba9876543210.ready"):
        run(shelf.create(name))
    library, host = masters[0]
    path = run(library.path_on(host, backend.images, image))
    assert _read(backend, path) == _content()
    assert sorted(run(shelf.names())) == sorted(
        [os.path.basename(path), os.path.basename(path).replace(".raw", ".ready")]
    )


KILLED = """
import sys
import reactorthread
from latentvirt.config import Connection, Image
from latentvirt.host import Host
from latentvirt.images import Library

uri, folder, path = sys.argv[1:]
host = Host(Connection(uri, copy_rate="1 MiB"), reactorthread.start())
library = Library(reactorthread.start(), "fedcba9876543210", lambda connection: host)
reactorthread.run(library.path_on(host, folder, Image(path)))
"""


def test_a_master_that_is_killed_while_it_copies(
    backend: Backend,
    shelf: Shelf,
    masters: list[tuple[Library, Host]],
    image: Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A master's process that is killed leaves half a copy; another waits while it grew, then takes over."""
    if not isinstance(backend, Daemon):
        pytest.skip("two processes cannot have this libvirt")
    monkeypatch.setattr(transfer_module, "POLL_S", 0.05)
    monkeypatch.setattr(transfer_module, "STALLED_S", 1.0)
    other = subprocess.Popen(
        [sys.executable, "-c", KILLED, backend.uri, backend.images, image.path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        half = ""
        while not half:
            assert other.poll() is None
            half = next((name for name in run(shelf.names()) if name.endswith(".raw")), "")
            if half and not run(shelf.look(half)).length:
                half = ""
    finally:
        other.kill()
        other.wait()
    assert f"{hashlib.sha256(_content()).hexdigest()}.lock.1" in run(shelf.names())
    library, host = masters[0]
    path = run(library.path_on(host, backend.images, image))
    assert _read(backend, path) == _content()
    assert len(run(shelf.names())) == 2
    assert half not in run(shelf.names())


def test_a_copy_that_was_removed_by_hand_is_made_again(
    backend: Backend,
    shelf: Shelf,
    masters: list[tuple[Library, Host]],
    image: Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An image that somebody removes behind libvirt's back is there for the next start."""
    monkeypatch.setattr(library_module, "FRESH_S", 0.0)
    library, host = masters[0]
    gone = run(library.path_on(host, backend.images, image))
    if isinstance(backend, Fake):
        del backend.host.files[gone]
    else:
        os.unlink(gone)
    path = run(library.path_on(host, backend.images, image))
    assert path != gone
    assert _read(backend, path) == _content()
    assert len(run(shelf.names())) == 2


def test_a_copy_is_read_back(
    backend: Backend, shelf: Shelf, masters: list[tuple[Library, Host]], image: Image
) -> None:
    """With verify='read-back' an image gets there as well."""
    library, host = masters[0]
    checked = Image(image.path, verify="read-back")
    assert _read(backend, run(library.path_on(host, backend.images, checked))) == _content()


def test_an_image_on_another_host_is_brought(
    backend: Backend, shelf: Shelf, masters: list[tuple[Library, Host]], able: Able
) -> None:
    """An image on another host gets to this one by way of the master."""
    able(STORAGE)
    _, host = masters[0]
    # The same libvirt, under a name by which nobody could know that it is.
    other = Host(Connection(backend.uri), reactorthread.start(), driver=backend.driver)
    other.connection = Connection("elsewhere")
    source = backend.add_image("there.qcow2", folder=f"{backend.images}/there")
    library = Library(reactorthread.start(), OWNER, lambda connection: other)
    path = run(library.path_on(host, backend.images, Image(source, at=Connection("elsewhere"))))
    assert path != source
    assert _read(backend, path) == _read(backend, source)
    run(other.close())
