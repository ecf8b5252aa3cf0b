"""Held VMs on a real host with a real master: they stay, whatever becomes of either."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import scenes
from masters import FAILURE, RETRY, SUCCESS, Master
from scenes import Stage, running

pytestmark = [pytest.mark.libvirt, pytest.mark.guest]

COMMAND = "from latentvirt.cli import main; main()"

SOON_S = 60

LOOK_OFTEN = """
from latentvirt.master import holds
holds.HOLDS_EVERY_S = 0.5
"""


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A host, shared by the tests here."""
    with scenes.stage() as stage:
        yield stage


@pytest.fixture(autouse=True)
def cleared(stage: Stage) -> Iterator[None]:
    """Leave nothing of one test to the next."""
    yield
    stage.clear()


def latentvirt(stage: Stage, *arguments: str) -> str:
    """Run the command in a process of its own, as a person does."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "vm", *arguments, "-c", stage.libvirtd.uri],
        capture_output=True,
        text=True,
        timeout=SOON_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def held(stage: Stage) -> dict[str, Any]:
    """Say of each VM who holds it; None for nobody."""
    rows = json.loads(latentvirt(stage, "list", "--json"))
    return {row["name"]: row["held"] and row["held"]["by"] for row in rows}


def given(stage: Stage, *names: str) -> str:
    """Write the config of workers whose guests never attach, each with its builder."""
    config = LOOK_OFTEN
    for name in names:
        config += f"""
c['workers'].append(LibVirtWorker({stage.given(name, stage.images, stage.busybox)}))
builder({name!r}, [{name!r}], 'true')
"""
    return config


def with_vm(master: Master, request: int) -> list[Any]:
    """List the builds of a request whose VM runs, or ran."""
    up = "the VM runs; waiting for its worker"
    return [build for build in master.builds(request) if up in master.text(build, "start VM", "progress")]


def hold_one(master: Master, stage: Stage, name: str) -> None:
    """Start a build, hold its VM, and cancel the build."""
    request = master.force(name)
    (build,) = master.wait_for(lambda: with_vm(master, request), SOON_S, "the build's VM")
    latentvirt(stage, "hold", name, "--for", "1h", "--why", "look at it")
    master.stop_build(build)
    master.wait_for(lambda: f"the VM {name} on" in master.log(), SOON_S, "the master to keep it")


def test_a_held_vm_stays_through_restarts_and_goes_when_it_is_released(stage: Stage, tmp_path: Path) -> None:
    """It outlives build, master and libvirtd; its worker waits, another goes on; released, it goes."""
    with running(tmp_path / "master", given(stage, "minion1", "minion2")) as master:
        hold_one(master, stage, "minion1")
        files = stage.loose()
        assert len(files) == 1
        waiting = master.force("minion1")
        master.wait_for(
            lambda: "worker minion1 starts no other VM" in master.log(), SOON_S, "the worker to wait"
        )
        master.terminate()
        stage.libvirtd.restart()
        assert held(stage)["minion1"]
        master.start()
        other = master.force("minion2")
        master.wait_for(lambda: "minion2" in stage.domains(), SOON_S, "another worker's VM")
        master.stop_build(master.builds(other)[0])
        master.kill()
        master.start()
        assert "minion1" in stage.domains()
        assert set(files) <= set(stage.loose())
        # A new master may begin the build before its first look at the host; it gives it back then.
        assert {build["results"] for build in master.builds(waiting)} <= {None, RETRY}
        assert with_vm(master, waiting) == []
        latentvirt(stage, "release", "minion1")
        (build,) = master.wait_for(lambda: with_vm(master, waiting), SOON_S, "the build that waited")
        master.stop_build(build)
    stage.assert_nothing_left()


def test_a_hold_runs_out(stage: Stage, tmp_path: Path) -> None:
    """When the time is up the VM goes by itself, with its files, and its worker's next build begins."""
    with running(tmp_path / "master", given(stage, "minion1")) as master:
        hold_one(master, stage, "minion1")
        waiting = master.force("minion1")
        latentvirt(stage, "hold", "minion1", "--for", "5s", "--why", "a last look")
        master.wait_for(lambda: master.builds(waiting), SOON_S, "the build that waited")
        assert "no more: the time is up" in master.log()
        master.stop_build(master.builds(waiting)[0])
        stage.assert_nothing_left()


def test_a_hold_on_a_host_that_went_away_is_not_lost(stage: Stage, tmp_path: Path) -> None:
    """While the host is away its held VM is reported; it is there when the host is, until it is released."""
    with running(tmp_path / "master", given(stage, "minion1")) as master:
        hold_one(master, stage, "minion1")
        stage.libvirtd.kill()
        doubt = "its host does not tell whether that is still so"
        master.wait_for(lambda: doubt in master.log(), SOON_S, "the report")
        stage.libvirtd.start()
        master.wait_for(lambda: "is there again" in master.log(), SOON_S, "the host to be back")
        assert held(stage)["minion1"]
        latentvirt(stage, "release", "minion1")
        stage.assert_nothing_left()


def test_the_vm_of_a_failed_build_is_there_to_look_into(stage: Stage, tmp_path: Path) -> None:
    """A failed build's VM runs on, and its page says how to get in; a good build's goes."""
    domain = stage.given("minion1", stage.images, stage.debian)
    config = f"""{LOOK_OFTEN}
c['workers'].append(LibVirtWorker({domain}, hold_on_failure='1h'))
builder('b', ['minion1'], util.Interpolate('exit %(prop:wish:-0)s'))
"""
    with running(tmp_path / "master", config) as master:
        build = master.finished(master.force("b", wish="3"))
        assert build["results"] == FAILURE, master.text(build, "start VM", "progress") + master.log()[-3000:]

        def page_of() -> str:
            text = master.text(build, "hold VM", "progress")
            return text if "let it go" in text else ""

        page = master.wait_for(page_of, SOON_S, "the page to tell")
        name, uri = "minion1", stage.libvirtd.uri
        assert f"latentvirt vm console {name} -c '{uri}'" in page
        assert f"latentvirt vm ssh {name} -c '{uri}'" in page
        assert re.search(
            r"is held until \d{4}-\d\d-\d\d \d\d:\d\d\S+ by worker minion1: build 1 of b failed", page
        )
        assert stage.domains() == ["minion1"]
        waiting = master.force("b")
        master.wait_for(
            lambda: "worker minion1 starts no other VM" in master.log(), SOON_S, "the worker to wait"
        )
        latentvirt(stage, "release", "minion1")
        assert master.finished(waiting)["results"] == SUCCESS
        stage.assert_nothing_left()
