"""`latentvirt image gc`, as a person calls it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import reactorthread
from latentvirt.cli import main
from latentvirt.config import Connection
from latentvirt.domainxml import Layer
from latentvirt.errors import Refused
from latentvirt.host import Host
from latentvirt.images import collecting
from latentvirt.images.collecting import Collection, Copy
from latentvirt.images.leftovers import SCRATCH_KEPT_S
from latentvirt.images.naming import CopyName, directory_in
from latentvirt.images.root import ROOT_VARIABLE
from latentvirt.images.shelf import open_shelf
from latentvirt.images.store import ImageStore
from latentvirt.names import FileName
from latentvirt.storage import open_storage
from latentvirt.testing import FakeLibvirt
from reactorthread import run

URI = "qemu+ssh://one/system"
IMAGES = "/var/lib/libvirt/images"
ELSEWHERE = "/srv/images"
EXAMPLES = Path(__file__).resolve().parent.parent / "docs" / "examples"
OWNER = "0123456789abcdef"
CONTENT = b"an image of the master"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(collecting, "GRACE_S", 0.0)
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "store"))


def digest(content: bytes) -> str:
    """The name that a copy of it has."""
    return hashlib.sha256(content).hexdigest()


class Shelves:
    """A host with copies in two folders."""

    def __init__(self) -> None:
        self.fake = FakeLibvirt()
        self.state = self.fake.inspect(URI)
        for folder in (IMAGES, ELSEWHERE):
            self.state.add_folder(folder)
        self.host = Host(Connection(URI), reactorthread.start(), driver=self.fake)

    def put(self, folder: str, content: bytes) -> str:
        """Put a whole copy there."""
        shelf, name = open_shelf(self.host, folder), CopyName(digest(content), "0" * 12, "qcow2")
        run(shelf.create(str(name)))
        run(shelf.create(name.marker))
        return shelf.path_of(str(name))

    def there(self) -> list[str]:
        """The copies."""
        return sorted(path for path in self.state.files if path.endswith(".qcow2"))


@pytest.fixture
def shelves() -> Shelves:
    """A host with two copies that nobody needs, and one under an overlay."""
    made = Shelves()
    used = made.put(IMAGES, b"used")
    storage = open_storage(made.host, OWNER, IMAGES)
    run(storage.prepare())
    run(
        storage.create_overlay(
            FileName("slot1", "0a1b2c3d4e5f", "overlay", "vda"), Layer(used, "qcow2"), 1 << 20
        )
    )
    made.put(IMAGES, CONTENT)
    made.put(ELSEWHERE, b"elsewhere")
    run(made.host.close())
    return made


def gc(shelves: Shelves, *arguments: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(main, ["image", "gc", "-c", URI, *arguments], obj=shelves.fake)


def test_a_dry_run_only_tells(shelves: Shelves) -> None:
    """What would go and what stays is told with the reason, and nothing is touched."""
    before = dict(shelves.state.files)
    told = gc(shelves, "--dry-run", "--json")
    assert told.exit_code == 0, told.output
    done = {row["path"].rpartition("/")[2][:8]: row["done"] for row in json.loads(told.stdout)}
    assert done == {
        digest(b"used")[:8]: f"kept: latentvirt-{OWNER}/slot1.0a1b2c3d4e5f.overlay.vda",
        digest(CONTENT)[:8]: "would be removed",
        digest(b"elsewhere")[:8]: "would be removed",
    }
    assert shelves.state.files == before


def test_what_nothing_needs_goes_in_every_folder(shelves: Shelves) -> None:
    """Copies go from all folders that libvirt knows of; what an overlay stands on stays."""
    told = gc(shelves)
    assert told.exit_code == 0, told.output
    assert [path.rpartition("/")[2][:8] for path in shelves.there()] == [digest(b"used")[:8]]
    lines = told.stdout.splitlines()
    assert lines[0].split() == ["HOST", "IMAGE", "SIZE", "DONE"]
    assert sum(line.endswith(" removed") for line in lines) == 2


def test_a_folder_that_libvirt_has_forgotten_can_be_named(shelves: Shelves) -> None:
    """After the host was booted, a further folder is looked into where it is named; it must be there."""
    for pool in list(shelves.state.pools):
        del shelves.state.pools[pool]
    assert gc(shelves).exit_code == 0
    assert [path for path in shelves.there() if path.startswith(ELSEWHERE)]
    assert gc(shelves, "--folder", ELSEWHERE).exit_code == 0
    assert not [path for path in shelves.there() if path.startswith(ELSEWHERE)]
    wrong = gc(shelves, "--folder", "/nowhere")
    assert wrong.exit_code == 1
    assert "/nowhere" in wrong.stderr


def test_a_folder_that_nobody_named_may_be_closed(shelves: Shelves, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user may not look into libvirt's own folder: what they name is seen to all the same."""
    whole = Collection.look

    async def look(collection: Collection) -> list[Copy]:
        if collection.folder == IMAGES:
            raise Refused(f"could not list the folder {IMAGES}: Permission denied", host=URI)
        return await whole(collection)

    monkeypatch.setattr(Collection, "look", look)
    closed = gc(shelves)
    assert (closed.exit_code, "Permission denied" in closed.stderr) == (1, True)
    told = gc(shelves, "--folder", ELSEWHERE)
    assert told.exit_code == 0, told.output
    assert f"{IMAGES}: passed over: could not list the folder {IMAGES}: Permission denied" in told.stderr
    assert not [path for path in shelves.there() if path.startswith(ELSEWHERE)]


