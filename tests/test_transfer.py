"""Images that are brought to hosts, on the fake: who copies, who waits, and what becomes of broken copies."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest
from twisted.internet import defer

import reactorthread
from latentvirt.config import Connection, Image
from latentvirt.errors import ConfigError, HostError, HostTimeout, ImageError, NotFound
from latentvirt.flights import Flights
from latentvirt.host import Host
from latentvirt.host.hauling import MOST_STUCK
from latentvirt.host.storage import POOL_TRIES
from latentvirt.images import Library
from latentvirt.images import library as library_module
from latentvirt.images import reading as reading_module
from latentvirt.images import transfer as transfer_module
from latentvirt.images.head import format_of
from latentvirt.images.naming import Listing, directory_in
from latentvirt.testing import FakeFile, FakeHostState, FakeLibvirt, libvirt_error
from latentvirt.testing.trouble import Hang, connection_lost
from reactorthread import on_reactor, run

FOLDER = "/images"
SHELF = directory_in(FOLDER)
OWNERS = ("0123456789abcdef", "fedcba9876543210")
MIB = 1024**2
NO_CONNECT = 38


def qcow2(length: int = MIB, *, seed: bytes = b"x", backing: bool = False, features: int = 0) -> bytes:
    """Make bytes that begin as a qcow2 image does."""
    head = b"QFI\xfb" + (3).to_bytes(4, "big") + (104 if backing else 0).to_bytes(8, "big")
    head += (5 if backing else 0).to_bytes(4, "big") + (16).to_bytes(4, "big") + (MIB).to_bytes(8, "big")
    head = head.ljust(72, b"\0") + features.to_bytes(8, "big")
    return head.ljust(104, b"\0") + (hashlib.sha256(seed).digest() * (length // 32 + 1))[: length - 104]


class Scene:
    """A fake world with a host, and masters that bring images to it."""

    def __init__(self, tmp_path: Path) -> None:
        self.fake = FakeLibvirt()
        self.tmp_path = tmp_path
        self.said: list[str] = []
        self.masters = [self.master(owner) for owner in OWNERS]
        self.state.add_folder(FOLDER)

    @property
    def state(self) -> FakeHostState:
        """The host, seen from inside."""
        return self.fake.inspector

    def master(self, owner: str, **how: Any) -> tuple[Library, Host]:
        """Make a master, with a connection of its own to the host."""
        hosts: dict[str, Host] = {}
        reactor = reactorthread.start()

        def host_of(connection: Connection) -> Host:
            if connection.uri not in hosts:
                hosts[connection.uri] = Host(connection, reactor, driver=self.fake)
            return hosts[connection.uri]

        return Library(reactor, owner, host_of), host_of(Connection("qemu:///system", **how))

    def image(self, content: bytes | None = None, **how: Any) -> Image:
        """Put an image on the master."""
        path = self.tmp_path / "base.qcow2"
        path.write_bytes(qcow2() if content is None else content)
        return Image(str(path), **how)

    def bring(self, image: Image, master: int = 0, folder: str = FOLDER) -> str:
        """Bring it."""
        library, host = self.masters[master]
        return run(library.path_on(host, folder, image, self.said.append))

    def begin(self, image: Image, master: int = 0) -> tuple[defer.Deferred[str], Any]:
        """Begin to bring it; returns the Deferred, and a way to wait for it."""
        library, host = self.masters[master]

        def start() -> defer.Deferred[str]:
            return defer.ensureDeferred(library.path_on(host, FOLDER, image, self.said.append))

        doing = on_reactor(start)
        caught: defer.Deferred[Any] = defer.Deferred()
        on_reactor(lambda: doing.addBoth(caught.callback) and None)

        async def wait() -> Any:
            return await caught

        return doing, lambda: run(wait())

    def files(self) -> dict[str, bytes]:
        """What lies on the shelf."""
        with self.state.lock:  # a lock is made anew, under another name, while it is looked
            return {name: self.state.files[f"{SHELF}/{name}"].read() for name in self.state.listing(SHELF)}

    def copies(self) -> int:
        """How often something was uploaded."""
        return self.state.trouble.calls.count("volume.upload")


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A fake world."""
    opened = Scene(tmp_path)
    yield opened
    for _, host in opened.masters:
        run(host.close())


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a lock be dead soon, and whoever waits look often."""
    monkeypatch.setattr(transfer_module, "POLL_S", 0.02)
    monkeypatch.setattr(transfer_module, "STALLED_S", 1.0)


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing that was seen be taken for granted."""
    monkeypatch.setattr(library_module, "FRESH_S", 0.0)


