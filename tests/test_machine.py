"""One VM's life on a fake host: what is left when a step fails, is cancelled, or comes too late."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import libvirt
import pytest
from twisted.internet import defer

from contract.backends import domain_xml
from latentvirt.claim import Claim
from latentvirt.config import Connection
from latentvirt.devices import Disk, Nic, read_disks, read_nics
from latentvirt.domainxml import GuestMark, guest_of, parse
from latentvirt.errors import (
    ForeignDomain,
    GuestFailed,
    HostError,
    HostUnreachable,
    ImageError,
    LatentvirtError,
    NotProven,
    StartCancelled,
)
from latentvirt.guest import Ready
from latentvirt.host import Host
from latentvirt.hostkeys import HostKey
from latentvirt.listening import Listening
from latentvirt.names import Ownership, directory_name
from latentvirt.sizes import Size
from latentvirt.spec import MachineSpec
from latentvirt.storage import open_storage
from latentvirt.testing import FakeGuest, FakeHostState, FakeLibvirt
from latentvirt.testing.guest import CONSOLE
from latentvirt.testing.trouble import connection_lost
from planned import ONCE, PlannedMachine
from reactorthread import Heard, on_reactor, run, start

OWNER = "0123456789abcdef"
OURS = Ownership(OWNER, "slot1", "0a1b2c3d4e5f")
URI = "qemu+ssh://vmhost/system"
FOLDER = f"/images/{directory_name(OWNER)}"
PATIENCE_S = 60
NAME = f"latentvirt-{OWNER}-slot1"


class Ear:
    """A listener that notes what it hears."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.lines = Heard[str]()
        self.tiers = Heard[tuple[str, str]]()
        self.readies = Heard[Ready]()
        self.failures = Heard[LatentvirtError]()
        self.doubts = Heard[str]()
        self.on_step: Callable[[str], object] = lambda step: None

    def progress(self, step: str, seconds: float, note: str) -> None:
        """Note a step."""
        self.steps.append(step)
        self.on_step(step)

    def tier(self, name: str, why: str) -> None:
        """Note it."""
        self.tiers((name, why))

    def console(self, lines: list[str]) -> None:
        """Note lines."""
        for line in lines:
            self.lines(line)

    def ready(self, told: Ready) -> None:
        """Note it."""
        self.readies(told)

    def failed(self, error: LatentvirtError) -> None:
        """Note it."""
        self.failures(error)

    def host_in_doubt(self, detail: str) -> None:
        """Note it."""
        self.doubts(detail)


@attrs.define
class Scene:
    """A fake host with a base image, and one machine on it."""

    fake: FakeLibvirt = attrs.field(factory=FakeLibvirt)
    ear: Ear = attrs.field(factory=Ear)
    spec: MachineSpec = attrs.field(
        factory=lambda: MachineSpec(
            worker="minion1",
            kind="generated",
            base_image="/images/base.qcow2",
            size=Size(memory=64),
        )
    )

    @property
    def inspector(self) -> FakeHostState:
        """The host from inside."""
        return self.fake.inspect(URI)

    def machine(self, ownership: Ownership = OURS, **changes: Any) -> PlannedMachine:
        """Make a machine."""
        self.inspector.add_file("/images/base.qcow2")
        spec = attrs.evolve(self.spec, **changes)
        host = Host(Connection(URI), start(), driver=self.fake)
        return PlannedMachine(
            host=host,
            storage=open_storage(host, OWNER, str(spec.folder)) if spec.proven else None,
            spec=spec,
            claim=Claim(OWNER, ownership.slot, new=lambda: ownership.start),
            listener=self.ear,
        )

    def left(self) -> tuple[list[str], list[str]]:
        """What runs and what lies in our directory."""
        return self.inspector.running(), self.inspector.listing(FOLDER)


NOTHING: tuple[list[str], list[str]] = ([], [])


@pytest.fixture
def scene() -> Scene:
    """A stage for one machine."""
    return Scene()


def test_a_start_and_a_stop(scene: Scene) -> None:
    """A start runs a VM of ours on an overlay of its own; a stop leaves neither."""
    machine = scene.machine()
    run(machine.start())
    assert scene.left() == ([NAME], [f"slot1.{OURS.start}.overlay.vda"])
    assert scene.inspector.files[f"{FOLDER}/slot1.{OURS.start}.overlay.vda"].backing == "/images/base.qcow2"
    scene.ear.lines.until(lambda lines: "booting" in lines)
    run(machine.stop())
    assert scene.left() == NOTHING
    assert scene.inspector.listing("/images") == ["base.qcow2"]


