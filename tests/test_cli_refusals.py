"""What all commands say when their output cannot be written, and when they are broken off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from brokenoff import wait_until_it_waits, watched
from vendors import PATIENCE_S, disk, vendor_running, write_catalogue

INTERRUPTED = 130
IMAGE = "/images/disk.qcow2"
PROGRAM = [sys.executable, "-c", "from latentvirt.cli import main; main()"]
NAMES = """
import sys
sys.path[:0] = {paths!r}
import test_cli_hosts as here
fake = here.FakeLibvirt()
here.add(fake, here.HERE, "ünï 名前")
here.main(["vm", "list", "--all", "-c", here.HERE], obj=fake)
"""


SSH = """
import sys
sys.path[:0] = {paths!r}
import test_cli_ssh as here
fake = here.FakeLibvirt()
here.add(fake, here.HERE, "farm-1", here.GuestMark("minion1", (here.KEY,)), here.NETWORK, "192.0.2.11")
here.main(["vm", "ssh", "farm-1", "-c", here.HERE], obj=fake)
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("words", [["image", "list"], ["--help"], ["image", "list", "--json"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_a_sentence(words: list[str], unbuffered: str, tmp_path: Path) -> None:
    """Where the answer cannot be written, that is said in a sentence, and once."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*PROGRAM, *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "LATENTVIRT_IMAGES": str(tmp_path), "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 1
    assert done.stderr.startswith("latentvirt: standard output cannot be written: No space left")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("image list", 0),
        ("image list --available", 0),
        ("image remove lab-1", 1),
        ("hosts -c test:///default", 1),
        ("vm list -c test:///default", 0),
        ("vm show nobody -c test:///default", 1),
        ("doctor -c test:///default", 1),
        ("sweep -c test:///default --dry-run", 0),
        ("image gc -c test:///default --dry-run", 0),
        ("image build ./nothere.qcow2 -c test:///default", 1),
        ("nonsense", 2),
    ],
)
def test_a_stream_that_is_closed_gets_nothing(words: str, status: int, closed: str, tmp_path: Path) -> None:
    """With standard output or standard error closed a command does the same, and says nothing there."""
    environment = {**os.environ, "LATENTVIRT_IMAGES": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *PROGRAM, *words.split()],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
    assert (done.stdout if closed == ">&-" else done.stderr) == ""


def test_a_name_that_a_terminal_cannot_show_is_shown_somehow() -> None:
    """A VM's name in characters that the terminal's encoding has not does not keep VMs from being listed."""
    done = subprocess.run(
        [sys.executable, "-c", NAMES.format(paths=[str(Path(__file__).parent)])],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )
    assert done.returncode == 0, done.stderr
    assert "ünï \\u540d\\u524d".encode("latin-1") in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("words", [["image", "list", "--available"], ["image", "remove", "lab-1"]])
def test_any_command_is_broken_off_with_the_same_status(
    words: list[str], number: signal.Signals, tmp_path: Path
) -> None:
    """Ctrl-C and SIGTERM end a command with a word and the status of what was broken off."""
    catalogue = tmp_path / "images.toml"
    os.mkfifo(catalogue)
    environment = {
        **os.environ,
        "LATENTVIRT_CATALOGUE": str(catalogue),
        "LATENTVIRT_IMAGES": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    begun = subprocess.Popen([*PROGRAM, *words], stderr=subprocess.PIPE, text=True, env=environment)
    with watched(begun) as process, catalogue.open("w"):  # whoever reads it waits for more
        wait_until_it_waits(process)
        process.send_signal(number)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == INTERRUPTED, said
    assert said.strip() == "latentvirt: broken off"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_pull_that_is_broken_off_keeps_what_it_has(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM end a download with the status of what was broken off, and it can go on later."""
    content, store = disk(), tmp_path / "store"
    with vendor_running() as vendor:
        vendor.put_image(content)
        vendor.troubles[IMAGE] = [("stall", len(content) // 2)]
        catalogue = write_catalogue(tmp_path / "images.toml", vendor)
        environment = {
            **os.environ,
            "LATENTVIRT_CATALOGUE": str(catalogue),
            "LATENTVIRT_IMAGES": str(store),
            "XDG_CONFIG_HOME": str(tmp_path),
        }
        words = [*PROGRAM, "image", "pull", "--arch", "x86_64", "lab-1"]
        with watched(subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)) as process:
            assert process.stderr is not None
            ends = time.monotonic() + PATIENCE_S
            while not any(part.stat().st_size for part in store.rglob("*.part")):
                assert time.monotonic() < ends
                time.sleep(0.02)
            process.send_signal(number)
            said = process.stderr.read()
        assert process.returncode == INTERRUPTED, said
        assert "what was downloaded is kept" in said
        (part,) = store.rglob("*.part")
        assert content.startswith(part.read_bytes())


def test_an_ssh_session_that_is_ended_leaves_nothing(tmp_path: Path) -> None:
    """SIGTERM to vm ssh ends ssh with it, and the file of host keys is gone."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "temp").mkdir()
    ssh = tmp_path / "bin" / "ssh"
    ssh.write_text("#!/bin/sh\necho here\nexec sleep 60\n")
    ssh.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{ssh.parent}:{os.environ['PATH']}",
        "TMPDIR": str(tmp_path / "temp"),
    }
    words = [sys.executable, "-c", SSH.format(paths=[str(Path(__file__).parent)])]
    with watched(subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == ""  # ends when ssh does, too
    assert process.returncode == INTERRUPTED
    assert os.listdir(tmp_path / "temp") == []
