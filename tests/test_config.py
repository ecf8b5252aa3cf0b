"""The values that a person writes in master.cfg."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentvirt.config import BYTES_PER_MIB, Connection, mebibytes
from latentvirt.errors import ConfigError
from latentvirt.roots import open_way
from latentvirt.sizes import Size
from latentvirt.storage.embed import make_directory


@pytest.mark.parametrize(
    ("given", "mib"),
    [
        (512, 512),
        ("512", 512),
        ("4 GiB", 4096),
        ("1.5G", 1536),
        ("2gb", 2048),
        ("1 TiB", 1024**2),
        ("0.1 M", 1),
    ],
)
def test_amounts(given: int | str, mib: int) -> None:
    """Amounts are MiB, or have the units that libvirt's and QEMU's tools know; parts are rounded up."""
    assert mebibytes(given, "memory") == mib


@pytest.mark.parametrize("given", [0, -1, "", "lots", "4 KiB", "1e3", True, None, "4 GiB 2", "GiB"])
def test_what_is_no_amount(given: Any) -> None:
    """What is no positive amount is refused, with the argument's name and how to write it."""
    with pytest.raises(ConfigError, match=r"memory=.* is not an amount.*'4 GiB'"):
        mebibytes(given, "memory")


@pytest.mark.parametrize(
    "given", [2**43, pytest.param(10**5000, id="digits"), "8388608 TiB", "999999999999 TiB"]
)
def test_an_amount_that_nothing_could_count_is_refused(given: Any) -> None:
    """An amount of more bytes than libvirt has numbers for is refused before anything is asked."""
    with pytest.raises(ConfigError, match=r"memory=.* is more than any machine can have.*below 8388608 TiB"):
        mebibytes(given, "memory")


def test_a_size_is_read() -> None:
    """A size takes numbers and words alike, and compares by what they mean."""
    assert Size(memory="2 GiB", vcpus=2, disk="10 GiB") == Size(memory=2048, vcpus="2", disk=10240)
    assert Size().disk is None


@pytest.mark.parametrize("vcpus", [0, -1, True, "two", "1.5", 1.5])
def test_what_is_no_number_of_processors(vcpus: Any) -> None:
    """A VM has at least one processor, and a whole number of them."""
    with pytest.raises(ConfigError, match="vcpus="):
        Size(vcpus=vcpus).check()


@pytest.mark.parametrize(
    "uri",
    [
        "qemu:///system",
        "qemu:///session",
        "qemu:///embed?root=/x",
        "qemu+ssh://root@127.0.0.1:2222/system?keyfile=/k&no_tty=1",
        "qemu+unix:///system?socket=/s",
        "test:///default",
        "an-alias.of_mine",
    ],
)
def test_good_uris(uri: str) -> None:
    """What libvirt takes, and aliases of libvirt.conf, are accepted as they are."""
    connection = Connection(uri)
    connection.check()
    assert connection.uri == uri


@pytest.mark.parametrize(
    "uri",
    ["", " ", None, 3, "/var/lib/x", "qemu:/system", "qemu://h:port/", "http//x", "a b", "qemu:///embed"],
)
def test_bad_uris(uri: Any) -> None:
    """What cannot be a URI is refused with an example of one."""
    with pytest.raises(ConfigError, match="qemu:///"):
        Connection(uri).check()


@pytest.mark.parametrize("slots", [0, -1, True, "2", 1.5])
def test_bad_slots(slots: Any) -> None:
    """A limit is at least one VM."""
    with pytest.raises(ConfigError, match="slots="):
        Connection("qemu:///system", slots=slots).check()


@pytest.mark.parametrize(
    ("uri", "local", "embed"),
    [
        ("qemu:///system", True, False),
        ("qemu:///embed?root=/x", True, True),
        ("qemu+ssh://h/system", False, False),
        ("qemu://h/embed", False, False),
        ("alias", False, False),
    ],
)
def test_where_a_host_is(uri: str, local: bool, embed: bool) -> None:
    """A host counts as local only if that is sure."""
    connection = Connection(uri)
    assert (connection.is_local, connection.is_embed) == (local, embed)


@pytest.fixture
def daemons_umask() -> Iterator[None]:
    """The umask of a master that `buildbot start` has made a daemon of."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("daemons_umask")
def test_qemus_user_comes_through_whatever_the_masters_umask(tmp_path: Path) -> None:
    """What an embedded libvirt's QEMU must reach is below folders that it may pass; what is there stays."""
    open_way(f"qemu:///embed?root={tmp_path}")
    open_way("qemu+ssh://host/system")
    open_way(f"qemu:///embed?root={tmp_path}/nowhere")
    make_directory(str(tmp_path / "ours"), str(tmp_path), "qemu:///embed")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"lib": 0o711, "ours": 0o711}
    (tmp_path / "lib").chmod(0o700)
    open_way(f"qemu:///embed?root={tmp_path}")
    assert (tmp_path / "lib").stat().st_mode & 0o777 == 0o700


def test_a_rate_of_copying_is_an_amount() -> None:
    """How much of an image a host may be sent per second has the units of other amounts; none means any."""
    assert Connection("qemu:///system").copy_bytes_per_s is None
    assert Connection("qemu:///system", copy_rate="50 MiB").copy_bytes_per_s == 50 * BYTES_PER_MIB
    with pytest.raises(ConfigError, match=r"copy_rate='fast' is not an amount"):
        Connection("qemu:///system", copy_rate="fast").check()