def test_ended_twice_at_once_nothing_of_it_stays(scene: Scene) -> None:
    """A VM that a stop and a failure end at the same moment leaves neither domain nor files."""
    machine = scene.machine(disks=read_disks([Disk("1 MiB"), Disk("2 MiB"), Disk("3 MiB")]))
    run(machine.start())
    assert machine.machine is not None
    live = machine.machine._tiers.live
    assert live is not None

    async def twice() -> None:
        await defer.gatherResults([defer.ensureDeferred(live.end()), defer.ensureDeferred(live.end())])

    run(twice())
    assert scene.left() == NOTHING


def test_a_start_with_extra_disks_and_network_cards(scene: Scene) -> None:
    """Extra disks are this start's own and begin empty, cards are there; a stop leaves nothing."""
    disks = read_disks([Disk("1 MiB", serial="data"), Disk("2 MiB", format="raw")])
    machine = scene.machine(disks=disks, networks=read_nics(["lab"]))
    run(machine.start())
    files = {kind: f"slot1.{OURS.start}.{kind}" for kind in ("overlay.vda", "disk.vdb", "disk.vdc")}
    assert scene.left() == ([NAME], sorted(files.values()))
    made = scene.inspector.files[f"{FOLDER}/{files['disk.vdb']}"]
    assert (made.format, made.capacity, made.backing) == ("qcow2", 1 << 20, None)
    domain = scene.inspector.domain(NAME)
    assert domain is not None
    live = parse(str(domain.live))
    assert [card.get("type") for card in live.findall("devices/interface")] == ["user", "network"]
    assert live.findtext("devices/disk[2]/serial") == "data"
    run(machine.stop())
    assert scene.left() == NOTHING


def test_a_domain_as_it_is_gets_network_cards_all_the_same(scene: Scene) -> None:
    """Without a base image a VM has no files of its own, but the network cards that it is to have."""
    predefined = scene.inspector.define(domain_xml("minion1", marked=None))
    machine = scene.machine(kind="predefined", base_image=None, networks=read_nics([Nic(bridge="br0")]))
    run(machine.start())
    assert parse(str(predefined.live)).find("devices/interface[@type='bridge']/mac") is not None
    assert scene.left() == (["minion1"], [])
    run(machine.stop())


STEPS = [
    "open",
    "getCapabilities",
    "storagePoolLookupByName",
    "pool.createXML",
    "createXML",
    "domain.XMLDesc",
    "domain.openConsole",
    "domain.openChannel",
    "domain.resume",
]


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails_leaves_nothing(scene: Scene, step: str) -> None:
    """Whatever libvirt refuses during a start, nothing of the start is left, and a retry goes well."""
    scene.inspector.trouble.fail_next(step, libvirt.VIR_ERR_INTERNAL_ERROR)
    machine = scene.machine()
    with pytest.raises(HostError) as caught:
        run(machine.start())
    assert caught.value.host == URI
    assert scene.left() == NOTHING
    run(machine.stop())
    again = scene.machine()
    run(again.start())
    run(again.stop())
    assert scene.left() == NOTHING


def test_undoing_goes_from_the_newest_step_back(scene: Scene) -> None:
    """The VM is ended before the disk under it is deleted."""
    scene.inspector.trouble.fail_next("domain.resume", libvirt.VIR_ERR_OPERATION_FAILED)
    with pytest.raises(HostError):
        run(scene.machine().start())
    calls = [call for call in scene.inspector.trouble.calls if call in ("domain.destroy", "volume.delete")]
    assert calls == ["domain.destroy", "volume.delete"]


@pytest.mark.parametrize("step", ["overlay", "create", "attach console and channel"])
def test_a_start_cancelled_between_steps_leaves_nothing(scene: Scene, step: str) -> None:
    """A start that is called off stops at its next step and is undone."""
    machine = scene.machine()
    scene.ear.on_step = lambda done: machine.cancel("not wanted any more") if done == step else None
    with pytest.raises(StartCancelled, match="not wanted any more"):
        run(machine.start())
    assert "resume" not in scene.ear.steps
    assert scene.left() == NOTHING


