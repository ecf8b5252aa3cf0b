"""Extra disks and network cards as a person writes them, and as they come into a domain's XML."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from buildbot.config import errors as config_errors
from buildbot.plugins import util
from buildbot.process.properties import Properties
from hypothesis import given
from hypothesis import strategies as st

from domainxml.support import HERE, OWNERSHIP, UUID, domain
from domainxml.test_golden import compare, generated
from latentvirt import Connection, LibVirtWorker, workers
from latentvirt.devices import DISK_BUSES, MOST_DISKS, Disk, Nic, read_disks, read_nic, read_nics
from latentvirt.domainxml import Overlay, OwnCards, parse, rewrite, with_devices, writable_disks
from latentvirt.domainxml.adding import letters_of, number_of
from latentvirt.errors import BadXML, ConfigError, LatentvirtError
from latentvirt.master.arguments import Arguments, read_arguments
from latentvirt.names import FileName, mac_of_slot
from reactorthread import run
from test_checkconfig import DIRECT, checkconfig

MAC = "52:54:00:ab:cd:ef"
OTHER_MAC = "02:00:00:00:00:01"
COUNT = util.Property("count", default=1, defaultWhenFalse=False)


# What a person writes


@pytest.mark.parametrize(
    ("written", "means"),
    [
        (None, []),
        ([], []),
        ("10 GiB", [(10240, "extra0")]),
        (Disk(512), [(512, "extra0")]),
        ([Disk("1 GiB")] * 3, [(1024, "extra0"), (1024, "extra1"), (1024, "extra2")]),
        ([Disk("1 GiB", serial="scratch"), {"size": 1}], [(1024, "scratch"), (1, "extra1")]),
        ([Disk(1, count=2, serial="osd"), Disk(2)], [(1, "osd0"), (1, "osd1"), (2, "extra2")]),
        ([{"size": "1G", "count": 0}, {"size": 3, "serial": None}], [(3, "extra0")]),
    ],
)
def test_disks_are_read_however_they_are_written(written: object, means: list[tuple[int, str]]) -> None:
    """Sizes, mappings and counts all come to single disks with a serial each."""
    assert [(disk.size, disk.serial) for disk in read_disks(written)] == means


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (["lots"], "a disk's size='lots' is not an amount"),
        ([Disk(1, count=-1)], "count=-1 is not a number of disks"),
        ([Disk(1, count=True)], "count=True is not a number"),
        ([Disk(1, count=MOST_DISKS + 1)], f"more than {MOST_DISKS} extra disks"),
        ([Disk(1, serial="with a blank")], "serial='with a blank' cannot be one"),
        ([Disk(1, serial="s" * 21)], "at most 20"),
        ([Disk(1, serial="s" * 20, count=1)], "at most 20"),
        ([Disk(1, serial="a"), Disk(2, serial="a")], "two disks have the serial 'a'"),
        ([Disk(1, serial="extra1"), Disk(2)], "two disks have the serial 'extra1'"),
        ([Disk(1, bus="ide")], "bus='ide' is none of virtio, scsi, sata"),
        ([Disk(1, format="vmdk")], "format='vmdk' is none of qcow2, raw"),
        ([{"serial": "a"}], "a disk has no size"),
        ([{"size": 1, "seriel": "a"}], "there is no 'seriel'.*serial"),
        (3, r"disks=3 is not a list.*disks=\[Disk\('10 GiB'\)\]"),
        ([None], "disks has None"),
    ],
)
def test_disks_that_cannot_be_are_refused(written: object, says: str) -> None:
    """What no start could use is told when master.cfg is read."""
    with pytest.raises(ConfigError, match=says):
        read_disks(written)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ([Nic()], "either a network or a bridge"),
        ([Nic("lab", bridge="br0")], "either a network or a bridge"),
        ([Nic("")], "network='' is no name"),
        ([Nic("lab", mac="52:54:00:12:34")], "is not a network card's address"),
        ([Nic("lab", mac="53:54:00:12:34:56")], "the address of a group"),
        ([Nic("lab", mac="fe:54:00:12:34:56")], "is not for guests"),
        ([Nic("lab", mac="00:00:00:00:00:00")], "is not for guests"),
        ([Nic("lab", model="<virtio>")], "model='<virtio>' cannot be one"),
        ([Nic("lab", mac=MAC), {"bridge": "br0", "mac": MAC.upper()}], "two network cards have the mac"),
        ([{"source": "lab"}], "there is no 'source'"),
        (["lab"] * 17, "more than 16"),
        (17, "networks=17 is not a list"),
    ],
)
def test_network_cards_that_cannot_be_are_refused(written: object, says: str) -> None:
    """What no start could use, or two VMs would quarrel about, is told when master.cfg is read."""
    with pytest.raises(ConfigError, match=says):
        read_nics(written)


macs = st.lists(st.integers(0, 255), min_size=6, max_size=6)


@given(macs)
def test_a_mac_is_taken_exactly_if_a_guest_can_have_it(numbers: list[int]) -> None:
    """Any address of one card is taken, in either case, and no other."""
    mac = ":".join(f"{number:02X}" for number in numbers)
    good = numbers[0] % 2 == 0 and numbers[0] != 0xFE and any(numbers)
    try:
        assert read_nic(Nic("lab", mac=mac)).mac == mac.lower()
        assert good
    except ConfigError:
        assert not good


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20), st.integers(0, 20))
def test_a_slots_own_mac_is_one_that_a_guest_can_have(host: str, owner: str, slot: str, number: int) -> None:
    """The addresses that latentvirt makes up are good ones, and always the same."""
    mac = mac_of_slot(host, owner, slot, number)
    assert read_nic(Nic("lab", mac=mac)).mac == mac == mac_of_slot(host, owner, slot, number)


# In the XML


@given(st.integers(0, 20000))
def test_targets_are_counted_as_linux_does(number: int) -> None:
    """A disk's letters are read as the number that they were made from."""
    assert number_of("vd" + letters_of(number), "vd") == number
    assert [letters_of(place) for place in (0, 25, 26, 701, 702)] == ["a", "z", "aa", "zz", "aaa"]


