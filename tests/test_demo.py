"""What the demo tells of a build, played by a stage and a master without VMs."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

LIB = Path(__file__).resolve().parent.parent / "script" / "lib"

AT_ITS_FIRST_BUILD = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
import demo

def watch_build(stage, master, console, number):
    print(stage.folder, master.process.pid, flush=True)
    time.sleep(600)

demo.debian_image = lambda: SimpleNamespace(disk=Path(sys.executable))
demo.watch_build = watch_build
sys.exit(demo.main())
"""
"""The demo with its real master, which does not get to any VM."""


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The demo's code, which quiets libvirt as it is imported."""
    monkeypatch.syspath_prepend(str(LIB))
    monkeypatch.setenv("LIBVIRT_LOG_OUTPUTS", "")
    yield importlib.import_module("demo")
    del sys.modules["demo"]


def test_a_builds_files_are_not_the_next_standbys(demo: Any) -> None:
    """How long a VM takes to go is told of the build's own, though another stands by when it has ended."""
    own, next_one = Path("own.overlay.vda"), Path("next.overlay.vda")
    seen = iter([set(), {own}, {next_one}])
    complete = iter([False, False, True])
    state: dict[str, bool] = {}

    def builds(request: int) -> list[dict[str, Any]]:
        state["complete"] = next(complete)
        return [{"buildid": 1, "complete": state["complete"]}]

    master = SimpleNamespace(
        builds=builds,
        steps=lambda build: [{"name": "start VM", "state_string": "running"}],
        rest=lambda path: {"buildrequests": [{"complete": state["complete"]}]},
    )
    stage = SimpleNamespace(volumes=lambda: next(seen))
    _, tries, files = demo._follow(stage, master, 1, 1, SimpleNamespace(update=lambda text: None))
    assert (tries, files) == (1, {own})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_demo_that_is_called_off_leaves_nothing(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C, a closed terminal or a plain kill ends its master and removes its folder, and that is told."""
    monkeypatch.setenv("PYTHONPATH", str(LIB))
    with subprocess.Popen(
        [sys.executable, "-c", AT_ITS_FIRST_BUILD],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a runner that ignores it hands that on
    ) as demo:
        assert demo.stdout is not None
        words: list[str] = []
        while not (words and words[-1].isdigit()):
            line = demo.stdout.readline()
            assert line, demo.communicate()[1]
            words = line.split()
        folder, master = Path(words[0]), int(words[1])
        assert folder.exists()
        demo.send_signal(number)
        _, told = demo.communicate()
    assert (demo.returncode, told.splitlines()[-1]) == (
        130,
        "demo: called off; its VMs and files are removed",
    )
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(master, 0)