def digest_of(image: Image) -> str:
    """Digest an image's file."""
    return hashlib.sha256(Path(image.path).read_bytes()).hexdigest()


def test_an_image_is_copied_under_its_digest(scene: Scene) -> None:
    """An image of the master's lies on the host afterwards, byte for byte, for QEMU to read."""
    image = scene.image()
    path = scene.bring(image)
    digest = digest_of(image)
    file = scene.state.files[path]
    assert path.startswith(f"{SHELF}/{digest}.")
    assert path.endswith(".qcow2")
    assert (file.read(), file.mode, file.format) == (Path(image.path).read_bytes(), "0644", "qcow2")
    assert set(scene.files()) == {os.path.basename(path), os.path.basename(path).replace("qcow2", "ready")}
    assert scene.said[0] == "copying base.qcow2 to qemu:///system: 0 of 1 MiB"
    assert scene.said[-1].startswith("copying base.qcow2 to qemu:///system: done, 1 MiB in ")


def test_an_image_that_is_there_costs_a_start_no_call(scene: Scene) -> None:
    """A start soon after another asks the host nothing about the image."""
    image = scene.image()
    path = scene.bring(image)
    before = len(scene.state.trouble.calls)
    assert scene.bring(image) == path
    assert len(scene.state.trouble.calls) == before


def test_an_image_that_is_there_costs_two_looks(scene: Scene, forgetful: None) -> None:
    """A start later than that looks at the copy and at what makes it one, and copies nothing."""
    image = scene.image()
    path = scene.bring(image)
    before = len(scene.state.trouble.calls)
    assert scene.bring(image) == path
    assert scene.state.trouble.calls[before:] == ["pool.storageVolLookupByName", "volume.XMLDesc"] * 2


def test_an_image_that_is_to_go_is_copied_anew(scene: Scene, forgetful: None) -> None:
    """A start does not choose a copy that somebody is about to collect, though it is there."""
    image = scene.image()
    path = scene.bring(image)
    scene.state.files.pop(f"{path.removesuffix('.qcow2')}.ready")
    scene.state.add_file(f"{path}.doomed")
    assert scene.bring(image) != path
    assert path in scene.state.files


def test_another_master_uses_what_is_there(scene: Scene) -> None:
    """A second master finds the first one's copy."""
    image = scene.image()
    assert scene.bring(image, 0) == scene.bring(image, 1)
    assert scene.copies() == 1


def test_two_masters_at_once_copy_once(scene: Scene, hurried: None) -> None:
    """The one that comes second waits for the first one's copy, and says so."""
    image = scene.image()
    hang = scene.state.trouble.hang("stream.send")
    _, first = scene.begin(image, 0)
    assert hang.entered.acquire(timeout=30)
    _, second = scene.begin(image, 1)
    for _ in range(300):
        if any("another master is copying it" in line for line in scene.said):
            break
        threading.Event().wait(0.01)
    hang.release()
    assert first() == second()
    assert scene.copies() == 1
    assert any("another master is copying it" in line for line in scene.said)


def test_many_starts_of_one_master_copy_once(scene: Scene) -> None:
    """Starts that need an image at the same time wait for one copy."""
    image = scene.image()
    hang = scene.state.trouble.hang("stream.send")
    waiting = [scene.begin(image)[1] for _ in range(5)]
    assert hang.entered.acquire(timeout=30)
    hang.release()
    assert len({wait() for wait in waiting}) == 1
    assert scene.copies() == 1