targets = st.lists(st.sampled_from(["vdb", "vdz", "vdaa", "sda", "sdc", "hda"]), unique=True, max_size=4)
sizes = st.builds(
    Disk,
    st.integers(1, 9999),
    count=st.none() | st.integers(0, 4),
    bus=st.sampled_from(DISK_BUSES),
)


@given(targets, st.lists(sizes, max_size=4))
def test_added_disks_come_after_the_persons_and_change_none(there: list[str], added: list[Disk]) -> None:
    """However many disks there are, added ones get free targets, and the system's stays the first."""
    bus = {"v": "virtio", "s": "scsi", "h": "ide"}
    text = domain(
        "".join(
            f"<disk type='file'><source file='/x'/><target dev='{name}' bus='{bus[name[0]]}'/></disk>"
            for name in there
        )
    )
    disks = read_disks(added)
    changed, names = with_devices(text, disks, ())
    found = [disk.find("target").get("dev") for disk in parse(changed).findall("devices/disk")]
    assert found == ["vda", *there, *names]
    assert len(set(found)) == len(found)
    assert [disk.findtext("serial") for disk in parse(changed).findall("devices/disk")][1 + len(there) :] == [
        disk.serial for disk in disks
    ]
    for prefix in ("vd", "sd"):
        mine = [number_of(name, prefix) for name in there if name.startswith(prefix)]
        ours = [number_of(name, prefix) for name in names if name.startswith(prefix)]
        assert ours == sorted(ours)
        assert max(mine, default=-1) < min(ours, default=10**9)


@pytest.mark.parametrize("name", ["predefined", "generated-kvm", "tight"])
def test_the_xml_of_a_start_with_extra_devices(name: str, request: pytest.FixtureRequest) -> None:
    """Extra disks and cards come into a domain as the stored XML shows, and all else stays as it was."""
    made = name.startswith("generated")
    text = generated(name) if made else (HERE / "golden" / f"{name}.in.xml").read_text()
    disks = read_disks([Disk("10 GiB", serial="data0"), Disk("1 GiB", bus="scsi", format="raw")])
    nics = read_nics([Nic("lab", mac=MAC), Nic(bridge="br0", model="e1000e")])
    own = writable_disks(text, hd_image=None, allow_shared=frozenset())
    text, names = with_devices(text, disks, nics)

    def path(kind: str, target: str) -> str:
        return f"/images/{FileName(OWNERSHIP.slot, OWNERSHIP.start, kind, target)}"

    overlays = [
        *(Overlay(disk.target, path("overlay", disk.target), ()) for disk in own),
        *(
            Overlay(target, path("disk", target), (), disk.format)
            for target, disk in zip(names, disks, strict=True)
        ),
    ]
    cards = OwnCards("qemu:///system", len(nics) + made)
    out = rewrite(text, ownership=OWNERSHIP, overlays=overlays, uuid=UUID, own_cards=cards)
    compare(HERE / "golden" / f"{name}-extra.out.xml", out, request)


