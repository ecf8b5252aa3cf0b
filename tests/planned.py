"""A machine that looks up what it needs when it is started, as a worker does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet import reactor

from latentvirt.claim import Claim
from latentvirt.frozen import FrozenStore
from latentvirt.guest import Identity
from latentvirt.host import Host
from latentvirt.hostkeys import PrivateKey
from latentvirt.machine import Machine
from latentvirt.planning import plan
from latentvirt.spec import MachineSpec
from latentvirt.storage import Storage

ONCE = "one-time-password"


@attrs.define(eq=False)
class PlannedMachine:
    """A machine, and what it is made of.

    Args:
        host: where it runs.
        storage: where its files go.
        spec: what it is to be.
        claim: its place.
        listener: who hears of it.
        frozen: the frozen images; None boots only.
        claimed: tells of a start's id whether a build has its VM.
        ssh_host_key: what its guest is given.
        now: the guest's clock, in seconds since the epoch.
    """

    host: Host
    storage: Storage | None
    spec: MachineSpec
    claim: Claim
    listener: Any
    frozen: FrozenStore | None = None
    claimed: Any = lambda start: False
    ssh_host_key: PrivateKey | None = None
    now: Callable[[], float] = lambda: 0.0
    machine: Machine | None = None

    async def _made(self, worker: str = "") -> Machine:
        if self.frozen is not None:
            await self.frozen.load()
        self.machine = Machine(
            host=self.host,
            storage=self.storage,
            plan=await plan(self.host, self.storage, self.spec),
            claim=self.claim,
            listener=self.listener,
            identify=lambda use, address: Identity(
                name="minion1", password=ONCE, master="10.0.2.2:9989", ssh_host_key=self.ssh_host_key
            ),
            clock=reactor,
            now=self.now,
            frozen=self.frozen,
            claimed=self.claimed,
            secrets=("static-password",),
            worker=worker,
        )
        return self.machine

    async def start(self) -> None:
        """Start it."""
        await (await self._made(self.spec.worker)).start()

    async def hold(self) -> None:
        """Thaw it, and let it wait."""
        await (await self._made()).hold()

    async def stop(self, **how: float) -> None:
        """Stop it, if it was made at all."""
        if self.machine is not None:
            await self.machine.stop(**how)

    def cancel(self, why: str) -> None:
        """Call its start off."""
        assert self.machine is not None
        self.machine.cancel(why)