@pytest.mark.parametrize("step", ["pool.createXML", "createXML", "domain.openConsole"])
def test_a_stop_in_the_middle_of_a_start_leaves_nothing(scene: Scene, step: str) -> None:
    """A VM that is stopped while its start waits for libvirt is gone when both are over."""
    machine = scene.machine()
    hang = scene.inspector.trouble.hang(step)
    outcome = Heard[object]()
    starting = on_reactor(lambda: defer.ensureDeferred(machine.start()))
    assert hang.entered.acquire(timeout=60)
    on_reactor(lambda: starting.addErrback(outcome))
    stopping = on_reactor(lambda: defer.ensureDeferred(machine.stop()))
    hang.release()

    async def both() -> None:
        await stopping
        await starting

    run(both())
    assert scene.left() == NOTHING


def test_stop_before_start_twice_and_at_once(scene: Scene) -> None:
    """Stop may come before any start, be repeated, and run twice at the same time."""
    machine = scene.machine()
    run(machine.stop())
    machine = scene.machine()
    run(machine.start())

    async def twice() -> None:
        stops = [defer.ensureDeferred(machine.stop()) for _ in range(2)]
        for good, failure in await defer.DeferredList(stops, consumeErrors=True):
            assert good, failure

    run(twice())
    run(machine.stop())
    assert scene.left() == NOTHING


def test_a_stop_that_the_host_refused_goes_on_later(scene: Scene) -> None:
    """What could not be removed the first time is removed by the next stop."""
    machine = scene.machine()
    run(machine.start())
    scene.inspector.trouble.fail_next("volume.delete", libvirt.VIR_ERR_OPERATION_FAILED)
    with pytest.raises(HostError):
        run(machine.stop())
    assert scene.left() == ([], [f"slot1.{OURS.start}.overlay.vda"])
    run(machine.stop())
    assert scene.left() == NOTHING


def test_a_connection_that_breaks_while_a_vm_is_ended_does_not_count_as_its_end(scene: Scene) -> None:
    """A VM that runs on keeps its disk, and its next stop ends it."""
    machine = scene.machine()
    run(machine.start())

    def lose() -> None:
        scene.inspector.break_connections()
        raise connection_lost()

    scene.inspector.trouble.before_next("domain.destroy", lose)
    with pytest.raises(HostUnreachable):
        run(machine.stop())
    assert scene.left() == ([NAME], [f"slot1.{OURS.start}.overlay.vda"])
    run(machine.stop())
    assert scene.left() == NOTHING


def test_stop_ends_no_other_start_of_the_same_domain(scene: Scene) -> None:
    """A late stop of an earlier start leaves the VM alone that has its name by now."""
    earlier = scene.machine()
    run(earlier.start())
    later = scene.machine(Ownership(OWNER, "slot1", "ffffffffffff"))
    run(later.start())
    run(earlier.stop())
    assert scene.left() == ([NAME], ["slot1.ffffffffffff.overlay.vda"])
    run(later.stop())


def test_a_foreign_domain_of_our_name_is_left_alone(scene: Scene) -> None:
    """A running domain with the name that a start needs, and without our mark, goes on; the start fails."""
    foreign = domain_xml("foreign", marked=None).replace("/vmlinuz", "/k")
    stranger = scene.fake.open(URI)
    stranger.createXML(foreign.replace(">foreign<", f">{NAME}<"), 0)
    with pytest.raises(ForeignDomain, match="not ours"):
        run(scene.machine().start())
    assert scene.inspector.running() == [NAME]
    others = Ownership("f" * 16, "slot1", "0a1b2c3d4e5f")
    stranger.createXML(domain_xml("theirs", marked=others), 0)
    with pytest.raises(ForeignDomain):
        run(scene.machine(kind="xml", xml=domain_xml("theirs", disk="/images/hd.img", marked=None)).start())
    assert scene.inspector.running() == [NAME, "theirs"]


def test_a_name_that_was_taken_and_is_free_now_is_used(scene: Scene) -> None:
    """A start that met a VM which a sweep was just ending goes on where that VM was."""
    taken = "operation failed: domain already exists"
    scene.inspector.trouble.fail_next("createXML", libvirt.VIR_ERR_OPERATION_FAILED, taken)
    machine = scene.machine()
    run(machine.start())
    assert scene.inspector.running() == [NAME]
    run(machine.stop())
    assert scene.left() == NOTHING


