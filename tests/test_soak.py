"""Many starts in a row leave a host and this process as they were."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

import scenes
from latentvirt.claim import Claim
from latentvirt.config import Connection
from latentvirt.errors import LatentvirtError
from latentvirt.guest import Ready
from latentvirt.host import Host
from latentvirt.names import new_owner, slot_of_domain
from latentvirt.spec import MachineSpec
from latentvirt.storage import open_storage
from planned import PlannedMachine
from reactorthread import Heard, run, start
from scenes import Stage, fast_domain

pytestmark = [pytest.mark.libvirt, pytest.mark.soak]

STARTS = 40
WARM_UP = 5
"""Starts before the process counts as settled: threads and caches are made with the first ones."""


class Ear:
    """A listener that notes whether the guest asked who it is, and why it failed."""

    def __init__(self) -> None:
        self.readies = Heard[Ready]()
        self.failures: list[LatentvirtError] = []

    def progress(self, step: str, seconds: float, note: str) -> None:
        """Hear of a step."""

    def tier(self, name: str, why: str) -> None:
        """Hear of a tier."""

    def console(self, lines: list[str]) -> None:
        """Hear the console."""

    def ready(self, told: Ready) -> None:
        """Note it."""
        self.readies(told)

    def failed(self, error: LatentvirtError) -> None:
        """Note it."""
        self.failures.append(error)

    def host_in_doubt(self, detail: str) -> None:
        """Hear of doubts."""


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A host of the test's own."""
    with scenes.stage(blank=True) as stage:
        yield stage


def _held() -> tuple[int, int]:
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


@pytest.mark.timeout(1200)
def test_forty_starts_in_a_row_hold_on_to_nothing(stage: Stage) -> None:
    """After each of forty starts nothing is left on the host, and no thread or file stays open here."""
    connection = Connection(stage.libvirtd.uri)
    host = Host(connection, start())
    owner = new_owner()
    storage = open_storage(host, owner, str(stage.images))
    xml = fast_domain("minion1", stage.images / "minion1", stage.busybox, "channel")
    spec = MachineSpec(worker="minion1", kind="xml", xml=xml, base_image=str(stage.base))
    settled = (0, 0)
    for number in range(STARTS):
        ear = Ear()
        claim = Claim(owner, slot_of_domain("minion1"))
        machine = PlannedMachine(host=host, storage=storage, spec=spec, claim=claim, listener=ear)
        run(machine.start())
        ear.readies.until(lambda said: bool(said))
        run(machine.stop())
        assert ear.failures == []
        assert (stage.domains(), stage.files()) == ([], [])
        if number == WARM_UP:
            settled = _held()
    assert _held() <= settled
    run(storage.remove())
    run(host.close())
    stage.assert_all_gone()
