"""What the demo tells of a build, played by a stage and a master without VMs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

LIB = Path(__file__).resolve().parent.parent / "script" / "lib"


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
