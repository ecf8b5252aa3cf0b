"""Which disks get an overlay, and which cannot have one."""

from __future__ import annotations

import pytest

from domainxml.support import NOTHING, domain
from latentvirt.domainxml import DiskSource, WritableDisk, writable_disks
from latentvirt.errors import BadXML, NotFresh

SECOND = (
    "<disk type='file'><driver type='qcow2'/><source file='/images/two.img'/><target dev='vdb'/>{}</disk>"
)


def targets(xml: str, *, hd_image: str | None = None, allow: frozenset[str] = NOTHING) -> dict[str, bool]:
    """Tell each overlaid disk, and whether it is the system's."""
    return {disk.target: disk.system for disk in writable_disks(xml, hd_image=hd_image, allow_shared=allow)}


def test_every_writable_disk_gets_an_overlay() -> None:
    """Disks of files, devices and volumes are listed with all that an overlay needs to know."""
    xml = domain(
        SECOND.format("")
        + "\n<disk type='block'><source dev='/dev/sdx'/><target dev='vdc'/></disk>"
        + "<disk type='volume' device='floppy'><source pool='p' volume='v'/><target dev='fda'/></disk>"
    )
    assert writable_disks(xml, hd_image=None, allow_shared=NOTHING) == (
        WritableDisk("vda", DiskSource("file", "/images/hd.img"), True, 6),
        WritableDisk("vdb", DiskSource("file", "/images/two.img", format="qcow2"), False, 7),
        WritableDisk("vdc", DiskSource("block", "/dev/sdx"), False, 8),
        WritableDisk("fda", DiskSource("volume", "v", "p"), False, 8),
    )


@pytest.mark.parametrize(
    ("hd_image", "system"),
    [
        (None, "vda"),
        ("/images/hd.img", "vda"),
        ("/images/../images//two.img", "vdb"),
        ("/elsewhere.img", "vda"),
    ],
)
def test_hd_image_names_the_system_disk(hd_image: str | None, system: str) -> None:
    """The disk whose source is hd_image is the system's, else the first one is."""
    found = targets(domain(SECOND.format("")), hd_image=hd_image)
    assert [target for target, is_system in found.items() if is_system] == [system]


@pytest.mark.parametrize(
    "device",
    [
        SECOND.format("<readonly/>"),
        "<disk type='file' device='cdrom'><source file='/a.iso'/><target dev='sda'/></disk>",
        "<disk type='network' device='cdrom'><source protocol='http'/><target dev='sda'/></disk>",
        "<disk type='network'><source protocol='rbd'/><target dev='vdb'/><readonly/></disk>",
        "<disk type='file' device='floppy'><target dev='fda'/></disk>",
    ],
)
def test_what_the_guest_cannot_write_to_is_left_alone(device: str) -> None:
    """Read-only disks and empty drives get no overlay and stop nobody."""
    assert targets(domain(device)) == {"vda": True}


def test_a_floppy_is_never_the_system_disk() -> None:
    """A floppy before the disk does not take the base image."""
    xml = domain().replace(
        "<devices>", "<devices><disk device='floppy'><source file='/f'/><target dev='fda'/></disk>"
    )
    assert targets(xml) == {"fda": False, "vda": True}


def test_the_system_disk_needs_no_source() -> None:
    """The disk that stands on the base image may be described without a source."""
    xml = domain().replace("<source file='/images/hd.img'/>", "")
    assert writable_disks(xml, hd_image="/images/hd.img", allow_shared=NOTHING)[0].source is None


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("<disk type='network'><source protocol='rbd' name='p/i'/><target dev='vdb'/></disk>", "'network'"),
        ("<disk type='network'><source protocol='nbd'/><target dev='vdb'/></disk>", "'network'"),
        ("<disk type='nvme'><source/><target dev='vdb'/></disk>", "'nvme'"),
        ("<disk type='vhostuser'><source/><target dev='vdb'/></disk>", "'vhostuser'"),
        ("<disk type='dir'><source dir='/d'/><target dev='vdb'/></disk>", "'dir'"),
        ("<disk type='block' device='lun'><source dev='/d'/><target dev='vdb'/></disk>", "lun"),
        (SECOND.format("<shareable/>"), "shareable"),
        (SECOND.format("<encryption format='luks'/>"), "encrypted"),
        (
            "<disk><source file='/a'><slices><slice/></slices></source><target dev='vdb'/></disk>",
            "slice",
        ),
    ],
)
def test_a_disk_that_cannot_have_an_overlay_is_refused(device: str, words: str) -> None:
    """A disk that the guest would write to directly is refused with its line, unless allowed by name."""
    xml = domain("\n" + device)
    with pytest.raises(NotFresh, match=rf"line 8: .*{words}.*allow_shared={{'vdb'}}"):
        targets(xml)
    assert targets(xml, allow=frozenset({"vdb"})) == {"vda": True}


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("<disk><source file='/a'/></disk>", "no <target"),
        ("<disk><source file='/a'/><target dev='vda'/></disk>", "two disks"),
        ("<disk><target dev='vdb'/></disk>", "vdb has no source"),
    ],
)
def test_a_disk_that_libvirt_could_not_use_is_refused(device: str, words: str) -> None:
    """What is missing or doubled in a disk is said with its line."""
    with pytest.raises(BadXML, match=words) as caught:
        targets(domain("\n" + device))
    assert caught.value.line == 8


@pytest.mark.parametrize(("extra", "allow"), [("<readonly/>", NOTHING), ("", frozenset({"vdb"}))])
def test_hd_image_cannot_be_a_disk_that_stays_as_it_is(extra: str, allow: frozenset[str]) -> None:
    """Nobody's second disk silently takes the base image because hd_image is read-only or shared."""
    with pytest.raises(BadXML, match=r"hd_image '/images/two\.img' is the source of disk vdb"):
        targets(domain(SECOND.format(extra)), hd_image="/images/two.img", allow=allow)
