"""contrib/libvirt/qemu, run as libvirt runs it, with the real qemu-img: what it does not do."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbench import (
    DEADLINE,
    Bench,
    domain_xml,
    make_bench,
    qemu_img,
    refused,
)

pytestmark = pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An image folder and a configured hook of the test's own."""
    return make_bench(tmp_path)


@pytest.mark.parametrize("kind", ["text", "overlay", "copy of ours", "link", "folder"])
def test_what_others_made_is_left_alone(bench: Bench, kind: str) -> None:
    """A file at the clone's place that the hook did not make stops the start and survives the end."""
    other = bench.folder / "other.qcow2"
    if kind == "text":
        bench.clone.write_text("a person's file")
    elif kind == "overlay":
        qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(bench.base), str(bench.clone))
    elif kind == "copy of ours":
        bench.write(bench.config.read_text() + "[other-vm]\nbase=base.qcow2\nclone=other.qcow2\n")
        assert bench.prepare("other-vm", stdin=domain_xml(other)).returncode == 0
        shutil.copy2(other, bench.clone)  # the mark too
    elif kind == "link":
        other.write_text("a person's file")
        bench.clone.symlink_to(other)
    else:
        (bench.clone / "inside").mkdir(parents=True)
    before = bench.files()
    assert refused(bench.prepare(), str(bench.clone), "not made by this script")
    assert refused(bench.release(), str(bench.clone), "not made by this script")
    assert bench.files() == before
    assert os.path.lexists(bench.clone)