def test_no_card_of_the_persons_is_given_an_address() -> None:
    """Only cards that latentvirt added, or generated, get the address of their slot."""
    text = domain("<interface type='user'/>")
    added, _ = with_devices(text, (), read_nics(["lab"]))
    for own, expected in ((1, 1), (0, 0), (2, 2)):
        out = rewrite(added, ownership=OWNERSHIP, overlays=(), own_cards=OwnCards("h", own))
        assert len(parse(out).findall("devices/interface/mac")) == expected


@pytest.mark.parametrize(
    ("devices", "disks", "nics", "says"),
    [
        (
            f"<interface type='user'><mac address='{MAC.upper()}'/></interface>",
            (),
            [Nic("lab", mac=MAC)],
            "a network card with the mac '52:54:00:ab:cd:ef' is in the XML already",
        ),
        (
            "<disk type='file'><source file='/x'/><target dev='vdb'/><serial>extra0</serial></disk>",
            [Disk(1)],
            (),
            "a disk with the serial 'extra0' is in the XML already",
        ),
    ],
)
def test_what_the_xml_has_already_is_not_added(devices: str, disks: object, nics: object, says: str) -> None:
    """A second disk of one serial, or card of one address, is refused with the line of the first."""
    with pytest.raises(BadXML, match=f"line 7: {says}"):
        with_devices(domain(devices), read_disks(disks), read_nics(nics))


# In master.cfg


def arguments(**more: object) -> Arguments:
    """Read a worker's arguments."""
    return read_arguments("sekrit", Connection("qemu:///system"), base_image="/images/base", **more)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"disks": [Disk("lots")]}, "size='lots'"),
        ({"disks": util.Property("disks"), "networks": [Nic()]}, "either a network or a bridge"),
        ({"disks": [Disk(util.Property("x")), Disk(1, bus="ide")]}, "bus='ide'"),
        ({"disks": ["1G"], "base_image": None}, "disks= needs a base_image"),
        ({"disks": ["lots"], "base_image": util.Property("image")}, "size='lots'"),
        ({"networks": [Nic("lab", mac=util.Property("mac"))]}, "mac depends on the build"),
        ({"networks": Nic("lab", mac=util.Property("mac"))}, "mac depends on the build"),
        ({"network": Nic("a", mac=MAC), "networks": [Nic("b", mac=MAC)]}, "two network cards"),
        ({"network": Nic(bridge="")}, "bridge='' is no name"),
        (
            {"xml": domain(f"<interface type='user'><mac address='{MAC}'/></interface>"),
             "networks": [Nic("b", mac=MAC)]},
            "is in the XML already",
        ),
    ],
)  # fmt: skip
def test_checkconfig_refuses_what_no_build_could_use(more: dict[str, object], says: str) -> None:
    """Wrong disks and cards are told when master.cfg is read, also beside what depends on a build."""
    with pytest.raises(LatentvirtError, match=says):
        read_arguments("sekrit", Connection("qemu:///system"), **{"base_image": "/images/base", **more})


def test_a_builds_properties_decide() -> None:
    """Disks and cards may depend on the build, whole or in part, and the room that they take is asked for."""
    given = arguments(
        size={"disk": "1 GiB"},
        disks=[Disk("10 MiB", serial="fixed"), Disk(util.Property("size"), count=util.Property("count"))],
        networks=util.Property("networks"),
    )
    assert given.static_need("minion1") is None
    rendered = list(given.rendered)
    rendered[5] = [{"size": "10 MiB", "serial": "fixed"}, {"size": "20 MiB", "count": 2}]
    rendered[6] = ["lab", {"bridge": "br0"}]
    need = given.need("minion1", rendered)
    assert [(disk.size, disk.serial) for disk in need.spec.disks] == [
        (10, "fixed"),
        (20, "extra1"),
        (20, "extra2"),
    ]
    assert need.spec.networks == (Nic("lab"), Nic(bridge="br0"))
    assert need.wish.disk == 1024 + 10 + 20 + 20
    rendered[6] = [{"network": "lab", "mac": MAC}]
    with pytest.raises(ConfigError, match="depends on the build"):
        given.need("minion1", rendered)


