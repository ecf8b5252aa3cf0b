"""How long a worker takes from a build's request to attached, by every way to start one.

The peers take turns, in one run, on one machine: Buildbot's own LibVirtWorker, wired by hand as it requires;
QEMU alone, as libvirt would call it, which is the floor, booting and thawing; and latentvirt's three tiers.
All boot the same domain (512 MB, one processor, user-mode network) by the image's own kernel and initial RAM
disk, under a libvirtd of the benchmark's own and a real Buildbot master. Since processors are emulated there,
on any machine, figures can be compared within a run, and hardly beyond it.

The images: stock, a plain Debian with the guest helper, and tuned, the default of contrib/libvirt/vmbuilder.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import attrs

LIB = Path(__file__).resolve().parent
sys.path[:0] = [str(LIB.parent.parent / "src"), str(LIB.parent.parent / "tests"), str(LIB)]

from benching.figures import Sample, result_of, targets_of  # noqa: E402
from benching.peers import Latent, Peer, RawBoot, RawThaw, StartFailed  # noqa: E402
from benching.plot import plot  # noqa: E402
from benching.processors import Usage, others_share  # noqa: E402
from benching.progress import Progress  # noqa: E402
from benching.rawqemu import RawFailed  # noqa: E402
from benching.report import show, start_tables  # noqa: E402
from benching.stage import HAS_TIERS, Stage, open_stage  # noqa: E402
from stockimage import IMAGES  # noqa: E402

THAW_ROUNDS = 15
BOOT_ROUNDS = 5
LOG_TAIL = 4000
TRIES = 3
"""How often a start is tried; emulated guests crash at times on a busy machine."""

T = TypeVar("T")

BOOTING = ("in_tree", "raw_boot", "boot")
THAWING = ("raw_thaw", "thaw", "standby")
OURS: dict[str, dict[str, object]] = {
    "boot": {"start": "boot"} if HAS_TIERS else {},
    "thaw": {"start": "thaw"},
    "standby": {"start": "thaw", "standby": True},
}


def peers_of(stage: Stage, name: str, tiers: list[str]) -> dict[str, Peer]:
    """Make the peers of one image.

    Args:
        stage: where.
        name: of the image.
        tiers: which of them.
    """
    image = stage.images[name]
    peers: dict[str, Peer] = {
        "in_tree": Latent(stage, image, "in_tree"),
        "raw_boot": RawBoot(stage, image, "raw_boot"),
        "raw_thaw": RawThaw(stage, image, "raw_thaw"),
    }
    for tier, arguments in OURS.items():
        peers[tier] = Latent(stage, image, tier, arguments)
    return {tier: peers[tier] for tier in (*BOOTING, *THAWING) if tier in tiers}


def watched(peer: Peer, number: int) -> Sample:
    """Measure one start, and how much of the processors others used meanwhile."""
    before, began = Usage.now(), time.monotonic()
    sample = peer.measure(number)
    others = others_share(before, Usage.now(), time.monotonic() - began, os.cpu_count() or 1)
    return attrs.evolve(sample, others=others)


def insisting(doing: Callable[[], T], stage: Stage, progress: Progress, what: str) -> T:
    """Do something again if a start failed, a few times, and tell of each failure."""
    for left in reversed(range(TRIES)):
        try:
            return doing()
        except (StartFailed, RawFailed) as error:
            if not left:
                raise
            progress.say(f"{what}: not counted: {error}")
            stage.wait_quiet()
    raise AssertionError("unreachable")


def measure(stage: Stage, options: argparse.Namespace) -> dict[str, Any]:
    """Let all peers take turns, and sum up."""
    images = {name: peers_of(stage, name, options.tiers) for name in options.images}
    everybody = [peer for peers in images.values() for peer in peers.values()]
    for peer in everybody:
        peer.add()
    stage.begin()
    turns = [
        (peers[tier], number)
        for tiers, rounds in ((BOOTING, options.boot_rounds), (THAWING, options.rounds))
        for number in range(1, rounds + 1)
        for peers in images.values()
        for tier in tiers
        if tier in peers
    ]
    samples: list[Sample] = []
    frozen: dict[str, dict[str, int]] = {}
    with Progress(len(everybody) + len(turns)) as progress:
        for peer in everybody:
            what = f"{peer.image.name} {peer.tier}: preparing"
            progress.begin(what)
            sizes = insisting(peer.warm, stage, progress, what)
            if sizes:
                frozen.setdefault(peer.image.name, {}).update(sizes)
            stage.wait_quiet()
            progress.end()
        for peer, number in turns:
            what = f"{peer.image.name} {peer.tier} {number}"
            progress.begin(what)
            sample = insisting(partial(watched, peer, number), stage, progress, what)
            samples.append(sample)
            stage.wait_quiet()
            progress.end(f"{what}: {sample.total_s:.3f} s")
    return result_of(samples, frozen)


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="script/bench start", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def names(known: tuple[str, ...]) -> Any:
        def read(text: str) -> list[str]:
            chosen = text.split(",")
            unknown = sorted(set(chosen) - set(known))
            if unknown:
                raise argparse.ArgumentTypeError(f"there is no {unknown[0]!r}, only {', '.join(known)}")
            return [name for name in known if name in chosen]

        return read

    tiers = tuple(tier for tier in (*BOOTING, *THAWING) if HAS_TIERS or tier not in ("thaw", "standby"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the result there")
    parser.add_argument(
        "--rounds", type=int, default=THAW_ROUNDS, help="of what thaws (default: %(default)s)"
    )
    parser.add_argument(
        "--boot-rounds", type=int, default=BOOT_ROUNDS, help="of what boots (default: %(default)s)"
    )
    parser.add_argument(
        "--images",
        type=names(tuple(IMAGES)),
        default=list(IMAGES),
        metavar="NAMES",
        help=f"of {','.join(IMAGES)} (default: all)",
    )
    parser.add_argument(
        "--tiers",
        type=names(tiers),
        default=list(tiers),
        metavar="NAMES",
        help=f"of {','.join(tiers)} (default: all)",
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument(
        "--draw", type=Path, metavar="JSON", help="measure nothing: show and draw an earlier result"
    )
    return parser.parse_args(arguments)


def main() -> int:
    """Run the benchmark; returns the exit status."""
    options = read_options()
    if options.draw:
        result = json.loads(options.draw.read_text())
    else:
        with open_stage({name: IMAGES[name]() for name in options.images}) as stage:
            try:
                result = measure(stage, options)
            except BaseException:
                print(f"the master's log ends:\n{stage.master.log()[-LOG_TAIL:]}", file=sys.stderr)
                raise
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.svg:
        options.svg.write_text(plot(result))
    show(start_tables(result))
    missed = [target.what for target in targets_of(result) if target.met is False]
    if missed:
        print(f"bench start: misses {', '.join(missed)}")
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