def test_a_disk_in_use_is_left_alone(bench: Bench) -> None:
    """While a program has the clone open, neither operation touches it."""
    bench.prepare()
    inode = bench.clone.stat().st_ino
    with subprocess.Popen(
        ["qemu-io", "-f", "qcow2", str(bench.clone)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as user:
        assert user.stdin is not None
        assert user.stdout is not None
        user.stdin.write("length\n")
        user.stdin.flush()
        user.stdout.readline()
        assert refused(bench.prepare(), "in use")
        assert refused(bench.release(), "in use")
        assert bench.clone.stat().st_ino == inode
        user.stdin.close()
        user.wait(DEADLINE)
    assert bench.release().returncode == 0


@pytest.mark.parametrize("option", ["base", "clone"])
@pytest.mark.parametrize(
    "name", ["../outside.qcow2", "/etc/passwd", "a/../../outside.qcow2", "way/out.qcow2", "..", "."]
)
def test_paths_outside_the_folder_are_refused(bench: Bench, option: str, name: str) -> None:
    """Neither image may lie outside the folder: not by a parent, an absolute path or a link."""
    outside = bench.root / "outside"
    outside.mkdir()
    qemu_img("create", "-q", "-f", "qcow2", str(outside / "out.qcow2"), "8M")
    qemu_img("create", "-q", "-f", "qcow2", str(bench.root / "outside.qcow2"), "8M")
    (bench.folder / "a").mkdir()
    (bench.folder / "way").symlink_to(outside)
    values = {"base": "base.qcow2", "clone": "clone.qcow2", option: name}
    bench.write(f"[build-vm]\nfolder={bench.folder}\nbase={values['base']}\nclone={values['clone']}\n")
    before = [bench.files(), sorted(bench.root.rglob("*"))]
    clone = bench.folder / values["clone"]
    assert refused(bench.prepare(stdin=domain_xml(clone)), f"{option} = {name}")
    assert refused(bench.release())
    assert [bench.files(), sorted(bench.root.rglob("*"))] == before


_PARTS = st.sampled_from(
    ["..", ".", "", "sub", "in", "out", "up", "base.qcow2", "new.qcow2", "~", "$HOME", "%"]
)


@settings(max_examples=40)
@given(parts=st.lists(_PARTS, min_size=1, max_size=5), absolute=st.sampled_from(["", "/", "folder"]))
def test_no_path_leads_outside(parts: list[str], absolute: str) -> None:
    """Whatever the clone is called, nothing outside the folder changes, and an end undoes its start."""
    with tempfile.TemporaryDirectory() as temporary:
        bench = make_bench(Path(temporary))
        outside = bench.root / "outside"
        outside.mkdir()
        (bench.folder / "sub").mkdir()
        (bench.folder / "in").symlink_to("sub")
        (bench.folder / "out").symlink_to(outside)
        (bench.folder / "up").symlink_to("..")
        name = "/".join(parts)
        name = f"{bench.folder}/{name}" if absolute == "folder" else absolute + name
        bench.write(f"[build-vm]\nfolder={bench.folder}\nbase=base.qcow2\nclone={name}\n")
        inside, everything = bench.files(), sorted(bench.root.rglob("*"))
        clone = bench.folder / name
        result = bench.prepare(stdin=domain_xml(clone))
        new = set(bench.root.rglob("*")) - set(everything)
        if result.returncode == 0:
            made = Path(os.path.realpath(clone))
            assert made.is_relative_to(bench.folder)
            assert {Path(os.path.realpath(path)) for path in new} == {made}
        else:
            assert refused(result)
            assert not new
        assert bench.release().returncode == result.returncode
        assert (bench.files(), sorted(bench.root.rglob("*"))) == (inside, everything)


@pytest.mark.parametrize("alias", ["base.qcow2", "./base.qcow2", "sub/../base.qcow2", "hard.qcow2"])
def test_the_base_is_never_the_clone(bench: Bench, alias: str) -> None:
    """A clone that is the base under any name is refused, and the base survives."""
    (bench.folder / "sub").mkdir()
    os.link(bench.base, bench.folder / "hard.qcow2")
    bench.write(f"[build-vm]\nfolder={bench.folder}\nbase=base.qcow2\nclone={alias}\n")
    before = bench.files()
    assert refused(bench.prepare(stdin=domain_xml(bench.folder / alias)), "same file")
    assert refused(bench.release(), "same file")
    assert bench.files() == before


def test_one_domains_clone_is_not_anothers_image(bench: Bench) -> None:
    """Two sections that would take each other's files are refused, both of them."""
    section = "[{}]\nbase={}\nclone={}\n"
    head = f"[DEFAULT]\nfolder={bench.folder}\n"
    for first, second in (
        (("base.qcow2", "clone.qcow2"), ("base.qcow2", "clone.qcow2")),
        (("base.qcow2", "clone.qcow2"), ("clone.qcow2", "third.qcow2")),
    ):
        bench.write(head + section.format("build-vm", *first) + section.format("other-vm", *second))
        assert refused(bench.prepare(), "[other-vm]")
        assert refused(bench.prepare("other-vm", stdin=domain_xml(bench.folder / second[1])), "[build-vm]")
    assert set(bench.files()) == {"base.qcow2"}


def test_a_saved_memory_is_refused(bench: Bench) -> None:
    """A domain with a new disk is not restored or migrated into: old memory would destroy the disk."""
    for operation in ("restore", "migrate"):
        assert refused(bench.run("build-vm", operation, "begin", "-"), "managedsave-remove build-vm")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[build-vm\n", "cannot read"),
        ("[build-vm]\n[build-vm]\n", "already exists"),
        ("[build-vm]\nbase=base.qcow2\nclone=clone.qcow2\n", "folder is missing"),
        ("[build-vm]\nfolder=images\nbase=base.qcow2\nclone=clone.qcow2\n", "folder = images"),
        ("[build-vm]\nfolder=/\nbase=base.qcow2\nclone=clone.qcow2\n", "folder = /"),
        ("[build-vm]\nfolder=FOLDER\nbase=gone.qcow2\nclone=clone.qcow2\n", "gone.qcow2: No such file"),
        ("[build-vm]\nfolder=FOLDER\nbase=sub\nclone=clone.qcow2\n", "sub"),
        ("[build-vm]\nfolder=FOLDER\nbase=base.qcow2\nclone=no/clone.qcow2\n", "there is no folder"),
        (
            "[build-vm]\nfolder=FOLDER\nbase=base.qcow2\nclone=clone.qcow2\ncolour=red\n",
            "unknown option colour",
        ),
        ("[build-vm]\nfolder=FOLDER\nbase=base.qcow2\nclone=clone.qcow2\nbase_format=raw\n", "is not raw"),
        (
            "[build-vm]\nfolder=FOLDER\nbase=base.qcow2\nclone=clone.qcow2\nbase_format=vmdk\n",
            "vmdk is unknown",
        ),
        ("[build-vm]\nfolder=FOLDER\nbase=base.qcow2\nclone=clone.qcow2\nsize=4M\n", "would be cut off"),
        ("[build-vm]\nfolder=FOLDER\nbase=base.qcow2\nclone=clone.qcow2\nsize=big\n", "size = big"),
        ("[build-vm]\nfolder=FOLDER\nbase=base.qcow2\nclone=clone.qcow2\n  and more\n", "line break"),
    ],
)
def test_a_wrong_configuration_stops_the_start(bench: Bench, text: str, words: str) -> None:
    """Each mistake is told to the person, exits with an error, and leaves nothing behind."""
    (bench.folder / "sub").mkdir()
    bench.write(text.replace("FOLDER", str(bench.folder)))
    assert refused(bench.prepare(), words)
    assert set(bench.files()) == {"base.qcow2"}


@pytest.mark.parametrize(
    ("stdin", "words"),
    [
        ("", "no domain XML on stdin"),
        ("<domain/>", "it has no file as a disk"),
        (domain_xml(Path("/srv/precious.qcow2")), "/srv/precious.qcow2"),
    ],
)
def test_a_domain_that_would_write_elsewhere_does_not_start(bench: Bench, stdin: str, words: str) -> None:
    """If no disk of the domain is the clone, the start stops and says which disk it would have been."""
    assert refused(bench.prepare(stdin=stdin), words)
    assert set(bench.files()) == {"base.qcow2"}


def test_a_domain_that_would_misread_the_clone_does_not_start(bench: Bench) -> None:
    """A clone read as raw, or on another base than the configured one, stops the start."""
    assert refused(bench.prepare(stdin=domain_xml(bench.clone, driver="raw")), "as qcow2")
    wrong = "<backingStore type='file'><format type='qcow2'/><source file='/srv/old.qcow2'/></backingStore>"
    assert refused(bench.prepare(stdin=domain_xml(bench.clone, inner=wrong)), "/srv/old.qcow2")
    right = wrong.replace("/srv/old.qcow2", str(bench.base))
    assert bench.prepare(stdin=domain_xml(bench.clone, inner=right)).returncode == 0


def test_the_temporary_name_is_no_way_to_another_file(bench: Bench) -> None:
    """A link that somebody left where a clone is made does not lead the hook to what it points to."""
    precious = bench.root / "precious"
    precious.write_text("a person's file")
    (bench.folder / ".clone.qcow2.latentvirt-hook").symlink_to(precious)
    assert bench.prepare().returncode == 0
    assert precious.read_text() == "a person's file"
    assert set(bench.files()) == {"base.qcow2", "clone.qcow2"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to lose by it")
def test_root_does_not_obey_a_file_that_anyone_can_write(bench: Bench) -> None:
    """A configuration that is not root's alone is refused: it says which files root makes and removes."""
    bench.config.chmod(0o666)
    assert refused(bench.prepare(), "chmod go-w")
    bench.config.chmod(0o644)
    os.chown(bench.config, 65534, 65534)
    assert refused(bench.prepare(), "chown root")
    assert set(bench.files()) == {"base.qcow2"}