def test_equal_ways_to_write_it_are_one_vm() -> None:
    """Builds share what was frozen or stands by, however their workers wrote the same disks and cards."""
    one = arguments(size={}, disks=["1 GiB"], networks=["lab"]).static_need("minion1")
    two = arguments(size={}, disks=Disk(1024, count=1), networks=Nic("lab")).static_need("minion1")
    assert one is not None
    assert two is not None
    assert one.spec == two.spec


def test_two_workers_with_one_mac_are_refused(tmp_path: Path) -> None:
    """`buildbot checkconfig` names both workers that would have VMs with the same address."""
    one = (
        "LibVirtWorker({!r}, 'sekrit', Connection('qemu:///session'), base_image='/images/base', "
        "networks=[__import__('latentvirt').Nic('lab', mac={!r})])"
    )
    both = f"{one.format('minion1', MAC)}, {one.format('minion2', MAC)}"
    result = checkconfig(tmp_path, DIRECT, both)
    said = " ".join((result.stdout + result.stderr).split())
    assert result.returncode == 1
    assert re.search(rf"'minion2': mac='{MAC}' is that of worker 'minion1' as well", said), said
    good = checkconfig(tmp_path, DIRECT, both.replace(MAC, OTHER_MAC, 1))
    assert good.returncode == 0, good.stdout


def test_many_workers_cannot_share_one_mac() -> None:
    """Workers that are made many at once are refused a fixed address, and need none."""

    def make(card: Nic) -> None:
        with config_errors.capture_config_errors(raise_on_error=True):
            workers("vps", 2, "qemu:///system", password=None, base_image="/b", size={}, network=card)

    make(Nic("lab"))
    with pytest.raises(config_errors.ConfigErrors, match=f"'vps002': mac='{MAC}' is that of worker 'vps001'"):
        make(Nic("lab", mac=MAC))


def test_the_same_worker_may_be_read_again() -> None:
    """A master.cfg that is read once more has the same addresses, and that is no quarrel."""

    def read() -> None:
        with config_errors.capture_config_errors(raise_on_error=True):
            LibVirtWorker(
                "minion1", "x", Connection("qemu:///system"), base_image="/b", networks=[Nic("lab", mac=MAC)]
            )

    read()
    read()


def test_values_are_compared_for_a_reconfig() -> None:
    """Buildbot sees by comparing whether a worker's arguments have changed."""
    assert Disk("1 GiB", serial="a") == Disk("1 GiB", serial="a") != Disk("1 GiB", serial="b")
    assert Nic("lab", mac=MAC.upper()) == Nic("lab", mac=MAC) != Nic("lab")


def test_buildbot_renders_what_depends_on_a_build() -> None:
    """Properties come into single values of a list, into a whole list, and a missing list is none."""
    given = arguments(
        size={},
        disks=[Disk(util.Property("size"), count=COUNT), "1 GiB"],
        networks=util.Property("networks"),
    )
    for properties, sizes, cards in (
        ({"size": "10 MiB"}, [10, 1024], []),
        ({"size": "20 MiB", "count": 2, "networks": ["lab"]}, [20, 20, 1024], ["lab"]),
        ({"size": 5, "count": 0, "networks": [{"network": "a"}, "user"]}, [1024], ["a", "user"]),
    ):
        build = Properties(**properties)
        rendered = [run(_rendered(build, value)) for value in given.rendered]
        spec = given.need("minion1", rendered).spec
        assert [disk.size for disk in spec.disks] == sizes
        assert [card.network for card in spec.networks] == cards


async def _rendered(build: Properties, value: object) -> object:
    return await build.render(value)


def test_a_disk_may_be_asked_for_with_ones_own_xml() -> None:
    """Of a size beside xml=, the disk counts, also for the room that is looked for."""
    need = arguments(size={"disk": "2 GiB"}, xml=domain(), disks=["1 GiB"]).static_need("minion1")
    assert need is not None
    assert (need.spec.kind, need.spec.size.disk, need.wish.disk) == ("xml", 2048, 3072)
