"""contrib/libvirt/vmbuilder: where packages come from, what is refused, and what is left behind."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

import guests
from brokenoff import watched

TERMINATED = 128 + signal.SIGTERM
BOOT_DEADLINE_S = 240
SECTOR_BYTES = 512
LARGER_BYTES = 3 << 30
ROOM_BYTES = 16 << 20
"""What the helper leaves at a disk's end."""
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

DEB822 = f"""# what this machine uses
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main
Signed-By: {KEYRING}

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main contrib
Signed-By:
 {KEYRING}

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""

ONE_LINE = """
# deb http://commented.example/ubuntu jammy main
deb http://mirror.example/ubuntu jammy main restricted # comment
deb [arch=amd64 signed-by=/usr/share/keyrings/ubuntu-archive-keyring.gpg] http://mirror.example/ubuntu jammy-security main
deb-src http://mirror.example/ubuntu jammy main
deb [signed-by=/etc/apt/keyrings/somebody.gpg] http://somebody.example/apt jammy main
"""  # noqa: E501


@pytest.fixture(scope="module")
def vmbuilder() -> ModuleType:
    """The program, as a module."""
    loader = importlib.machinery.SourceFileLoader("vmbuilder", str(guests.VMBUILDER))
    spec = importlib.util.spec_from_loader("vmbuilder", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["vmbuilder"] = module
    dont_write, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = dont_write
    return module


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    """A folder like /etc/apt, with both formats in it."""
    (tmp_path / "sources.list").write_text(ONE_LINE)
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / "debian.sources").write_text(DEB822)
    (tmp_path / "sources.list.d" / "old.sources.disabled").write_text(DEB822)
    return tmp_path


def lines(vmbuilder: ModuleType, apt: Path, distribution: str, release: str) -> list[str]:
    """Say what an image of a release would be built from."""
    chosen = vmbuilder.select_sources(vmbuilder.read_sources(apt), distribution, release)
    return [line for source in chosen for line in source.lines()]


def test_the_machines_own_mirrors_are_used(vmbuilder: ModuleType, apt: Path) -> None:
    """An image of this machine's release comes from where its own packages come from."""
    assert lines(vmbuilder, apt, "debian", "bookworm") == [
        f"deb [signed-by={KEYRING}] http://mirror.example/debian bookworm main",
        f"deb [signed-by={KEYRING}] http://mirror.example/debian bookworm-updates main",
        f"deb [signed-by={KEYRING}] http://mirror.example/debian-security bookworm-security main contrib",
    ]


def test_one_line_sources_are_read_and_strangers_left_out(vmbuilder: ModuleType, apt: Path) -> None:
    """A third party's repository for this machine does not get into the image."""
    options = "[arch=amd64 signed-by=/usr/share/keyrings/ubuntu-archive-keyring.gpg]"
    assert lines(vmbuilder, apt, "ubuntu", "jammy") == [
        "deb http://mirror.example/ubuntu jammy main restricted universe",
        f"deb {options} http://mirror.example/ubuntu jammy-security main universe",
    ]


def test_another_release_comes_from_the_same_mirrors(vmbuilder: ModuleType, apt: Path) -> None:
    """A bookworm machine builds a trixie image without being told a mirror."""
    assert f"deb [signed-by={KEYRING}] http://mirror.example/debian trixie main" in lines(
        vmbuilder, apt, "debian", "trixie"
    )


def test_without_a_source_the_way_out_is_named(vmbuilder: ModuleType, tmp_path: Path) -> None:
    """A Debian machine asked for Ubuntu says that it needs --mirror."""
    with pytest.raises(vmbuilder.BuildError, match="--mirror"):
        lines(vmbuilder, tmp_path, "ubuntu", "noble")


def test_mirrors_may_be_given(vmbuilder: ModuleType) -> None:
    """A URL stands for the release and its updates, a line for itself."""
    line = "deb http://other.example/x noble main"
    assert vmbuilder.mirror_lines(["http://m.example/debian", line], "debian", "bookworm") == [
        "deb http://m.example/debian bookworm main",
        "deb http://m.example/debian bookworm-updates main",
        line,
    ]
    with pytest.raises(vmbuilder.BuildError, match="neither a URL"):
        vmbuilder.mirror_lines(["mirror.example"], "debian", "bookworm")