def test_who_is_called_off_does_not_take_the_copy_along(scene: Scene) -> None:
    """A build that is stopped while it waits for a copy leaves the copy to the others who wait."""
    image = scene.image()
    hang = scene.state.trouble.hang("stream.send")
    doing, first = scene.begin(image)
    _, second = scene.begin(image)
    assert hang.entered.acquire(timeout=30)
    on_reactor(doing.cancel)
    with pytest.raises(defer.CancelledError):
        first()
    hang.release()
    assert second() in scene.state.files
    assert scene.copies() == 1


def test_the_last_who_is_called_off_ends_the_copy(scene: Scene) -> None:
    """When nobody waits any more, the copy ends and leaves neither half a file nor a lock."""
    image = scene.image()
    hang = scene.state.trouble.hang("stream.send")
    doing, wait = scene.begin(image)
    assert hang.entered.acquire(timeout=30)
    on_reactor(doing.cancel)
    with pytest.raises(defer.CancelledError):
        wait()
    hang.release()
    for _ in range(1000):
        if not scene.files():
            break
        threading.Event().wait(0.01)
    assert scene.files() == {}
    assert scene.bring(image) in scene.state.files


def _called_off(scene: Scene, image: Image, after: str, method: str) -> dict[str, bytes]:
    """Call a copy off during the first call of a method after another; returns what is there in the end."""
    hangs: queue.Queue[Hang] = queue.Queue()
    scene.state.trouble.before_next(after, lambda: hangs.put(scene.state.trouble.hang(method)))
    doing, wait = scene.begin(image)
    hang = hangs.get(timeout=30)
    assert hang.entered.acquire(timeout=30)
    on_reactor(doing.cancel)
    with pytest.raises(defer.CancelledError):
        wait()
    hang.release()
    run(scene.masters[0][0].over())
    return scene.files()


@pytest.mark.parametrize(
    ("after", "method"),
    [
        ("pool.listVolumes", "pool.createXML"),
        ("pool.createXML", "pool.createXML"),
        ("pool.createXML", "volume.upload"),
        ("volume.upload", "stream.send"),
        ("stream.finish", "pool.createXML"),
    ],
)
def test_a_copy_that_is_called_off_is_cleared_up_whatever_it_was_doing(
    scene: Scene, after: str, method: str
) -> None:
    """Also a lock, a file or a marker that is just being made is gone when the copying is over."""
    scene.bring(scene.image(qcow2(seed=b"other")))
    before = scene.files()
    assert _called_off(scene, scene.image(), after, method) == before


def test_clearing_up_is_not_called_off(scene: Scene) -> None:
    """A build that is stopped while the remains of its copy are removed does not leave them."""
    scene.state.trouble.fail_next("stream.send", NO_CONNECT)
    assert _called_off(scene, scene.image(), "stream.send", "pool.storageVolLookupByName") == {}


@pytest.mark.parametrize("deleted", [1, 2])
def test_what_is_cleared_up_is_so_over_another_connection(scene: Scene, deleted: int) -> None:
    """A connection that breaks while a copy is cleared up leaves neither half a file nor a lock."""
    image = scene.image()
    trouble = scene.state.trouble
    trouble.fail_next("stream.send", NO_CONNECT)

    def break_at(deletes_left: int) -> None:
        if deletes_left:
            trouble.before_next("volume.delete", lambda: break_at(deletes_left - 1))
        else:
            scene.state.break_connections()
            raise connection_lost()

    break_at(deleted)
    with pytest.raises(HostError):
        scene.bring(image)
    assert scene.files() == {}
    assert scene.bring(image) in scene.state.files


def _left_behind(scene: Scene, image: Image, *, marker: bool = False, half: bool = True) -> str:
    """Leave what a master leaves that was killed half-way; returns the copy's name."""
    digest = digest_of(image)
    other = scene.tmp_path / "other.qcow2"
    other.write_bytes(qcow2(seed=b"other"))
    scene.bring(Image(str(other)), 1)
    name = f"{digest}.0123456789ab.qcow2"
    left = [f"{digest}.0123456789ab.ready" if marker else f"{digest}.lock.1", *([name] if half else [])]
    for file in left:
        scene.state.add_file(f"{SHELF}/{file}", FakeFile(format="raw", capacity=0, content=bytearray(b"ha")))
    return name