def test_a_copy_that_another_collection_dooms_meanwhile_stays_doomed(shelves: Shelves) -> None:
    """Two who collect at once do not make a copy look like a broken one, which any master may delete."""
    host = Host(Connection(URI), reactorthread.start(), driver=shelves.fake)
    later = CopyName(digest(b"later"), "1" * 12, "qcow2")
    doom = f"{directory_in(IMAGES)}/{later.doom}"

    def another(_: str) -> None:
        for name in (str(later), later.doom):
            shelves.state.add_file(f"{directory_in(IMAGES)}/{name}")

    run(collecting.Collection(host, IMAGES, {}, OWNER, another).collect())
    assert doom in shelves.state.files
    run(host.close())


def test_a_persons_pool_that_does_not_run_is_no_obstacle(shelves: Shelves) -> None:
    """Copies are collected under a pool that is defined over the folder and does not run, and it stays so."""
    target = f"<target><path>{IMAGES}</path></target>"
    xml = f"<pool type='dir'><name>default</name>{target}</pool>"
    shelves.fake.open(URI).storagePoolDefineXML(xml, 0)
    told = gc(shelves)
    assert told.exit_code == 0, told.output
    assert [path.rpartition("/")[2][:8] for path in shelves.there()] == [digest(b"used")[:8]]
    assert not shelves.state.pools["default"].active
    assert not [pool for pool in shelves.state.pools.values() if pool.path.startswith(f"{IMAGES}/.")]


def test_the_images_of_this_machine_and_of_its_master_stay(shelves: Shelves, tmp_path: Path) -> None:
    """A copy of an image that this machine's store has, or that the master.cfg names, stays."""
    store = ImageStore()
    (store.scratch() / "x").write_bytes(CONTENT)
    store.publish(
        store.scratch() / "x", name="debian-12", arch="x86_64", kind="built", format="qcow2", source={}
    )
    (tmp_path / "named.qcow2").write_bytes(b"elsewhere")
    config = tmp_path / "master.cfg"
    config.write_text(
        "from buildbot.plugins import schedulers, util\n"
        "from latentvirt import Connection, Image, LibVirtWorker, Size\n"
        f"c = BuildmasterConfig = {{'workers': [LibVirtWorker('w', 'p', Connection({URI!r}),"
        f" base_image=Image({str(tmp_path / 'named.qcow2')!r}), size=Size())],"
        " 'protocols': {'pb': {'port': 'tcp:9989'}},"
        " 'builders': [util.BuilderConfig(name='b', workernames=['w'], factory=util.BuildFactory())],"
        " 'schedulers': [schedulers.ForceScheduler('f', builderNames=['b'])]}\n"
    )
    told = gc(shelves, "--config", str(config))
    assert told.exit_code == 0, told.output
    assert len(shelves.there()) == 3
    assert "debian-12" in told.stdout
    (tmp_path / "named.qcow2").unlink()
    refused = gc(shelves, "--config", str(config))
    assert refused.exit_code == 1
    assert "named.qcow2" in refused.stderr
    assert len(shelves.there()) == 3


