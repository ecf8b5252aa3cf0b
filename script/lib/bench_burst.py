"""How long it takes until eight workers are attached whose builds are asked for at once, on one host.

Each round starts them by thawing: first QEMU alone, as libvirt would call it, which is the floor, then
latentvirt.
With --boot it then starts them by booting, which takes as long as eight guests need that boot at once on this
machine. Domain and surroundings are those of script/bench start.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

LIB = Path(__file__).resolve().parent
sys.path[:0] = [str(LIB.parent.parent / "src"), str(LIB.parent.parent / "tests"), str(LIB)]

import attrs  # noqa: E402
from benching.peers import Latent, RawThaw  # noqa: E402
from benching.progress import Progress  # noqa: E402
from benching.rawqemu import ATTACH_S  # noqa: E402
from benching.report import burst_table, show  # noqa: E402
from benching.stage import Stage, open_stage, overlay  # noqa: E402
from stockimage import IMAGES, Image  # noqa: E402

COUNT = 8
ROUNDS = 3
LOG_TAIL = 4000


@attrs.define
class Numbered(Latent):
    """One of several workers of a tier.

    Args:
        number: which.
    """

    number: int = 0

    @property
    def name(self) -> str:
        """Of its worker."""
        return f"{self.tier}{self.number}"


def latent_burst(stage: Stage, workers: Sequence[Latent]) -> list[float]:
    """Ask for a build of each worker at once; returns how long after that each was attached, in order."""
    assert stage.line is not None
    stage.line.request([worker.name for worker in workers])
    return sorted(worker.see_through(1)[0].total_s for worker in workers)


@attrs.define
class RawBurst:
    """QEMU alone, several times at once from one memory image.

    Args:
        stage: where.
        image: what was frozen.
        count: how many.
    """

    stage: Stage
    image: Image
    count: int
    _source: RawThaw = attrs.field(init=False)
    _copies: list[RawThaw] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._source = RawThaw(self.stage, self.image, "raw")
        self._copies = [RawThaw(self.stage, self.image, f"raw{number}") for number in range(self.count)]

    def add(self) -> None:
        """Add the workers to the master's configuration."""
        for peer in (self._source, *self._copies):
            peer.add()

    def warm(self) -> None:
        """Make the memory image."""
        self._source.warm()
        for peer in self._copies:
            peer.command = self.stage.raw_command(
                peer.name, self.image, peer.disk, self._source.frozen, self.image.disk
            )

    def measure(self) -> list[float]:
        """Run them at once; returns after how long each was attached, in order."""
        line = self.stage.line
        assert line is not None
        began = time.monotonic()
        with ExitStack() as machines, ThreadPoolExecutor(self.count) as threads:

            def start(peer: RawThaw) -> None:
                assert peer.identity is not None
                overlay(self._source.frozen, peer.disk)
                machine = self.stage.raw_machine(peer.command, peer.identity, self._source.memory)
                machines.enter_context(machine).identify()

            for _ in threads.map(start, self._copies):
                pass
            attached = [line.wait("attached", ATTACH_S, worker=peer.name).at for peer in self._copies]
        for peer in self._copies:
            line.wait("detached", worker=peer.name)
        return sorted(at - began for at in attached)


def measure(stage: Stage, options: argparse.Namespace) -> dict[str, Any]:
    """Run all bursts, and sum up."""
    image = stage.images[options.image]
    raw = RawBurst(stage, image, options.count)
    raw.add()

    def workers(tier: str) -> list[Latent]:
        return [
            Numbered(stage, image, tier, {"start": tier}, number) for number in range(1, options.count + 1)
        ]

    thawing, booting = workers("thaw"), workers("boot") if options.boot else []
    for worker in (*thawing, *booting):
        worker.add()
    stage.begin()
    ways: dict[str, Callable[[], list[float]]] = {
        "raw_thaw": raw.measure,
        "thaw": lambda: latent_burst(stage, thawing),
    }
    if booting:
        ways["boot"] = lambda: latent_burst(stage, booting)
    rounds: dict[str, list[list[float]]] = {way: [] for way in ways}
    with Progress(1 + len(thawing) + options.rounds * len(ways)) as progress:
        progress.begin("freezing QEMU alone")
        raw.warm()
        progress.end()
        for worker in thawing:
            progress.begin(f"freezing {worker.name}")
            worker.warm()
            progress.end()
        for number in range(1, options.rounds + 1):
            for way, run in ways.items():
                stage.wait_quiet()
                progress.begin(f"{way} {number}")
                rounds[way].append(run())
                progress.end(f"{way} {number}: all {options.count} after {rounds[way][-1][-1]:.3f} s")
    return {"burst": {way: figures(runs) for way, runs in rounds.items()}}


def figures(runs: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Sum up one way's rounds.

    Args:
        runs: of each round, after how long each worker was attached, in order.
    """
    return {
        "count": len(runs[0]),
        "rounds": len(runs),
        "first_s": round(statistics.median(run[0] for run in runs), 4),
        "middle_s": round(statistics.median(statistics.median(run) for run in runs), 4),
        "all_s": round(statistics.median(run[-1] for run in runs), 4),
        "runs_s": [[round(seconds, 4) for seconds in run] for run in runs],
    }


def main() -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="script/bench burst", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    for option, default, what in (("--count", COUNT, "workers"), ("--rounds", ROUNDS, "rounds")):
        parser.add_argument(
            option, type=int, default=default, metavar="N", help=f"how many {what} (default: %(default)s)"
        )
    parser.add_argument("--image", choices=IMAGES, default="tuned", help="default: %(default)s")
    parser.add_argument("--boot", action="store_true", help="also boot them all at once; slow")
    options = parser.parse_args()
    with open_stage({options.image: IMAGES[options.image]()}) as stage:
        try:
            result = measure(stage, options)
        except BaseException:
            print(f"the master's log ends:\n{stage.master.log()[-LOG_TAIL:]}", file=sys.stderr)
            raise
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    show([burst_table(result)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
