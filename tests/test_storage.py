"""Chains of images, and what keeps QEMU from reading one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import reactorthread
from latentvirt.config import Connection
from latentvirt.domainxml import Layer
from latentvirt.errors import ImageError, NotFound
from latentvirt.host import Host, ImageView
from latentvirt.storage import LONGEST_CHAIN, Chain, backing_chain, open_storage, what_blocks
from latentvirt.storage.permissions import GONE, GONE_OR_CLOSED, Unseen, why_unseen
from latentvirt.testing import FakeLibvirt
from reactorthread import run

OWNER = "0123456789abcdef"


class Images:
    """A storage that has only images."""

    directory = "/ours"

    def __init__(self, *images: ImageView) -> None:
        self._images = {image.path: image for image in images}

    async def image(self, path: str) -> ImageView:
        """Look at one."""
        if path not in self._images:
            raise NotFound("no such volume")
        return self._images[path]

    async def why_unseen(self, path: str) -> Unseen:
        """Not know."""
        return GONE_OR_CLOSED


def _chain(images: Any, path: str, format: str | None = None) -> Chain:
    return run(backing_chain(images, path, format, host="qemu:///system", role="base image"))


def test_a_chain_is_followed_with_declared_formats() -> None:
    """Each image counts as what the one above it says, or what it says itself; the size is the top's."""
    images = Images(
        ImageView(path="/top", format="qcow2", capacity=3, backing="/middle", backing_format="raw"),
        ImageView(path="/middle", format="qcow2", capacity=2, backing="/bottom"),
        ImageView(path="/bottom", format="raw", capacity=1 << 20),
    )
    chain = _chain(images, "/top")
    assert chain.layers == (Layer("/top", "qcow2"), Layer("/middle", "raw"), Layer("/bottom", "raw"))
    assert chain.capacity == 3


def test_what_the_person_says_of_the_format_counts() -> None:
    """A given format is believed more than the image's looks."""
    images = Images(ImageView(path="/top", format="qcow2", capacity=3))
    assert _chain(images, "/top", "raw").layers == (Layer("/top", "raw"),)


def test_a_change_anywhere_in_a_chain_is_seen() -> None:
    """A chain's stamp is another when the content of any image in it is, also of the lowest."""
    top = ImageView(path="/top", format="qcow2", capacity=3, backing="/bottom", stamp="1 1")
    bottom = ImageView(path="/bottom", format="qcow2", capacity=3, stamp="2 2")
    before = _chain(Images(top, bottom), "/top").stamp
    assert _chain(Images(top, bottom), "/top").stamp == before
    assert _chain(Images(attrs.evolve(top, stamp="1 3"), bottom), "/top").stamp != before
    assert _chain(Images(top, attrs.evolve(bottom, stamp="2 3")), "/top").stamp != before


def test_files_of_ours_in_a_chain_are_known_as_ours() -> None:
    """A host may label a file of ours for QEMU's user, and leaves the person's images alone."""
    images = Images(
        ImageView(path="/ours/frozen", format="qcow2", capacity=3, backing="/images/base"),
        ImageView(path="/images/base", format="qcow2", capacity=3),
    )
    assert [layer.ours for layer in _chain(images, "/ours/frozen").layers] == [True, False]


def test_a_missing_link_is_named() -> None:
    """An image that a base image stands on and that is not there is named, with the one that needs it."""
    images = Images(ImageView(path="/top", format="qcow2", capacity=3, backing="/gone"))
    with pytest.raises(ImageError, match=r"base image /gone \(it backs /top\) is not there.*check the path"):
        _chain(images, "/top")


def test_a_chain_without_end_is_noticed() -> None:
    """Images that stand on each other are an error, not a loop."""
    images = Images(
        ImageView(path="/a", format="qcow2", capacity=3, backing="/b"),
        ImageView(path="/b", format="qcow2", capacity=3, backing="/a"),
    )
    with pytest.raises(ImageError, match=f"stands on more than {LONGEST_CHAIN} images"):
        _chain(images, "/a")


