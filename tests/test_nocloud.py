"""What cloud-init is told: the seed's disk, and a person's own data in it."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pycdlib
import pytest
import yaml
from pycdlib import pycdlib as pycdlib_itself

from latentvirt.errors import ConfigError
from latentvirt.images.cloudconfig import merged, read_cloud_config, read_meta_data
from latentvirt.images.nocloud import Seed, seed_image, write_seed

SEED = Seed(
    meta_data={"instance-id": "one", "local-hostname": "guest"},
    user_data={"packages": ["buildbot-worker"], "write_files": [{"path": "/a", "permissions": "0644"}]},
    network_config={"version": 2, "ethernets": {"e": {"match": {"name": "e*"}, "dhcp4": True}}},
)


def read_iso(image: bytes, way: str) -> dict[str, bytes]:
    """Read all files of an image, by the names that one way of naming gives them."""
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(image))
    found = {}
    for child in iso.list_children(**{way: "/"}):
        if child.is_file():
            rock, joliet = child.rock_ridge, child.file_identifier()
            name = rock.name().decode() if way == "rr_path" else joliet.decode("utf-16-be")
            data = io.BytesIO()
            iso.get_file_from_iso_fp(data, **{way: f"/{name}"})
            found[name] = data.getvalue()
    iso.close()
    return found


@pytest.mark.parametrize("way", ["rr_path", "joliet_path"])
def test_the_disk_has_what_cloud_init_looks_for(way: str) -> None:
    """A guest finds user-data, meta-data and network-config by these names, whichever way it reads names."""
    files = read_iso(seed_image(SEED), way)
    assert set(files) == {"meta-data", "user-data", "network-config"}
    assert files["user-data"].startswith(b"#cloud-config\n")
    assert yaml.safe_load(files["user-data"]) == SEED.user_data
    assert yaml.safe_load(files["meta-data"]) == SEED.meta_data
    assert yaml.safe_load(files["network-config"]) == SEED.network_config


@pytest.mark.skipif(shutil.which("blkid") is None, reason="util-linux's blkid is not here")
def test_the_disk_is_found_by_its_label(tmp_path: Path) -> None:
    """cloud-init asks blkid for a volume named cidata, and finds the seed."""
    write_seed(SEED, tmp_path / "seed.iso")
    said = subprocess.run(
        ["blkid", "-p", "-o", "export", tmp_path / "seed.iso"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert "LABEL=cidata" in said
    assert "TYPE=iso9660" in said


def test_a_seed_without_a_network_leaves_it_to_dhcp() -> None:
    """No network-config is made where none is given: cloud-init then asks for an address by itself."""
    files = read_iso(seed_image(Seed({"instance-id": "one"})), "rr_path")
    assert set(files) == {"meta-data", "user-data"}


def test_the_same_seed_makes_the_same_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes can be compared, today and in a year: no clock and no chance is in them."""
    first = seed_image(SEED)
    later = time.time() + 400 * 24 * 3600.5
    monkeypatch.setattr(pycdlib_itself.time, "time", lambda: later)
    assert seed_image(SEED) == first
    assert seed_image(Seed({"instance-id": "two"})) != seed_image(Seed({"instance-id": "one"}))


def test_a_seeds_file_is_for_its_owner_only(tmp_path: Path) -> None:
    """A password in a seed is read by nobody else, whatever the umask; a file that is there is left alone."""
    old = os.umask(0)
    try:
        write_seed(SEED, tmp_path / "seed.iso")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "seed.iso").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        write_seed(SEED, tmp_path / "seed.iso")


def test_a_seed_is_refused_that_cloud_init_would_pass_over() -> None:
    """Without an instance-id cloud-init takes the disk for no seed; that is said when it is made."""
    with pytest.raises(ConfigError, match="instance-id"):
        seed_image(Seed({"local-hostname": "guest"}))


def test_large_data_come_out_as_they_went_in() -> None:
    """A seed of many sectors is whole."""
    seed = Seed({"instance-id": "one"}, {"write_files": [{"content": "x" * 300_000}]})
    assert yaml.safe_load(read_iso(seed_image(seed), "joliet_path")["user-data"]) == seed.user_data


# A person's own data