@pytest.mark.parametrize("half", [True, False])
def test_a_copy_that_was_killed_is_taken_over(scene: Scene, hurried: None, half: bool) -> None:
    """A lock that does not move is taken over, half a file is removed, and the image gets there."""
    image = scene.image()
    name = _left_behind(scene, image, half=half)
    path = scene.bring(image)
    assert scene.state.files[path].read() == Path(image.path).read_bytes()
    assert name not in scene.files()
    assert not [file for file in scene.files() if ".lock." in file]


def test_two_masters_take_one_dead_lock_over(scene: Scene, hurried: None) -> None:
    """Of two masters that find the same dead lock, one copies and the other waits."""
    image = scene.image()
    _left_behind(scene, image)
    before = scene.copies()
    waiting = [scene.begin(image, master)[1] for master in (0, 1)]
    assert len({wait() for wait in waiting}) == 1
    assert scene.copies() - before == 1


def test_a_lock_whose_copy_grows_is_not_dead(scene: Scene, hurried: None) -> None:
    """A slow copy of another master's is waited for as long as its file changes."""
    image = scene.image()
    name = _left_behind(scene, image)
    _, wait = scene.begin(image)
    done = threading.Event()
    for _ in range(20):
        done.wait(0.1)
        scene.state.files[f"{SHELF}/{name}"].touch()
    assert name in scene.files()
    wait()
    assert name not in scene.files()


def test_a_marker_without_its_file_is_no_image(scene: Scene) -> None:
    """Where somebody removed the file and left the marker, the image is copied again."""
    image = scene.image()
    name = _left_behind(scene, image, marker=True, half=False)
    path = scene.bring(image)
    assert scene.state.files[path].read() == Path(image.path).read_bytes()
    assert name.replace("qcow2", "ready") not in scene.files()


def test_a_copy_that_somebody_removed_is_made_again(scene: Scene, forgetful: None) -> None:
    """An image that a person deletes on the host is back for the next start."""
    image = scene.image()
    gone = scene.bring(image)
    del scene.state.files[gone]
    path = scene.bring(image)
    assert path != gone
    assert path in scene.state.files


def test_two_starts_that_miss_a_copy_at_once_make_it_again(scene: Scene, forgetful: None) -> None:
    """Builds that begin together after a person deleted an image on the host all get it."""
    image = scene.image()
    del scene.state.files[scene.bring(image)]
    hang = scene.state.trouble.hang("pool.storageVolLookupByName")
    waiting = [scene.begin(image)[1] for _ in range(2)]
    for _ in waiting:
        assert hang.entered.acquire(timeout=30)
    hang.release()
    (path,) = {wait() for wait in waiting}
    assert path in scene.state.files
    assert scene.copies() == 2


def test_who_was_presumed_dead_makes_no_image(scene: Scene, hurried: None) -> None:
    """A master that stood still and comes back uses the copy of the one that has taken over."""
    image = scene.image()
    hang = scene.state.trouble.hang("stream.send")
    _, slow = scene.begin(image, 0)
    assert hang.entered.acquire(timeout=30)
    _, quick = scene.begin(image, 1)
    assert hang.entered.acquire(timeout=30)  # it has taken over, and copies as well
    hang.release()
    assert slow() == quick()
    assert len(scene.files()) == 2
    assert any("another master has taken it over" in line for line in scene.said)


def test_a_host_that_was_booted_is_given_its_pool_again(scene: Scene, forgetful: None) -> None:
    """A copy is found again on a host whose transient pools are gone."""
    image = scene.image()
    path = scene.bring(image)
    scene.state.reboot()
    scene.state.settle()
    assert scene.bring(image) == path
    assert scene.copies() == 1


