"""What `latentvirt doctor` says of VMs that somebody holds."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest
from click.testing import CliRunner

from latentvirt.cli import main
from latentvirt.doctor import shell as shells
from latentvirt.doctor.shell import Ran
from latentvirt.domainxml import mark_of_hold
from latentvirt.hold import HOLD_NAMESPACE, HOLD_PREFIX, Hold
from latentvirt.testing import FakeLibvirt
from test_cli_doctor import ANSWER, DOCS
from test_cli_hold import NOON, anna
from test_cli_sweep import GONE, HOUR_S, LIVES, SILENT, URI
from test_cli_sweep import fake as unasked

__all__ = ["anna", "unasked"]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, anna: None, unasked: FakeLibvirt) -> FakeLibvirt:
    """A host at noon with VMs of a master that is gone, of one that lives, and of one that says nothing."""
    monkeypatch.setattr(shells, "run_program", lambda *_: Ran(0, ANSWER.format(clock=NOON), ""))
    return unasked


def hold(fake: FakeLibvirt, owner: str, for_s: int, why: str = "the core dump of test 17") -> None:
    """Hold the VM of a master, for so long from noon."""
    mark = mark_of_hold(Hold(until=NOON + for_s, by="anna@desk", why=why))
    fake.open(URI).lookupByName(f"vm-{owner}").setMetadata(2, mark, HOLD_PREFIX, HOLD_NAMESPACE, 1)


def run(fake: FakeLibvirt, *arguments: str) -> None:
    """Run a command, which is done."""
    done = CliRunner().invoke(main, [*arguments], obj=fake)
    assert done.exit_code == 0, done.output


def doctor(fake: FakeLibvirt) -> dict[str, dict[str, Any]]:
    """Look at the host, and return what was found, by id."""
    told = CliRunner().invoke(main, ["doctor", "-c", URI, "--json"], obj=fake)
    assert told.exit_code == 0, told.output
    found = [one for one in json.loads(told.stdout) if one["id"].startswith(("held", "hold"))]
    assert len({one["id"] for one in found}) == len(found)
    return {one["id"]: one for one in found}


def by_hand(remedy: str) -> list[list[str]]:
    """Read the commands that a remedy says, as a person would paste them."""
    return [shlex.split(line)[1:] for line in re.findall(r"latentvirt [^&]+", remedy)]


def test_the_transcript_is_what_the_command_says(fake: FakeLibvirt) -> None:
    """The command answers as the documentation shows."""
    hold(fake, LIVES, 4 * HOUR_S)
    hold(fake, GONE, 2 * HOUR_S, "the network is gone at times")
    shown = (DOCS / "examples" / "latentvirt-doctor-holds.txt").read_text()
    (line,) = re.findall(r"^\$ latentvirt (.*)$", shown, re.MULTILINE)
    result = CliRunner().invoke(main, shlex.split(line), obj=fake)
    assert f"$ latentvirt {line}\n{result.stdout}{result.stderr}" == shown


def test_nothing_is_said_where_nobody_holds_anything(fake: FakeLibvirt) -> None:
    """Hosts without held VMs are spared a line about them."""
    assert doctor(fake) == {}


def test_who_holds_what_is_told(fake: FakeLibvirt) -> None:
    """How many VMs are held, until when, by whom and why is told, soonest first, with how to let go."""
    hold(fake, LIVES, 4 * HOUR_S)
    one = doctor(fake)["held"]
    assert one["severity"] == "ok"
    assert one["what"] == (
        f"1 VM is held and keeps its place: vm-{LIVES}, held until 2026-01-01 16:00+00:00 by anna@desk: "
        "the core dump of test 17"
    )
    run(fake, *by_hand(one["remedy"])[0])
    assert doctor(fake) == {}
    hold(fake, LIVES, 4 * HOUR_S)
    hold(fake, SILENT, 2 * HOUR_S)
    two = doctor(fake)["held"]["what"]
    assert two.startswith("2 VMs are held and keep their places: ")
    assert two.index(f"vm-{SILENT}") < two.index(f"vm-{LIVES}")


def test_a_held_vm_whose_master_is_gone_is_told(fake: FakeLibvirt) -> None:
    """A held VM that no master would end is a warning, and what is said to be done removes it."""
    hold(fake, GONE, 2 * HOUR_S)
    found = doctor(fake)
    assert found.keys() == {"held-masterless"}
    one = found["held-masterless"]
    assert one["severity"] == "warning"
    assert f"nobody ends the VM vm-{GONE} when the time is up" in one["what"]
    assert "it is held until 2026-01-01 14:00+00:00 by anna@desk: the core dump" in one["what"]
    release, sweep = by_hand(one["remedy"])
    assert (release[:3], sweep[0]) == (["vm", "release", f"vm-{GONE}"], "sweep")
    run(fake, *release)
    run(fake, *sweep)
    assert f"vm-{GONE}" not in fake.inspect(URI).running()


@pytest.mark.parametrize(
    ("owner", "why"),
    [(GONE, "seems to be no more"), (SILENT, "nobody says until when")],
)
def test_a_vm_that_outlived_its_hold_is_told(fake: FakeLibvirt, owner: str, why: str) -> None:
    """Where the time is up and no master ended the VM, it is a warning, and the sweep that it names does."""
    hold(fake, owner, -60)
    found = doctor(fake)
    assert found.keys() == {"hold-over"}
    one = found["hold-over"]
    assert one["severity"] == "warning"
    assert f"the VM vm-{owner} is there still" in one["what"]
    assert why in one["what"]
    assert "it was held until 2026-01-01 11:59+00:00 by anna@desk: the core dump" in one["what"]
    run(fake, *by_hand(one["remedy"])[0])
    assert f"vm-{owner}" not in fake.inspect(URI).running()
    assert doctor(fake) == {}


def test_a_living_master_is_left_to_end_what_was_held(fake: FakeLibvirt) -> None:
    """Where a master lives, nobody is told of a hold that is over: its build goes on, or it ends the VM."""
    hold(fake, LIVES, -60)
    assert doctor(fake) == {}