def test_the_way_to_the_mirrors_is_the_machines(vmbuilder: ModuleType) -> None:
    """Behind a proxy, the build goes through the proxy that apt uses, and takes no other option over."""
    dump = (
        'Acquire::http::Proxy "http://proxy.example:3128";\nAcquire::http::Timeout "";\n'
        'Acquire::Check-Valid-Until "false";\nDPkg::Post-Invoke:: "reboot";\n'
    )
    assert vmbuilder.apt_options(dump) == (
        'Acquire::http::Proxy "http://proxy.example:3128";\nAcquire::Check-Valid-Until "false";\n'
    )


def test_the_partition_and_the_boot_loader_are_where_a_bios_looks(vmbuilder: ModuleType) -> None:
    """The disk's first sector has GRUB's code, one active Linux partition from 1 MiB on, and a signature."""
    front = vmbuilder.boot_sectors(b"\xeb" * 512, b"core" * 200, 1 << 21, b"sign")
    assert len(front) == 1 << 20
    assert front[:440] == b"\xeb" * 440
    assert front[440:446] == b"sign\0\0"
    assert front[446:462] == b"\x80\xfe\xff\xff\x83\xfe\xff\xff" + bytes.fromhex("00080000 00f81f00")
    assert front[462:512] == bytes(48) + b"\x55\xaa"
    assert front[512 : 512 + 800] == b"core" * 200
    with pytest.raises(vmbuilder.BuildError, match="only"):
        vmbuilder.boot_sectors(b"", bytes(1 << 20), 1 << 21, b"sign")


def build(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program, with a folder of programs of its own before all others."""
    environment = dict(os.environ)
    if path is not None:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    command = [str(guests.VMBUILDER), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "--output"),
        (("--output", "x", "--size", "big"), "4G"),
        (("--output", "x", "--size", "100M"), "1G"),
        (("--output", "x", "--master", "m:1"), "--password"),
        (("--output", "x", "--password", "p"), "--master"),
        (("--output", "x", "--name", "n"), "--master"),
        (("--output", "x", "--master", "m", "--password", "p"), "HOST:PORT"),
        (("--output", "x", "--package", "$(reboot)"), "not a package"),
        (("--output", "x", "--distribution", "windows"), "windows"),
    ],
)
def test_wrong_arguments_are_explained(arguments: tuple[str, ...], why: str) -> None:
    """A mistake on the command line is named before anything is built."""
    done = build(*arguments)
    assert done.returncode == 2
    assert why in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--release", "warty"), "--distribution"),
        (("--mirror", "nowhere"), "neither a URL"),
        (("--output", "/nonexistent/folder/image"), "/nonexistent/folder"),
        (("--output", "/usr"), "/usr is a folder. Name a file with --output, such as /usr/base.qcow2"),
    ],
)
def test_what_cannot_be_built_is_explained(tmp_path: Path, arguments: tuple[str, ...], why: str) -> None:
    """A build that cannot begin says in one sentence why, and leaves nothing."""
    done = build("--output", str(tmp_path / "image"), *arguments, path=fake_programs(tmp_path, "exit 0"))
    assert done.returncode == 1
    assert why in done.stderr
    assert "Traceback" not in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["programs"]


def test_missing_programs_are_named_by_their_packages(
    vmbuilder: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person without the tools reads one apt-get line that installs them."""
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(vmbuilder.shutil, "which", lambda tool: None)
    with pytest.raises(vmbuilder.BuildError, match=r"apt-get install .*e2fsprogs .*mmdebstrap .*qemu-utils"):
        vmbuilder.check_tools("debian", False)


def fake_programs(folder: Path, mmdebstrap: str) -> Path:
    """Make a folder with all the tools, none of which does anything but mmdebstrap."""
    programs = folder / "programs"
    programs.mkdir()
    for name in ("mmdebstrap", "mke2fs", "qemu-img", "fakeroot"):
        program = programs / name
        program.write_text(f"#!/bin/sh\n{mmdebstrap if name == 'mmdebstrap' else 'exit 0'}\n")
        program.chmod(0o755)
    return programs


def test_a_failed_build_leaves_the_old_image(tmp_path: Path) -> None:
    """The image that is there stays until a whole new one is, and the last words of what failed are shown."""
    image = tmp_path / "image.qcow2"
    image.write_text("old")
    programs = fake_programs(tmp_path, "echo no such package; exit 3")
    done = build("--output", str(image), "--mirror", "http://m.example/debian", path=programs)
    assert done.returncode == 1
    assert "status 3" in done.stderr
    assert "no such package" in done.stderr
    assert image.read_text() == "old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["image.qcow2", "programs"]


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    """A build that is told to stop ends its programs and takes its files away."""
    began = tmp_path / "began"
    programs = fake_programs(tmp_path, f"echo $$ >{began}.new; mv {began}.new {began}; exec sleep 1000")
    command = [str(guests.VMBUILDER), "--output", str(tmp_path / "image"), "--mirror", "http://m.example/d"]
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    with watched(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)) as builder:
        while not began.exists():
            assert builder.poll() is None
            time.sleep(0.01)
        builder.terminate()
    assert builder.returncode == TERMINATED
    # The system's first process has yet to take note of its end.
    while Path(f"/proc/{began.read_text().strip()}").exists():
        time.sleep(0.01)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["began", "programs"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_builder_alone_leaves_no_tree(tmp_path: Path, number: signal.Signals) -> None:
    """A build that is told to stop, twice even, leaves nothing of mmdebstrap's tree either."""
    temporary, began = tmp_path / "tmp", tmp_path / "began"
    temporary.mkdir()
    programs = fake_programs(tmp_path, f"mkdir $(mktemp -d)/usr; touch {began}; exec sleep 1000")
    command = [str(guests.VMBUILDER), "--output", str(tmp_path / "image"), "--mirror", "http://m.example/d"]
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "TMPDIR": str(temporary),
    }
    with watched(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)) as builder:
        while not began.exists():
            assert builder.poll() is None
            time.sleep(0.01)
        assert list(temporary.glob("*/*/usr")) != []
        builder.send_signal(number)
        builder.send_signal(signal.SIGHUP)
    assert builder.returncode in (128 + number, 128 + signal.SIGHUP)
    assert list(temporary.iterdir()) == []
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["began", "programs", "tmp"]


