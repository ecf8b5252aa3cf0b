"""Real builds on a host that is reached by ssh only, and with the old documentation's own recipe."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import scenes
from masters import SUCCESS
from privatelibvirt import loopback_sshd
from scenes import Fingerprint, Stage, fast_domain, running

pytestmark = [pytest.mark.libvirt, pytest.mark.guest]

HOOK = Path(__file__).parent.parent / "contrib" / "libvirt" / "qemu"
NOBODY = 65534
LOOK_AND_MARK = "if [ -e $HOME/mark ]; then echo used before; exit 1; fi; echo mark > $HOME/mark; sync"


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A host of the test's own."""
    with scenes.stage() as stage:
        yield stage


def test_builds_on_an_ssh_host_whose_images_the_master_cannot_read(stage: Stage, tmp_path: Path) -> None:
    """Over qemu+ssh, a master that may not even look into the image folder runs fresh builds there."""
    with loopback_sshd(stage.images.parent / "ssh", stage.libvirtd.socket) as sshd:
        base = Fingerprint.of(stage.base)
        stage.images.chmod(0o700)
        home = stage.images.parent / "home"
        home.mkdir()
        key = Path(shutil.copyfile(sshd.keyfile, home / "key"))
        key.chmod(0o600)
        for path in (home, key):
            os.chown(path, NOBODY, NOBODY)
        uri = sshd.uri.replace(str(sshd.keyfile), str(key))
        disk = stage.images / "minion1"
        xml = fast_domain("minion1", disk, stage.debian)
        config = f"""
c['workers'].append(LibVirtWorker(
    'minion1', 'sekrit', {uri!r}, {str(disk)!r}, {str(stage.base)!r}, xml={xml!r}, masterFQDN='10.0.2.2'))
builder('b', ['minion1'], {LOOK_AND_MARK!r})
"""
        with running(home / "master", config, user=NOBODY) as master:
            for _ in range(2):
                build = master.finished(master.force("b"), 120)
                assert build["results"] == SUCCESS, master.log()[-4000:]
            stage.assert_nothing_left()
        stage.assert_all_gone()
        assert Fingerprint.of(stage.base) == base


@pytest.mark.soak
def test_the_old_documentations_recipe_with_the_hook_script(stage: Stage, tmp_path: Path) -> None:
    """A predefined domain whose disk the hook script clones builds freshly, and is reported as unproven."""
    clone = stage.images / "vm_temp_image.qcow2"
    hooks = stage.libvirtd.etc / "hooks"
    shutil.copy(HOOK, hooks / "qemu")
    (hooks / "qemu").chmod(0o755)
    (stage.libvirtd.etc / "latentvirt-hook.ini").write_text(
        f"[DEFAULT]\nfolder = {stage.images}\n\n[build-vm]\nbase = {stage.base.name}\nclone = {clone.name}\n"
    )
    stage.libvirtd.restart()
    xml = tmp_path / "build-vm.xml"
    xml.write_text(fast_domain("build-vm", clone, stage.debian))
    stage.libvirtd.virsh("define", str(xml))
    definition = stage.libvirtd.virsh("dumpxml", "--inactive", "build-vm")
    config = f"""
c['workers'].append(LibVirtWorker('build-vm', 'sekrit', Connection({stage.libvirtd.uri!r}), {str(clone)!r}))
builder('b', ['build-vm'], {LOOK_AND_MARK!r})
"""
    with running(tmp_path / "master", config) as master:
        for _ in range(2):
            build = master.finished(master.force("b"), 120)
            assert build["results"] == SUCCESS, master.log()[-4000:]
            assert "unproven" in master.text(build, "start VM", "progress")
            master.wait_for(lambda: not clone.exists(), 20, "the hook to remove the clone")
    assert stage.domains() == []
    assert stage.libvirtd.virsh("dumpxml", "--inactive", "build-vm") == definition
    subprocess.run(["qemu-img", "check", "-q", stage.base], check=True)