def test_a_master_that_names_an_image_of_this_machine_is_no_obstacle(
    shelves: Shelves, tmp_path: Path
) -> None:
    """With a master.cfg whose base image is a name, not a path, copies are collected all the same."""
    config = tmp_path / "master.cfg"
    config.write_text(
        "from buildbot.plugins import schedulers, util\n"
        "from latentvirt import Connection, LibVirtWorker, Size\n"
        f"c = BuildmasterConfig = {{'workers': [LibVirtWorker('w', 'p', Connection({URI!r}),"
        " base_image='debian-12', size=Size())], 'protocols': {'pb': {'port': 'tcp:9989'}},"
        " 'builders': [util.BuilderConfig(name='b', workernames=['w'], factory=util.BuildFactory())],"
        " 'schedulers': [schedulers.ForceScheduler('f', builderNames=['b'])]}\n"
    )
    told = gc(shelves, "--config", str(config))
    assert told.exit_code == 0, told.output
    assert [path.rpartition("/")[2][:8] for path in shelves.there()] == [digest(b"used")[:8]]


def test_what_is_left_on_this_machine_goes(shelves: Shelves) -> None:
    """Files of the store that no name leads to go, and so does half a download of long ago; others stay."""
    store = ImageStore()
    for content in (b"old", b"new"):
        (store.scratch() / "x").write_bytes(content)
        store.publish(
            store.scratch() / "x", name="debian-12", arch="x86_64", kind="stock", format="raw", source={}
        )
    forgotten, fresh = store.scratch() / "forgotten.part", store.scratch() / "fresh.part"
    for part in (forgotten, fresh):
        part.touch()
    long_ago = forgotten.stat().st_mtime - SCRATCH_KEPT_S - 60
    os.utime(forgotten, (long_ago, long_ago))
    old = store.root / "blobs" / f"{digest(b'old')}.raw"
    assert old.exists()
    dry = gc(shelves, "--dry-run")
    assert str(old) in dry.stdout
    assert old.exists()
    assert gc(shelves).exit_code == 0
    assert not old.exists()
    assert not forgotten.exists()
    assert fresh.exists()
    assert [store.path_of(entry).read_bytes() for entry in store.entries()] == [b"new"]


@pytest.mark.parametrize("kept_bytes", [0, 60])
def test_a_name_that_was_cut_keeps_its_image(shelves: Shelves, kept_bytes: int) -> None:
    """An image whose name's file was cut is not lost to a collection, nor to the removal of another image."""
    store = ImageStore()
    for name in ("good", "bad"):
        (store.scratch() / "x").write_bytes(CONTENT)
        entry = store.publish(
            store.scratch() / "x", name=name, arch="x86_64", kind="built", format="raw", source={}
        )
    cut = store.root / "names" / "bad.x86_64.built.json"
    cut.write_bytes(cut.read_bytes()[:kept_bytes])
    assert store.remove("good", "x86_64", "built")
    told = gc(shelves)
    assert told.exit_code == 0, told.output
    assert store.path_of(entry).read_bytes() == CONTENT
    assert store.remove("bad", "x86_64", "built")
    assert gc(shelves).exit_code == 0
    assert not store.path_of(entry).exists()


@pytest.mark.parametrize("wrong", ["file", "images", "~/images"])
def test_a_store_that_cannot_be_one_is_not_taken_for_an_empty_one(
    shelves: Shelves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    """With a wrong LATENTVIRT_IMAGES no copy is removed as unneeded, and no list is empty."""
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / wrong) if wrong == "file" else wrong)
    before = shelves.there()
    for arguments in (["image", "gc", "-c", URI], ["image", "list"]):
        told = CliRunner().invoke(main, arguments, obj=shelves.fake)
        assert told.exit_code == 1
        assert wrong in told.stderr
        assert "What to do" in told.stderr
    assert shelves.there() == before


def test_a_host_that_is_away_does_not_hide_the_others(shelves: Shelves) -> None:
    """One host's failure is told, and the others' images are collected all the same."""
    dead = "qemu+ssh://dead/system"
    shelves.fake.inspect(dead).trouble.fail_next("open", 38)
    told = gc(shelves, "-c", dead)
    assert told.exit_code == 1
    assert dead in told.stderr
    assert len(shelves.there()) == 1


def test_the_transcript_in_the_docs(shelves: Shelves) -> None:
    """What the docs show is what a person sees."""
    shown = (EXAMPLES / "latentvirt-image-gc.txt").read_text()
    said = ""
    for command in re.findall(r"^\$ latentvirt (.*)$", shown, re.MULTILINE):
        result = CliRunner().invoke(main, command.split(), obj=shelves.fake)
        said += f"$ latentvirt {command}\n{''.join(sorted(result.stderr.splitlines(True)))}{result.stdout}"
    said = re.sub(r"\b[0-9a-f]{64}\.0{12}", "DIGEST.NONCE", said).replace("waiting 0 s", "waiting 60 s")
    assert re.sub(r"  +", "  ", said) == re.sub(r"  +", "  ", shown)
