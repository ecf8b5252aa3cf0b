"""`latentvirt vm hold` and `vm release`, as a person calls them, and where holds are shown."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest

import reactorthread
from latentvirt.cli import hold as command_hold
from latentvirt.config import Connection
from latentvirt.hold import Hold
from latentvirt.host import Host
from latentvirt.names import METADATA_NAMESPACE
from latentvirt.testing import FakeLibvirt
from reactorthread import run
from test_cli_hosts import EXAMPLES, HERE, OURS, THERE, add, both, command, transcript
from test_cli_hosts import fake as fake
from test_cli_sweep import GONE, URI, left, settle_in, sweep

NOON = 1_767_268_800
"""On the first day of 2026, in UTC."""


@pytest.fixture
def anna(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be somebody, somewhere, at noon."""
    monkeypatch.setattr(command_hold, "_person", lambda: "anna@desk")
    monkeypatch.setattr(time, "time", lambda: float(NOON))
    with monkeypatch.context() as zone:
        zone.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def held(fake: FakeLibvirt) -> dict[str, str] | None:
    """Read what the list says of the one VM of ours."""
    (row,) = json.loads(command(fake, *both("vm", "list", "--json")).stdout)
    found: dict[str, str] | None = row["held"]
    return found


def test_the_transcript_is_what_the_commands_say(fake: FakeLibvirt, anna: None) -> None:
    """The commands answer as the documentation shows."""
    shown = (EXAMPLES / "latentvirt-hold.txt").read_text()
    commands = re.findall(r"^\$ latentvirt (.*)$", shown, re.MULTILINE)
    assert len(commands) > 3
    assert transcript(fake, commands) == shown


def test_a_vm_is_held_and_released(fake: FakeLibvirt, anna: None) -> None:
    """Until when, by whom and why is seen by all; afterwards nothing of it is."""
    assert held(fake) is None
    assert command(fake, *both("vm", "hold", "ours", "--for", "30 min", "--why", " look ")).exit_code == 0
    assert held(fake) == {"until": "2026-01-01 12:30+00:00", "by": "anna@desk", "why": "look"}
    shown = json.loads(command(fake, *both("vm", "show", "ours", "--json")).stdout)
    assert shown["held"] == held(fake)
    assert command(fake, *both("vm", "release", "ours")).exit_code == 0
    assert held(fake) is None


def test_held_vms_are_counted_for_each_host(fake: FakeLibvirt, anna: None) -> None:
    """Of each host it is seen how many of its VMs somebody holds, as a column and for programs."""
    command(fake, *both("vm", "hold", "ours", "--for", "30 min", "--why", "look"))
    rows = json.loads(command(fake, *both("hosts", "--json")).stdout)
    assert [(row["uri"], row["vms"], row["held"]) for row in rows] == [(HERE, 1, 1), (THERE, 0, 0)]
    head, one, two = (line.split() for line in command(fake, *both("hosts")).stdout.splitlines())
    assert head[-3:] == ["VMS", "HELD", "OTHERS"]
    assert (one[-3:], two[-3:]) == (["1", "1", "1"], ["0", "0", "0"])


def test_a_hold_that_is_over_is_not_shown(fake: FakeLibvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held no longer does not look as if it were."""
    assert command(fake, *both("vm", "hold", "ours", "--for", "1h", "--why", "look")).exit_code == 0
    assert held(fake) is not None
    later = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: later)
    assert held(fake) is None
    assert json.loads(command(fake, "hosts", "-c", HERE, "--json").stdout)[0]["held"] == 0


def test_holding_again_says_whose_hold_that_was(fake: FakeLibvirt, anna: None) -> None:
    """Who changes another's hold learns whose it was; a worker that waits for the VM goes on waiting."""
    uuid = fake.inspect(HERE).domain("ours").uuid  # type: ignore[union-attr]
    handle = fake.open(HERE).lookupByUUIDString(uuid)
    mark = f"<hold until='{NOON + 60}' by='bert@lab' why='mine' worker='minion1'/>"
    handle.setMetadata(2, mark, "latentvirt-hold", "urn:latentvirt:hold:1", 1)
    told = command(fake, *both("vm", "hold", "ours", "--for", "1d", "--why", "still broken"))
    assert told.exit_code == 0
    assert "it was held until 2026-01-01 12:01+00:00 by bert@lab: mine" in told.stdout
    assert "worker" in (fake.inspect(HERE).domain("ours").live or "")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("hold", "nobody", "--why", "x"), "no VM of the name 'nobody'"),
        (("hold", "theirs", "--why", "x"), "the VM 'theirs' is not latentvirt's"),
        (("release", "nobody"), "no VM of the name 'nobody'"),
        (("release", "theirs"), "the VM 'theirs' is not latentvirt's"),
        (("release", "ours"), "the VM 'ours' is not held"),
    ],
)
def test_what_cannot_be_is_refused(fake: FakeLibvirt, arguments: tuple[str, ...], said: str) -> None:
    """Each refusal says what is wrong, and nothing is held."""
    told = command(fake, *both("vm", *arguments))
    assert told.exit_code == 1
    assert said in told.stderr
    assert held(fake) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--why", "x", "--for", "soon"), "--for='soon' is not a duration"),
        (("--why", "x", "--for", "8d"), "7 days at most"),
        (("--why", "x", "--for", "0.0001s"), "--for='0.0001s' is over at once"),
        (("--why", " "), "is not a line of text"),
    ],
)
def test_a_bad_value_is_a_wrong_command_line(
    fake: FakeLibvirt, arguments: tuple[str, ...], said: str
) -> None:
    """Who writes a duration or a reason that is none gets the exit status of a mistyped command."""
    told = command(fake, *both("vm", "hold", "ours", *arguments))
    assert told.exit_code == 2
    assert said in told.stderr
    assert held(fake) is None