def test_a_predefined_domain_that_was_running_and_is_not_now_is_used(scene: Scene) -> None:
    """The same of a domain that is defined on the host, which stays there when its VM has ended."""
    scene.inspector.define(domain_xml("minion1", disk="/images/hd.img", marked=None))
    running = "requested operation is not valid: domain is already active"
    scene.inspector.trouble.fail_next("createXML", libvirt.VIR_ERR_OPERATION_INVALID, running)
    machine = scene.machine(kind="predefined", hd_image="/images/hd.img")
    run(machine.start())
    assert scene.inspector.running() == ["minion1"]
    run(machine.stop())


def test_a_leftover_of_ours_makes_room(scene: Scene) -> None:
    """A VM that an earlier process left in the slot is ended before the start."""
    run(scene.machine(Ownership(OWNER, "slot1", "ffffffffffff")).start())
    old = scene.inspector.domain(NAME)
    machine = scene.machine()
    run(machine.start())
    new = scene.inspector.domain(NAME)
    assert old is not None
    assert new is not None
    assert old.uuid != new.uuid
    run(machine.stop())


def test_a_domain_that_libvirt_changed_is_not_resumed(scene: Scene) -> None:
    """A start whose live XML names another disk ends before the guest's first instruction."""
    boots = Heard[str]()

    class Telltale(FakeGuest):
        def on_boot(self) -> None:
            boots("booted")

    def meddle(domain: Any) -> FakeGuest:
        scene.inspector.add_file("/images/other.qcow2")
        domain.live = domain.live.replace(f"{FOLDER}/slot1.{OURS.start}.overlay.vda", "/images/other.qcow2")
        return Telltale()

    scene.inspector.guests = meddle
    with pytest.raises(NotProven, match=r"other\.qcow2"):
        run(scene.machine().start())
    scene.inspector.settle()
    assert boots.all == []
    assert scene.left() == NOTHING


def test_a_console_that_opens_late_is_closed_if_its_domain_is_not_as_asked_for(scene: Scene) -> None:
    """A VM is proven while its console is being opened; one that fails leaves neither it nor its console."""

    def meddle(domain: Any) -> FakeGuest:
        scene.inspector.add_file("/images/other.qcow2")
        domain.live = domain.live.replace(f"{FOLDER}/slot1.{OURS.start}.overlay.vda", "/images/other.qcow2")
        return FakeGuest()

    scene.inspector.guests = meddle
    opening = scene.inspector.trouble.hang("domain.openConsole")
    starting = Heard[Any]()
    on_reactor(lambda: defer.ensureDeferred(scene.machine().start()).addBoth(starting))
    assert opening.entered.acquire(timeout=PATIENCE_S)
    opening.release()
    (failure,) = starting.until(bool)
    assert failure.check(NotProven)
    assert scene.left() == NOTHING


def test_a_missing_base_image(scene: Scene) -> None:
    """A base image that is not there is the configuration's fault, and said so."""
    with pytest.raises(ImageError, match=r"the base image /images/missing\.qcow2 is not there"):
        run(scene.machine(base_image="/images/missing.qcow2").start())
    assert scene.left() == NOTHING


def test_an_image_folder_that_is_not_there(scene: Scene) -> None:
    """An hd_image in a folder that the host does not have is an error; the folder is not made."""
    with pytest.raises(ImageError, match="there is no folder /nowhere"):
        run(scene.machine(hd_image="/nowhere/disk").start())
    assert not any(folder.startswith("/nowhere") for folder in scene.inspector.folders)


def test_a_predefined_domain_keeps_its_definition(scene: Scene) -> None:
    """A predefined domain runs on an overlay, and its definition reads afterwards as before."""
    scene.inspector.add_file("/images/hd.img")
    predefined = scene.inspector.define(domain_xml("minion1", disk="/images/hd.img", marked=None))
    before = predefined.definition
    disks, networks = read_disks(["1 MiB"]), read_nics(["user"])
    machine = scene.machine(kind="predefined", hd_image="/images/hd.img", disks=disks, networks=networks)
    run(machine.start())
    assert FOLDER in (predefined.live or "")
    assert "extra0" in (predefined.live or "")
    run(machine.stop())
    assert predefined.definition == before
    assert scene.left() == NOTHING


