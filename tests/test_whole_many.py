"""Real builds on three hosts that are reached by ssh under aliases: spread, moved on, shared by masters."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import pytest

import scenes
from guests import debian_image
from masters import SUCCESS, Master
from privatelibvirt import LoopbackSshd, loopback_sshd
from scenes import Stage, running

pytestmark = [pytest.mark.libvirt, pytest.mark.guest, pytest.mark.soak, pytest.mark.timeout(1800)]

NOBODY = 65534
BUILDS = 30
BUILD_S = 900
SAMPLE_S = 0.25
LOOK_AND_MARK = "if [ -e $HOME/mark ]; then echo used before; exit 1; fi; echo mark > $HOME/mark; sync"
NAMES = ("mira001", "mira003", "mira004")


@attrs.define
class Lab:
    """Three hosts with an image folder each, and what a master's user needs to reach them.

    Args:
        hosts: by alias.
        home: of the masters' user.
        image: the base image, on the master's machine only.
    """

    hosts: dict[str, Stage]
    home: Path
    image: Path

    def config(self, slots: int, workers: int) -> str:
        """Write the workers and the builder of a master."""
        connections = ", ".join(
            f"Connection({name!r}, slots={slots}, memory='64 GiB', vcpus=64, images={str(host.images)!r})"
            for name, host in self.hosts.items()
        )
        return f"""
import latentvirt
c['collapseRequests'] = False
hosts = latentvirt.Hosts({connections})
c['workers'] = latentvirt.workers('vps', {workers}, hosts, password=None, masterFQDN='10.0.2.2',
    base_image=latentvirt.Image({str(self.image)!r}), size=Size(memory=256))
builder('b', [worker.name for worker in c['workers']], {LOOK_AND_MARK!r})
"""

    @contextmanager
    def master(self, name: str, config: str) -> Iterator[Master]:
        """Run a master as an ordinary user, whose libvirt.conf has the aliases."""
        env = {"XDG_CONFIG_HOME": str(self.home / ".config")}
        with running(self.home / name, config, user=NOBODY, env=env) as master:
            yield master

    def copies(self) -> dict[str, list[str]]:
        """List the images that were copied to each host."""
        return {
            name: sorted(file.name for file in (host.images / "latentvirt-images").glob("*.ready"))
            for name, host in self.hosts.items()
        }

    def tidy(self) -> bool:
        """Whether nothing runs and nothing lies there but what is frozen."""
        return all(host.domains() == [] and host.loose() == [] for host in self.hosts.values())


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Three libvirtds, each behind an sshd of its own."""
    with ExitStack() as stack:
        hosts = {name: stack.enter_context(scenes.stage(blank=True)) for name in NAMES}
        sshds: dict[str, LoopbackSshd] = {
            name: stack.enter_context(loopback_sshd(host.images.parent / "ssh", host.libvirtd.socket))
            for name, host in hosts.items()
        }
        home = hosts[NAMES[0]].images.parent / "home"
        (home / ".config/libvirt").mkdir(parents=True)
        aliases = []
        for name, sshd in sshds.items():
            key = Path(shutil.copyfile(sshd.keyfile, home / f"{name}.key"))
            key.chmod(0o600)
            os.chown(key, NOBODY, NOBODY)
            aliases.append(f"'{name}={sshd.uri.replace(str(sshd.keyfile), str(key))}'")
        (home / ".config/libvirt/libvirt.conf").write_text(f"uri_aliases = [{', '.join(aliases)}]\n")
        image = Path(shutil.copyfile(debian_image().disk, home / "debian.qcow2"))
        os.chown(home, NOBODY, NOBODY)
        yield Lab(hosts, home, image)


@contextmanager
def sampled(lab: Lab) -> Iterator[dict[str, int]]:
    """Ask the hosts themselves, time and again, how many VMs run there; tell the most there ever were."""
    most = dict.fromkeys(lab.hosts, 0)
    over = threading.Event()

    def sample() -> None:
        while not over.wait(SAMPLE_S):
            for name, host in lab.hosts.items():
                try:
                    names = host.libvirtd.virsh("list", "--state-running", "--name").split()
                except RuntimeError:
                    continue  # it is dead just now
                most[name] = max(most[name], len(names))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def where(master: Master, request: int) -> str:
    """Name the host of a request's last build."""
    text = master.text(master.builds(request)[-1], "start VM", "progress")
    return re.findall(r"starting a VM for \S+ on (\S+) ", text)[-1]


def done(master: Master, requests: list[int]) -> int:
    """Count the requests that are complete."""
    asked = master.rest("buildrequests")["buildrequests"]
    return sum(1 for one in asked if one["buildrequestid"] in requests and one["complete"])


def test_downburst_slots_on_hosts_named_by_aliases(lab: Lab) -> None:
    """Builds spread over hosts; those of a host that dies go elsewhere, and it is used when it is back."""
    with lab.master("master", lab.config(slots=2, workers=6)) as master, sampled(lab) as most:
        requests = [master.force("b") for _ in range(BUILDS)]
        victim = NAMES[1]
        dead = lab.hosts[victim]
        master.wait_for(lambda: done(master, requests) >= 6, BUILD_S, "the first builds")
        master.wait_for(dead.domains, 60, "a VM on the host that is about to die")
        pids = [dead.libvirtd.qemu_pid(name) for name in dead.domains()]
        dead.libvirtd.kill()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        master.wait_for(lambda: done(master, requests) >= 15, BUILD_S, "builds without it")
        dead.libvirtd.start()
        builds = [master.finished(request, BUILD_S) for request in requests]
        assert [build["results"] for build in builds] == [SUCCESS] * BUILDS
        late = [master.force("b") for _ in range(12)]
        assert [master.finished(request, BUILD_S)["results"] for request in late] == [SUCCESS] * 12
        spread = Counter(where(master, request) for request in requests)
        assert min(spread[name] for name in NAMES) >= 3, spread
        assert victim in {where(master, request) for request in late}
        master.wait_for(lab.tidy, 60, "tidiness")
    assert max(most.values()) <= 2
    assert [len(copies) for copies in lab.copies().values()] == [1, 1, 1]


def test_two_masters_share_hosts_with_too_little_room(lab: Lab) -> None:
    """Masters that know nothing of each other never run more VMs than a host may have, and both get on."""
    config = lab.config(slots=1, workers=3)
    with (
        lab.master("one", config) as one,
        lab.master("two", config) as two,
        sampled(lab) as most,
    ):
        masters = {one.folder.name: one, two.folder.name: two}
        requests = {name: [master.force("b") for _ in range(10)] for name, master in masters.items()}

        def counts() -> list[int]:
            return [done(master, requests[name]) for name, master in masters.items()]

        one.wait_for(lambda: max(counts()) == 10, BUILD_S, "one of the masters to be done")
        assert min(counts()) >= 3, counts()
        for name, master in masters.items():
            builds = [master.finished(request, BUILD_S) for request in requests[name]]
            assert [build["results"] for build in builds] == [SUCCESS] * 10
        one.wait_for(lab.tidy, 60, "tidiness")
    assert max(most.values()) == 1
    assert [len(copies) for copies in lab.copies().values()] == [1, 1, 1]
