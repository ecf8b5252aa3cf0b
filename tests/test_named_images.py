"""base_image='debian-12': from a name, or from a build's properties, to the VM's disk, on a fake host."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from buildbot.config.errors import ConfigErrors
from buildbot.interfaces import LatentWorkerCannotSubstantiate
from buildbot.plugins import util
from buildbot.process.properties import Properties

from latentvirt.config import Connection, Image
from latentvirt.errors import ConfigError
from latentvirt.images.store import BUILT, STOCK, Entry, ImageStore
from latentvirt.master.worker import LibVirtWorker
from reactorthread import on_reactor, run
from stagemaster import Build, StageMaster, close_stage, open_stage

URI = "qemu+ssh://vmhost/system"
FOLDER = "/var/lib/libvirt/images"
KIB = 1024


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
    """The master's store; no catalogue of this machine counts."""
    monkeypatch.setenv("LATENTVIRT_IMAGES", str(tmp_path / "store"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("LATENTVIRT_CATALOGUE", raising=False)
    return ImageStore()


@pytest.fixture
def master(store: ImageStore) -> Iterator[StageMaster]:
    """A master on a fake host that has no image at all."""
    opened = open_stage()
    opened.fake.inspect(URI).add_folder(FOLDER)
    yield opened
    close_stage(opened)


def put(store: ImageStore, name: str, content: int = 0, kind: str = BUILT, arch: str = "x86_64") -> Entry:
    """Put an image into the master's store."""
    temp = store.scratch() / "x"
    temp.write_bytes(bytes([content]) * 128 * KIB)
    return store.publish(temp, name=name, arch=arch, kind=kind, format="raw", source={"of": "a test"})


class Wanting(Build):
    """A build with properties."""

    def __init__(self, **properties: str) -> None:
        super().__init__()
        self._properties = Properties(**properties)

    def render(self, value: Any) -> Any:
        """Render as Buildbot does."""
        return self._properties.render(value)


def worker_of(master: StageMaster, base_image: Any, **more: Any) -> LibVirtWorker:
    """Configure a worker."""
    arguments = {"uri": URI, "base_image": base_image, "size": {"memory": 64}, **more}
    return on_reactor(lambda: master.worker("w", "static", **arguments))


def start(worker: LibVirtWorker, build: Build | None = None) -> None:
    """Start a build's VM."""

    async def go() -> None:
        await worker.start_instance(build or Wanting())

    run(go())


def stop(worker: LibVirtWorker) -> None:
    """End it."""

    async def go() -> None:
        await worker.stop_instance()

    async def nothing() -> None:
        pass

    run(go())
    while worker.master.hub._background:
        run(nothing())


def copies(master: StageMaster) -> set[str]:
    """List the digests of the images that were brought to the host."""
    names = master.fake.inspect(URI).listing(f"{FOLDER}/latentvirt-images")
    return {name.partition(".")[0] for name in names if name.endswith(".ready")}


@pytest.mark.parametrize(
    "written",
    [
        "debian-12",
        "bookworm",
        Image(name="debian-12"),
        Image(os_type="debian", os_version="12"),
        Image(os_type="debian", os_version="bookworm", arch="amd64"),
    ],
)
def test_a_named_image_is_brought_to_the_host(master: StageMaster, store: ImageStore, written: Any) -> None:
    """The built image of that name in the master's store is copied to the host and started from."""
    put(store, "debian-12", 7, kind=STOCK)
    built = put(store, "debian-12", 1)
    put(store, "debian-13", 2)
    worker = worker_of(master, written)
    start(worker)
    stop(worker)
    assert copies(master) == {built.digest}
    assert "copying debian-12 to" in master.data.updates.text


@pytest.mark.parametrize(
    "written",
    [
        util.Interpolate("%(prop:os_type)s-%(prop:os_version)s"),
        Image(os_type=util.Property("os_type"), os_version=util.Property("os_version")),
        Image(os_type="debian", os_version=util.Interpolate("%(prop:os_version)s")),
    ],
)
def test_the_properties_of_a_build_choose_its_image(
    master: StageMaster, store: ImageStore, written: Any
) -> None:
    """Of two images each build gets the one that its os_version names."""
    twelve, thirteen = put(store, "debian-12", 1), put(store, "debian-13", 2)
    worker = worker_of(master, written)
    start(worker, Wanting(os_type="debian", os_version="12"))
    stop(worker)
    assert copies(master) == {twelve.digest}
    start(worker, Wanting(os_type="debian", os_version="13"))
    stop(worker)
    assert copies(master) == {twelve.digest, thirteen.digest}


def test_a_newer_image_is_used_from_the_next_start_on(master: StageMaster, store: ImageStore) -> None:
    """Who builds an image anew need not tell the master."""
    old = put(store, "debian-12", 1)
    worker = worker_of(master, "debian-12")
    start(worker)
    stop(worker)
    new = put(store, "debian-12", 2)
    start(worker)
    stop(worker)
    assert copies(master) == {old.digest, new.digest}


def test_an_image_that_was_not_built_ends_the_build_with_what_to_do(
    master: StageMaster, store: ImageStore
) -> None:
    """A stock image is not enough; the message has the command, and the folder that was looked in."""
    put(store, "debian-12", kind=STOCK)
    worker = worker_of(master, "bookworm")
    with pytest.raises(LatentWorkerCannotSubstantiate) as caught:
        start(worker)
    assert "latentvirt image build debian-12" in str(caught.value)
    assert str(store.root) in str(caught.value)
    put(store, "debian-12", arch="aarch64")
    with pytest.raises(LatentWorkerCannotSubstantiate, match="debian-12 for x86_64"):
        start(worker)


def test_a_damaged_image_ends_the_build_with_what_to_do(master: StageMaster, store: ImageStore) -> None:
    """A build gets no VM from bytes that are not those that were stored."""
    blob = store.path_of(put(store, "debian-12"))
    blob.chmod(0o600)
    blob.write_bytes(bytes([7]) * 128 * KIB)
    with pytest.raises(LatentWorkerCannotSubstantiate, match=r"is damaged.*image remove debian-12"):
        start(worker_of(master, "debian-12"))
    assert copies(master) == set()


def test_an_unknown_name_of_a_build_ends_it_with_the_nearest(master: StageMaster, store: ImageStore) -> None:
    """A build that asks for what nobody knows ends, and is not tried again."""
    worker = worker_of(master, util.Interpolate("%(prop:os_type)s-%(prop:os_version)s"))
    with pytest.raises(LatentWorkerCannotSubstantiate, match="did you mean debian-12"):
        start(worker, Wanting(os_type="debain", os_version="12"))


def test_what_was_built_from_a_file_is_known_without_a_catalogue(
    master: StageMaster, store: ImageStore
) -> None:
    """A name that only the store has is as good as one of the catalogue's."""
    built = put(store, "our-own")
    worker = worker_of(master, "our-own")
    start(worker)
    assert copies(master) == {built.digest}
    stop(worker)


def test_an_image_of_another_architecture_goes_to_no_host_of_this_one(
    master: StageMaster, store: ImageStore
) -> None:
    """The architecture of an image is one that its host must have."""
    put(store, "debian-12", arch="aarch64")
    worker = worker_of(master, Image(name="debian-12", arch="arm64"))
    assert worker._arguments is not None
    need = worker._arguments.static_need("w")
    assert need is not None
    assert need.wish.arch == {"aarch64"}


def test_a_reconfig_with_the_same_name_changes_nothing() -> None:
    """Images of equal names are equal, as Buildbot compares arguments."""
    assert Image(name="debian-12") == Image(name="debian-12") != Image(name="debian-13")
    assert str(Image(os_type="debian", os_version="12", arch="arm64")) == "debian-12 for arm64"


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (Image(), "is not the absolute path"),
        (Image("/x", name="debian-12"), "is said to be two things"),
        (Image(name="debian-12", format="raw"), "is said to be two things"),
        (Image(name="debian-12", at=Connection(URI)), "is said to be two things"),
        (Image(name="debian-12", os_type="debian"), "names no image"),
        (Image(os_type="debian"), "names no image"),
        (Image(os_version="12"), "names no image"),
        (Image(arch="x86_64"), "names no image"),
        (Image(os_type="debian", os_version=12), "Image(os_version=12) is no text"),
        (Image(name="debian-12", verify="often"), "is no check"),
    ],
)
def test_an_image_that_is_named_badly_is_refused(image: Image, says: str) -> None:
    """Each mistake is told in the words of the arguments."""
    with pytest.raises(ConfigError) as caught:
        image.check()
    assert says in str(caught.value)


