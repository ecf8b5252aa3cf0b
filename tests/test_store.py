"""The image store: whole images or none, also when processes die or want the same thing at once."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from barring import barred
from latentvirt.errors import ImageError
from latentvirt.images import store as store_module
from latentvirt.images.root import default_root
from latentvirt.images.store import BUILT, STOCK, Entry, ImageStore

PATIENCE_S = 30.0


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """An empty store, whose folder does not exist yet."""
    return ImageStore(tmp_path / "images")


def put(store: ImageStore, name: str = "debian-12", content: bytes = b"disk", **changes: Any) -> Entry:
    """Publish an image."""
    temp = store.scratch() / f"{name}.part"
    temp.write_bytes(content)
    given = {"name": name, "arch": "x86_64", "kind": STOCK, "format": "qcow2", "source": {"url": "http://x"}}
    return store.publish(temp, **{**given, **changes})


def test_an_image_is_found_by_name_architecture_and_kind(store: ImageStore) -> None:
    """What was published is found with all that is known of it, and nothing else is."""
    entry = put(store, content=b"one")
    put(store, content=b"two", kind=BUILT)
    assert store.find("debian-12", "x86_64", STOCK) == entry
    assert store.find("debian-12", "aarch64", STOCK) is None
    assert store.find("debian-13", "x86_64", STOCK) is None
    assert (entry.digest, entry.size) == (hashlib.sha256(b"one").hexdigest(), 3)
    assert entry.source == {"url": "http://x"}
    assert store.path_of(entry).read_bytes() == b"one"
    assert [(one.name, one.kind) for one in store.entries()] == [("debian-12", BUILT), ("debian-12", STOCK)]


def test_a_store_that_was_never_written_to_is_empty(store: ImageStore) -> None:
    """Looking at a store makes no folder."""
    assert (store.entries(), store.damaged(), store.find("a", "b", STOCK)) == ([], [], None)
    assert store.remove("a", "b", STOCK) is False
    assert not store.root.exists()


def test_nobody_writes_to_an_image(store: ImageStore) -> None:
    """An image's file is read-only, also if the file that it was made of was secret or writable."""
    assert stat.S_IMODE(store.path_of(put(store)).stat().st_mode) == 0o444


def test_a_newer_image_takes_the_name(store: ImageStore) -> None:
    """Who looks a name up gets what was published last."""
    put(store, content=b"old")
    newer = put(store, content=b"new")
    assert store.find("debian-12", "x86_64", STOCK) == newer
    assert len(store.entries()) == 1


def test_a_given_digest_is_not_computed_again(store: ImageStore) -> None:
    """A file whose digest was computed while it was written is not read a second time."""
    assert put(store, digest="0" * 64).digest == "0" * 64


def test_what_cannot_be_a_name_is_refused(store: ImageStore) -> None:
    """A name that would lead out of the store, or be read as another, publishes nothing."""
    for wrong in ({"name": "../x"}, {"name": ""}, {"arch": "x.86"}, {"kind": "odd"}, {"format": "vmdk"}):
        temp = store.scratch() / "x"
        temp.write_bytes(b"disk")
        given = {"name": "a", "arch": "b", "kind": STOCK, "format": "raw", "source": {}}
        with pytest.raises(ImageError, match="cannot have"):
            store.publish(temp, **{**given, **wrong})  # type: ignore[arg-type]
    assert store.entries() == []
    assert not (store.root / "blobs").exists()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"name": "x"',
        json.dumps({"name": "b", "arch": "x86_64", "kind": "stock"}).encode(),
    ],
)
def test_one_damaged_name_hides_no_other(store: ImageStore, damage: bytes) -> None:
    """A broken file among the names is told of; all other images are there."""
    put(store, "a", b"a")
    put(store, "b", b"b")
    put(store, "c", b"c")
    (store.root / "names" / "b.x86_64.stock.json").write_bytes(damage)
    assert [entry.name for entry in store.entries()] == ["a", "c"]
    assert store.find("b", "x86_64", STOCK) is None
    assert [one.path.name for one in store.damaged()] == ["b.x86_64.stock.json"]
    put(store, "b", b"b")
    assert [entry.name for entry in store.entries()] == ["a", "b", "c"]


@pytest.mark.parametrize("when", ["1e30", "NaN", "-1", "Infinity"])
def test_a_name_whose_time_has_no_date_is_damaged(store: ImageStore, when: str) -> None:
    """A time that no calendar has is told as damage."""
    put(store)
    (path,) = (store.root / "names").iterdir()
    data = json.loads(path.read_text()) | {"when": float(when)}
    path.write_text(json.dumps(data))
    (damaged,) = store.damaged()
    assert "cannot have when=" in damaged.why


def test_a_name_whose_image_is_gone_or_cut_is_damaged(store: ImageStore) -> None:
    """An image that a person removed or cut off by hand is not handed out."""
    gone, cut = put(store, "gone", b"gone"), put(store, "cut", b"cut")
    store.path_of(gone).unlink()
    store.path_of(cut).unlink()
    store.path_of(cut).write_bytes(b"c")
    assert store.entries() == []
    assert sorted(one.path.name.partition(".")[0] for one in store.damaged()) == ["cut", "gone"]


