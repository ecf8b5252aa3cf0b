"""Those that are compared: each starts one worker, from request to attached."""

from __future__ import annotations

import time
from pathlib import Path

import attrs
from stockimage import Image

from benching.figures import PART_OF_START, Sample
from benching.rawqemu import ATTACH_S
from benching.stage import Line, Stage, overlay, parts_of, tiers_of
from latentvirt.guest import Identity
from masters import SUCCESS

THAWING = ("thaw", "standby")
STANDBY_S = 300.0
"""How long to wait for a standby to be made."""
STANDBY_POLL_S = 0.2


class StartFailed(Exception):
    """A start came to nothing, or took another way than the one that is measured."""


@attrs.define
class Peer:
    """One way to start a worker.

    Args:
        stage: where.
        image: what boots.
        tier: as in `figures.Sample`.
    """

    stage: Stage
    image: Image
    tier: str

    @property
    def name(self) -> str:
        """Of its worker."""
        return f"{self.tier.replace('_', '-')}-{self.image.name}"

    def add(self) -> None:
        """Add its worker to the master's configuration."""

    def warm(self) -> dict[str, int]:
        """Do what is done once, and not measured; returns sizes of memory images, as in `result_of`."""
        return {}

    def measure(self, number: int) -> Sample:
        """Start once.

        Args:
            number: of the round.
        """
        raise NotImplementedError

    @property
    def _line(self) -> Line:
        assert self.stage.line is not None
        return self.stage.line


@attrs.define
class Latent(Peer):
    """A latent worker, started by a build that is asked for.

    Args:
        arguments: for latentvirt's worker; None stands for Buildbot's own.
    """

    arguments: dict[str, object] | None = None

    def add(self) -> None:
        """Add its worker to the master's configuration."""
        if self.arguments is None:
            self.stage.add_in_tree(self.name, self.image)
        else:
            self.stage.add_ours(self.name, self.image, **self.arguments)

    def warm(self) -> dict[str, int]:
        """Let the frozen image be made, where there is to be one."""
        if self.tier not in THAWING:
            return {}
        self.stage.wait_quiet()
        self.ask()
        self.see_through(0)
        return {"latentvirt": self.stage.memory_bytes(self.name)}

    def measure(self, number: int) -> Sample:
        """Ask for a build, and see it through."""
        if self.tier == "standby":
            self._wait_for_standby()
        self.ask()
        sample, tiers = self.see_through(number)
        if self.arguments is not None and tiers and tiers != [self.tier]:
            raise StartFailed(f"{self.name} was to be started by {self.tier}, and was by {', '.join(tiers)}")
        return sample

    def _wait_for_standby(self) -> None:
        until = time.monotonic() + STANDBY_S
        while not self.stage.waits_paused(self.name):
            if time.monotonic() > until:
                raise StartFailed(f"no standby of {self.name} was made within {STANDBY_S:.0f} s")
            time.sleep(STANDBY_POLL_S)
        self.stage.wait_quiet()

    def ask(self) -> None:
        """Ask for a build."""
        self._line.request([self.name])

    def see_through(self, number: int) -> tuple[Sample, list[str]]:
        """See a build through that was asked for; returns by which tiers it was started, too."""
        built, failed = self._line.wait_built(self.name)
        log = self.stage.preparation(built)
        if failed or built.said["results"] != SUCCESS:
            logs = [self.stage.preparation(one) for one in (*failed, built)]
            raise StartFailed(f"{self.name}: its start failed:\n" + "\n".join(logs))
        at = {"requested": self._line.wait("requested", builder=self.name).at}
        for event in ("starting", "started", "attached", "detached"):
            at[event] = self._line.wait(event, worker=self.name).at
        phases = {
            "dispatch": at["starting"] - at["requested"],
            "start": at["started"] - at["starting"],
        }
        attaching = self._line.told("attaching", worker=self.name)
        if attaching is None:  # Buildbot's own worker hears nothing of its guest
            phases["guest"] = at["attached"] - at["started"]
        else:
            phases["guest"] = attaching.at - at["started"]
            phases["attach"] = at["attached"] - attaching.at
        phases |= {f"{PART_OF_START}{part}": seconds for part, seconds in parts_of(log).items()}
        total = at["attached"] - at["requested"]
        return Sample(self.image.name, self.tier, number, total, phases), tiers_of(log)


@attrs.define
class RawBoot(Peer):
    """QEMU alone, booting."""

    identity: Identity | None = None
    command: list[str] = attrs.field(factory=list)

    @property
    def disk(self) -> Path:
        """The overlay."""
        return self.stage.disks / f"{self.name}.disk"

    def add(self) -> None:
        """Add its worker to the master's configuration."""
        self.identity = self.stage.add_plain(self.name)
        self.command = self.stage.raw_command(self.name, self.image, self.disk, self.image.disk)

    def measure(self, number: int) -> Sample:
        """Run QEMU until its worker is attached."""
        assert self.identity is not None
        began = time.monotonic()
        overlay(self.image.disk, self.disk)
        made = time.monotonic()
        with self.stage.raw_machine(self.command, self.identity) as machine:
            machine.wait_ready()
            ready = time.monotonic()
            machine.identify()
            machine.wait_attaching()
            told = time.monotonic()
            attached = self._line.wait("attached", ATTACH_S, worker=self.name).at
        self._line.wait("detached", worker=self.name)
        phases = {
            "overlay": made - began,
            "boot": ready - made,
            "identity": told - ready,
            "attach": attached - told,
        }
        return Sample(self.image.name, self.tier, number, attached - began, phases)


@attrs.define
class RawThaw(Peer):
    """QEMU alone, going on from the memory of a guest that was saved when it said that it was ready."""

    identity: Identity | None = None
    command: list[str] = attrs.field(factory=list)

    @property
    def frozen(self) -> Path:
        """The disk that belongs to the memory."""
        return self.stage.disks / f"{self.name}.frozen"

    @property
    def memory(self) -> Path:
        """The memory image."""
        return self.stage.disks / f"{self.name}.memory"

    @property
    def disk(self) -> Path:
        """The overlay."""
        return self.stage.disks / f"{self.name}.disk"

    def add(self) -> None:
        """Add its worker to the master's configuration."""
        self.identity = self.stage.add_plain(self.name)

    def warm(self) -> dict[str, int]:
        """Boot, and save the memory."""
        assert self.identity is not None
        overlay(self.image.disk, self.frozen)
        command = self.stage.raw_command(self.name, self.image, self.frozen, self.image.disk)
        with self.stage.raw_machine(command, self.identity) as machine:
            machine.save(self.memory)
        self.command = self.stage.raw_command(self.name, self.image, self.disk, self.frozen, self.image.disk)
        return {"raw": self.memory.stat().st_size}

    def measure(self, number: int) -> Sample:
        """Run QEMU until its worker is attached."""
        assert self.identity is not None
        began = time.monotonic()
        overlay(self.frozen, self.disk)
        made = time.monotonic()
        with self.stage.raw_machine(self.command, self.identity, self.memory) as machine:
            machine.identify()
            machine.wait_attaching()
            told = time.monotonic()
            attached = self._line.wait("attached", ATTACH_S, worker=self.name).at
        self._line.wait("detached", worker=self.name)
        phases = {"overlay": made - began, "restore": told - made, "attach": attached - told}
        return Sample(self.image.name, self.tier, number, attached - began, phases)
