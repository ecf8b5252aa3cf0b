"""Run four builds on four fresh VMs under a real master, show how long each part took, count what is left.

All lies in a folder of its own, the hypervisor's driver included (qemu:///embed), so that nothing of the
machine's is touched and several of these may run at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import attrs
from rich.console import Console
from rich.table import Table

# libvirt reads this while it is imported. Its errors reach us as exceptions; what it says besides is about
# the machine and the qemu.conf that we wrote, and would end up in the midst of ours.
os.environ["LIBVIRT_LOG_OUTPUTS"] = "4:file:/dev/null"
import libvirt

del os.environ["LIBVIRT_LOG_OUTPUTS"]

TESTS = Path(__file__).resolve().parent.parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from guests import debian_image  # noqa: E402
from masters import SUCCESS, Master  # noqa: E402

BUILDS = 3
"""How many there are before a VM stands by, and one more after that."""

STANDBY_S = 120
STANDING_S = 8.0
"""How long a VM takes from its disk to the end of its rehearsal; nothing of it is to be seen from outside."""
POLL_S = 0.1
BUILD_S = 600
BEGIN_S = 120
GONE_S = 60
STOP_S = 60
LOG_TAIL = 4000
LONGEST_TEMPORARY = 30
"""QEMU's sockets lie below our folder, and a socket's path holds 107 bytes."""

# QEMU runs as who runs this: no other user could pass this folder, and there is no one to keep it from.
QEMU_CONF = """
user = "{uid}"
group = "{gid}"
dynamic_ownership = 0
security_driver = "none"
namespaces = [ ]
cgroup_controllers = [ ]
stdio_handler = "file"
"""

# Each build looks for what an earlier one wrote, and writes: on the disk, which df tells, not in memory.
CONFIG = """
c['workers'].append(LibVirtWorker(
    'minion1', None, Connection('qemu:///embed?root={embed}'), '{images}/minion1', '{base}',
    size=Size(memory='768 MiB'), standby={standby}))
builder(
    'demo', ['minion1'],
    'if [ -e $HOME/mark ]; then echo "an earlier build wrote:"; cat $HOME/mark; exit 1; fi',
    'df $HOME | grep /dev/ && date > $HOME/mark && sync && ls -l $HOME/mark',
    'echo "random $(cat /proc/sys/kernel/random/uuid)"')
"""

COLUMNS = ("prepare", "create", "boot", "freeze", "attach", "attached", "gone")
PARTS = {
    "create": "create",
    "restore": "create",
    "guest prepares": "freeze",
    "make the memory file": "freeze",
    "save memory": "freeze",
    "publish the frozen image": "freeze",
}
"""In which column each of the log's entries is counted; the rest is `prepare`."""

CAPTION = (
    "seconds; prepare to attached are from the log of each start,\n"
    f"gone was seen from outside, {1 / POLL_S:.0f} times a second"
)


class DemoFailed(Exception):
    """What went wrong, for a person."""


@attrs.frozen
class Outcome:
    """What one build came to.

    Args:
        number: which of the builds, from 1.
        good: whether it succeeded, and so saw nothing of an earlier one.
        tier: how its VM came to run.
        random: the first that its guest's kernel drew.
        seconds: how long each part took, by column.
    """

    number: int
    good: bool
    tier: str
    random: str
    seconds: dict[str, float]


