"""What `latentvirt doctor` says of the images that a master.cfg has by name."""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from latentvirt.cli import main
from latentvirt.config import Image
from latentvirt.doctor import NamedImage, examining
from latentvirt.doctor.masters import Calling
from latentvirt.images import catalogue
from latentvirt.images.store import BUILT, STOCK, Entry, ImageStore
from latentvirt.master.wanting import wanted_in
from latentvirt.testing import FakeLibvirt
from test_cli_doctor import DAY_S, DOCS, fake
from test_named_images import put
from test_named_images import store as empty

__all__ = ["empty", "fake"]

CONFIG = """
from buildbot.plugins import schedulers, util
from latentvirt import Connection, Image, LibVirtWorker, Size
c = BuildmasterConfig = {{}}
c['protocols'] = {{'pb': {{'port': 9989}}}}
host = Connection('qemu+ssh://one/system')
c['workers'] = [{workers}]
names = [worker.name for worker in c['workers']]
c['builders'] = [util.BuilderConfig('b', workernames=names, factory=util.BuildFactory())]
c['schedulers'] = [schedulers.ForceScheduler('force', builderNames=['b'])]
"""
OWN = """
[images.lab]
path = "/srv/lab.qcow2"
ready = true

[images.far]
url = "https://images.example.org/far.qcow2"
arch = "aarch64"
unverified = true

[images."debian-12"]
serial = "20260101-1"
"""


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty: ImageStore) -> ImageStore:
    """The master's store, on a PC whose user calls the master in vain."""
    monkeypatch.setattr(catalogue, "SYSTEM_CATALOGUE", str(tmp_path / "none"))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(
        examining, "call", lambda host, port: Calling(host, port, ("127.0.0.1",), True, "Connection refused")
    )
    return empty


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have images of one's own, and one of the vendors' that is pinned."""
    (tmp_path / "own.toml").write_text(OWN)
    monkeypatch.setenv("LATENTVIRT_CATALOGUE", str(tmp_path / "own.toml"))


def write(folder: Path, *base_images: str) -> str:
    """Write a master.cfg with a worker for each base image; returns where."""
    workers = [
        f"LibVirtWorker('w{number}', None, host, size=Size(), base_image={written})"
        for number, written in enumerate(base_images, 1)
    ]
    (folder / "master.cfg").write_text(CONFIG.format(workers=",\n".join(workers)))
    return str(folder)


def doctor(fake: FakeLibvirt, config: str) -> list[dict[str, Any]]:
    """Look at all that a master.cfg names, and return what was found about images."""
    told = CliRunner().invoke(main, ["doctor", "--config", config, "--json"], obj=fake)
    found: list[dict[str, Any]] = json.loads(told.stdout)
    return [one for one in found if one["id"].startswith("image-")]


def the_one(fake: FakeLibvirt, folder: Path, base_image: str) -> dict[str, Any]:
    """Look at a master.cfg with one worker, and return the one thing found about its image."""
    (found,) = doctor(fake, write(folder, base_image))
    return found


def said(found: dict[str, Any]) -> tuple[str, str]:
    """What kind of finding it is, and how bad."""
    return found["id"], found["severity"]


def test_the_transcript_is_what_the_command_says(
    fake: FakeLibvirt, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command answers as the documentation shows, but for the path of the store."""
    monkeypatch.chdir(DOCS / "examples")
    shown = (DOCS / "examples" / "latentvirt-doctor-images.txt").read_text()
    (line,) = re.findall(r"^\$ latentvirt (.*)$", shown, re.MULTILINE)
    result = CliRunner().invoke(main, shlex.split(line), obj=fake)
    told = f"$ latentvirt {line}\n{result.stdout}{result.stderr}"
    assert told.replace(str(store.root), "/var/lib/latentvirt/images") == shown


