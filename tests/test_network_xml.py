"""contrib/libvirt/network.xml, in a network namespace of the test's own."""

from __future__ import annotations

import ipaddress
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lxml import etree

from guests import busybox_guest
from privatelibvirt import NETWORK_XML, PrivateLibvirtd, private_libvirtd

SCHEMA = Path("/usr/share/libvirt/schemas/network.rng")
NAME = "buildbot-network"
GATEWAY = "192.168.174.1"
STRANGER = "52:54:00:00:00:99"
GUEST_DEADLINE = 120.0
POLL = 0.1


def network() -> etree._Element:
    """Parse the file as it is."""
    return etree.parse(str(NETWORK_XML), etree.XMLParser(resolve_entities=False, no_network=True)).getroot()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateLibvirtd]:
    """A libvirtd with the network defined and started."""
    with private_libvirtd(tmp_path_factory.mktemp("network"), netns=True, network=True) as daemon:
        yield daemon


def boot(daemon: PrivateLibvirtd, name: str, mac: str, folder: Path) -> Path:
    """Start a guest with this MAC address on the network; return its serial console's file."""
    guest = busybox_guest()
    # libvirt changes the owner of a kernel that it boots: not of the one that other tests use.
    for file in (guest.kernel, guest.initrd):
        shutil.copyfile(file, folder / file.name)
    console = folder / f"{name}.log"
    (folder / f"{name}.xml").write_text(
        f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>192</memory>
        <os><type arch='x86_64' machine='q35'>hvm</type><kernel>{folder / guest.kernel.name}</kernel>
        <initrd>{folder / guest.initrd.name}</initrd><cmdline>{guest.cmdline} dhcp</cmdline></os>
        <devices><serial type='file'><source path='{console}'/></serial>
        <interface type='network'><mac address='{mac}'/><source network='{NAME}'/><model type='virtio'/>
        </interface></devices></domain>"""
    )
    daemon.virsh("create", str(folder / f"{name}.xml"))
    return console


def wait_for(console: Path, text: str) -> str:
    """Return the console's first line with a text in it, once it is whole."""
    deadline = time.monotonic() + GUEST_DEADLINE
    while time.monotonic() < deadline:
        said = console.read_text(errors="replace") if console.exists() else ""
        for line in said.splitlines(keepends=True):
            if text in line and line.endswith("\n"):
                return line.strip()
        time.sleep(POLL)
    raise AssertionError(f"the guest never said {text!r}: {said[-2000:]}")


def test_the_file_is_what_libvirt_expects() -> None:
    """The network is valid by libvirt's own schema."""
    if not SCHEMA.exists():
        pytest.skip("libvirt's schemas are not installed")
    schema = etree.RelaxNG(etree.parse(str(SCHEMA)))
    assert schema.validate(network()), schema.error_log


def test_no_two_workers_share_anything() -> None:
    """Names, MAC and IP addresses are unique, local, in the network, and outside the range for strangers."""
    hosts = network().findall("./ip/dhcp/host")
    assert hosts
    for attribute in ("mac", "name", "ip"):
        assert len({host.get(attribute) for host in hosts}) == len(hosts)
    ip = network().find("./ip")
    within = ipaddress.ip_network(f"{ip.get('address')}/{ip.get('netmask')}", strict=False)
    limits = ip.find("./dhcp/range")
    first, last = (ipaddress.ip_address(limits.get(end)) for end in ("start", "end"))
    for host in hosts:
        address = ipaddress.ip_address(host.get("ip"))
        assert address in within
        assert not first <= address <= last
        assert address != ipaddress.ip_address(ip.get("address"))
        assert host.get("mac").startswith("52:54:00:")
    assert [host.get("name") for host in hosts] == [f"minion{number}" for number in range(1, len(hosts) + 1)]


@pytest.mark.libvirt
def test_a_guest_learns_its_workers_name(daemon: PrivateLibvirtd, tmp_path: Path) -> None:
    """A VM with minion1's MAC address is told minion1 and its address; one with another's gets no name."""
    named = network().find("./ip/dhcp/host[@name='minion1']")
    minion = boot(daemon, "first", named.get("mac"), tmp_path)
    stranger = boot(daemon, "second", STRANGER, tmp_path)
    assert wait_for(minion, "dhcp: ").endswith(f"dhcp: {named.get('ip')} minion1")
    address = wait_for(stranger, "dhcp: ").partition("dhcp: ")[2]
    limits = network().find("./ip/dhcp/range")
    first, last = (ipaddress.ip_address(limits.get(end)) for end in ("start", "end"))
    assert first <= ipaddress.ip_address(address) <= last
    leases = daemon.virsh("net-dhcp-leases", NAME)
    assert "minion1" in leases
    assert ask(daemon, "minion1.buildbot.internal") == named.get("ip")
    for name in ("first", "second"):
        daemon.virsh("destroy", name)


def ask(daemon: PrivateLibvirtd, name: str) -> str:
    """Ask the network's name server for a name's address."""
    answer = daemon.sandbox.run("busybox", "nslookup", "-type=a", name, GATEWAY)
    return answer.rpartition("Address:")[2].strip()


@pytest.mark.libvirt
@pytest.mark.parametrize("name", ["buildmaster", "buildmaster.buildbot.internal"])
def test_guests_find_the_master_by_name(daemon: PrivateLibvirtd, name: str) -> None:
    """The network's name server gives the host's address for the master."""
    assert ask(daemon, name) == GATEWAY


@pytest.mark.libvirt
def test_the_machines_own_network_is_left_alone(daemon: PrivateLibvirtd) -> None:
    """The bridge and its firewall rules exist in the test's namespace only."""
    bridge = network().find("./bridge").get("name")
    assert bridge in daemon.sandbox.run("ip", "-o", "link")
    assert (
        bridge not in subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    )
    assert "MASQUERADE" in daemon.sandbox.run("iptables", "-t", "nat", "-S")


@pytest.mark.libvirt
def test_the_network_survives_a_restart_of_libvirt(daemon: PrivateLibvirtd) -> None:
    """While libvirtd is started again the network goes on, and libvirtd knows it afterwards."""
    daemon.restart()
    assert NAME in daemon.virsh("net-list", "--name").split()
    assert ask(daemon, "buildmaster") == GATEWAY
