"""Everything else that a guest writes to and that outlives its start."""

from __future__ import annotations

import pytest

from domainxml.support import NOTHING, domain
from latentvirt.domainxml import check, freshness_problems
from latentvirt.domainxml.qemuargs import QEMU_NAMESPACE
from latentvirt.errors import BadXML, NotFresh

PFLASH = "><loader type='pflash'{}>/usr/share/OVMF/OVMF_CODE.fd</loader></os>"


def commandline(*arguments: str) -> str:
    """Write QEMU arguments as a person does."""
    args = "".join(f"<q:arg value='{argument}'/>" for argument in arguments)
    return f"<q:commandline xmlns:q='{QEMU_NAMESPACE}'>{args}</q:commandline>"


REFUSED = [
    ("/src", domain("<filesystem><source dir='/s'/><target dir='/src'/></filesystem>"), "folder '/src'"),
    ("filesystem", domain("<filesystem><source dir='/s'/></filesystem>"), "folder"),
    ("nvdimm", domain("<memory model='nvdimm'><target/></memory>"), "nvdimm"),
    ("nvdimm", domain("<memory model='virtio-pmem'><target/></memory>"), "virtio-pmem"),
    ("shmem", domain("<shmem name='looking-glass'/>"), "'looking-glass'"),
    ("tpm", domain("<tpm><backend type='passthrough'/></tpm>"), "'passthrough'"),
    ("tpm", domain("<tpm><backend type='external'/></tpm>"), "'external'"),
    ("tpm", domain("<tpm><backend type='emulator' persistent_state='yes'/></tpm>"), "persistent_state"),
    ("tpm", domain("<tpm><backend type='emulator'><source type='dir'/></backend></tpm>"), "place of its own"),
    ("pstore", domain("<pstore backend='acpi-erst'><path>/p</path></pstore>"), "pstore"),
    ("hostdev", domain("<hostdev mode='subsystem' type='pci'/>"), "pci device"),
    ("hostdev", domain("<hostdev mode='subsystem' type='scsi'/>"), "scsi device"),
    ("nvram", domain(os=PFLASH.format(" readonly='no'")), "firmware itself"),
    ("nvram", domain(os=PFLASH.format("")), "firmware itself"),
    ("nvram", domain(os="><nvram type='block'><source dev='/d'/></nvram></os>"), "'block'"),
    ("nvram", domain(os="><nvram type='network'/></os>"), "'network'"),
    *(
        ("qemu:commandline", domain(rest=commandline(option, value)), option)
        for option, value in (
            ("-drive", "file=/a,format=raw"),
            ("--drive", "file=/a,,readonly=on,format=raw"),
            ("-blockdev", '{"driver":"file","filename":"/a","read-only":false}'),
            ("-blockdev", "{not json"),
            ("-hda", "/a"),
            ("-fdb", "/a"),
            ("-sd", "/a"),
            ("-mtdblock", "/a"),
            ("-pflash", "/a"),
            ("-virtfs", "local,path=/a,mount_tag=t,security_model=none"),
            ("-fsdev", "local,id=f,path=/a"),
            ("-object", "memory-backend-file,id=m,mem-path=/a,share=on,size=1M"),
            ("-object", '{"qom-type":"memory-backend-file","share":true}'),
            ("-device", "vfio-pci,host=01:00.0"),
            ("-device", "vhost-user-fs-pci,chardev=c"),
            ("-device", "usb-mtp,rootdir=/a"),
            ("-tpmdev", "passthrough,id=t"),
            ("-readconfig", "/a"),
        )
    ),
]


@pytest.mark.parametrize(("name", "xml", "words"), REFUSED)
def test_what_outlives_the_start_is_refused_unless_allowed(name: str, xml: str, words: str) -> None:
    """Each such thing is refused with its line and the way out, and passes if its name is allowed."""
    with pytest.raises(NotFresh, match=rf"line \d+: .*{words}.*allow_shared={{'{name}'}}"):
        check(xml, base_image="/images/base", hd_image=None, allow_shared=NOTHING)
    check(xml, base_image="/images/base", hd_image=None, allow_shared=frozenset({name}))