def test_what_is_mounted_in_a_folder_is_left_alone(
    vmbuilder: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where something is mounted in a temporary folder, nothing in there is removed, and that is told."""
    table = tmp_path / "mountinfo"
    monkeypatch.setattr(vmbuilder, "MOUNTS", table)
    with vmbuilder.folder("work.", tmp_path) as made:
        (made / "there").mkdir()
        table.write_text(
            f"29 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 29 8:1 /home {made}/there rw - ext4 x rw\n"
        )
    assert (made / "there").is_dir()
    assert f"{made} stays, since {made}/there is mounted in it" in capsys.readouterr().err
    with vmbuilder.folder("work.", tmp_path) as other:
        (other / "file").touch()
    assert not other.exists()


@pytest.mark.guest
@pytest.mark.soak
def test_the_image_boots_from_its_disk_alone(tmp_path: Path) -> None:
    """A VM that has the image as its disk, and no kernel from outside, comes up and asks who it is.

    Its disk is larger than the image, and all of it can be used by then.
    """
    guest = guests.debian_image()
    overlay, path = tmp_path / "overlay.qcow2", tmp_path / "channel"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(guest.disk), "-F", "qcow2", str(overlay)]
    subprocess.run([*create, str(LARGER_BYTES)], check=True)
    console = tmp_path / "console.log"
    command = ["qemu-system-x86_64", "-machine", "pc,accel=tcg", "-m", "512", "-nodefaults"]
    command += ["-display", "none", "-drive", f"file={overlay},if=virtio", "-serial", f"file:{console}"]
    command += ["-device", "virtio-serial"]
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.settimeout(BOOT_DEADLINE_S)
        command += ["-chardev", f"socket,id=c,path={path}"]
        command += ["-device", "virtserialport,chardev=c,name=org.latentvirt.worker.0"]
        with subprocess.Popen(command) as qemu:
            try:
                channel, _ = listening.accept()
                channel.settimeout(BOOT_DEADLINE_S)
                with channel, channel.makefile("rb") as said:
                    ready = json.loads(said.readline())
            finally:
                qemu.terminate()
    assert ready["say"] == "ready"
    assert "Booting `latentvirt'" in console.read_text(errors="replace")
    raw = tmp_path / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", overlay, raw], check=True)
    told = subprocess.run(["sfdisk", "--json", raw], check=True, capture_output=True, text=True)
    root = json.loads(told.stdout)["partitiontable"]["partitions"][-1]
    assert (root["start"] + root["size"]) * SECTOR_BYTES > LARGER_BYTES - ROOM_BYTES


@pytest.mark.guest
def test_the_kernel_lies_beside_the_image() -> None:
    """A person who boots a kernel directly finds it, and its RAM disk, next to the image."""
    disk = guests.debian_image().disk
    kernel = disk.with_name(f"{disk.name}.vmlinuz").read_bytes()
    assert kernel[0x202:0x206] == b"HdrS"
    assert disk.with_name(f"{disk.name}.initrd").stat().st_size > 1 << 20