CONFIG = """
from buildbot.plugins import schedulers, util
from latentvirt import Connection, Image, LibVirtWorker, Size
c = BuildmasterConfig = {{}}
c['protocols'] = {{'pb': {{'port': 0}}}}
c['workers'] = [LibVirtWorker('w', None, Connection('qemu:///session'), size=Size(), base_image={written})]
c['builders'] = [util.BuilderConfig('b', workername='w', factory=util.BuildFactory())]
c['schedulers'] = [schedulers.ForceScheduler('force', builderNames=['b'])]
"""


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("'debian-12'", ""),
        ("Image(os_type='ubuntu', os_version='24.04', arch='x86_64')", ""),
        ("util.Interpolate('%(prop:os_type)s-%(prop:os_version)s')", ""),
        ("Image(os_type=util.Property('os_type'), os_version='12')", ""),
        ("'our-own'", ""),
        ("'debain-12'", "there is no image 'debain-12'; did you mean debian-12"),
        ("Image(os_type='ubuntu', os_version='24.4')", "did you mean ubuntu-24.04"),
        ("'our-owm'", "did you mean our-own"),
        ("Image(os_type='ubuntu')", "names no image"),
    ],
)
def test_checkconfig_knows_the_names(store: ImageStore, tmp_path: Path, written: str, says: str) -> None:
    """`buildbot checkconfig` refuses names that neither catalogue nor store has, with the nearest."""
    put(store, "our-own")
    (tmp_path / "master.cfg").write_text(CONFIG.format(written=written))
    done = subprocess.run(
        [sys.executable, "-c", "from buildbot.scripts.runner import run; run()", "checkconfig", "master.cfg"],
        cwd=tmp_path,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == (1 if says else 0), done.stdout + done.stderr
    assert says in done.stdout + done.stderr


def test_a_path_stays_a_path(master: StageMaster, store: ImageStore) -> None:
    """What has a slash is no name: a relative path is refused as such."""
    with pytest.raises(ConfigErrors, match="not an absolute path"):
        worker_of(master, "images/debian-12")