@pytest.mark.parametrize("written", ["'bookworm'", "Image(os_type='debian', os_version='12')"])
def test_an_image_that_was_not_built_is_a_problem(
    fake: FakeLibvirt, store: ImageStore, tmp_path: Path, written: str
) -> None:
    """Before any build fails of it, it is told which image is missing, whose, and which commands make it."""
    found = the_one(fake, tmp_path, written)
    assert said(found) == ("image-not-here", "problem")
    assert "the image debian-12 for x86_64" in found["what"]
    assert "not built yet" in found["what"]
    assert str(store.root) in found["what"]
    assert "the worker w1 cannot do without it" in found["what"]
    assert found["remedy"].endswith(
        ": latentvirt image pull debian-12 --arch x86_64 && latentvirt image build debian-12"
    )
    put(store, "debian-12", kind=STOCK)
    assert the_one(fake, tmp_path, written)["remedy"].endswith(": latentvirt image build debian-12")
    put(store, "debian-12", arch="aarch64")
    assert said(the_one(fake, tmp_path, written)) == ("image-not-here", "problem")
    day = time.strftime("%Y-%m-%d", time.gmtime(put(store, "debian-12").when))
    found = the_one(fake, tmp_path, written)
    assert said(found) == ("image-named", "ok")
    assert found["what"] == f"the image debian-12 for x86_64 is here for the worker w1, and of {day}"


def test_a_stock_image_that_cloud_init_needs_is_pulled(
    fake: FakeLibvirt, store: ImageStore, tmp_path: Path
) -> None:
    """With cloud_init= it is the stock image that counts, and it is got, not built."""
    put(store, "debian-12")
    stock = "'debian-12', cloud_init=True"
    found = the_one(fake, tmp_path, stock)
    assert said(found) == ("image-not-here", "problem")
    assert "was not got yet" in found["what"]
    assert found["remedy"].endswith(": latentvirt image pull debian-12 --arch x86_64")
    put(store, "debian-12", kind=STOCK)
    assert said(the_one(fake, tmp_path, stock)) == ("image-named", "ok")


def test_one_image_of_several_workers_is_told_once(
    fake: FakeLibvirt, store: ImageStore, tmp_path: Path
) -> None:
    """However many workers have an image, it is one finding that names them all."""
    (found,) = doctor(fake, write(tmp_path, "'debian-12'", "'debian-12'"))
    assert "the workers w1, w2 cannot do without it" in found["what"]


def test_a_name_that_nobody_knows_is_told_with_the_nearest(
    fake: FakeLibvirt, store: ImageStore, tmp_path: Path
) -> None:
    """A name that is in no catalogue makes master.cfg unusable, and the nearest is named."""
    told = CliRunner().invoke(
        main, ["doctor", "--config", write(tmp_path, "'debain-12'"), "--json"], obj=fake
    )
    (found,) = json.loads(told.stdout)
    assert said(found) == ("config-unusable", "problem")
    assert "did you mean debian-12" in found["what"]


@pytest.mark.parametrize(
    "written",
    [
        "util.Interpolate('%(prop:os_type)s-12')",
        "Image(os_type='debian', os_version=util.Property('os_version'))",
    ],
)
def test_an_image_that_a_build_chooses_is_not_guessed(
    fake: FakeLibvirt, store: ImageStore, tmp_path: Path, written: str
) -> None:
    """Where the name depends on a property nobody is warned; it is said that it cannot be known."""
    found = the_one(fake, tmp_path, written)
    assert said(found) == ("image-varies", "ok")
    assert "the base image of the worker w1 depends on the build" in found["what"]


def test_an_image_is_looked_for_where_its_vms_can_run(
    fake: FakeLibvirt, store: ImageStore, tmp_path: Path
) -> None:
    """An image for another architecture, or for builds that ask for one, is no matter of this host."""
    arm = ("Image(name='debian-12', arch='arm64')", "'debian-12', requires={'arch': 'aarch64'}")
    assert doctor(fake, write(tmp_path, *arm)) == []
    (wanted,) = wanted_in(str(tmp_path))
    for_arm = frozenset({"aarch64"})
    assert wanted.named_images == (
        NamedImage(image=Image(name="debian-12", arch="arm64"), archs=for_arm, workers=("w1",)),
        NamedImage(image=Image(name="debian-12"), archs=for_arm, workers=("w2",)),
    )


def test_a_damaged_image_is_told_as_that(fake: FakeLibvirt, store: ImageStore, tmp_path: Path) -> None:
    """An image whose file is gone is told from one that was never built, and can be made anew."""
    store.path_of(put(store, "debian-12")).unlink()
    found = the_one(fake, tmp_path, "'debian-12'")
    assert said(found) == ("image-not-here", "problem")
    assert "is damaged" in found["what"]
    remove = re.search(r"\(latentvirt (.*?)\)", found["remedy"])
    assert remove is not None
    assert CliRunner().invoke(main, shlex.split(remove[1])).exit_code == 0
    assert "not built yet" in the_one(fake, tmp_path, "'debian-12'")["what"]


