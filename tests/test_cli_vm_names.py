"""`latentvirt vm`: VMs that are named by their workers, and several who end one VM at the same time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latentvirt.domainxml import GuestMark
from latentvirt.testing import FakeLibvirt
from test_cli_ssh import HERE, KEY, SCREEN, THERE, add, command
from test_cli_ssh import fake as fake

HOSTS = ("-c", HERE, "-c", THERE)
CONSOLE = "<serial type='pty'/><console type='pty'/>"


def test_a_vm_is_shown_held_and_ended_by_its_workers_name(fake: FakeLibvirt, tmp_path: Path) -> None:
    """Every command about one VM takes the worker's name, and says which domain that is."""
    shown = json.loads(command(fake, "vm", "show", "minion1", "--json", *HOSTS).stdout)
    assert (shown["name"], shown["host"]) == ("farm-1", HERE)
    file = tmp_path / "screen.png"
    assert command(fake, "vm", "screenshot", "minion1", str(file), *HOSTS).exit_code == 0
    assert file.read_bytes().startswith(b"\x89PNG")
    held = command(fake, "vm", "hold", "minion1", "--why", "look", *HOSTS)
    assert held.stdout.startswith(f"farm-1 on {HERE} is held until ")
    released = command(fake, "vm", "release", "minion1", *HOSTS)
    assert released.stdout.startswith(f"farm-1 on {HERE} is released")
    assert command(fake, "vm", "destroy", "minion1", *HOSTS).stdout == f"ended farm-1 on {HERE}\n"
    assert fake.inspect(HERE).running() == ["farm-2", "theirs"]


def test_a_vm_without_an_ssh_server_is_known_by_its_workers_name(fake: FakeLibvirt) -> None:
    """The list shows whose each VM is, also if its guest told no SSH host keys, and it is found by that."""
    add(fake, THERE, "farm-3", GuestMark("minion3"))
    rows = [line.split() for line in command(fake, "vm", "list", *HOSTS).stdout.splitlines()]
    assert rows[0][1:4] == ["NAME", "WORKER", "STATE"]
    assert [row[1:4] for row in rows[1:]] == [
        ["farm-1", "minion1", "running"],
        ["farm-2", "running", "256"],
        ["farm-3", "minion3", "running"],
    ]
    listed = json.loads(command(fake, "vm", "list", "--json", *HOSTS).stdout)
    assert [row["worker"] for row in listed] == ["minion1", None, "minion3"]
    assert "name: farm-3\nworker: minion3\n" in command(fake, "vm", "show", "minion3", *HOSTS).stdout


def test_a_console_is_opened_by_the_workers_name(fake: FakeLibvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    """virsh, which knows no workers, is told the domain."""
    add(fake, THERE, "farm-4", GuestMark("minion4", (KEY,)), CONSOLE)
    monkeypatch.setattr("latentvirt.cli.vm.shutil.which", lambda _: "/usr/bin/virsh")
    called: list[list[str]] = []
    monkeypatch.setattr("latentvirt.cli.vm.os.execv", lambda _, words: called.append(words))
    assert command(fake, "vm", "console", "minion4", *HOSTS).exit_code == 0
    assert called == [["/usr/bin/virsh", "-c", THERE, "console", "--force", "farm-4"]]


@pytest.mark.parametrize("name", ["minion1", "farm-1"])
def test_a_name_that_two_vms_have_is_not_guessed(fake: FakeLibvirt, name: str) -> None:
    """Where a domain or a worker of one name are two VMs, both are named, and none is ended."""
    add(fake, THERE, "minion1", GuestMark("farm-1", (KEY,)), SCREEN)
    told = command(fake, "vm", "destroy", name, *HOSTS)
    assert told.exit_code == 1
    assert f"'{name}' can be any of farm-1 on {HERE}, minion1 on {THERE}" in told.stderr
    assert fake.inspect(THERE).running() == ["minion1"]


def test_of_several_who_end_a_vm_only_one_has(fake: FakeLibvirt) -> None:
    """Who comes too late is told that the VM was gone, which is no failure: it is not there any more."""
    other = fake.open(HERE).lookupByName("farm-1")
    fake.inspect(HERE).trouble.before_next("domain.destroy", other.destroy)
    told = command(fake, "vm", "destroy", "farm-1", *HOSTS)
    assert (told.exit_code, told.stdout) == (0, f"farm-1 on {HERE} was gone already\n")