def test_a_reason_is_asked_for(fake: FakeLibvirt) -> None:
    """Nobody holds a VM without saying why."""
    told = command(fake, *both("vm", "hold", "ours"))
    assert told.exit_code == 2
    assert "--why" in told.stderr


def test_what_stands_by_is_not_held(fake: FakeLibvirt) -> None:
    """A VM that is paused for a build that is to come is no use to a person, and is left to it."""
    domain = fake.inspect(HERE).domain("ours")
    assert domain is not None
    domain.pause()
    told = command(fake, *both("vm", "hold", "ours", "--why", "x"))
    assert told.exit_code == 1
    assert "hold it while its build runs" in told.stderr


def test_a_host_that_is_down_is_named(fake: FakeLibvirt) -> None:
    """The VM may be on a host that does not answer; that one is named."""
    fake.inspect(THERE).reachable = False
    told = command(fake, *both("vm", "hold", "nobody", "--why", "x"))
    assert told.exit_code == 1
    assert f"virsh -c '{THERE}'" in told.stderr


def test_who_ends_a_held_vm_is_told(fake: FakeLibvirt, anna: None) -> None:
    """A VM that somebody holds can be ended by name, and whose hold that was is said."""
    command(fake, *both("vm", "hold", "ours", "--why", "look"))
    told = command(fake, *both("vm", "destroy", "ours"))
    assert told.exit_code == 0
    assert "which was held until 2026-01-01 14:00+00:00 by anna@desk: look" in told.stdout


def test_a_sweep_spares_what_is_held_until_the_time_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a dead master's things, a held VM and what it stands on stay, which is said; later they go, too."""
    estates = FakeLibvirt()
    estates.inspect(URI).add_file("/images/base.qcow2")
    host = Host(Connection(URI), reactorthread.start(), driver=estates)
    settle_in(host, "/images", GONE, time.time() - 3600)
    run(host.close())
    name = f"vm-{GONE}"
    done = command(estates, "vm", "hold", name, "--for", "1h", "--why", "look", "-c", URI)
    assert done.exit_code == 1, "it is paused"
    estates.inspect(URI).domain(name).resume()  # type: ignore[union-attr]
    done = command(estates, "vm", "hold", name, "--for", "30 min", "--why", "look", "-c", URI)
    assert done.exit_code == 0, done.stderr
    before = left(estates)
    (row,) = json.loads(sweep(estates, "--json", "--dry-run", "--owner", GONE).stdout)
    assert row["held"] == [name]
    assert row["done"].startswith(f"would be removed, but for {name}, held until ")
    assert "but for" in sweep(estates).stdout
    assert left(estates) == before
    later = time.time() + 1801
    monkeypatch.setattr(time, "time", lambda: later)
    assert "but for" not in sweep(estates).stdout
    running, owners = left(estates)
    assert name not in running
    assert GONE not in owners


def test_a_name_on_two_hosts_is_not_guessed(fake: FakeLibvirt) -> None:
    """Where two hosts have a VM of one name, none is held until one host is named."""
    mark = (
        f"<metadata><l:vm xmlns:l='{METADATA_NAMESPACE}' owner='{OURS.owner}' slot='{OURS.slot}' "
        f"start='{OURS.start}'/></metadata>"
    )
    add(fake, THERE, "ours", mark)
    told = command(fake, *both("vm", "hold", "ours", "--why", "x"))
    assert told.exit_code == 1
    assert "--connect" in told.stderr
    told = command(fake, "vm", "hold", "ours", "--why", "x", "-c", THERE)
    assert told.exit_code == 0
    rows = json.loads(command(fake, *both("vm", "list", "--json")).stdout)
    assert {row["host"]: row["held"] is not None for row in rows} == {HERE: False, THERE: True}


def test_a_hold_in_words() -> None:
    """A hold is told in one line, wherever it is told."""
    assert str(Hold(until=NOON, by="a@b", why="c")).endswith(" by a@b: c")
