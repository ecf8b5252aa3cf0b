"""What a guest that has just been thawed says too early, and what becomes of one that rehearses in vain."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import libvirt
import pytest

from latentvirt.master.worker import LibVirtWorker
from latentvirt.testing import FakeGuest
from latentvirt.testing.domain import VirDomain
from latentvirt.testing.state import FakeDomain, FakeHostState
from latentvirt.testing.trouble import libvirt_error
from reactorthread import on_reactor
from stagemaster import StageMaster, close_stage, open_stage
from test_standby import Rehearsing, a_worker, attach, paused, rehearsals, tend, until, untold
from test_worker import BASE, URI, _good, _settle, _start, _stop

IN_VAIN_S = 0.1


@pytest.fixture
def master() -> Iterator[StageMaster]:
    """A master on a fake host with a base image."""
    opened = open_stage()
    opened.fake.inspect(URI).add_file(BASE)
    yield opened
    close_stage(opened)


class Hasty(FakeGuest):
    """A guest that takes what it was told first, and hears nothing after that."""

    def on_channel(self, data: bytes) -> None:
        """Take one identity, and no other."""
        if self.identity is None:
            super().on_channel(data)


def hasty(master: StageMaster, monkeypatch: pytest.MonkeyPatch) -> list[FakeGuest]:
    """Let thawed guests ask who they are before the host has said that they run; return those."""
    asked: list[FakeGuest] = []
    resume = VirDomain.resume

    def resumed(domain: VirDomain) -> int:
        done = resume(domain)
        guest = domain._domain.guest
        if guest is not None and guest.thaws:
            guest.say("ready", helper="fake", system="fake", can=["freeze", "rehearse"])
            asked.append(guest)
            domain._domain.host.settle()
            on_reactor(lambda: None)  # so that it was heard
        return done

    host = master.fake.inspect(URI)
    host.guests = lambda domain: Hasty(says_ready=True)
    monkeypatch.setattr(VirDomain, "resume", resumed)
    return asked


def test_a_thawed_guest_that_asks_early_is_told_once_that_it_was_thawed(
    master: StageMaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A VM whose guest asks who it is as soon as it runs is not taken for one that booted, and can log in."""
    asked = hasty(master, monkeypatch)
    worker = a_worker(master, "a")
    attach(worker)
    (guest,) = asked
    assert guest.identity is not None
    assert guest.identity["thawed"] is True
    assert guest.identity["password"] == _good(worker)
    _stop(worker)


def mute(host: FakeHostState, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the guest of a standby not answer."""
    monkeypatch.setattr("latentvirt.rehearsing.REHEARSE_S", IN_VAIN_S)
    host.guests = lambda domain: FakeGuest(says_ready=True, mute_after_thaw=True)


def unpausable(host: FakeHostState, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the host fail when it is to pause a standby after its rehearsal."""
    suspend = VirDomain.suspend

    def suspended(domain: VirDomain) -> int:
        guest = domain._domain.guest
        if guest is not None and guest.thaws:
            raise libvirt_error(libvirt.VIR_ERR_OPERATION_FAILED, "Timed out during operation")
        return suspend(domain)

    host.guests = lambda domain: FakeGuest(says_ready=True)
    monkeypatch.setattr(VirDomain, "suspend", suspended)


@pytest.mark.parametrize("fail", [mute, unpausable])
def test_a_build_does_not_get_a_standby_that_came_to_nothing(
    master: StageMaster, monkeypatch: pytest.MonkeyPatch, fail: Callable[..., None]
) -> None:
    """A VM that failed in its rehearsal is given to no build, also while it is still being ended."""
    host = master.fake.inspect(URI)
    fail(host, monkeypatch)
    hang = host.trouble.hang("domain.destroy")
    worker = a_worker(master, "a", standby=True)
    tend(master, worker)
    assert hang.entered.acquire(timeout=60)
    try:
        assert "tier standby" not in started(a_worker(master, "b"))
    finally:
        hang.release()


def started(worker: LibVirtWorker) -> str:
    """Start a VM for a build, and return the log of it."""
    _start(worker)
    updates = worker.master.data.updates
    until(lambda: "waiting for its worker" in updates.text)
    return str(updates.text)


def test_a_rehearsal_whose_end_nobody_could_hear_is_over(master: StageMaster) -> None:
    """A libvirtd that is restarted meanwhile leaves a VM that stands by, and costs no frozen image."""
    host = master.fake.inspect(URI)
    host.guests = lambda domain: Rehearsing(answers=False)
    tend(master, a_worker(master, "a", standby=True))
    until(lambda: len(rehearsals(master)) == 1)
    (domain,) = untold(master)
    host.break_connections()
    assert paused(master) == 1
    assert untold(master) == [domain]


class Moody(FakeGuest):
    """A guest of whose rehearsals some come to nothing.

    Args:
        moods: whether each one comes to its end, the next one first; those after them do.
    """

    def __init__(self, moods: list[bool]) -> None:
        super().__init__(says_ready=True)
        self.moods = moods

    def on_channel(self, data: bytes) -> None:
        """Rehearse, or be silent."""
        if b"rehearse" not in data or not self.moods or self.moods.pop(0):
            super().on_channel(data)


def test_a_guest_that_answers_now_and_then_stands_by_still(
    master: StageMaster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rehearsals that come to nothing count only in a row: a good one between them is not forgotten."""
    host = master.fake.inspect(URI)
    moods = [False, True, False]

    def wait_for(seconds: float) -> None:
        monkeypatch.setattr("latentvirt.rehearsing.REHEARSE_S", seconds)

    def guest(domain: FakeDomain) -> FakeGuest:
        # Only those that are silent are not waited for: on a slow machine a good one needs its time.
        wait_for(IN_VAIN_S if len(moods) == 3 else 60.0)
        return Moody(moods)

    host.guests = guest
    worker = a_worker(master, "a", standby=True)
    tend(master, worker)
    until(lambda: len(moods) == 1)
    assert paused(master) == 1
    (name,) = host.running()
    domain = host.domain(name)
    assert domain is not None
    wait_for(IN_VAIN_S)
    domain.kill()
    until(lambda: caplog.text.count("did not answer within") == 2)
    _settle(master)
    tend(master, worker)
    assert paused(master) == 1
