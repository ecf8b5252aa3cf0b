"""contrib/libvirt/qemu, run as libvirt runs it, with the real qemu-img."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

HOOK = Path(__file__).parent.parent / "contrib" / "libvirt" / "qemu"
OLDEST_PYTHON = (3, 9)
DEADLINE = 60.0

pytestmark = pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img")


def domain_xml(*sources: Path, driver: str = "qcow2", inner: str = "") -> str:
    """Write as much of a domain as the hook looks at."""
    disks = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='{driver}'/>"
        f"<source file='{source}' index='1'/>{inner}<target dev='vda' bus='virtio'/></disk>"
        for source in sources
    )
    return f"<domain type='qemu' id='1'><name>build-vm</name><devices>{disks}</devices></domain>"


@attrs.define
class Bench:
    """An image folder with a base image in it, and a configured hook."""

    root: Path
    folder: Path
    base: Path
    clone: Path
    config: Path
    hook: Path = HOOK

    def write(self, text: str) -> None:
        """Replace the configuration."""
        self.config.write_text(textwrap.dedent(text))

    def run(
        self, *arguments: str, stdin: str | None = None, environ: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the hook as libvirt does."""
        return subprocess.run(
            [sys.executable, str(self.hook), *arguments],
            input=domain_xml(self.clone) if stdin is None else stdin,
            env={"PATH": os.environ["PATH"], "LATENTVIRT_HOOK_CONFIG": str(self.config), **(environ or {})},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )

    def prepare(self, domain: str = "build-vm", **options: str) -> subprocess.CompletedProcess[str]:
        """Say that a domain is about to start."""
        return self.run(domain, "prepare", "begin", "-", **options)  # type: ignore[arg-type]

    def release(self, domain: str = "build-vm") -> subprocess.CompletedProcess[str]:
        """Say that a domain has ended."""
        return self.run(domain, "release", "end", "-")

    def files(self) -> dict[str, str]:
        """Return all that is in the folder, as names and contents' digests."""
        return {
            str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.folder.rglob("*")
            if path.is_file()
        }


def make_bench(root: Path) -> Bench:
    """Make an image folder and a configuration for one domain, build-vm."""
    folder = root / "images"
    folder.mkdir()
    base = folder / "base.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", str(base), "8M")
    bench = Bench(root, folder, base, folder / "clone.qcow2", root / "hook.ini")
    bench.write(f"[DEFAULT]\nfolder = {folder}\n[build-vm]\nbase = base.qcow2\nclone = clone.qcow2\n")
    return bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An image folder and a configured hook of the test's own."""
    return make_bench(tmp_path)


def qemu_img(*arguments: str) -> str:
    """Run qemu-img and return what it printed."""
    return subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, text=True).stdout


def info(path: Path) -> dict[str, object]:
    """Return what qemu-img says of an image."""
    result: dict[str, object] = json.loads(qemu_img("info", "--output=json", str(path)))
    return result


def refused(result: subprocess.CompletedProcess[str], *words: str) -> bool:
    """Whether the hook said no, with a message for a person that holds the words, and no traceback."""
    assert result.returncode == 1, result
    assert "Traceback" not in result.stderr
    assert "What to do: " in result.stderr
    for word in words:
        assert word in result.stderr
    return True


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


@settings(max_examples=40, deadline=None)
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


def test_a_saved_memory_is_refused(bench: Bench) -> None:
    """A domain with a new disk is not restored or migrated into: old memory would destroy the disk."""
    for operation in ("restore", "migrate"):
        assert refused(bench.run("build-vm", operation, "begin", "-"), "managedsave-remove build-vm")


def test_another_domains_mistake_is_its_own(bench: Bench) -> None:
    """A section that cannot work does not keep another domain from starting."""
    bench.write(bench.config.read_text() + "[broken-vm]\nbase = /etc/passwd\n")
    assert bench.prepare().returncode == 0
    assert refused(bench.prepare("broken-vm"), "clone is missing")


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


def test_the_temporary_name_is_no_way_to_another_file(bench: Bench) -> None:
    """A link that somebody left where a clone is made does not lead the hook to what it points to."""
    precious = bench.root / "precious"
    precious.write_text("a person's file")
    (bench.folder / ".clone.qcow2.latentvirt-hook").symlink_to(precious)
    assert bench.prepare().returncode == 0
    assert precious.read_text() == "a person's file"
    assert set(bench.files()) == {"base.qcow2", "clone.qcow2"}


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


def fake_qemu_img(bench: Bench, script: str) -> dict[str, str]:
    """Put another qemu-img first in the path."""
    folder = bench.root / "bin"
    folder.mkdir()
    (folder / "qemu-img").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "qemu-img").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to lose by it")
def test_root_does_not_obey_a_file_that_anyone_can_write(bench: Bench) -> None:
    """A configuration that is not root's alone is refused: it says which files root makes and removes."""
    bench.config.chmod(0o666)
    assert refused(bench.prepare(), "chmod go-w")
    bench.config.chmod(0o644)
    os.chown(bench.config, 65534, 65534)
    assert refused(bench.prepare(), "chown root")
    assert set(bench.files()) == {"base.qcow2"}


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
