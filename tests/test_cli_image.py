"""The commands about images: what they print, and what they end with."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from latentvirt.cli import main
from latentvirt.cli import progress as progress_module
from latentvirt.images import catalogue as catalogue_module
from latentvirt.images import web
from latentvirt.images.parts import partial_files
from latentvirt.images.store import BUILT, STOCK, ImageStore
from vendors import MIB, Vendor, disk, vendor_running, write_catalogue

EXAMPLES = Path(__file__).resolve().parent.parent / "docs" / "examples"
IMAGE = "/images/disk.qcow2"
BROKEN = 'url = "{url}/broken/x.qcow2"\nsums = "SHA512SUMS"'


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    """A vendor on loopback, with one image."""
    with vendor_running() as running:
        running.put_image(disk())
        yield running


@pytest.fixture
def store(tmp_path: Path, vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
    """The store and the catalogue that commands use."""
    monkeypatch.setattr(web, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(catalogue_module, "SYSTEM_CATALOGUE", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("LATENTVIRT_IMAGES", str(tmp_path / "store"))
    catalogue = write_catalogue(
        tmp_path / "images.toml",
        vendor,
        broken=BROKEN.format(url=vendor.url),
        **{"lab-2": OTHER.format(url=vendor.url)},
    )
    monkeypatch.setenv("LATENTVIRT_CATALOGUE", str(catalogue))
    return ImageStore()


OTHER = 'url = "{url}/other/disk.qcow2"\nsums = "SHA512SUMS"'


def run(*arguments: str) -> Result:
    """Run a command about images."""
    return CliRunner().invoke(main, ["image", *arguments])


def pull(*names: str) -> Result:
    """Pull, whatever this machine is."""
    return run("pull", "--arch", "x86_64", *names)


def put(store: ImageStore, name: str, kind: str = STOCK) -> None:
    """Put an image into the store."""
    temp = store.scratch() / "x"
    temp.write_bytes(disk(MIB))
    store.publish(temp, name=name, arch="x86_64", kind=kind, format="qcow2", source={"file": "x.qcow2"})


def test_pull_says_what_it_got_and_where_it_is(store: ImageStore) -> None:
    """One line for each image on standard output, with its path; by any of its names."""
    done = pull("first")
    entry = store.find("lab-1", "x86_64", STOCK)
    assert entry is not None
    assert done.stdout == f"lab-1 x86_64: new, 3 MiB, {store.path_of(entry)}\n"
    assert done.exit_code == 0
    assert pull("lab-1").stdout.startswith("lab-1 x86_64: here already, 3 MiB")
    assert run("pull", "--arch", "amd64", "--refresh", "lab-1").stdout.startswith(
        "lab-1 x86_64: here already, and still the newest"
    )


def test_an_age_of_nothing_asks_the_vendor_each_time(store: ImageStore, vendor: Vendor) -> None:
    """The age up to which nobody is asked can be given."""
    pull("lab-1")
    asked = len(vendor.log)
    assert "here already, 3" in pull("--max-age", "1", "lab-1").stdout
    assert len(vendor.log) == asked
    assert "still the newest" in pull("--max-age", "0", "lab-1").stdout
    assert len(vendor.log) > asked


@pytest.mark.parametrize(
    ("age", "said"),
    [
        ("3h", "here already, 3"),
        ("130 min", "here already, 3"),
        ("8000s", "here already, 3"),
        ("0.1", "here already, 3"),
        ("1h", "still the newest"),
        ("110min", "still the newest"),
        ("7000 s", "still the newest"),
        ("0.05d", "still the newest"),
        ("0.05", "still the newest"),
    ],
)
def test_an_age_may_have_any_unit(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch, age: str, said: str
) -> None:
    """Two hours after a vendor was asked it is asked again for an age below that only; no unit means days."""
    pull("lab-1")
    later = time.time() + 2 * 3600
    monkeypatch.setattr(time, "time", lambda: later)
    assert said in pull("--max-age", age, "lab-1").stdout


def test_one_vendors_broken_page_breaks_no_others(store: ImageStore, vendor: Vendor) -> None:
    """All that can be had is got; what cannot is named, and the exit status is 1."""
    vendor.put_image(disk(seed=2), folder="/other")
    done = pull("lab-1", "broken", "nowhere-9", "lab-2")
    assert done.exit_code == 1
    assert [entry.name for entry in store.entries()] == ["lab-1", "lab-2"]
    assert "latentvirt: broken: " in done.stderr
    assert "broken/SHA512SUMS answers 404" in done.stderr
    assert "latentvirt: nowhere-9: there is no image 'nowhere-9'" in done.stderr
    assert done.stderr.endswith("latentvirt: not got: broken, nowhere-9\n")


def test_a_command_line_that_is_wrong_ends_with_2(store: ImageStore) -> None:
    """No name, or an age that is none, is told as click tells it."""
    assert run("pull").exit_code == 2
    for age in ("-1", "soon", "2 weeks", "nan"):
        told = pull("--max-age", age, "lab-1")
        assert told.exit_code == 2
        assert "Invalid value for '--max-age'" in told.stderr
        assert "30 min" in told.stderr
    assert run("remove").exit_code == 2
    assert run("remove", "--kind", "odd", "x").exit_code == 2


def test_a_broken_catalogue_is_told_in_a_sentence(store: ImageStore, tmp_path: Path) -> None:
    """A catalogue that cannot be read ends the command with its name, not with a traceback."""
    (tmp_path / "images.toml").write_text("[images")
    done = pull("lab-1")
    assert done.exit_code == 1
    assert done.stderr.startswith(f"latentvirt: {tmp_path / 'images.toml'} is no TOML")


def test_list_shows_what_is_here(store: ImageStore) -> None:
    """Name, architecture, kind, size, date and origin of each image, and as JSON also its path."""
    assert run("list").stdout.split() == ["NAME", "ARCH", "KIND", "SIZE", "DATE", "MADE", "OF"]
    pull("lab-1")
    put(store, "lab-1", BUILT)
    rows = [line.split() for line in run("list").stdout.splitlines()[1:]]
    day = rows[0][5]
    assert rows == [
        ["lab-1", "x86_64", "built", "1", "MiB", day, "x.qcow2"],
        ["lab-1", "x86_64", "stock", "3", "MiB", rows[1][5], "disk.qcow2"],
    ]
    assert abs(time.mktime(time.strptime(day, "%Y-%m-%d")) - time.time()) < 3 * 86400
    listed = json.loads(run("list", "--json").stdout)
    assert [one["kind"] for one in listed] == ["built", "stock"]
    assert Path(listed[1]["path"]).read_bytes() == disk()
    assert listed[1]["source"]["origin"].endswith("/images/disk.qcow2")


def test_list_names_what_is_damaged_and_shows_the_rest(store: ImageStore) -> None:
    """A damaged image is told on standard error with what to do; the others are listed."""
    put(store, "good")
    put(store, "bad")
    (store.root / "names" / "bad.x86_64.stock.json").write_text("{")
    done = run("list")
    assert done.exit_code == 1
    assert "good" in done.stdout
    assert "bad.x86_64.stock.json leads to no image" in done.stderr


def test_list_available_shows_what_can_be_had(store: ImageStore) -> None:
    """All names with their codenames, and which are here already."""
    pull("lab-1")
    lines = run("list", "--available").stdout.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert rows["lab-1"] == ["first", "aarch64,", "x86_64", "x86_64"]
    assert rows["debian-12"][0] == "bookworm"
    listed = {
        (one["name"], one["arch"]): one for one in json.loads(run("list", "--available", "--json").stdout)
    }
    assert listed["lab-1", "x86_64"]["stored"] is True
    assert listed["lab-1", "aarch64"]["stored"] is False
    assert listed["debian-12", "x86_64"]["codenames"] == ["bookworm"]


def test_remove_takes_all_of_a_name_or_one_kind(store: ImageStore) -> None:
    """What was removed is told, line by line; others stay."""
    for name in ("lab-1", "lab-2"):
        put(store, name)
        put(store, name, BUILT)
    assert run("remove", "lab-2", "--kind", "stock").stdout == "removed lab-2 x86_64 stock\n"
    assert run("remove", "first").stdout == "removed lab-1 x86_64 built\nremoved lab-1 x86_64 stock\n"
    assert [(entry.name, entry.kind) for entry in store.entries()] == [("lab-2", BUILT)]


def test_remove_takes_what_was_downloaded_in_part(
    store: ImageStore, vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download that nobody wants to go on with can be removed by its name."""
    monkeypatch.setattr(web, "TRIES", 1)
    vendor.troubles = {IMAGE: [("cut", MIB // 2)]}
    assert pull("lab-1").exit_code == 1
    assert partial_files(store)
    assert run("remove", "lab-1").stdout == "removed lab-1 x86_64 stock\n"
    assert [path.name for path in store.scratch().iterdir()] == []


def test_remove_takes_damaged_images_and_needs_no_catalogue(store: ImageStore, tmp_path: Path) -> None:
    """What is here can be removed, whatever became of it and of the catalogue."""
    put(store, "bad")
    put(store, "old-name")
    (store.root / "names" / "bad.x86_64.stock.json").write_text("{")
    (tmp_path / "images.toml").write_text("[images")
    assert run("remove", "bad", "old-name").exit_code == 0
    assert (store.entries(), store.damaged()) == ([], [])


def test_removing_what_is_not_here_is_refused(store: ImageStore) -> None:
    """A name that is not here, or unknown altogether, ends with 1."""
    put(store, "lab-1")
    done = run("remove", "lab-1", "--arch", "arm64")
    assert done.exit_code == 1
    assert "there is no image lab-1 here of aarch64" in done.stderr


def test_one_image_that_is_not_here_does_not_keep_the_others(store: ImageStore) -> None:
    """All that can be removed is; of the rest it is said what there is, not what could be had."""
    put(store, "lab-1")
    put(store, "lab-2")
    done = run("remove", "lab-3", "broken", "first", "lab-2", "lab-1")
    assert done.exit_code == 1
    assert done.stdout == "removed lab-1 x86_64 stock\nremoved lab-2 x86_64 stock\n"
    near, unlike = done.stderr.splitlines()
    there = "What to do: latentvirt image list names those that there are"
    assert re.fullmatch(
        rf"latentvirt: there is no image 'lab-3' here; did you mean lab-. or lab-.\? {there}", near
    )
    assert unlike == f"latentvirt: there is no image 'broken' here. {there}"
    assert store.entries() == []


def test_what_is_named_cannot_play_with_a_terminal(store: ImageStore) -> None:
    """What turns or hides text on a terminal is shown as an escape, whatever is done with an image."""
    name = "up\u202edown\x9b31m"
    for done in (pull(name), run("remove", name), run("build", name), run("list", "--available")):
        assert not {"\u202e", "\x9b"} & set(done.output)
    assert "up\\u202edown" in run("remove", name).stderr


def test_in_a_pipe_progress_is_a_line_now_and_then(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads a log finds the size and how far it got, and no control characters."""
    monkeypatch.setattr(progress_module, "SECONDS_PER_LINE", 0.0)
    done = pull("lab-1")
    lines = done.stderr.splitlines()
    assert lines[0] == "lab-1 x86_64: 0 of 3 MiB"
    assert lines[-1] == "lab-1 x86_64: 3 of 3 MiB"
    assert "\x1b" not in done.stderr
    monkeypatch.setattr(progress_module, "SECONDS_PER_LINE", 3600.0)
    run("remove", "lab-1")
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: 1.0)  # the machine was just started
    assert pull("lab-1").stderr == "lab-1 x86_64: 0 of 3 MiB\n"


def test_on_a_terminal_there_is_a_bar(store: ImageStore, vendor: Vendor) -> None:
    """While it downloads a terminal shows a bar with size and speed, which is gone at the end."""
    vendor.chunk = 16 * 1024
    seen, out = pulled_on_terminal("lab-1")
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", seen).decode()
    assert "lab-1 x86_64" in text
    assert "/3.0 MiB" in text or "/3.1 MiB" in text
    assert out.decode().startswith("lab-1 x86_64: new, 3 MiB")


def test_on_a_terminal_results_do_not_run_into_the_bar(store: ImageStore, vendor: Vendor) -> None:
    """What became of each image is a line of its own, below which the next bar begins."""
    for folder in ("/images", "/other"):
        vendor.put_image(disk(), folder)
    seen, _ = pulled_on_terminal("lab-1", "lab-2", both=True)
    for name in ("lab-1", "lab-2"):
        entry = store.find(name, "x86_64", STOCK)
        assert entry is not None
        said = f"{name} x86_64: new, 3 MiB, {store.path_of(entry)}"
        before, found, _ = seen.partition(said.encode() + b"\r\n")
        assert found, seen
        # The bar is gone: nothing but the cursor was written since its line was erased.
        assert re.search(rb"\x1b\[2K(\x1b\[\?25h|\r|\n)*$", before), seen


def pulled_on_terminal(*names: str, both: bool = False) -> tuple[bytes, bytes]:
    """Pull with standard error, or both outputs, on a terminal: what was seen there, and in the pipe."""
    master, slave = pty.openpty()
    with os.fdopen(master, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from latentvirt.cli import main; main()",
                "image",
                "pull",
                "--arch",
                "x86_64",
                *names,
            ],
            env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
            stdin=subprocess.DEVNULL,
            stdout=slave if both else subprocess.PIPE,
            stderr=slave,
        )
        os.close(slave)
        seen = b""
        while True:
            try:
                data = terminal.read(65536)
            except OSError:  # how a terminal ends on Linux
                break
            if not data:
                break
            seen += data
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, (seen, out)
    return seen, out or b""


def test_the_transcript_is_what_the_commands_say(
    store: ImageStore, vendor: Vendor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The documentation shows what happens, but for paths, dates and the vendor's address."""
    monkeypatch.setattr(catalogue_module, "BUILT_IN", tmp_path / "built-in")
    (tmp_path / "built-in").write_text("")
    text = write_catalogue(tmp_path / "images.toml", vendor).read_text()
    text = text.replace("lab-1", "debian-12").replace('"first"', '"bookworm"').replace('"lab"', '"debian"')
    (tmp_path / "images.toml").write_text(text.replace('os_version = "1"', 'os_version = "12"'))
    monkeypatch.setattr(time, "time", lambda: 1795219200.0)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    shown = (EXAMPLES / "latentvirt-image.txt").read_text()
    said = ""
    for command in re.findall(r"^\$ latentvirt (.*)$", shown, re.MULTILINE):
        result = CliRunner().invoke(main, command.split())
        said += f"$ latentvirt {command}\n{result.stderr}{result.stdout}"
    for here, there in (
        (str(store.root), "/var/lib/latentvirt/images"),
        (catalogue_module.SYSTEM_CATALOGUE, "/etc/latentvirt/images.toml"),
    ):
        said = said.replace(here, there)
    said = re.sub(r"[0-9a-f]{64}", "DIGEST", said)
    assert said == shown
