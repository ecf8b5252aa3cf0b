"""cloud_init=: workers of a stock image that nobody has prepared, on a fake host."""

from __future__ import annotations

import io
import re
import subprocess
from pathlib import Path
from typing import Any

import pycdlib
import pytest
import yaml
from buildbot.config.errors import ConfigErrors
from buildbot.interfaces import LatentWorkerCannotSubstantiate
from lxml import etree

from latentvirt.building import serving
from latentvirt.errors import ConfigError
from latentvirt.images.store import STOCK, ImageStore
from latentvirt.master.firstboot import FOLDER as SEEDS
from latentvirt.master.firstboot import read_cloud_init
from stagemaster import StageMaster
from test_named_images import FOLDER, URI, copies, master, put, start, stop, store, worker_of

__all__ = ["master", "store"]

GUEST_SCRIPT = Path(__file__).parent.parent / "src" / "latentvirt" / "building" / "guest" / "build"

PROGRAMS = {"cat", "find", "id", "install", "rm", "sed", "sync", "systemctl", "timeout", "touch", "useradd"}
"""Some that the guest's program calls."""


def described(master: StageMaster) -> str:
    """Read the XML of the domain that runs."""
    (name,) = master.fake.inspect(URI).running()
    domain = master.fake.inspect(URI).domain(name)
    assert domain is not None
    assert domain.live is not None
    return domain.live


def seed_in(master: StageMaster) -> tuple[str, dict[str, Any]]:
    """Say where the seed of the running domain lies, and what it tells."""
    disk = etree.fromstring(described(master)).find("devices/disk/target[@dev='vdz']/..")
    assert disk is not None
    assert disk.find("readonly") is not None
    assert disk.find("source/seclabel[@model='dac']").get("relabel") == "no"
    path = disk.find("source").get("file")
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(master.fake.inspect(URI).files[path].read()))
    told = io.BytesIO()
    iso.get_file_from_iso_fp(told, joliet_path="/user-data")
    return path, yaml.safe_load(told.getvalue())


def test_a_stock_image_gets_a_disk_that_makes_a_worker_of_it(
    master: StageMaster, store: ImageStore, tmp_path: Path
) -> None:
    """The stock image is started from, with a disk that only tells and that all starts share."""
    master.basedir = str(tmp_path)
    stock = put(store, "debian-12", 1, kind=STOCK)
    worker = worker_of(master, "debian-12", cloud_init={"packages": ["make"], "runcmd": ["echo hello"]})
    start(worker)
    path, told = seed_in(master)
    assert stock.digest in copies(master)
    assert path.startswith(f"{FOLDER}/latentvirt-images/")
    assert told["packages"] == ["make"]
    script = "/var/lib/latentvirt-build/build"
    assert told["runcmd"] == ["set -e", ["sh", script, "equip"], "echo hello", ["sh", script, "serve"]]
    assert any(file["path"].endswith("latentvirt_guest.py") for file in told["write_files"])
    stop(worker)
    start(worker)
    assert seed_in(master)[0] == path
    stop(worker)


def test_a_disk_that_was_cut_off_is_made_again(
    master: StageMaster, store: ImageStore, tmp_path: Path
) -> None:
    """A master's machine that lost its power while it wrote the disk leaves no build with half of one."""
    master.basedir = str(tmp_path)
    put(store, "debian-12", 1, kind=STOCK)
    worker = worker_of(master, "debian-12", cloud_init=True)
    start(worker)
    path, told = seed_in(master)
    stop(worker)
    (seed,) = (tmp_path / SEEDS).iterdir()
    seed.write_bytes(b"")
    start(worker)
    assert seed_in(master) == (path, told)
    stop(worker)


def test_without_it_there_is_no_such_disk(master: StageMaster, store: ImageStore) -> None:
    """An image that was made ready starts without one."""
    put(store, "debian-12", 1)
    worker = worker_of(master, "debian-12")
    start(worker)
    assert "vdz" not in described(master)
    stop(worker)


def test_a_stock_image_that_is_not_here_is_named_with_what_to_do(
    master: StageMaster, store: ImageStore
) -> None:
    """The build ends with the command that gets the image."""
    put(store, "debian-12", 1)
    worker = worker_of(master, "debian-12", cloud_init=True)
    with pytest.raises(LatentWorkerCannotSubstantiate, match="latentvirt image pull debian-12"):
        start(worker)


@pytest.mark.parametrize(
    ("given", "identity", "base_image", "says"),
    [
        ("yes", "auto", "debian-12", "neither True nor a mapping"),
        (["make"], "auto", "debian-12", "neither True nor a mapping"),
        ({"runcmd": "echo"}, "auto", "debian-12", "must be a list"),
        ({"runcmd": [True]}, "auto", "debian-12", "no command"),
        ({"packages": object()}, "auto", "debian-12", "YAML"),
        (True, "static", "debian-12", "identity='static'"),
        (True, "auto", None, "there is no base_image"),
    ],
)
def test_what_cannot_be_told_is_refused(given: Any, identity: str, base_image: Any, says: str) -> None:
    """Arguments that cannot be right are named by checkconfig, with what to write."""
    with pytest.raises(ConfigError, match=re.escape(says)):
        read_cloud_init(given, identity, base_image)


def test_checkconfig_refuses_it(master: StageMaster, store: ImageStore) -> None:
    """The worker's configuration says so too."""
    with pytest.raises(ConfigErrors, match="cloud_init"):
        worker_of(master, "debian-12", cloud_init="yes")


def test_the_same_is_told_in_the_same_words() -> None:
    """Seeds of equal configurations are equal, so that they are one file on a host and one frozen image."""
    one, two, other = serving({"a": 1}), serving({"a": 1}), serving({"a": 2})
    assert one == two
    assert one.meta_data["instance-id"] == two.meta_data["instance-id"] != other.meta_data["instance-id"]


def test_the_guests_script_takes_no_programs_name() -> None:
    """What runs in the guest is a shell program that calls programs, and not itself instead of one."""
    subprocess.run(["sh", "-n", str(GUEST_SCRIPT)], check=True)
    functions = re.findall(r"^(\w+)\(\) ", GUEST_SCRIPT.read_text(), re.MULTILINE)
    assert {"equip", "serve", "finish"} <= set(functions)
    assert not PROGRAMS & set(functions)
