"""`latentvirt image push`, as a person calls it: on fake hosts, and as a master finds what it brought."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import reactorthread
from brokenoff import watched
from latentvirt.cli import main
from latentvirt.cli import progress as progress_module
from latentvirt.config import Connection, Image
from latentvirt.host import Host
from latentvirt.images import catalogue as catalogue_module
from latentvirt.images import pushing
from latentvirt.images import telling as telling_module
from latentvirt.images.naming import directory_in
from latentvirt.images.pushing import Errand, Outcome
from latentvirt.images.root import ROOT_VARIABLE
from latentvirt.images.store import BUILT, STOCK, Entry, ImageStore
from latentvirt.testing import FakeHostState, FakeLibvirt
from reactorthread import on_reactor, run
from stagemaster import Build, close_stage, open_stage
from vendors import MIB, disk

ONE, TWO = "qemu+ssh://one/system", "qemu+ssh://two/system"
IMAGES, ELSEWHERE = "/var/lib/libvirt/images", "/srv/vms"
HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent / "docs" / "examples"
NO_CONNECT = 38
INTERRUPTED = 130


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
    """This machine's images; no catalogue of its own counts."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(catalogue_module, "SYSTEM_CATALOGUE", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("LATENTVIRT_CATALOGUE", raising=False)
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "store"))
    return ImageStore()


def put(store: ImageStore, name: str, *, seed: int = 1, kind: str = BUILT, arch: str = "x86_64") -> Entry:
    """Put an image into the store."""
    temp = store.scratch() / "x"
    temp.write_bytes(disk(MIB, seed))
    return store.publish(temp, name=name, arch=arch, kind=kind, format="qcow2", source={"of": "a test"})


@pytest.fixture
def fake(store: ImageStore) -> FakeLibvirt:
    """Two hosts with the usual image folder and another, and nothing in them."""
    reactorthread.start()
    made = FakeLibvirt()
    for uri in (ONE, TWO):
        for folder in (IMAGES, ELSEWHERE):
            made.inspect(uri).add_folder(folder)
    return made


