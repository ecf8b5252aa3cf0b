"""The wheel: what is in it, and that Buildbot finds the plugin from it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("src", "contrib/libvirt/guest", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
"""What the wheel is made of; a copy of it, since setuptools writes into its folder."""

USE = """
from importlib.metadata import version
from buildbot.plugins import util, worker
import buildbot.worker.libvirt
import latentvirt

assert "site-packages" in latentvirt.__file__, latentvirt.__file__
assert version("latentvirt") == latentvirt.__version__
assert worker.latentvirt.LibVirtWorker is latentvirt.LibVirtWorker
assert util.latentvirt.Connection is latentvirt.Connection
assert util.latentvirt.Size is latentvirt.Size
assert worker.LibVirtWorker is buildbot.worker.libvirt.LibVirtWorker
print("found")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel, from a copy of what belongs into it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / part, source / part, ignore=ignored, symlinks=True)
        elif (ROOT / part).exists():
            shutil.copy(ROOT / part, source / part)
    pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", str(folder), str(source))
    (made,) = folder.glob("latentvirt-*.whl")
    return made


def pip(python: str | Path, *arguments: str) -> None:
    """Run pip; show what it said if it fails."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    """The wheel brings the package with its type information and licence, and no tests."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    package = ROOT / "src" / "latentvirt"
    source = {
        str(file.relative_to(ROOT / "src"))
        for file in package.rglob("*")
        if file.suffix in (".py", ".toml")
        or file.name == "py.typed"
        or file.parent == package / "building" / "guest"
    }
    information = [name for name in names if ".dist-info/" in name]
    assert set(names) - set(information) == source
    assert any(name.endswith("LICENSE") for name in information)


def test_the_wheel_has_the_guest_helper(wheel: Path) -> None:
    """`latentvirt image build` finds what it puts into images where only the wheel is installed."""
    helper = ROOT / "contrib" / "libvirt" / "guest" / "latentvirt_guest.py"
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("latentvirt/building/guest/helper") == helper.read_bytes()


@pytest.mark.timeout(600)
def test_buildbot_finds_the_plugin_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """`pip install latentvirt` is enough; Buildbot's own LibVirtWorker stays what it was."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    pip(python, "install", str(wheel))
    result = subprocess.run(
        [str(python), "-I", "-c", USE], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (result.returncode, result.stdout.strip()) == (0, "found"), result.stderr
    shown = subprocess.run(
        [str(environment / "bin" / "latentvirt"), "--version"], capture_output=True, text=True, timeout=60
    )
    assert shown.returncode == 0, shown.stderr
