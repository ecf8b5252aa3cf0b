"""Real builds on real VMs, for each kind of domain: fresh each time, and nothing left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import scenes
from masters import SUCCESS, Master
from scenes import Fingerprint, Stage, fast_domain, running

pytestmark = [pytest.mark.libvirt, pytest.mark.guest]

LOOK_AND_MARK = "if [ -e $HOME/mark ]; then echo used before; exit 1; fi; echo mark > $HOME/mark; sync"


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A host of the test's own."""
    with scenes.stage(user="libvirt-qemu") as stage:
        yield stage


def two_builds(master: Master) -> None:
    """Run two builds that must not see each other's mark."""
    for _ in range(2):
        build = master.finished(master.force("b"))
        assert build["results"] == SUCCESS, master.text(build, "start VM", "progress") + master.log()[-3000:]


def test_predefined_domain_stays_as_it_is_and_its_builds_do_not_see_each_other(
    stage: Stage, tmp_path: Path
) -> None:
    """A predefined domain runs each build on a new disk; its definition and images are untouched."""
    disk = stage.images / "minion1"
    xml = tmp_path / "minion1.xml"
    xml.write_text(fast_domain("minion1", disk, stage.debian))
    stage.libvirtd.virsh("define", str(xml))
    definition = stage.libvirtd.virsh("dumpxml", "--inactive", "minion1")
    base = Fingerprint.of(stage.base)
    config = f"""
    c['workers'].append(LibVirtWorker(
        'minion1', 'sekrit', Connection('{stage.libvirtd.uri}'), '{disk}', '{stage.base}'))
    builder('b', ['minion1'], {LOOK_AND_MARK!r})
    """
    with running(tmp_path / "master", config) as master:
        two_builds(master)
        stage.assert_nothing_left()
    stage.assert_all_gone()
    assert Fingerprint.of(stage.base) == base
    assert not disk.exists()
    assert stage.libvirtd.virsh("dumpxml", "--inactive", "minion1") == definition


def test_domain_given_as_xml_exists_only_while_a_build_needs_it(stage: Stage, tmp_path: Path) -> None:
    """A domain given as xml= is made for each build, and is not there before or afterwards."""
    disk = stage.images / "minion1"
    base = Fingerprint.of(stage.base)
    config = f"""
    c['workers'].append(LibVirtWorker(
        'minion1', 'sekrit', uri='{stage.libvirtd.uri}', hd_image='{disk}', base_image='{stage.base}',
        xml={fast_domain("given", disk, stage.debian)!r}))
    builder('b', ['minion1'], {LOOK_AND_MARK!r})
    """
    with running(tmp_path / "master", config) as master:
        two_builds(master)
        stage.assert_nothing_left()
    stage.assert_all_gone()
    assert Fingerprint.of(stage.base) == base
    assert stage.libvirtd.virsh("list", "--all", "--name").split() == []


def test_generated_domain_boots_the_image_by_itself(stage: Stage, tmp_path: Path) -> None:
    """Without a domain of the person's, one is generated that boots the image's own boot loader."""
    base = Fingerprint.of(stage.base)
    config = f"""
    c['workers'].append(LibVirtWorker(
        'minion1', None, '{stage.libvirtd.uri}', base_image='{stage.base}',
        size={{'memory': util.Property('memory', default='600 MiB'), 'disk': '3 GiB'}}))
    builder('b', ['minion1'], {LOOK_AND_MARK!r}, 'grep -c 6291456 /sys/block/vda/size')
    """
    with running(tmp_path / "master", config) as master:
        two_builds(master)
        stage.assert_nothing_left()
    stage.assert_all_gone()
    assert Fingerprint.of(stage.base) == base


def test_uefi_variables_are_new_for_each_start_and_gone_afterwards(stage: Stage, tmp_path: Path) -> None:
    """A domain with UEFI gets variables of its own for each build, and none of their files is left."""
    disk = stage.images / "minion1"
    xml = fast_domain("minion1", disk, stage.debian).replace("<os>", "<os firmware='efi'>")
    config = f"""
    c['workers'].append(LibVirtWorker(
        'minion1', 'sekrit', {stage.libvirtd.uri!r}, {str(disk)!r}, {str(stage.base)!r}, xml={xml!r}))
    builder('b', ['minion1'], {LOOK_AND_MARK!r}, 'sleep 2')
    """
    with running(tmp_path / "master", config) as master:
        request = master.force("b")
        master.wait_for(lambda: any(".vars.nvram" in name for name in stage.files()), 60, "the variables")
        build = master.finished(request)
        assert build["results"] == SUCCESS, master.text(build, "start VM", "progress")
        stage.assert_nothing_left()
    stage.assert_all_gone()


def test_metadata_identity_is_in_the_live_domain_only(stage: Stage, tmp_path: Path) -> None:
    """With identity='metadata' the running domain says who it is, and its definition never does."""
    disk = stage.images / "minion1"
    xml = tmp_path / "minion1.xml"
    xml.write_text(fast_domain("minion1", disk, stage.busybox))
    stage.libvirtd.virsh("define", str(xml))
    config = f"""
    c['workers'].append(LibVirtWorker(
        'minion1', 'sekrit', {stage.libvirtd.uri!r}, {str(disk)!r}, {str(stage.base)!r}, identity='metadata'))
    builder('b', ['minion1'], 'true')
    """
    with running(tmp_path / "master", config) as master:
        master.force("b")
        master.wait_for(stage.domains, 60, "the domain")
        live = stage.libvirtd.virsh("dumpxml", "minion1")
        assert 'username="minion1"' in live.replace("'", '"')
        assert "sekrit" not in live
        assert "buildbot.net" not in stage.libvirtd.virsh("dumpxml", "--inactive", "minion1")
    stage.assert_nothing_left()
