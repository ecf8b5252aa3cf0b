"""contrib/libvirt/qemu, run as libvirt runs it, with the real qemu-img: what it does."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hookbench import (
    DEADLINE,
    HOOK,
    Bench,
    domain_xml,
    fake_qemu_img,
    info,
    make_bench,
    refused,
)

OLDEST_PYTHON = (3, 9)

pytestmark = pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An image folder and a configured hook of the test's own."""
    return make_bench(tmp_path)


def test_a_start_gets_a_clone_of_the_base(bench: Bench) -> None:
    """At prepare the clone is an overlay on the base, closed to other users, and nothing else is new."""
    before = bench.files()
    result = bench.prepare()
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert info(bench.clone)["backing-filename"] == str(bench.base)
    assert info(bench.clone)["backing-filename-format"] == "qcow2"
    assert bench.clone.stat().st_mode & 0o777 == 0o600
    assert set(bench.files()) - set(before) == {"clone.qcow2"}


def test_the_end_removes_the_clone_and_only_it(bench: Bench) -> None:
    """At release the folder is as it was before the start."""
    (bench.folder / "clone.qcow2.backup").write_text("mine")
    before = bench.files()
    bench.prepare()
    assert bench.release().returncode == 0
    assert bench.files() == before


def test_the_base_stays_as_it_is(bench: Bench) -> None:
    """A whole life of the VM leaves the base image's content, owner, mode and time of change alone."""
    bench.base.chmod(0o440)
    before = bench.base.stat()
    digest = bench.files()["base.qcow2"]
    bench.prepare()
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", str(bench.clone)], check=True, capture_output=True
    )
    bench.release()
    after = bench.base.stat()
    assert bench.files()["base.qcow2"] == digest
    assert (after.st_uid, after.st_gid, after.st_mode, after.st_mtime_ns, after.st_ino) == (
        before.st_uid,
        before.st_gid,
        before.st_mode,
        before.st_mtime_ns,
        before.st_ino,
    )


def test_twice_is_as_good_as_once(bench: Bench) -> None:
    """Both operations can be asked for again."""
    before = bench.files()
    assert [bench.prepare().returncode, bench.prepare().returncode] == [0, 0]
    assert info(bench.clone)["backing-filename"] == str(bench.base)
    assert [bench.release().returncode, bench.release().returncode] == [0, 0]
    assert bench.files() == before


def test_a_clone_left_by_a_crash_is_made_anew(bench: Bench) -> None:
    """What an earlier build wrote is gone in the next one, although nobody said that the VM had ended."""
    bench.prepare()
    fresh = bench.files()["clone.qcow2"]
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", str(bench.clone)], check=True, capture_output=True
    )
    assert bench.files()["clone.qcow2"] != fresh
    assert bench.prepare().returncode == 0
    assert bench.files()["clone.qcow2"] == fresh


def test_a_damaged_clone_of_ours_is_still_ours(bench: Bench) -> None:
    """A disk that the host's crash truncated does not stop the next start."""
    bench.prepare()
    with bench.clone.open("r+b") as file:
        file.truncate(0)
    assert bench.prepare().returncode == 0
    assert info(bench.clone)["backing-filename"] == str(bench.base)


def test_other_domains_and_operations_pass(bench: Bench) -> None:
    """What the configuration does not name, and what is neither a start nor an end, goes on untouched."""
    before = bench.files()
    for arguments in (
        ("other-vm", "prepare", "begin", "-"),
        ("other-vm", "restore", "begin", "-"),
        ("build-vm", "prepare", "end", "-"),
        ("build-vm", "start", "begin", "-"),
        ("build-vm", "started", "begin", "-"),
        ("build-vm", "stopped", "end", "-"),
        ("build-vm", "reconnect", "begin", "-"),
        ("build-vm", "a-later-libvirts", "idea", "-"),
    ):
        result = bench.run(*arguments, stdin="not even XML")
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    bench.config.unlink()
    assert bench.prepare().returncode == 0
    assert bench.files() == before


def test_another_domains_mistake_is_its_own(bench: Bench) -> None:
    """A section that cannot work does not keep another domain from starting."""
    bench.write(bench.config.read_text() + "[broken-vm]\nbase = /etc/passwd\n")
    assert bench.prepare().returncode == 0
    assert refused(bench.prepare("broken-vm"), "clone is missing")