def test_a_build_that_is_stopped_leaves_its_image_open_nowhere(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is being opened for a copy when its build is stopped is closed again, however late."""
    image = scene.image()
    opening, go_on = threading.Event(), threading.Event()
    opened: list[str] = []
    threads: list[threading.Thread] = []

    def slow(path: str) -> tuple[int, os.stat_result]:
        opened.append(path)
        found = reading_module.open_image(path)
        if len(opened) == 2:  # the first time it is looked what the image is
            threads.append(threading.current_thread())
            opening.set()
            go_on.wait(30)
        return found

    monkeypatch.setattr("latentvirt.images.source.open_image", slow)
    doing, wait = scene.begin(image)
    assert opening.wait(30)
    on_reactor(doing.cancel)
    with pytest.raises(defer.CancelledError):
        wait()
    go_on.set()
    threads[0].join()
    # The reactor lets go of what a thread has handed it once it has done all that was handed to it together.
    for _ in range(2):
        on_reactor(gc.collect)
    assert image.path not in _open_files()


def _open_files() -> set[str]:
    """Name the files that this process has open."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return found


# Refusals


def test_other_bytes_on_the_host_are_noticed_when_read_back(scene: Scene) -> None:
    """With verify='read-back' a disk that garbles what it was given makes no image."""

    def garble() -> None:
        for name in scene.state.listing(SHELF):
            if name.endswith(".qcow2"):
                content = scene.state.files[f"{SHELF}/{name}"].content
                assert content is not None
                content[500] ^= 1

    scene.state.trouble.before_next("volume.download", garble)
    with pytest.raises(HostError, match="gives other bytes back than it was sent"):
        scene.bring(scene.image(verify="read-back"))
    assert scene.files() == {}


def test_what_is_read_back_and_right_is_an_image(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """With verify='read-back' a good copy is used, and its lock goes on changing meanwhile."""
    monkeypatch.setattr(transfer_module, "RENEW_S", 0.02)
    hang = scene.state.trouble.hang("stream.recv")
    image = scene.image(verify="read-back")
    _, wait = scene.begin(image)
    assert hang.entered.acquire(timeout=30)
    seen: set[str] = set()
    for _ in range(1000):
        there = {name for name in scene.files() if ".lock." in name}
        assert len(there) <= 2
        seen |= there
        if len(seen) > 3:
            break
        threading.Event().wait(0.01)
    assert len(seen) > 3
    hang.release()
    assert wait() in scene.state.files
    assert len(scene.files()) == 2


def test_a_short_copy_is_refused(scene: Scene) -> None:
    """A file that is shorter on the host than what was sent makes no image."""

    def cut() -> None:
        for name in scene.state.listing(SHELF):
            if name.endswith(".qcow2"):
                file = scene.state.files[f"{SHELF}/{name}"]
                assert file.content is not None
                del file.content[5000:]
                file.length = 5000

    scene.state.trouble.before_next("stream.finish", cut)
    with pytest.raises(HostError, match="5000 of 1048576 bytes are there"):
        scene.bring(scene.image())
    assert scene.files() == {}


def test_an_image_that_changes_while_it_is_sent_is_begun_anew(scene: Scene) -> None:
    """What was published in place while it was copied is copied as it is then."""
    image = scene.image()
    scene.state.trouble.before_next(
        "volume.upload", lambda: Path(image.path).write_bytes(qcow2(seed=b"newer", length=MIB + 512))
    )
    path = scene.bring(image)
    assert scene.state.files[path].read() == Path(image.path).read_bytes()
    assert len(scene.files()) == 2


def test_an_image_that_changes_all_the_time_is_refused(scene: Scene) -> None:
    """An image that is written to each time it is read ends the build with what to do instead."""
    image = scene.image()
    for number in range(10):
        content = qcow2(seed=b"%d" % number)
        scene.state.trouble.before_next("volume.upload", lambda c=content: Path(image.path).write_bytes(c))  # type: ignore[misc]
    with pytest.raises(ImageError, match=r"was changed while it was read.*rename it over the old one"):
        scene.bring(image)
    assert scene.files() == {}


def test_an_image_that_is_replaced_is_another(scene: Scene, forgetful: None) -> None:
    """A newer image under the same path gets to the host beside the older one, which builds may still use."""
    image = scene.image()
    old = scene.bring(image)
    newer = scene.tmp_path / "newer"
    newer.write_bytes(qcow2(seed=b"newer"))
    newer.rename(image.path)
    new = scene.bring(image)
    assert new != old
    assert {old, new} <= set(scene.state.files)


def test_no_room_is_told_before_anything_is_sent(scene: Scene) -> None:
    """A host without room for the image says how much is needed and free, and nothing is begun there."""
    scene.state.free = MIB // 2
    with pytest.raises(ImageError, match=r"it needs 1 MiB, and 0 MiB are free.*make room where /images"):
        scene.bring(scene.image())
    assert scene.copies() == 0
    assert scene.files() == {}


def test_a_disk_that_fills_up_meanwhile_is_told_as_such(scene: Scene) -> None:
    """A disk that is filled by others during the copy ends it with the same message; no half file stays."""

    def fill() -> None:
        scene.state.free = 1000

    scene.state.trouble.before_next("stream.send", fill)
    with pytest.raises(ImageError, match="there is no room for the image"):
        scene.bring(scene.image())
    assert scene.files() == {}


def test_a_connection_that_breaks_is_a_hosts_fault(scene: Scene) -> None:
    """A copy that is cut off fails so that the build is tried again, and the next one need not wait."""
    image = scene.image()
    scene.state.trouble.before_next("stream.send", scene.state.break_connections)
    with pytest.raises(HostError) as caught:
        scene.bring(image)
    assert caught.value.retry
    assert scene.bring(image) in scene.state.files
    assert len(scene.files()) == 2


def test_own_leftovers_are_known_as_such(scene: Scene) -> None:
    """A lock that this master could not remove, since the host was away, does not keep it waiting."""
    image = scene.image()

    def away() -> None:
        scene.state.reachable = False
        scene.state.break_connections()

    scene.state.trouble.before_next("stream.send", away)
    with pytest.raises(HostError):
        scene.bring(image)
    assert [name for name in scene.files() if ".lock." in name]
    scene.state.reachable = True
    assert scene.bring(image) in scene.state.files
    assert len(scene.files()) == 2


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "cannot be read: No such file"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: os.mkfifo(path), "is no ordinary file"),
        (lambda path: path.write_bytes(b""), "is no disk image: it holds 0 bytes"),
        (lambda path: path.write_bytes(qcow2(backing=True)), "stands on another image.*qemu-img convert"),
        (
            lambda path: path.write_bytes(qcow2(features=4)),
            "keeps its data in another file.*qemu-img convert",
        ),
        (lambda path: path.write_bytes(b"KDMV".ljust(MIB)), "is of the format vmdk, which is not copied"),
    ],
)
def test_what_cannot_be_copied_is_named(scene: Scene, make: Callable[[Path], object], says: str) -> None:
    """What is no image of one file ends the build with its path, and what to do."""
    path = scene.tmp_path / "bad"
    make(path)
    with pytest.raises(ImageError, match=f"the image {path} on the master {says}") as caught:
        scene.bring(Image(str(path)))
    assert caught.value.remedy
    assert not caught.value.retry