OURS = {
    "packages": ["buildbot-worker"],
    "ssh": {"emit_keys_to_console": False},
    "package_update": True,
    "runcmd": [["one"]],
}


def test_their_lists_come_after_ours_and_their_values_count() -> None:
    """Packages and commands of a person's own are added; what both say is as the person says."""
    theirs = read_cloud_config(
        b"#cloud-config\npackages: [git, gcc]\npackage_update: false\nssh: {quiet: true}\ntimezone: UTC\n"
        b"runcmd:\n  - [two]\n",
        "mine.yaml",
    )
    assert merged(OURS, theirs, "mine.yaml") == {
        "packages": ["buildbot-worker", "git", "gcc"],
        "ssh": {"emit_keys_to_console": False, "quiet": True},
        "package_update": False,
        "runcmd": [["one"], ["two"]],
        "timezone": "UTC",
    }


def test_merging_changes_neither_side() -> None:
    """What was merged once can be merged again."""
    ours: dict[str, Any] = {"a": [1], "b": {"c": [2]}}
    theirs: dict[str, Any] = {"a": [3], "b": {"c": [4]}}
    assert merged(ours, theirs, "x") == merged(ours, theirs, "x") == {"a": [1, 3], "b": {"c": [2, 4]}}


def test_what_is_null_is_not_said() -> None:
    """An emptied key in a person's file does not take our part away."""
    assert merged(OURS, {"packages": None, "timezone": None}, "x") == {**OURS, "timezone": None}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("#!/bin/sh\necho\n", "a script"),
        ("Content-Type: multipart/mixed; boundary=x\nMIME-Version: 1.0\n", "MIME"),
        ("MIME-Version: 1.0\n", "MIME"),
        ("#include\nhttp://x\n", "addresses"),
        ("#cloud-boothook\n", "boot hook"),
        ("#cloud-config-archive\n- a\n", "archive"),
        ("## template: jinja\n#cloud-config\n", "template"),
        ("packages: [git]\n", "begins with 'packages"),
        ("", "begins with ''"),
        ("#cloud-config\n- a\n", "no mapping but"),
        ("#cloud-config\nwords\n", "no mapping but 'words'"),
        ("#cloud-config\na: [1\n", "not YAML"),
        ("#cloud-config\na: !!python/name:os.system\n", "not YAML"),
        ("#cloud-config\na: 2026-13-01\n", "not YAML"),
    ],
)
def test_user_data_that_cannot_be_merged_are_refused(text: str, what: str) -> None:
    """What cloud-init would take otherwise, or not at all, is said to be so, with the file and a way out."""
    with pytest.raises(ConfigError, match=what) as caught:
        read_cloud_config(text.encode(), "mine.yaml")
    assert "mine.yaml" in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("data", [b"\x1f\x8b\x08", b"#cloud-config\na: \xff\n"])
def test_user_data_that_are_no_text_are_refused(data: bytes) -> None:
    """A compressed file, or one of another encoding, is named as such."""
    with pytest.raises(ConfigError, match=r"mine\.yaml is (compressed|not text)"):
        read_cloud_config(data, "mine.yaml")


def test_files_of_other_systems_are_read() -> None:
    """A mark of the byte order and Windows' ends of lines do no harm; nothing after the header is nothing."""
    assert read_cloud_config(b"\xef\xbb\xbf#cloud-config\r\na: 1\r\n", "x") == {"a": 1}
    assert read_cloud_config(b"#cloud-config", "x") == {}
    assert read_meta_data(b"", "x") == {}


def test_meta_data_need_no_header_but_a_mapping() -> None:
    """Meta-data are a mapping in YAML, and said so if they are not."""
    assert read_meta_data(b"local-hostname: here\n", "x") == {"local-hostname": "here"}
    with pytest.raises(ConfigError, match="meta-data mine"):
        read_meta_data(b"- a\n", "mine")


@pytest.mark.parametrize(("key", "value"), [("packages", "git"), ("ssh", ["x"]), ("runcmd", {"a": 1})])
def test_a_value_of_another_kind_than_ours_is_refused(key: str, value: object) -> None:
    """Our part would be lost otherwise; the message names the key and what it must be."""
    with pytest.raises(ConfigError, match=f"{key} in mine.* must be a"):
        merged(OURS, {key: value}, "mine")