def test_size_and_format_are_the_persons(bench: Bench) -> None:
    """A raw base and a larger clone are possible."""
    raw = bench.folder / "base.raw"
    raw.write_bytes(bytes(1 << 20))
    bench.write(
        f"[build-vm]\nfolder={bench.folder}\nbase=base.raw\nclone=clone.qcow2\nbase_format=raw\nsize=16M\n"
    )
    assert bench.prepare().returncode == 0
    assert info(bench.clone)["virtual-size"] == 16 << 20
    assert info(bench.clone)["backing-filename-format"] == "raw"


def test_a_domain_with_several_disks_gets_all_or_none(bench: Bench) -> None:
    """Two sections for one domain make two clones, and neither if one cannot be made."""
    data = bench.folder / "data.qcow2"
    bench.write(
        bench.config.read_text() + "[build-vm data]\ndomain=build-vm\nbase=base.qcow2\nclone=data.qcow2\n"
    )
    xml = domain_xml(bench.clone, data)
    assert bench.prepare(stdin=xml).returncode == 0
    assert bench.clone.exists()
    assert data.exists()
    assert bench.release().returncode == 0
    assert set(bench.files()) == {"base.qcow2"}
    data.write_text("a person's file")
    assert refused(bench.prepare(stdin=xml))
    assert set(bench.files()) == {"base.qcow2", "data.qcow2"}


def test_the_first_disk_goes_if_the_second_cannot_come(bench: Bench) -> None:
    """A start that fails when one clone is already there takes that one away again."""
    data = bench.folder / "data.qcow2"
    bench.write(
        bench.config.read_text() + "[build-vm data]\ndomain=build-vm\nbase=base.qcow2\nclone=data.qcow2\n"
    )
    # Somebody takes the second clone's name while it is being made.
    environ = fake_qemu_img(bench, f'mkdir -p {data}\nexec {shutil.which("qemu-img")} "$@"')
    xml = domain_xml(bench.clone, data)
    assert refused(bench.run("build-vm", "prepare", "begin", "-", stdin=xml, environ=environ), str(data))
    assert set(bench.files()) == {"base.qcow2"}


def test_domains_start_side_by_side(bench: Bench) -> None:
    """Several domains that start at the same time, some twice, all get their disks."""
    names = [f"vm{number}" for number in range(4)]
    bench.write(
        f"[DEFAULT]\nfolder={bench.folder}\nbase=base.qcow2\n"
        + "".join(f"[{name}]\nclone={name}.qcow2\n" for name in names)
    )
    environment = {"PATH": os.environ["PATH"], "LATENTVIRT_HOOK_CONFIG": str(bench.config)}
    running = []
    for name in names * 2:
        process = subprocess.Popen(
            [sys.executable, str(HOOK), name, "prepare", "begin", "-"], env=environment, stdin=subprocess.PIPE
        )
        assert process.stdin is not None
        process.stdin.write(domain_xml(bench.folder / f"{name}.qcow2").encode())
        process.stdin.close()
        running.append(process)
    assert [process.wait(DEADLINE) for process in running] == [0] * len(running)
    assert set(bench.files()) == {"base.qcow2", *(f"{name}.qcow2" for name in names)}
    assert all(info(bench.folder / f"{name}.qcow2")["backing-filename"] == str(bench.base) for name in names)