def test_a_folder_that_is_not_there_is_named(scene: Scene) -> None:
    """An image folder that the host does not have is not made, but named."""
    with pytest.raises(ImageError, match="there is no folder /no-such-folder on the host"):
        scene.bring(scene.image(), folder="/no-such-folder")


def test_a_folder_is_not_missing_because_it_is_said_once(scene: Scene) -> None:
    """Two that look for the folder at once may take libvirt's own files along, told in the same words."""
    words = "cannot create file '/run/libvirt/storage/x.xml.new': No such file or directory"
    scene.state.trouble.fail_next(
        "storagePoolCreateXML", libvirt_error(libvirt.VIR_ERR_SYSTEM_ERROR, words, errno=2)
    )
    assert scene.bring(scene.image()).startswith(directory_in(FOLDER))


def test_a_pool_that_others_keep_stopping_is_no_missing_folder(scene: Scene) -> None:
    """Where the pool goes as often as it is made, the build tries again: its image folder is there."""
    for _ in range(2 * POOL_TRIES):  # one to look for the folder, one for the pool itself
        scene.state.trouble.fail_next(
            "storagePoolCreateXML", libvirt.VIR_ERR_NO_STORAGE_POOL, "Storage pool not found"
        )
    with pytest.raises(HostError, match=r"could not make the storage pool.*not found") as caught:
        scene.bring(scene.image())
    assert caught.value.retry