@attrs.frozen
class Stage:
    """Where it all happens."""

    folder: Path
    base: Path

    @property
    def embed(self) -> Path:
        """All of the hypervisor driver's own files."""
        return self.folder / "embed"

    @property
    def images(self) -> Path:
        """The person's image folder."""
        return self.folder / "images"

    def set(self) -> Master:
        """Make folders and configuration."""
        self.images.mkdir()
        (self.embed / "etc").mkdir(parents=True)
        conf = QEMU_CONF.format(uid=f"+{os.getuid()}", gid=f"+{os.getgid()}")
        (self.embed / "etc" / "qemu.conf").write_text(conf)
        return Master(self.folder / "master", self.config(standby=False))

    def config(self, *, standby: bool) -> str:
        """Write the worker and the builder for master.cfg."""
        return CONFIG.format(embed=self.embed, images=self.images, base=self.base, standby=standby)

    def processes(self) -> list[int]:
        """List the QEMUs that run with anything of this folder's."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            except OSError:
                continue  # ended while we looked
            if b"qemu" in command.split(b"\0")[0] and os.fsencode(self.embed) in command:
                found.append(int(entry.name))
        return found

    def frozen(self) -> set[Path]:
        """List the files of frozen images, which are kept for later builds."""
        files = list(self.images.glob("latentvirt-*/*"))
        starts = {file.name.split(".")[1] for file in files if ".frozen." in file.name}
        return {file for file in files if file.name.split(".")[1] in starts}

    def volumes(self) -> set[Path]:
        """List the files of the VMs that run."""
        files = {file for file in self.images.glob("latentvirt-*/*") if not file.name.startswith("lease.")}
        return files - self.frozen()

    def everything(self) -> list[Path]:
        """List what lies in the image folder but frozen images."""
        frozen = self.frozen()
        return sorted(set(self.images.rglob("*")) - frozen - {file.parent for file in frozen} - self.leases())

    def leases(self) -> set[Path]:
        """List what says how long frozen images are claimed."""
        return set(self.images.glob("latentvirt-*/lease.*"))


def watch_build(stage: Stage, master: Master, console: Console, number: int) -> Outcome:
    """Ask for a build, tell how it goes, and wait until its VM is gone."""
    request = master.force("demo")
    with console.status(f"build {number}: asked for") as status:
        ended, tries, files = _follow(stage, master, request, number, status)
        *retried, build = master.builds(request)
        gone = _wait_until_gone(files)
    for lost in retried:
        console.print(f"build {number} had to be tried again:", highlight=False)
        console.print(master.text(lost, "start VM", "progress"), markup=False, highlight=False)
    log = master.text(build, "start VM", "progress")
    output = "\n".join(_outputs(master, build))
    good = build["results"] == SUCCESS
    if not good:
        console.print(f"build {number} failed: {build['state_string']}", style="bold", highlight=False)
        console.print(log, master.text(build, "start VM", "console"), output, sep="\n", markup=False)
    found = re.search(r"^random (\S+)$", output, re.MULTILINE)
    tiers = re.findall(r"^tier (\w+):", log, re.MULTILINE)
    seconds = _seconds(log)
    attached = seconds.get("attached", 0.0)
    seconds |= {"gone": gone - ended}
    again = f", at the {tries}. try" if tries > 1 else ""
    console.print(
        f"build {number}: {'success' if good else 'FAILED'}{again}, {', then '.join(tiers)}, "
        f"worker attached after {attached:.1f} s, "
        f"VM gone {gone - ended:.1f} s after the build",
        highlight=False,
    )
    return Outcome(number, good, " + ".join(tiers), found[1] if found else "", seconds)


def _follow(
    stage: Stage, master: Master, request: int, number: int, status: Any
) -> tuple[float, int, set[Path]]:
    """Show a build's state until it is done.

    Returns:
        When it ended, how many tries it took, and the files of its VM.
    """
    asked = time.monotonic()
    current, files = None, set[Path]()
    while time.monotonic() < asked + (BUILD_S if current is not None else BEGIN_S):
        seen = stage.volumes()  # what is there when the build has ended may be the next standby's
        builds = master.builds(request)
        steps = master.steps(builds[-1]) if builds else []
        if steps and current != builds[-1]["buildid"]:
            current = builds[-1]["buildid"]
        # A build that is to be retried is complete, its request is not.
        if builds and builds[-1]["complete"] and _is_complete(master, request):
            return time.monotonic(), len(builds), files
        files = seen
        if steps:
            status.update(f"build {number}: {steps[-1]['name']}: {steps[-1]['state_string']}")
        time.sleep(POLL_S)
    what = "not done" if current is not None else "not begun"
    waited = time.monotonic() - asked
    raise DemoFailed(f"build {number} was {what} after {waited:.0f} s\n{master.log()[-LOG_TAIL:]}")


def _is_complete(master: Master, request: int) -> bool:
    (found,) = master.rest(f"buildrequests/{request}")["buildrequests"]
    return bool(found["complete"])


def _wait_until_gone(files: set[Path]) -> float:
    deadline = time.monotonic() + GONE_S
    while any(file.exists() for file in files) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return time.monotonic()


def _wait_for_standby(stage: Stage, console: Console) -> None:
    deadline = time.monotonic() + STANDBY_S
    with console.status("standby=True: a VM is thawed ahead of time"):
        while not stage.volumes():
            if time.monotonic() > deadline:
                raise DemoFailed(f"no VM stood by within {STANDBY_S} s")
            time.sleep(POLL_S)
        time.sleep(STANDING_S)
    console.print("standby=True: a VM stands by, thawed, rehearsed and paused", highlight=False)


def _outputs(master: Master, build: dict[str, Any]) -> Iterator[str]:
    for step in master.steps(build):
        for entry in master.rest(f"steps/{step['stepid']}/logs")["logs"]:
            if entry["name"] == "stdio":
                (chunk,) = master.rest(f"logs/{entry['logid']}/contents")["logchunks"]
                yield from (line[1:] for line in chunk["content"].splitlines())


def _seconds(log: str) -> dict[str, float]:
    """Read how long the parts of a start took from its log."""
    parts = dict.fromkeys(("prepare", "create", "freeze", "boot", "attach"), 0.0)
    done = 0.0
    for line in log.splitlines():
        # Not what "guest attaches" took: that is part of the time until the worker is attached.
        if step := re.match(r"([a-z ]+): ([\d.]+) s$", line):
            if step[1] != "guest attaches":
                parts[PARTS.get(step[1], "prepare")] += float(step[2])
                done += float(step[2])
        elif ready := re.match(r"guest ready after ([\d.]+) s", line):
            parts["boot"] += float(ready[1]) - done
            done = float(ready[1])
        elif attached := re.match(r"attached after ([\d.]+) s$", line):
            parts["attach"] = max(0.0, float(attached[1]) - done)
            return {**parts, "attached": float(attached[1])}
    return parts


def show(console: Console, outcomes: list[Outcome]) -> None:
    """Print the table."""
    # No frame: with one, the heads would not fit into 80 columns.
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), caption=CAPTION, caption_justify="left")
    table.add_column("build")
    table.add_column("tier", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for outcome in outcomes:
        cells = [outcome.seconds.get(name) for name in COLUMNS]
        table.add_row(
            str(outcome.number), outcome.tier, *("-" if cell is None else f"{cell:.2f}" for cell in cells)
        )
    console.print(table)


def clear(stage: Stage) -> list[str]:
    """Name what is left after the master's end, and end those VMs.

    The driver's folder has one user at a time: only now can another process look into it.
    """
    left = [f"process {pid}" for pid in stage.processes()]
    left += [f"file {path}" for path in stage.everything()]
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_events, daemon=True).start()
    try:
        connection = libvirt.open(f"qemu:///embed?root={stage.embed}")
    except libvirt.libvirtError as error:
        return [*left, f"unknown domains: libvirt did not let us look: {error}"]
    try:
        for domain in connection.listAllDomains():
            left.append(f"domain {domain.name()}")
            if domain.isActive():
                domain.destroy()
    finally:
        connection.close()
    return left


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


@contextlib.contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Let a process that is started in here ignore Ctrl-C: it is ours to end, in order."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def serve(master: Master, console: Console) -> None:
    """Leave the master up until somebody presses Ctrl-C."""
    console.print(f"The master is up: http://127.0.0.1:{master.www_port}/", highlight=False)
    console.print("'force', on the page of the builder 'demo', asks for more builds. Ctrl-C ends it.")
    assert master.process is not None
    with contextlib.suppress(KeyboardInterrupt):
        master.process.wait()
        raise DemoFailed(f"the master ended by itself\n{master.log()[-LOG_TAIL:]}")


def run(stage: Stage, console: Console, serving: bool) -> tuple[list[Outcome], list[str]]:
    """Run it all; returns what the builds came to, and what is left."""
    outcomes: list[Outcome] = []
    digest = _digest(stage.base)
    master = stage.set()
    left: list[str] = []
    try:
        with console.status("starting the master"), ignoring_interrupts():
            master.start()
        console.print(f"master up, on qemu:///embed?root={stage.embed}", highlight=False)
        for number in range(1, BUILDS + 1):
            outcomes.append(watch_build(stage, master, console, number))
            if not outcomes[-1].good:
                break
        else:
            master.reconfigure(stage.config(standby=True))
            _wait_for_standby(stage, console)
            outcomes.append(watch_build(stage, master, console, BUILDS + 1))
        show(console, outcomes)
        if serving and outcomes[-1].good:
            serve(master, console)
    finally:
        with ignoring_interrupts():
            if master.process is not None and master.process.poll() is None:
                with console.status("stopping the master"):
                    try:
                        master.terminate(STOP_S)
                    except subprocess.TimeoutExpired:
                        left.append(f"the master, which did not exit within {STOP_S} s")
                        master.kill()
            left += clear(stage)
    if _digest(stage.base) != digest:
        left.append(f"changes in {stage.base}")
    return outcomes, left


def _digest(path: Path) -> tuple[object, ...]:
    status = path.stat()
    return (status.st_uid, status.st_gid, status.st_mode, status.st_size, status.st_mtime_ns)


def temporary_folder() -> Path:
    """Make a folder with a short path."""
    usual = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="lv-demo-", dir=usual if len(usual) <= LONGEST_TEMPORARY else "/tmp"))


def terminated(number: int, _frame: object) -> NoReturn:
    """End in order: a signal must not skip the cleaning."""
    raise KeyboardInterrupt


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="script/demo", description="Four builds on four fresh VMs.")
    parser.add_argument("--serve", action="store_true", help="leave the master up, with its web page")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the logs")
    parser.add_argument("--image", action="store_true", help="only build the guest image")
    return parser.parse_args()


def main() -> int:
    """Run the demonstration."""
    args = parse_arguments()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, terminated)
    console = Console(soft_wrap=True)
    try:
        base = debian_image().disk
    except (subprocess.CalledProcessError, RuntimeError) as error:
        print(f"demo: the guest image could not be built: {error}", file=sys.stderr)
        return 1
    if args.image:
        return 0
    stage = Stage(temporary_folder(), base)
    try:
        outcomes, left = run(stage, console, args.serve)
    except KeyboardInterrupt:
        print("demo: called off; its VMs and files are removed", file=sys.stderr)
        return 130
    except (DemoFailed, AssertionError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    finally:
        if args.keep:
            print(f"kept: {stage.folder}")
        else:
            shutil.rmtree(stage.folder, ignore_errors=True)
    for thing in left:
        print(f"left behind: {thing}")
    fresh = len({outcome.random for outcome in outcomes if outcome.good and outcome.random})
    print(f"demo: {len(outcomes)} builds, {fresh} fresh VMs, {len(left)} left behind")
    return 0 if (len(outcomes), fresh, len(left)) == (BUILDS + 1, BUILDS + 1, 0) else 1


if __name__ == "__main__":
    sys.exit(main())