def test_a_clone_that_cannot_be_finished_is_not_there(bench: Bench) -> None:
    """If qemu-img breaks off half-way, its words reach the person and nothing is left of its work."""
    script = f'echo half > {bench.folder}/.clone.qcow2.latentvirt-hook; echo "No space left" >&2; exit 1'
    result = bench.run("build-vm", "prepare", "begin", "-", environ=fake_qemu_img(bench, script))
    assert refused(result, "No space left")
    assert set(bench.files()) == {"base.qcow2"}


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_a_hook_that_is_killed_leaves_no_half_clone(bench: Bench, sig: signal.Signals) -> None:
    """Killed while it makes the clone, it has not made one, and the next start works."""
    started = bench.root / "started"
    os.mkfifo(started)
    # The fake makes half a file, says so, and goes on until it is killed.
    script = f"echo half > {bench.folder}/.clone.qcow2.latentvirt-hook; echo > {started}; exec sleep 1000"
    environment = {"LATENTVIRT_HOOK_CONFIG": str(bench.config), **fake_qemu_img(bench, script)}
    process = subprocess.Popen(
        [sys.executable, str(HOOK), "build-vm", "prepare", "begin", "-"],
        env=environment,
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdin is not None
    process.stdin.write(domain_xml(bench.clone).encode())
    process.stdin.close()
    started.read_text()
    os.kill(process.pid, sig)
    assert process.wait(DEADLINE) != 0
    if sig == signal.SIGKILL:
        os.killpg(process.pid, signal.SIGKILL)  # the fake, which outlives it
    else:
        assert set(bench.files()) == {"base.qcow2"}
    assert not bench.clone.exists()
    assert bench.release().returncode == 0
    assert set(bench.files()) == {"base.qcow2"}
    assert bench.prepare().returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system in a namespace of its own")
def test_a_file_system_without_attributes_will_do(tmp_path: Path) -> None:
    """Where files cannot be marked, a leftover is known by its base, and other files are still left alone."""
    script = f"""
        set -e
        mount -t ramfs none {tmp_path}
        cd {tmp_path}
        qemu-img create -q -f qcow2 base.qcow2 8M
        qemu-img create -q -f qcow2 other.qcow2 8M
        printf '[build-vm]\\nfolder={tmp_path}\\nbase=base.qcow2\\nclone=clone.qcow2\\n' > hook.ini
        export LATENTVIRT_HOOK_CONFIG={tmp_path}/hook.ini
        refused() {{ if "$@"; then echo "not refused: $*"; exit 1; fi; }}
        prepare() {{ echo "{domain_xml(tmp_path / "clone.qcow2")}" | $0 $1 build-vm prepare begin -; }}
        prepare $1
        prepare $1
        $0 $1 build-vm release end -
        test ! -e clone.qcow2
        cp other.qcow2 clone.qcow2
        refused prepare $1
        refused $0 $1 build-vm release end -
        cmp other.qcow2 clone.qcow2
        rm clone.qcow2
        qemu-img create -q -f qcow2 -F qcow2 -b {tmp_path}/base.qcow2 keep.qcow2
        ln -s keep.qcow2 clone.qcow2
        refused prepare $1
        echo all well
    """
    result = subprocess.run(
        ["unshare", "-m", "sh", "-c", textwrap.dedent(script), sys.executable, str(HOOK)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert result.stdout == "all well\n", result.stderr


def test_check_tells_a_person_what_is_wrong(bench: Bench) -> None:
    """--check exits with 0, 1, 2 or 3 and names each section, changing nothing, even while the VM runs."""
    before = bench.files()
    good = bench.run("--check")
    assert (good.returncode, good.stderr) == (0, "")
    assert "[build-vm]" in good.stdout
    assert bench.files() == before
    bench.prepare()
    assert bench.run("--check").returncode == 0
    assert bench.run("--check", str(bench.config)).returncode == 0
    bench.write(bench.config.read_text() + "[second]\nbase = gone.qcow2\nclone = second.qcow2\n")
    mixed = bench.run("--check")
    assert mixed.returncode == 1
    assert "[build-vm]" in mixed.stdout
    assert "[second]" in mixed.stderr
    assert bench.run("--check", "one", "two").returncode == 2
    assert bench.run("--help").returncode == 2
    assert bench.run("--check", str(bench.root / "gone.ini")).returncode == 3
    bench.write("[half")
    assert bench.run("--check").returncode == 3


def test_it_works_under_any_name(bench: Bench) -> None:
    """Copied to hooks/qemu.d under a name of the person's, executable, it does the same."""
    bench.hook = bench.root / "50-latentvirt.hook"
    shutil.copy(HOOK, bench.hook)
    assert os.access(HOOK, os.X_OK)
    assert bench.prepare().returncode == 0
    assert bench.clone.exists()


def test_it_needs_nothing_but_python(bench: Bench) -> None:
    """The script is Python 3.9 and imports the standard library only."""
    tree = ast.parse(HOOK.read_text(), feature_version=OLDEST_PYTHON)
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= sys.stdlib_module_names
    isolated = subprocess.run(
        [sys.executable, "-I", "-S", str(HOOK), "--check", str(bench.config)], capture_output=True, text=True
    )
    assert isolated.returncode == 0, isolated.stderr