def test_a_name_that_was_copied_to_another_is_damaged(store: ImageStore) -> None:
    """A file that a person copied to a new name does not make an image appear twice."""
    put(store)
    names = store.root / "names"
    (names / "debian-13.x86_64.stock.json").write_bytes((names / "debian-12.x86_64.stock.json").read_bytes())
    assert [entry.name for entry in store.entries()] == ["debian-12"]
    assert "another name" in store.damaged()[0].why


def test_a_removed_image_is_gone_and_what_shares_its_file_is_not(store: ImageStore) -> None:
    """Removing a name removes the file with the last name that leads to it."""
    one, other = put(store, "one"), put(store, "other")
    assert store.path_of(one) == store.path_of(other)
    assert store.remove("one", "x86_64", STOCK)
    assert store.path_of(other).exists()
    assert store.entries() == [other]
    assert store.remove("other", "x86_64", STOCK)
    assert not store.path_of(other).exists()
    assert not store.remove("other", "x86_64", STOCK)


def test_removing_spares_the_file_of_a_damaged_name(store: ImageStore) -> None:
    """A name that cannot be read just now does not lose its image because another is removed."""
    entry = put(store, "good")
    put(store, "bad")
    bad = store.root / "names" / "bad.x86_64.stock.json"
    bad.write_bytes(bad.read_bytes()[:-3])
    store.remove("good", "x86_64", STOCK)
    assert store.path_of(entry).exists()


def test_a_confirmed_image_was_checked_later_than_it_was_published(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who finds that an image is the newest still need not ask again for a while."""
    entry = put(store)
    monkeypatch.setattr(store_module.time, "time", lambda: entry.when + 1000)
    checked = store.confirm(entry, source={"serial": "2"})
    assert store.find("debian-12", "x86_64", STOCK) == checked
    assert (checked.when, checked.checked) == (entry.when, entry.when + 1000)
    assert checked.source == {"serial": "2"}


KILLED = """
import os, signal, sys
from pathlib import Path
from latentvirt.images.store import ImageStore
store, left = ImageStore(sys.argv[1]), int(sys.argv[2])
def replace(self, target):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    os.rename(self, target)
Path.replace = replace
temp = store.scratch() / "x"
temp.write_bytes(b"disk")
store.publish(temp, name="debian-12", arch="x86_64", kind="stock", format="raw", source={})
"""


@pytest.mark.parametrize("renames", [0, 1])
def test_a_process_killed_while_it_publishes_leaves_no_half_image(store: ImageStore, renames: int) -> None:
    """Before an image has its name there is none, and the next process can publish it."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(store.root), str(renames)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (store.entries(), store.damaged()) == ([], [])
    put(store)
    assert len(store.entries()) == 1


HOLDING = """
import sys
from latentvirt.images.store import ImageStore
with ImageStore(sys.argv[1]).lock("pull debian-12"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_what_one_process_does_another_waits_for_until_it_is_dead(store: ImageStore) -> None:
    """A lock keeps others waiting, tells them so, and dies with its holder."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(store.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    waited = []

    def kill() -> None:
        waited.append("waits")
        os.kill(holder.pid, signal.SIGKILL)

    with store.lock("pull debian-13"):  # another thing to do
        pass
    assert waited == []
    with store.lock("pull debian-12", waits=kill):
        assert waited == ["waits"]
    holder.communicate(timeout=PATIENCE_S)


def test_threads_of_one_process_wait_for_each_other(store: ImageStore) -> None:
    """A master that is asked for one image twice makes it once."""
    doing: list[str] = []

    def work() -> None:
        with store.lock("x"):
            doing.append("begins")
            doing.append("ends")

    threads = [threading.Thread(target=work) for _ in range(8)]
    with store.lock("x"):
        for thread in threads:
            thread.start()
        assert doing == []
    for thread in threads:
        thread.join(PATIENCE_S)
    assert doing == ["begins", "ends"] * 8


def test_a_folder_that_cannot_be_written_to_is_named_with_a_way_out(tmp_path: Path) -> None:
    """Who may not write there is told which folder it is and how to name another."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageError, match="LATENTVIRT_IMAGES") as caught:
        ImageStore(tmp_path / "file").scratch()
    assert str(tmp_path / "file") in str(caught.value)
    with pytest.raises(ImageError, match="could not lock"), ImageStore(tmp_path / "file").lock("x"):
        pass


def test_a_store_that_may_not_be_seen_is_named_with_a_way_out(store: ImageStore) -> None:
    """Somebody else's store is not taken for an empty one, and no traceback either."""
    put(store)
    for look in (store.entries, store.damaged):
        with (
            barred(store.root),
            pytest.raises(ImageError, match=r"could not look for.*What to do: let this user"),
        ):
            look()


def test_a_file_is_no_empty_store(tmp_path: Path) -> None:
    """A wrong path that names a file is told, before somebody takes all images for gone."""
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match="Not a directory"):
        ImageStore(tmp_path / "file").entries()


def test_the_store_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The folder is the one named, else root's, else one of the user's own."""
    monkeypatch.setenv("LATENTVIRT_IMAGES", str(tmp_path))
    assert ImageStore().root == tmp_path
    monkeypatch.delenv("LATENTVIRT_IMAGES")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_root() == Path("/var/lib/latentvirt/images")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_root() == Path("/data/latentvirt/images")
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/x")
    assert default_root() == Path("/home/x/.local/share/latentvirt/images")