def test_a_raw_image_is_taken_for_what_the_person_says() -> None:
    """With format='raw' the bytes of an image are not asked what they are."""
    look = {"path": "/x", "host": "", "where": "on the master"}
    assert format_of(qcow2(backing=True), MIB, given="raw", **look) == "raw"
    assert format_of(b"\0" * 104, MIB, given=None, **look) == "raw"
    with pytest.raises(ImageError, match="is no qcow2 image"):
        format_of(b"\0" * 104, MIB, given="qcow2", **look)


@pytest.mark.parametrize(
    "image",
    [
        Image("relative"),
        Image("/folder/"),
        Image("/x", at="qemu:///system"),  # type: ignore[arg-type]
        Image("/x", at=Connection("::")),
        Image("/x", format="vmdk"),
        Image("/x", verify="often"),
    ],
)
def test_an_image_that_cannot_be_right_is_refused(image: Image) -> None:
    """What is wrong with an Image is told without a look at any file."""
    with pytest.raises(ConfigError):
        image.check()


# Other hosts


def test_an_image_on_another_host_is_brought(scene: Scene) -> None:
    """An image on one host gets to another, and is read only once for several hosts."""
    there = scene.fake.inspect("qemu+ssh://other/system")
    there.add_file("/srv/base.qcow2", FakeFile(content=bytearray(qcow2()), length=MIB))
    image = Image("/srv/base.qcow2", at=Connection("qemu+ssh://other/system"))
    path = scene.bring(image)
    assert scene.state.files[path].read() == qcow2()
    assert there.pools == {}
    assert there.trouble.calls.count("volume.download") == 1


def test_an_image_that_is_on_that_very_host_stays_there(scene: Scene) -> None:
    """An image on the host that needs it is used where it is."""
    assert scene.bring(Image("/srv/base.qcow2", at=Connection("qemu:///system"))) == "/srv/base.qcow2"
    assert scene.copies() == 0


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (None, "the image /srv/base.qcow2 is not there, or libvirt may not read it"),
        (FakeFile(format="dir", capacity=0), "is a directory"),
        (FakeFile(backing="/srv/older.qcow2", backing_format="qcow2"), "stands on another image .*convert"),
    ],
)
def test_what_cannot_be_copied_from_another_host_is_named(
    scene: Scene, file: FakeFile | None, says: str
) -> None:
    """What is no image of one file on another host ends the build with host, path, and what to do."""
    there = scene.fake.inspect("qemu+ssh://other/system")
    there.add_folder("/srv")
    if file is not None:
        there.add_file("/srv/base.qcow2", file)
    with pytest.raises(ImageError, match=says) as caught:
        scene.bring(Image("/srv/base.qcow2", at=Connection("qemu+ssh://other/system")))
    assert caught.value.host == "qemu+ssh://other/system"
    assert caught.value.remedy


# How much at once


def test_one_copy_at_a_time_goes_to_a_host(scene: Scene) -> None:
    """A second image for a host waits until the first is there, and says so."""
    hang = scene.state.trouble.hang("stream.send")
    first_image = scene.image()
    second_path = scene.tmp_path / "second.qcow2"
    second_path.write_bytes(qcow2(seed=b"second"))
    _, first = scene.begin(first_image)
    assert hang.entered.acquire(timeout=30)
    _, second = scene.begin(Image(str(second_path)))
    for _ in range(1000):
        if any("waiting for other copies" in line for line in scene.said):
            break
        threading.Event().wait(0.01)
    assert scene.copies() == 1
    hang.release()
    assert first() != second()
    assert scene.copies() == 2