def test_the_way_to_an_image_is_one_that_leads_there(
    fake: FakeLibvirt, store: ImageStore, own: None, tmp_path: Path
) -> None:
    """What is ready is got, what was made of a file is made of one, and what there cannot be is said so."""
    put(store, "ours", arch="aarch64")
    written = ("'lab'", "'lab', cloud_init=True", "'ours'", "'far'")
    ready, mistaken, ours, far = [one["remedy"] for one in doctor(fake, write(tmp_path, *written))]
    assert ready.endswith(": latentvirt image pull lab --arch x86_64")
    assert "leave cloud_init=" in mistaken
    assert ours.endswith(": latentvirt image build PATH --name ours")
    assert "for aarch64 only" in far


def test_an_image_for_other_machines_is_built_there(
    fake: FakeLibvirt, store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are built for the machine that builds them, so elsewhere one is sent to another."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    remedy = the_one(fake, tmp_path, "'debian-12'")["remedy"]
    assert "on a machine of that architecture: latentvirt image pull debian-12 --arch x86_64 && " in remedy
    assert "ready = true" in remedy


def built(store: ImageStore, stock: Entry, name: str = "debian-12") -> Entry:
    """Build an image of a stock image, as far as the store sees it."""
    temp = store.scratch() / "x"
    temp.write_bytes(b"built")
    source = {"of": stock.name, "built_from": {"name": stock.name, "digest": stock.digest, "source": {}}}
    return store.publish(temp, name=name, arch="x86_64", kind=BUILT, format="raw", source=source)


def test_old_age_is_a_hint(
    fake: FakeLibvirt, store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image whose vendor was not asked for longer than `image pull` waits is told, and is no failure."""
    began = time.time()
    stock = put(store, "debian-12", kind=STOCK)
    built(store, stock)
    written = ("'debian-12'", "'debian-12', cloud_init=True")
    monkeypatch.setattr(time, "time", lambda: began + 29 * DAY_S)
    assert {one["id"] for one in doctor(fake, write(tmp_path, *written))} == {"image-named"}
    monkeypatch.setattr(time, "time", lambda: began + 31.5 * DAY_S)
    ready, raw = doctor(fake, str(tmp_path))
    assert said(ready) == said(raw) == ("image-old", "ok")
    assert "was not asked for 31 days" in ready["what"]
    pull = ": latentvirt image pull debian-12 --arch x86_64"
    assert f"{pull} && latentvirt image build debian-12, with the options" in ready["remedy"]
    assert raw["remedy"].endswith(pull)
    store.confirm(stock)
    assert {one["id"] for one in doctor(fake, str(tmp_path))} == {"image-named"}
    store.remove("debian-12", "x86_64", STOCK)
    assert said(the_one(fake, tmp_path, "'debian-12'")) == ("image-old", "ok")


def test_a_newer_stock_image_is_a_hint(fake: FakeLibvirt, store: ImageStore, tmp_path: Path) -> None:
    """Who has got a newer stock image is told that what was built of the old one can be built anew."""
    built(store, put(store, "debian-12", 1, kind=STOCK), name="ours")
    assert said(the_one(fake, tmp_path, "'ours'")) == ("image-named", "ok")
    put(store, "debian-12", 2, kind=STOCK)
    found = the_one(fake, tmp_path, "'ours'")
    assert said(found) == ("image-old", "ok")
    assert ": latentvirt image build debian-12 --name ours, with" in found["remedy"]


def test_what_has_no_newer_one_is_not_called_old(
    fake: FakeLibvirt, store: ImageStore, own: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that is pinned, or was built from a file, is never told to be old."""
    built(store, put(store, "debian-12", kind=STOCK))
    put(store, "mine")
    began = time.time()
    monkeypatch.setattr(time, "time", lambda: began + 300 * DAY_S)
    written = ("'debian-12'", "'debian-12', cloud_init=True", "'mine'")
    assert [one["id"] for one in doctor(fake, write(tmp_path, *written))] == ["image-named"] * 3