def push(fake: FakeLibvirt, *arguments: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(main, ["image", "push", *arguments], obj=fake)


def pushed(fake: FakeLibvirt, *arguments: str) -> list[dict[str, Any]]:
    """Run the command, and read what it says that it did."""
    told = push(fake, "--json", *arguments)
    assert told.exit_code == 0, told.output
    rows: list[dict[str, Any]] = json.loads(told.stdout)
    return rows


def shelf(state: FakeHostState, folder: str = IMAGES) -> set[str]:
    """List the endings of the files of copies: all of an image that is whole, or what is left of others."""
    return {name.split(".", 2)[-1] for name in state.listing(directory_in(folder))}


def digests(state: FakeHostState, folder: str = IMAGES) -> set[str]:
    """List the digests of the images that a master would find."""
    names = state.listing(directory_in(folder))
    return {name.partition(".")[0] for name in names if name.endswith(".ready")}


def uploads(fake: FakeLibvirt) -> int:
    """Count the copies that were begun."""
    return sum(fake.inspect(uri).trouble.calls.count("volume.upload") for uri in (ONE, TWO))


# One image


def test_an_image_is_copied_once(fake: FakeLibvirt, store: ImageStore) -> None:
    """The built image of a name gets to the host under its digest; called again, it is said to be there."""
    put(store, "debian-12", seed=2, kind=STOCK)
    built = put(store, "debian-12")
    (row,) = pushed(fake, "debian-12", "-c", ONE)
    assert row == {
        "host": ONE,
        "image": "debian-12",
        "path": row["path"],
        "digest": built.digest,
        "size": MIB,
        "done": "copied",
    }
    assert row["path"].startswith(f"{directory_in(IMAGES)}/{built.digest}.")
    assert fake.inspect(ONE).files[row["path"]].read() == store.path_of(built).read_bytes()
    assert pushed(fake, "bookworm", "-c", ONE) == [row | {"image": "bookworm", "done": "was there"}]
    assert (uploads(fake), digests(fake.inspect(ONE))) == (1, {built.digest})


def changed(store: ImageStore, entry: Entry) -> str:
    """Change some bytes of a stored image, as a disk that fails does; say what its digest is now."""
    blob = store.path_of(entry)
    blob.chmod(0o600)
    with blob.open("r+b") as file:
        file.seek(MIB // 2)
        file.write(b"x" * 512)
    return hashlib.sha256(blob.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", [BUILT, STOCK])
def test_a_damaged_image_is_not_brought_to_a_host(fake: FakeLibvirt, store: ImageStore, kind: str) -> None:
    """Bytes that changed in the store are told, with how to get the image again, and get to no host."""
    entry = put(store, "debian-12", kind=kind)
    digest = changed(store, entry)
    told = push(fake, "debian-12", "-c", ONE, *(["--stock"] if kind == STOCK else []))
    assert told.exit_code == 1
    assert f"is damaged: {store.path_of(entry)}: its SHA-256 is {digest}, not {entry.digest}" in told.stderr
    assert f"latentvirt image remove debian-12 --arch x86_64 --kind {kind}" in told.stderr
    assert (digests(fake.inspect(ONE)), uploads(fake)) == (set(), 0)


def test_a_stock_image_is_meant_where_that_is_said(fake: FakeLibvirt, store: ImageStore) -> None:
    """With --stock the vendor's image of the name is brought, and it is said that it is that."""
    put(store, "debian-12")
    stock = put(store, "debian-12", seed=2, kind=STOCK)
    (row,) = pushed(fake, "debian-12", "--stock", "-c", ONE)
    assert (row["image"], row["digest"]) == ("debian-12 (stock)", stock.digest)


def test_a_file_is_brought_by_its_path_into_any_folder(
    fake: FakeLibvirt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has a slash in it is a file, also one beside the person; the folder on the host can be named."""
    (tmp_path / "own.qcow2").write_bytes(disk(MIB))
    monkeypatch.chdir(tmp_path)
    (row,) = pushed(fake, "./own.qcow2", "-c", ONE, "--folder", f"{ELSEWHERE}/")
    assert row["image"] == str(tmp_path / "own.qcow2")
    assert row["path"].startswith(f"{directory_in(ELSEWHERE)}/{hashlib.sha256(disk(MIB)).hexdigest()}.")
    assert shelf(fake.inspect(ONE)) == set()


def test_on_embed_the_files_are_written_by_hand(fake: FakeLibvirt, tmp_path: Path) -> None:
    """An embedded libvirt, which has no storage driver, gets images into a local folder all the same."""
    (tmp_path / "images").mkdir()
    (tmp_path / "own.qcow2").write_bytes(disk(MIB))
    (tmp_path / "root").mkdir()
    embed = f"qemu:///embed?root={tmp_path}/root"
    (row,) = pushed(fake, f"{tmp_path}/own.qcow2", "-c", embed, "--folder", str(tmp_path / "images"))
    assert Path(row["path"]).read_bytes() == disk(MIB)
    assert Path(row["path"]).with_suffix(".ready").exists()


def test_a_master_that_starts_later_copies_nothing(store: ImageStore) -> None:
    """The first build's VM stands on the copy that was pushed, and its page tells of no copying."""
    put(store, "debian-12")
    stage = open_stage()
    state = stage.fake.inspect(ONE)
    state.add_folder(IMAGES)
    (row,) = pushed(stage.fake, "debian-12", "-c", ONE)
    try:
        worker = on_reactor(
            lambda: stage.worker("w", "static", uri=ONE, base_image="debian-12", size={"memory": 64})
        )

        async def start() -> None:
            await worker.start_instance(Build())

        run(start())
        (overlay,) = [path for path in state.files if ".overlay." in path]
        assert state.images_below(overlay) == [(row["path"], "qcow2")]
        assert state.trouble.calls.count("volume.upload") == 1
        assert "copying" not in stage.data.updates.text
    finally:
        close_stage(stage)


# Several


def test_several_hosts_are_served_at_once_and_each_with_one_image_at_a_time(
    fake: FakeLibvirt, store: ImageStore
) -> None:
    """A host that takes its time keeps neither another one waiting, nor gets two images at once."""
    images = {put(store, name, seed=seed).digest for seed, name in enumerate(("debian-12", "debian-13"))}
    slow, quick = fake.inspect(ONE), fake.inspect(TWO)
    met: list[set[str]] = []

    def wait() -> None:
        while len(digests(quick)) < 2 and len(met) < 1000:
            met.append({name.partition(".")[0] for name in slow.listing(directory_in(IMAGES))})
            threading.Event().wait(0.01)

    slow.trouble.before_next("stream.send", wait)
    rows = pushed(fake, "debian-12", "debian-13", "-c", ONE, "-c", TWO)
    assert [(row["host"], row["image"]) for row in rows] == [
        (ONE, "debian-12"),
        (ONE, "debian-13"),
        (TWO, "debian-12"),
        (TWO, "debian-13"),
    ]
    assert digests(slow) == digests(quick) == images
    assert len(met) < 1000
    assert all(len(under_way) == 1 for under_way in met)


def test_a_dead_host_does_not_keep_the_others_from_their_images(fake: FakeLibvirt, store: ImageStore) -> None:
    """What a living host got is told; the dead one is named once, with all that it did not get."""
    images = {put(store, name, seed=seed).digest for seed, name in enumerate(("debian-12", "debian-13"))}
    fake.inspect(ONE).reachable = False
    told = push(fake, "debian-12", "debian-13", "-c", ONE, "-c", TWO, "--json")
    assert told.exit_code == 1
    assert [row["host"] for row in json.loads(told.stdout)] == [TWO, TWO]
    assert digests(fake.inspect(TWO)) == images
    (line,) = [line for line in told.stderr.splitlines() if line.startswith("latentvirt: ")]
    assert line.startswith(f"latentvirt: debian-12, debian-13: [host {ONE}] could not connect")
    assert f"What to do: try: virsh -c '{ONE}' list" in line


def test_a_name_that_is_no_alias_does_not_keep_the_others_from_their_images(
    fake: FakeLibvirt, store: ImageStore
) -> None:
    """An unknown name of a host is said to be no alias, with what to do, as by all commands."""
    entry = put(store, "debian-12")
    told = push(fake, "debian-12", "-c", "nolab", "-c", ONE)
    assert told.exit_code == 1
    assert "debian-12: 'nolab' is no URI, and uri_aliases in" in told.stderr
    assert "add 'nolab=qemu+ssh://user@host/system'" in told.stderr
    assert digests(fake.inspect(ONE)) == {entry.digest}


def test_one_image_that_cannot_be_had_does_not_keep_the_others(fake: FakeLibvirt, store: ImageStore) -> None:
    """What is unknown, not built, not got or not there is named once with what to do; the rest is brought."""
    built = put(store, "debian-12")
    told = push(fake, "debain-12", "debian-13", "/nowhere/x.qcow2", "debian-12", "-c", ONE, "-c", TWO)
    assert told.exit_code == 1
    assert digests(fake.inspect(ONE)) == digests(fake.inspect(TWO)) == {built.digest}
    lines = [line for line in told.stderr.splitlines() if line.startswith("latentvirt: ")]
    assert [line.split(": ")[1] for line in lines] == ["debain-12", "debian-13", "/nowhere/x.qcow2"]
    assert "did you mean debian-12" in lines[0]
    assert lines[1].endswith("latentvirt image build debian-13")
    assert "No such file" in lines[2]
    stock = push(fake, "debian-12", "--stock", "-c", ONE)
    assert "latentvirt: debian-12 (stock): " in stock.stderr
    assert "latentvirt image pull debian-12" in stock.stderr


def test_a_host_of_another_architecture_needs_another_image(fake: FakeLibvirt, store: ImageStore) -> None:
    """A host gets the image for its own architecture, and it is said for which one there is none."""
    put(store, "debian-12", arch="aarch64")
    told = push(fake, "debian-12", "-c", ONE)
    assert told.exit_code == 1
    assert "debian-12 for x86_64" in told.stderr
    assert uploads(fake) == 0


# Refusals


def test_no_room_is_told_and_nothing_is_left(fake: FakeLibvirt, store: ImageStore) -> None:
    """A host without room is named with image, what is needed, what is free, and where to make room."""
    put(store, "debian-12")
    fake.inspect(ONE).free = MIB // 2
    told = push(fake, "debian-12", "-c", ONE, "-c", TWO)
    assert told.exit_code == 1
    assert f"latentvirt: debian-12: [host {ONE}] there is no room for the image" in told.stderr
    assert f"it needs 1 MiB, and 0 MiB are free. What to do: make room where {IMAGES}" in told.stderr
    assert shelf(fake.inspect(ONE)) == set()
    assert len(digests(fake.inspect(TWO))) == 1


def test_a_folder_that_a_host_has_not_is_named(fake: FakeLibvirt, store: ImageStore) -> None:
    """An image folder is not made, but named, with the host, the image, and how to name another."""
    put(store, "debian-12")
    told = push(fake, "debian-12", "-c", ONE, "--folder", "/nowhere")
    assert told.exit_code == 1
    assert f"latentvirt: debian-12: [host {ONE}]" in told.stderr
    assert "/nowhere" in told.stderr
    assert "--folder" in told.stderr
    assert "/nowhere" not in fake.inspect(ONE).folders


def test_a_directory_of_copies_that_was_removed_by_hand_is_made_again(
    fake: FakeLibvirt, store: ImageStore
) -> None:
    """After somebody removed the directory of copies under its pool, one push brings the image there."""
    put(store, "debian-12")
    pushed(fake, "debian-12", "-c", ONE)
    state = fake.inspect(ONE)
    for path in [path for path in state.files if path.startswith(f"{directory_in(IMAGES)}/")]:
        del state.files[path]
    state.folders.remove(directory_in(IMAGES))
    assert [row["done"] for row in pushed(fake, "debian-12", "-c", ONE)] == ["copied"]
    assert len(digests(state)) == 1


def test_an_image_in_the_folder_of_a_pool_that_does_not_run_is_read(
    fake: FakeLibvirt, tmp_path: Path
) -> None:
    """An image on a host can be used where a person's pool over its folder is defined and does not run."""
    state = fake.inspect(ONE)
    state.add_file(f"{ELSEWHERE}/base.qcow2")
    target = f"<target><path>{ELSEWHERE}</path></target>"
    xml = f"<pool type='dir'><name>default</name>{target}</pool>"
    fake.open(ONE).storagePoolDefineXML(xml, 0)
    host = Host(Connection(ONE), reactorthread.start(), driver=fake)
    try:
        seen = run(host.image(f"{ELSEWHERE}/base.qcow2", probe_pool="latentvirt-look"))
    finally:
        run(host.close())
    assert (seen.path, seen.format) == (f"{ELSEWHERE}/base.qcow2", "qcow2")
    assert list(state.pools) == ["default"]
    assert not state.pools["default"].active


def test_other_bytes_than_were_sent_are_noticed(fake: FakeLibvirt, store: ImageStore) -> None:
    """With --read-back a disk that garbles what it was given gets no image; without it nobody looks."""
    put(store, "debian-12")
    state = fake.inspect(ONE)

    def garble() -> None:
        (name,) = [name for name in state.listing(directory_in(IMAGES)) if name.endswith(".qcow2")]
        content = state.files[f"{directory_in(IMAGES)}/{name}"].content
        assert content is not None
        content[500] ^= 1

    state.trouble.before_next("volume.download", garble)
    told = push(fake, "debian-12", "-c", ONE, "--read-back")
    assert told.exit_code == 1
    assert "the host gives other bytes back than it was sent" in told.stderr
    assert shelf(state) == set()
    push(fake, "debian-12", "-c", ONE)
    assert state.trouble.calls.count("volume.download") == 1


def test_an_embedded_libvirt_in_use_is_said_to_be_so(
    fake: FakeLibvirt, store: ImageStore, tmp_path: Path
) -> None:
    """Where a master has the root open, it is said why it cannot be asked, and where to look."""
    put(store, "debian-12")
    embed = f"qemu:///embed?root={tmp_path}"
    fake.inspect(embed).trouble.fail_next("open", NO_CONNECT)
    told = push(fake, "debian-12", "-c", embed)
    assert told.exit_code == 1
    assert f"latentvirt: debian-12: [host {embed}]" in told.stderr
    assert "only one process at a time can use the root" in told.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("-c", ONE),
        ("--config", str(EXAMPLES / "first.cfg"), "-c", ONE),
        ("--config", str(EXAMPLES / "first.cfg"), "--folder", IMAGES),
        ("--config", str(EXAMPLES / "first.cfg"), "--stock"),
        ("debian-12", "--folder", "images"),
        ("debian-12", "--config", "/nowhere/master.cfg"),
    ],
)
def test_a_command_line_that_is_wrong_ends_with_2(fake: FakeLibvirt, arguments: tuple[str, ...]) -> None:
    """Without images, or with options that are for named ones, nothing is done."""
    assert push(fake, *arguments).exit_code == 2
    assert uploads(fake) == 0


# By a master.cfg

CONFIG = """
from buildbot.plugins import schedulers, util
from latentvirt import Connection, Flavor, Hosts, Image, LibVirtWorker, Size

one = Connection({one!r}, labels={{'lab': 'a'}})
two = Connection({two!r}, images={elsewhere!r}, labels={{'lab': 'b'}}, memory='2 GiB')
workers = [
{workers}
]
c = BuildmasterConfig = {{
    'workers': workers,
    'protocols': {{'pb': {{'port': 'tcp:9989'}}}},
    'builders': [util.BuilderConfig(name='b', workernames=[w.name for w in workers],
                                    factory=util.BuildFactory())],
    'schedulers': [schedulers.ForceScheduler('f', builderNames=['b'])],
}}
"""


def config(tmp_path: Path, *workers: str) -> tuple[str, str]:
    """Write a master.cfg with workers, and return the options that name it."""
    path = tmp_path / "master.cfg"
    written = "\n".join(f"    LibVirtWorker('w{number}', 'p', {one})," for number, one in enumerate(workers))
    path.write_text(CONFIG.format(one=ONE, two=TWO, elsewhere=ELSEWHERE, workers=written))
    return "--config", str(path)


def brought(fake: FakeLibvirt, *arguments: str) -> set[tuple[str, str, str]]:
    """Push, and say which image got to which host, into which folder."""
    rows = pushed(fake, *arguments)
    got = {(row["host"], os.path.dirname(os.path.dirname(row["path"])), row["image"]) for row in rows}
    assert len(got) == len(rows)
    return got


def test_all_that_workers_bring_gets_where_they_start(
    fake: FakeLibvirt, store: ImageStore, tmp_path: Path
) -> None:
    """Each worker's image gets to each of its hosts, into the folder that the master uses there, once."""
    put(store, "debian-12")
    put(store, "debian-13", seed=2, kind=STOCK)
    own = tmp_path / "own.qcow2"
    own.write_bytes(disk(MIB, 3))
    options = config(
        tmp_path,
        "Hosts(one, two), base_image='debian-12', size=Size()",
        "two, base_image='debian-12', size=Size()",
        "one, base_image='debian-13', cloud_init=True, size=Size()",
        f"two, hd_image='{IMAGES}/w.qcow2', base_image=Image({str(own)!r}), size=Size()",
        "one, base_image='/images/on-the-host.qcow2', size=Size()",
    )
    wanted = {
        (ONE, IMAGES, "debian-12"),
        (TWO, ELSEWHERE, "debian-12"),
        (ONE, IMAGES, "debian-13 (stock)"),
        (TWO, IMAGES, str(own)),
    }
    assert brought(fake, *options) == wanted
    assert uploads(fake) == 4
    assert {row["done"] for row in pushed(fake, *options)} == {"was there"}
    assert uploads(fake) == 4


def test_hosts_where_no_vm_of_a_worker_can_start_get_nothing(
    fake: FakeLibvirt, store: ImageStore, tmp_path: Path
) -> None:
    """Drained hosts, and those that labels, size or architecture rule out, are left alone."""
    put(store, "debian-12")
    put(store, "debian-12", seed=2, arch="aarch64")
    both = "Hosts(one, two), base_image="
    options = config(tmp_path, f"{both}'debian-12', size=Size(), requires={{'labels': {{'lab': 'b'}}}}")
    assert brought(fake, *options) == {(TWO, ELSEWHERE, "debian-12")}
    options = config(tmp_path, f"{both}'debian-12', size=Size(memory='3 GiB')")
    assert brought(fake, *options) == {(ONE, IMAGES, "debian-12")}
    drained = "Hosts(Connection(one.uri, drain=True), two)"
    options = config(tmp_path, f"{drained}, base_image='debian-12', size=Size()")
    assert brought(fake, *options) == {(TWO, ELSEWHERE, "debian-12")}
    options = config(tmp_path, f"{both}Image(name='debian-12', arch='aarch64'), size=Size()")
    assert brought(fake, *options) == set()


def test_what_depends_on_a_build_is_left_to_the_person(
    fake: FakeLibvirt, store: ImageStore, tmp_path: Path
) -> None:
    """A worker whose image only a build knows is told with what to do; the others' images are brought."""
    put(store, "debian-12")
    options = config(
        tmp_path,
        "one, base_image=Image(os_type='debian', os_version=util.Property('os_version')), size=Size()",
        "one, base_image='debian-12', size=Size()",
    )
    told = push(fake, *options)
    assert told.exit_code == 0, told.output
    assert "latentvirt: worker w0: which image it brings, or where to, depends on the build" in told.stderr
    assert len(digests(fake.inspect(ONE))) == 1


def test_a_master_that_brings_nothing_is_told_so(fake: FakeLibvirt, tmp_path: Path) -> None:
    """Where all base images lie on their hosts anyway, it is said that there is nothing to do."""
    options = config(tmp_path, "one, base_image='/images/base.qcow2', size=Size()")
    told = push(fake, *options)
    assert (told.exit_code, told.stdout) == (0, "")
    assert told.stderr == f"latentvirt: the workers of {options[1]} bring no images to hosts\n"


def test_a_named_image_gets_to_all_hosts_of_a_master(
    fake: FakeLibvirt, store: ImageStore, tmp_path: Path
) -> None:
    """With a name and a master.cfg the image gets to each host, into its own folder."""
    put(store, "debian-13")
    options = config(tmp_path, "Hosts(one, two), base_image='/images/base.qcow2', size=Size()")
    assert brought(fake, "debian-13", *options) == {
        (ONE, IMAGES, "debian-13"),
        (TWO, ELSEWHERE, "debian-13"),
    }


def test_an_image_on_another_host_gets_to_where_it_is_needed(fake: FakeLibvirt, tmp_path: Path) -> None:
    """An image with at= is passed on to other hosts; on the host that it lies on it is used where it is."""
    source = fake.inspect(ONE).add_file("/srv/base.qcow2")
    source.content = bytearray(disk(MIB))
    source.length = MIB
    options = config(tmp_path, "Hosts(one, two), base_image=Image('/srv/base.qcow2', at=one), size=Size()")
    here, there = pushed(fake, *options)
    assert (here["path"], here["digest"], here["done"]) == ("/srv/base.qcow2", None, "was there")
    assert there["digest"] == hashlib.sha256(disk(MIB)).hexdigest()
    assert fake.inspect(TWO).files[there["path"]].read() == disk(MIB)


class Unheard:
    """A listener to whom nobody listens."""

    def begin(self, errand: Errand) -> None:
        """Pass over it."""

    def say(self, errand: Errand, line: str) -> None:
        """Pass over it."""

    def end(self, errand: Errand) -> None:
        """Pass over it."""


def test_what_is_said_of_a_host_holds_though_an_image_comes_from_it(
    fake: FakeLibvirt, store: ImageStore
) -> None:
    """The rate of a host is kept, also where an image is named as lying there without a word of it."""
    source = fake.inspect(TWO).add_file("/srv/base.qcow2")
    source.content, source.length = bytearray(disk(MIB)), MIB
    path = store.path_of(put(store, "debian-12"))
    errands = [
        Errand(Connection(ONE), IMAGES, Image("/srv/base.qcow2", at=Connection(TWO))),
        Errand(Connection(TWO, copy_rate="2 MiB"), IMAGES, Image(str(path))),
    ]
    reactor = reactorthread.start()
    began = reactor.seconds()

    outcomes: list[Outcome] = run(pushing.push(errands, reactor, fake, Unheard()))
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert reactor.seconds() - began >= 0.5


# While it goes on

BROKEN_OFF = """
import sys
sys.path[:0] = {paths!r}
import atexit, threading
import test_cli_image_push as here
from latentvirt.cli import main
from latentvirt.testing import FakeLibvirt

fake = FakeLibvirt()
hangs = []
for uri in (here.ONE, here.TWO):
    fake.inspect(uri).add_folder(here.IMAGES)
    hangs.append(fake.inspect(uri).trouble.hang("stream.send"))

def watch():
    for hang in hangs:
        hang.entered.acquire()
    print("sending", flush=True)
    if {like_ssh!r}:
        sys.stdin.readline()
        for uri in (here.ONE, here.TWO):
            fake.inspect(uri).break_connections()

def left():
    print("left:", [sorted(here.shelf(fake.inspect(uri))) for uri in (here.ONE, here.TWO)], flush=True)

threading.Thread(target=watch, daemon=True).start()
atexit.register(left)
main(["image", "push", "debian-12", "-c", here.ONE, "-c", here.TWO], obj=fake)
"""


def program(*, like_ssh: bool = False) -> list[str]:
    """Make a program that pushes to two hosts and gets stuck while it sends.

    Args:
        like_ssh: whether its connections break when it reads a line.
    """
    return [sys.executable, "-c", BROKEN_OFF.format(paths=[str(HERE)], like_ssh=like_ssh)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_broken_off_it_leaves_no_half_image(store: ImageStore, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end the copies to all hosts, and neither half a file nor a lock stays."""
    put(store, "debian-12")
    with watched(subprocess.Popen(program(), stdout=subprocess.PIPE, text=True)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "sending\n"
        process.send_signal(number)
        rest = process.stdout.read()
    assert (process.returncode, rest) == (INTERRUPTED, "left: [[], []]\n")


def test_ctrl_c_that_ends_ssh_as_well_leaves_no_half_image(store: ImageStore) -> None:
    """On a terminal Ctrl-C gets to the ssh of each connection, too; that is cleared up after all the same."""
    put(store, "debian-12")
    with watched(
        subprocess.Popen(program(like_ssh=True), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "sending\n"
        process.send_signal(signal.SIGINT)
        process.stdin.write("\n")
        process.stdin.flush()
        rest = process.stdout.read()
    assert (process.returncode, rest) == (INTERRUPTED, "left: [[], []]\n")


def test_on_a_terminal_each_host_has_a_bar(store: ImageStore) -> None:
    """A terminal shows at once where which image goes, how much of it, and clears that away at the end."""
    put(store, "debian-12")
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": "120", "TERM": "xterm"}
    process = subprocess.Popen(
        program(),
        stdout=subprocess.PIPE,
        stderr=follower,
        env=environment,
        text=True,
    )
    os.close(follower)
    bars = [rf"copying debian-12 to {re.escape(uri)}[^\n]*/1.0 MiB" for uri in (ONE, TWO)]
    seen, ended, told = "", False, False
    with os.fdopen(leader, "rb", buffering=0) as terminal, watched(process):
        while not ended:
            try:
                seen += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.read(4096).decode(errors="replace"))
            except OSError:  # how a terminal ends on Linux
                ended = True
            if not told and all(re.search(bar, seen) for bar in bars):
                told = True
                process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == INTERRUPTED
    assert f"\rdebian-12 to {ONE}" in seen


def test_in_a_pipe_progress_is_a_line_now_and_then(
    fake: FakeLibvirt, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads a log finds how far each copy got and when it was done, and no control characters."""
    put(store, "debian-12")
    monkeypatch.setattr(progress_module, "SECONDS_PER_LINE", 0.0)
    told = push(fake, "debian-12", "-c", ONE)
    lines = told.stderr.splitlines()
    assert lines[0] == f"copying debian-12 to {ONE}: 0 of 1 MiB"
    assert re.fullmatch(rf"copying debian-12 to {re.escape(ONE)}: done, 1 MiB in \d+\.\d s", lines[-1])
    assert "\x1b" not in told.stderr


def test_how_far_a_large_file_was_read_is_told(
    fake: FakeLibvirt, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is copied its file is read, and who waits for that sees how far it got."""
    put(store, "debian-12")
    monkeypatch.setattr(progress_module, "SECONDS_PER_LINE", 0.0)
    monkeypatch.setattr(telling_module, "SAY_EVERY_S", 0.0)
    told = push(fake, "debian-12", "-c", ONE)
    lines = told.stderr.splitlines()
    assert lines[0] == "reading debian-12: 1 of 1 MiB"
    assert lines[1] == f"copying debian-12 to {ONE}: 0 of 1 MiB"


def test_a_files_name_cannot_play_with_a_terminal(
    fake: FakeLibvirt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Progress, table and errors show what turns or hides text on a terminal as an escape."""
    monkeypatch.setattr(progress_module, "SECONDS_PER_LINE", 0.0)
    file = tmp_path / "up\u202edown\x9b.qcow2"
    file.write_bytes(disk(MIB))
    for path in (file, tmp_path / "no\u202ene"):
        told = push(fake, str(path), "-c", ONE)
        assert "\\u202e" in told.stderr
        assert not {"\u202e", "\x9b"} & set(told.output)


def test_the_transcript_is_what_the_command_says(
    fake: FakeLibvirt, store: ImageStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The documentation shows what happens, but for digests and seconds."""
    put(store, "debian-12")
    config(tmp_path, "Hosts(one, two), base_image='debian-12', size=Size()")
    monkeypatch.chdir(tmp_path)
    shown = (EXAMPLES / "latentvirt-image-push.txt").read_text()
    said = ""
    for command in re.findall(r"^\$ latentvirt (.*)$", shown, re.MULTILINE):
        told = CliRunner().invoke(main, shlex.split(command), obj=fake)
        said += f"$ latentvirt {command}\n{''.join(sorted(told.stderr.splitlines(True)))}{told.stdout}"
    said = said.replace(str(store.root), "/var/lib/latentvirt/images")
    said = re.sub(r"\b[0-9a-f]{64}\.[0-9a-f]{12}", "DIGEST.NONCE", said)
    said = re.sub(r"in \d+\.\d s", "in 0.1 s", said)
    assert re.sub(r"  +", "  ", said) == re.sub(r"  +", "  ", shown)