def test_a_guest_learns_who_it_is(scene: Scene) -> None:
    """A guest that says ready is told its name and its one-time password, once."""
    guest = FakeGuest(says_ready=True)
    scene.inspector.guests = lambda domain: guest
    machine = scene.machine()
    run(machine.start())
    scene.ear.readies.until(lambda said: len(said) == 1)
    while "guest attaches" not in scene.ear.steps:
        run(machine.host.domains())
    assert guest.identity is not None
    assert (guest.identity["name"], guest.identity["password"]) == ("minion1", ONCE)
    run(machine.stop())


def test_guest_is_heard_again_after_its_host_was_away(scene: Scene) -> None:
    """A guest that asks who it is after the connection to its host broke and came back is told."""
    guest = FakeGuest()
    scene.inspector.guests = lambda domain: guest
    machine = scene.machine()
    run(machine.start())
    scene.ear.lines.until(lambda lines: "booting" in lines)
    scene.inspector.break_connections()
    scene.ear.lines.until(lambda lines: any("the host was away" in line for line in lines))
    run(machine.host.domains())
    while guest.identity is None:
        guest.say("ready", helper="fake", system="fake")
        run(machine.host.domains())
    run(machine.stop())


@pytest.mark.parametrize("method", ["close_stream", "open_console"])
def test_a_console_that_is_opened_again_as_the_worker_attaches_is_let_go(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """A guest that attaches just when its host is back leaves its console to people all the same."""
    machine = scene.machine()
    run(machine.start())
    begun, over = Heard[str](), Heard[str]()
    plain, again = getattr(Host, method), Listening.open_again

    async def meanwhile(host: Host, *args: Any) -> Any:
        assert machine.machine is not None
        if not begun.all:
            begun("attached")
            defer.ensureDeferred(machine.machine.attached()).addCallback(lambda _: over("attached"))
        return await plain(host, *args)

    async def opened_again(ears: Listening, uuid: str) -> None:
        await again(ears, uuid)
        over("opened again")

    monkeypatch.setattr(Host, method, meanwhile)
    monkeypatch.setattr(Listening, "open_again", opened_again)
    scene.inspector.break_connections()
    over.until(lambda both: len(both) == 2)
    domain = scene.inspector.domain(NAME)
    assert domain is not None
    stream = domain.port(CONSOLE).stream
    assert stream is None or stream.connection_broken
    assert scene.ear.failures.all == []
    run(machine.stop())


def test_a_domain_that_another_build_has_is_left_alone(scene: Scene) -> None:
    """A start whose place another build's VM has, by another name of the same host, does not end that VM."""
    first = scene.machine()
    run(first.start())
    second = scene.machine(Ownership(OWNER, "slot1", "aaaaaaaaaaaa"))
    second.claimed = lambda start: start == OURS.start
    with pytest.raises(ForeignDomain, match="another build has"):
        run(second.start())
    assert scene.inspector.running() == [NAME]
    run(first.stop())


def test_no_secret_reaches_the_log(scene: Scene) -> None:
    """Neither console nor helper can put a password into the build's page."""

    class Chatterbox(FakeGuest):
        def on_channel(self, data: bytes) -> None:
            super().on_channel(data)
            self.say("error", why=f"cannot log in with {ONCE}")
            self.write_console(f"trying {ONCE} and static-password\r\n".encode())

    scene.inspector.guests = lambda domain: Chatterbox(says_ready=True)
    machine = scene.machine()
    run(machine.start())
    lines = scene.ear.lines.until(
        lambda lines: any("helper says" in line for line in lines) and any("trying" in line for line in lines)
    )
    run(machine.stop())
    assert ONCE not in "\n".join(lines)
    assert "static-password" not in "\n".join(lines)


@pytest.mark.parametrize(
    ("befalls", "says"),
    [
        ("power_off", "powered itself off"),
        ("panic", "crashed"),
        ("disk_full", "disk is full"),
        ("kill", "QEMU"),
    ],
)
def test_a_guest_that_ends_is_reported_once(scene: Scene, befalls: str, says: str) -> None:
    """What ends a guest is told with the console's last lines, and told once."""
    machine = scene.machine()
    run(machine.start())
    scene.ear.lines.until(lambda lines: "booting" in lines)
    domain = scene.inspector.domain(NAME)
    getattr(domain, befalls)()
    (failure,) = scene.ear.failures.until(lambda said: len(said) == 1)
    assert isinstance(failure, GuestFailed)
    assert says in failure.what
    assert "booting" in failure.what
    run(machine.stop())
    assert len(scene.ear.failures.all) == 1
    assert scene.left() == NOTHING


def test_a_graceful_stop_lets_the_guest_power_itself_off(scene: Scene) -> None:
    """A guest that obeys its power button is not destroyed."""
    machine = scene.machine()
    run(machine.start())
    run(machine.stop(graceful_s=60.0))
    assert "domain.destroy" not in scene.inspector.trouble.calls
    assert scene.ear.failures.all == []
    assert scene.left() == NOTHING


def test_a_guest_that_ignores_its_power_button_is_ended(scene: Scene) -> None:
    """A graceful stop has an end."""
    scene.inspector.guests = lambda domain: FakeGuest(powers_off=False)
    machine = scene.machine()
    run(machine.start())
    run(machine.stop(graceful_s=0.1))
    assert scene.left() == NOTHING


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG1hdGVyaWFs"


def wait_for_mark(scene: Scene) -> GuestMark:
    """Wait until what the guest told is in its domain's metadata."""
    while True:
        domain = scene.inspector.domain(NAME)
        assert domain is not None
        mark = guest_of(domain.live or "")
        if mark is not None and mark.keys:
            return mark
        on_reactor(lambda: None)


def test_a_guests_host_keys_are_where_any_process_can_read_them(scene: Scene) -> None:
    """The SSH host keys that a guest tells are in its live domain's metadata, with its worker's name."""
    scene.inspector.guests = lambda domain: FakeGuest(says_ready=True, ssh=(KEY, "rubbish"))
    machine = scene.machine()
    run(machine.start())
    assert wait_for_mark(scene) == GuestMark("minion1", (HostKey(*KEY.split()),))
    run(machine.stop())
    assert scene.left() == NOTHING


@pytest.mark.parametrize("guest", [FakeGuest(), FakeGuest(says_ready=True)])
def test_whose_a_vm_is_stands_on_its_host_from_the_start(scene: Scene, guest: FakeGuest) -> None:
    """A guest that tells no host keys, or nothing, is known by its worker's name, which costs nothing."""
    scene.inspector.guests = lambda domain: guest
    machine = scene.machine()
    run(machine.start())
    domain = scene.inspector.domain(NAME)
    assert domain is not None
    assert guest_of(domain.live or "") == GuestMark("minion1")
    run(machine.stop())
    assert "domain.setMetadata" not in scene.inspector.trouble.calls


def test_a_guest_that_attaches_before_it_says_so_is_heard_out(scene: Scene) -> None:
    """Host keys that come a moment after the worker's connection are noted, and then the channel is free."""
    guest = FakeGuest(says_ready=True)
    silent = guest.on_channel
    told = Heard[bytes]()
    guest.on_channel = told  # type: ignore[method-assign]
    scene.inspector.guests = lambda domain: guest
    machine = scene.machine()
    run(machine.start())
    told.until(lambda lines: len(lines) == 1)
    run(machine.machine.attached())  # type: ignore[union-attr]
    guest.ssh = (KEY,)
    silent(told.all[0])
    assert wait_for_mark(scene).keys == (HostKey(*KEY.split()),)
    domain = scene.inspector.domain(NAME)
    assert domain is not None
    assert domain.port(CONSOLE).stream is None
    run(machine.stop())


def test_host_keys_that_cannot_be_noted_are_said_so(scene: Scene) -> None:
    """A host that takes no metadata costs the keys, not the start; the console's log says why."""
    scene.inspector.trouble.fail_next("domain.setMetadata", libvirt.VIR_ERR_OPERATION_FAILED)
    scene.inspector.guests = lambda domain: FakeGuest(says_ready=True, ssh=(KEY,))
    machine = scene.machine()
    run(machine.start())
    scene.ear.lines.until(lambda lines: any("SSH host keys could not be noted" in line for line in lines))
    run(machine.stop())