@pytest.mark.parametrize(
    ("view", "says"),
    [
        (ImageView(path="/notes.txt", format="raw", capacity=300), "is no disk image"),
        (ImageView(path="/empty", format="raw", capacity=0), "is no disk image"),
        (ImageView(path="/folder", format="dir", capacity=0), "is a directory"),
    ],
)
def test_what_is_no_image_is_named(view: ImageView, says: str) -> None:
    """A text, an empty file or a directory in an image's place ends the build with its path."""
    with pytest.raises(ImageError, match=f"{view.path} {says}"):
        _chain(Images(view), view.path)


@pytest.fixture
def image() -> Iterator[Path]:
    """An image that everybody can read, which nothing in pytest's own folders is."""
    with tempfile.TemporaryDirectory(prefix="latentvirt-images-") as folder:
        path = Path(folder) / "base.qcow2"
        path.parent.chmod(0o755)
        path.write_bytes(b"")
        path.chmod(0o644)
        yield path


def test_a_readable_path_blocks_nobody(image: Path) -> None:
    """Nothing is named where others can read all."""
    assert what_blocks([str(image)]) is None


def test_a_closed_folder_is_named(image: Path) -> None:
    """The component that others cannot pass is named, with its owner and mode."""
    image.parent.chmod(0o700)
    said = what_blocks([str(image)]) or ""
    assert said.startswith(f"{image.parent} (owner {os.getuid()}:{os.getgid()} mode 0700) cannot be passed")


def test_a_closed_file_is_named(image: Path) -> None:
    """A file that others cannot read is named, also if it is not the first."""
    closed = image.parent / "closed"
    closed.write_bytes(b"")
    closed.chmod(0o640)
    said = what_blocks([str(image), str(closed)]) or ""
    assert said.startswith(f"{closed} (owner {os.getuid()}:{os.getgid()} mode 0640) cannot be read")


def test_a_missing_file_is_named(image: Path) -> None:
    """A path that ends early is named as far as it goes."""
    assert what_blocks([f"{image.parent}/gone/x"]) == f"{image.parent}/gone: No such file or directory"


def test_an_image_that_libvirt_leaves_out_is_told_from_none(image: Path) -> None:
    """An image that is there and closed to libvirt's user is told as that, with the right that lacks."""
    image.chmod(0)
    me = os.getuid()
    mine = why_unseen(str(image), me)
    assert f"(owner {me}:{os.getgid()} mode 0000), but libvirt, which runs as user {me}," in mine.state
    assert mine.remedy.startswith(f"chmod u+r '{image}'")
    assert why_unseen(str(image), me + 1).remedy.startswith(f"chmod o+r '{image}'")
    assert why_unseen(f"{image.parent}/gone", 0) == why_unseen(f"{image}/below", 0) == GONE


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("qemu:///system", r"is there \(owner .* mode 0000\), but libvirt, which runs as user 0, cannot"),
        ("qemu:///session", rf"is there .* which runs as user {os.geteuid()}, cannot read it: .*chmod u\+r"),
        ("qemu+ssh://far/system", "is not there, or libvirt may not read it: .* not found"),
    ],
)
def test_a_base_image_that_libvirt_does_not_see(image: Path, uri: str, says: str) -> None:
    """What is there is not called missing on the master's own machine, and on others both are told."""
    image.chmod(0)
    fake = FakeLibvirt()
    fake.inspect(uri).add_folder(str(image.parent))

    async def follow() -> None:
        host = Host(Connection(uri), reactorthread.start(), driver=fake)
        try:
            storage = open_storage(host, OWNER, str(image.parent))
            await backing_chain(storage, str(image), None, host=uri, role="base image")
        finally:
            await host.close()

    with pytest.raises(ImageError, match=f"the base image {image} {says}"):
        run(follow())


def test_an_image_out_of_sight_may_be_there(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the master itself may not look, both that it is gone and that it is closed are told."""

    def closed(path: str) -> os.stat_result:
        raise PermissionError(path)

    monkeypatch.setattr(os, "stat", closed)
    why = why_unseen(str(image), 0)
    assert why.state == "is not there, or libvirt may not read it"
    assert "check the path" in why.remedy
    assert "o+r" in why.remedy