def test_other_calls_go_on_during_a_copy(scene: Scene) -> None:
    """A host answers while an image is sent to it."""
    hang = scene.state.trouble.hang("stream.send")
    _, wait = scene.begin(scene.image())
    assert hang.entered.acquire(timeout=30)
    assert run(scene.masters[0][1].domains()) == []
    hang.release()
    wait()


def test_the_rate_is_kept(scene: Scene) -> None:
    """With copy_rate a copy takes as long as its bytes take at that rate."""
    reactor = reactorthread.start()
    library, host = scene.master(OWNERS[0], copy_rate="2 MiB")
    began = reactor.seconds()
    run(library.path_on(host, FOLDER, scene.image()))
    assert reactor.seconds() - began >= 0.5
    run(host.close())


def test_a_transfer_that_stands_still_is_given_up(scene: Scene) -> None:
    """A host that takes no more bytes costs the build an error; one that is slow but moves does not."""
    host = scene.masters[0][1]
    scene.state.add_folder("/p")
    run(host.ensure_pool("p", "/p"))
    xml = "<volume><name>v</name><capacity>0</capacity><target><format type='raw'/></target></volume>"
    run(host.create_volume("p", xml))
    pieces = [b"x" * 1000] * 6
    pause = threading.Event()

    def slowly(count: int) -> bytes:
        pause.wait(0.4)
        return pieces.pop() if pieces else b""

    run(host.upload("p", "v", slowly, 6000, stall_s=2.0))
    hang = scene.state.trouble.hang("stream.send")
    with pytest.raises(HostTimeout, match=r"stood still for 0.1 s when asked to fill the volume v"):
        run(host.upload("p", "v", lambda count: b"x", 1, stall_s=0.1))
    hang.release()


def test_stuck_transfers_are_not_piled_up(scene: Scene) -> None:
    """A host on which transfers hang for good costs a few threads, until they come back."""
    host = scene.masters[0][1]
    hang = scene.state.trouble.hang("open")
    for _ in range(MOST_STUCK):
        with pytest.raises(HostTimeout, match="stood still"):
            run(host.download("p", "v", lambda data: None, stall_s=0.05))
    with pytest.raises(HostTimeout, match="earlier transfers have not come back"):
        run(host.download("p", "v", lambda data: None))
    hang.release()
    for _ in range(1000):
        try:
            run(host.download("p", "v", lambda data: None))
        except NotFound:
            break
        except HostTimeout:
            threading.Event().wait(0.01)
    else:
        raise AssertionError("the threads did not come back")


def test_a_master_without_room_to_pass_an_image_on(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for passing through that is not there, or full, is named, and no host is blamed."""
    there = scene.fake.inspect("qemu+ssh://other/system")
    there.add_file("/srv/base.qcow2", FakeFile(content=bytearray(qcow2()), length=MIB))
    monkeypatch.setenv("TMPDIR", "/no-such-folder")
    with pytest.raises(ImageError, match=r"by way of /no-such-folder on the master: .*set TMPDIR") as caught:
        scene.bring(Image("/srv/base.qcow2", at=Connection("qemu+ssh://other/system")))
    assert caught.value.host == ""


def test_things_done_once_for_all_fail_for_all() -> None:
    """When a shared copy fails, each start that waited for it hears why; the next one begins anew."""
    flights: Flights[int] = Flights()
    broken: defer.Deferred[int] = defer.Deferred()

    async def begin(say: object) -> int:
        return await broken

    waiting = [flights.join("key", begin) for _ in range(2)]
    heard: list[Any] = []
    for waiter in waiting:
        waiter.addErrback(lambda failure: heard.append(failure.value))
    error = HostError("broke")
    broken.errback(error)
    assert heard == [error, error]

    async def well(say: object) -> int:
        return 7

    flights.join("key", well).addCallback(heard.append)
    assert heard[-1] == 7


def test_names_of_others_on_a_shelf_mean_nothing() -> None:
    """What a person keeps beside our copies is neither used nor removed."""
    digest = "a" * 64
    names = ["notes.txt", f"{digest}.qcow2", f"{digest}.0123456789ab.vmdk", f"{'b' * 64}.lock.1"]
    assert Listing.of(digest, names) == Listing((), (), (), (), ())