@pytest.mark.parametrize(
    "xml",
    [
        domain("<filesystem><source dir='/s'/><target dir='/src'/><readonly/></filesystem>"),
        domain("<memory model='dimm'/>"),
        domain("<memory model='nvdimm'><target><readonly/></target></memory>"),
        domain("<tpm><backend type='emulator' version='2.0'/></tpm>"),
        domain("<hostdev mode='subsystem' type='mdev'/>"),
        domain(os=PFLASH.format(" readonly='yes'")),
        domain(os=" firmware='efi'/>"),
        domain(os="><nvram type='file'><source file='/v'/></nvram></os>"),
        domain(rest=commandline("-drive", "file=/a,readonly=on")),
        domain(rest=commandline("-drive", "file=/a,snapshot=on")),
        domain(rest=commandline("-blockdev", '{"driver":"file","filename":"/a","read-only":true}')),
        domain(rest=commandline("-fsdev", "local,id=f,path=/a,readonly=on")),
        domain(rest=commandline("-virtfs", "local,path=/a,readonly")),
        domain(rest=commandline("-object", "memory-backend-file,id=m,mem-path=/a,size=1M")),
        domain(rest=commandline("-object", "rng-random,id=r")),
        domain(rest=commandline("-device", "virtio-net-pci,netdev=n", "-cpu", "host")),
        domain(rest=commandline("-fw_cfg", "name=opt/a,file=-drive")),
        domain(rest=commandline("-snapshot")),
    ],
)
def test_what_does_not_outlive_the_start_is_nobodys_business(xml: str) -> None:
    """Read-only things, and things that end with the guest, are not refused."""
    check(xml, base_image="/images/base", hd_image=None, allow_shared=NOTHING)


def test_a_tpm_is_refused_where_starts_share_a_uuid() -> None:
    """A predefined domain's emulated TPM would carry its state from build to build."""
    xml = domain("<tpm><backend type='emulator'/></tpm>")
    (problem,) = freshness_problems(xml, allow_shared=NOTHING, own_uuid=False)
    assert (problem.name, problem.line) == ("tpm", 7)
    assert "xml=" in problem.ways_out


def test_all_problems_are_told_at_once() -> None:
    """A person with two such things in the XML learns of both in one go."""
    xml = domain("<shmem name='a'/>\n<memory model='nvdimm'><target/></memory>")
    with pytest.raises(NotFresh) as caught:
        check(xml, base_image="/images/base", hd_image=None, allow_shared=NOTHING)
    assert "line 7: the shared memory 'a'" in str(caught.value)
    assert "line 8: the nvdimm memory" in str(caught.value)
    assert "For shmem:" in caught.value.remedy
    assert "For nvdimm:" in caught.value.remedy


def test_without_a_base_image_freshness_is_the_persons_affair() -> None:
    """A domain that is started as it is may write to whatever its owner wants."""
    xml = domain("<shmem name='a'/><disk type='network'><target dev='vdb'/></disk>")
    check(xml, base_image=None, hd_image=None, allow_shared=NOTHING)


@pytest.mark.parametrize(
    ("xml", "line", "words"),
    [
        ("<domain>\n<name>a</name></domain>", 1, "no type"),
        ("<domain type='kvm'>\n<name>a</name>\n<name>b</name></domain>", 3, "two names"),
        ("<domain type='kvm'>\n<memory unit='parsec'>2</memory></domain>", 2, "the unit 'parsec'"),
        ("<domain type='kvm'>\n<memory>lots</memory></domain>", 2, "<memory> is 'lots'"),
        ("<domain type='kvm'>\n\n<vcpu>two</vcpu></domain>", 3, "<vcpu> is 'two'"),
        ("<domain type='kvm'>\n<name> </name></domain>", 2, "<name> is empty"),
        ("<domain type='kvm'>\n<devices/></domain>", 1, "no disk.*'/images/base'"),
        (domain().replace("</disk>", "<readonly/></disk>"), 1, "no disk.*'/images/base'"),
    ],
)
def test_xml_that_no_start_can_use_is_refused(xml: str, line: int, words: str) -> None:
    """The check of a configuration names the line of what is missing."""
    with pytest.raises(BadXML, match=words) as caught:
        check(xml, base_image="/images/base", hd_image=None, allow_shared=NOTHING)
    assert caught.value.line == line


def test_a_domain_may_leave_out_its_name() -> None:
    """XML without a name is fine: the start gives it one."""
    xml = domain().replace("<name>small</name>", "")
    check(xml, base_image="/images/base", hd_image="/images/other", allow_shared=NOTHING)
