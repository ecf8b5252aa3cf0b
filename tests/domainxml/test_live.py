"""The XML of a start, made into a paused domain by a real libvirt with QEMU, and read back."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from domainxml.support import HERE, NOTHING, OWNERSHIP, UUID
from latentvirt.capabilities import read_capabilities
from latentvirt.domainxml import Layer, Overlay, generate, parse, prove, rewrite, writable_disks
from latentvirt.errors import NotProven
from latentvirt.sizes import Size
from privatelibvirt import PrivateLibvirtd, private_libvirtd

libvirt = pytest.importorskip("libvirt")

pytestmark = pytest.mark.libvirt

SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
UEFI_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
UEFI_VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
TPM_STATES = "/var/lib/libvirt/swtpm"
SOMEBODY = 12345
"""A user id that is neither root's nor QEMU's."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateLibvirtd]:
    """A libvirtd whose QEMUs run as another user, so that owners of files change as on a real host."""
    with private_libvirtd(tmp_path_factory.mktemp("live"), user="libvirt-qemu") as private:
        yield private


@pytest.fixture(scope="module")
def connection(daemon: PrivateLibvirtd) -> Iterator[Any]:
    """A connection to it."""
    libvirt.registerErrorHandler(lambda *_: None, None)
    opened = libvirt.open(daemon.uri)
    yield opened
    opened.close()


@pytest.fixture
def images() -> Iterator[Path]:
    """A folder that QEMU's user can reach, which pytest's own folders are not."""
    folder = Path(tempfile.mkdtemp(prefix="latentvirt-live-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


class Start:
    """Makes paused domains from XML, as a start does, and removes them.

    Args:
        connection: libvirt's.
        images: a folder for the disks.
    """

    def __init__(self, connection: Any, images: Path) -> None:
        self.connection = connection
        self.images = images
        self.deep = self.image("deep.raw", "raw")
        self.base = self.image("base.qcow2", "qcow2", backing=self.deep)
        self.overlays = [self.overlay("vda", Layer(str(self.base), "qcow2"), Layer(str(self.deep), "raw"))]
        self.domain: Any = None

    def image(self, name: str, format: str, backing: Path | None = None) -> Path:
        """Make an image that belongs to somebody."""
        path = self.images / name
        on = [] if backing is None else ["-b", str(backing), "-F", backing.suffix[1:]]
        command = ["qemu-img", "create", "-q", "-f", format, *on, str(path), "1M"]
        subprocess.run(command, check=True)
        os.chown(path, SOMEBODY, SOMEBODY)
        path.chmod(0o644)
        return path

    def overlay(self, target: str, *chain: Layer) -> Overlay:
        """Make an overlay."""
        path = self.images / f"overlay.{target}.qcow2"
        on = ["-b", chain[0].path, "-F", chain[0].format]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *on, str(path)], check=True)
        return Overlay(target, str(path), chain)

    def generated(self) -> str:
        """Generate a domain for this host."""
        capabilities = read_capabilities(
            self.connection.getCapabilities(),
            self.connection.getDomainCapabilities(None, "x86_64", None, "qemu", 0),
            kvm_domain_capabilities_xml=None,
            host_cpu_features=frozenset(),
        )
        return generate(
            name="latentvirt-live",
            uuid=UUID,
            capabilities=capabilities,
            size=Size(memory=64),
            network="user",
            virt_type="auto",
        )

    def create(self, xml: str, *, flags: int = 0, **options: Any) -> str:
        """Create a paused domain and return its live XML."""
        text = rewrite(xml, ownership=OWNERSHIP, overlays=self.overlays, **options)
        self.domain = self.connection.createXML(text, libvirt.VIR_DOMAIN_START_PAUSED | flags)
        return str(self.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE))

    def prove(
        self,
        live: str,
        *,
        overlays: Sequence[Overlay] | None = None,
        vars_path: str | None = None,
        allow_shared: frozenset[str] = NOTHING,
        own_uuid: bool = False,
    ) -> None:
        """Prove a domain."""
        prove(
            live,
            ownership=OWNERSHIP,
            overlays=self.overlays if overlays is None else overlays,
            vars_path=vars_path,
            allow_shared=allow_shared,
            own_uuid=own_uuid,
        )

    def destroy(self) -> None:
        """End the domain, if there is one."""
        if self.domain is not None and self.domain.isActive():
            self.domain.destroy()
        self.domain = None


@pytest.fixture
def start(connection: Any, images: Path) -> Iterator[Start]:
    """A start whose domain ends with the test."""
    made = Start(connection, images)
    yield made
    made.destroy()


def with_devices(xml: str, devices: str) -> str:
    """Add devices to a domain."""
    return xml.replace("</devices>", f"{devices}</devices>")


def with_os(xml: str, inner: str, attributes: str = "") -> str:
    """Add firmware to a domain."""
    return xml.replace("<os>", f"<os{attributes}>{inner}")


@pytest.mark.parametrize("path", sorted((HERE / "golden").glob("*.out.xml")), ids=lambda path: path.stem)
def test_golden_files_follow_libvirts_schema(path: Path) -> None:
    """Whatever we write is what libvirt's own schema allows, apart from what the person invented."""
    root = parse(path.read_text())
    for novelty in root.findall(".//{urn:example:future}novelty"):
        novelty.getparent().remove(novelty)
    etree.RelaxNG(etree.parse(SCHEMA)).assertValid(root.getroottree())


def test_a_generated_domain_is_proven(start: Start) -> None:
    """A generated domain starts on this host, and is what was asked for."""
    live = start.create(start.generated())
    start.prove(live)
    assert parse(live).find("devices/channel/target[@name='org.latentvirt.worker.0']") is not None


def test_images_below_the_overlay_keep_owner_and_mode(start: Start) -> None:
    """The base image, and what it stands on, belong to the same person during a start and after it."""
    before = [path.stat() for path in (start.base, start.deep)]
    start.create(start.generated())
    during = [path.stat() for path in (start.base, start.deep)]
    assert Path(start.overlays[0].path).stat().st_uid not in (0, SOMEBODY)
    start.destroy()
    after = [path.stat() for path in (start.base, start.deep)]
    assert [(each.st_uid, each.st_gid, each.st_mode) for each in (*during, *after)] == [
        (each.st_uid, each.st_gid, each.st_mode) for each in before * 2
    ]


@pytest.mark.parametrize(
    "label",
    [
        "<seclabel type='static' model='dac' relabel='no'><label>+0:+0</label></seclabel>",
        "<seclabel type='static' model='dac' relabel='yes'><label>+0:+0</label></seclabel>",
        "<seclabel type='none'/>",
    ],
)
def test_a_persons_security_labels_do_not_stop_a_start(start: Start, label: str) -> None:
    """A domain that settles its labels itself starts, and the images below keep their owner."""
    start.prove(start.create(start.generated().replace("</domain>", f"{label}</domain>")))
    assert (start.base.stat().st_uid, start.deep.stat().st_uid) == (SOMEBODY, SOMEBODY)


def test_a_predefined_domain_keeps_its_definition(start: Start, connection: Any) -> None:
    """A defined domain runs on a start's disks, and its definition is the same letter for letter."""
    hd = start.image("hd.raw", "raw")
    tools = start.image("tools.raw", "raw")
    text = start.generated().replace("/latentvirt/the-overlay-of-this-start", str(hd))
    text = with_devices(
        text,
        f"<disk type='file'><source file='{tools}'/><target dev='vdc' bus='virtio'/><readonly/></disk>"
        "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>"
        "<disk type='file' device='floppy'><target dev='fda'/></disk>",
    )
    defined = connection.defineXML(text)
    try:
        persistent = defined.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
        disks = writable_disks(persistent, hd_image=str(hd), allow_shared=NOTHING)
        assert [(disk.target, disk.system) for disk in disks] == [("vda", True)]
        start.prove(start.create(persistent))
        assert defined.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE) == persistent
        start.destroy()
        assert hd.stat().st_uid == SOMEBODY
        assert defined.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE) == persistent
    finally:
        start.destroy()
        defined.undefine()


def test_a_disk_that_slipped_past_is_found(start: Start) -> None:
    """A domain with one writable disk more than the start made is not resumed."""
    extra = start.image("extra.raw", "raw")
    live = start.create(
        with_devices(
            start.generated(),
            f"<disk type='file'><source file='{extra}'/><target dev='vdb' bus='virtio'/></disk>",
        )
    )
    with pytest.raises(NotProven, match="disk vdb can be written to"):
        start.prove(live)
    start.prove(live, allow_shared=frozenset({"vdb"}))


def test_a_persons_qemu_arguments_reach_qemu(start: Start) -> None:
    """Arguments that the person added are in the live domain, next to ours."""
    arguments = (
        "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>"
        "<q:arg value='-fw_cfg'/><q:arg value='name=opt/org.example/farm,string=one'/></q:commandline>"
    )
    live = start.create(start.generated().replace("</domain>", f"{arguments}</domain>"))
    start.prove(live)
    assert "opt/org.example/farm" in live


LOADER = f"<loader type='pflash' readonly='yes'>{UEFI_CODE}</loader>"
FIRMWARE = [("", " firmware='efi'"), (LOADER, ""), (f"{LOADER}<nvram template='{UEFI_VARS}'/>", "")]


@pytest.mark.parametrize(("inner", "attributes"), FIRMWARE)
def test_uefi_variables_come_fresh_from_the_firmware(start: Start, inner: str, attributes: str) -> None:
    """A start's empty file becomes its UEFI variables, whether the person chose the firmware or libvirt."""
    variables = start.images / "vars"
    variables.touch()
    xml = with_os(start.generated(), inner, attributes)
    live = start.create(xml, vars_path=str(variables), flags=libvirt.VIR_DOMAIN_START_RESET_NVRAM)
    start.prove(live, vars_path=str(variables))
    template = parse(live).find("os/nvram").get("template")
    assert variables.read_bytes() == Path(template).read_bytes()


def test_uefi_variables_of_the_host_are_found(start: Start) -> None:
    """A domain whose variables are where libvirt puts them by itself is not resumed."""
    live = start.create(with_os(start.generated(), "", " firmware='efi'"))
    with pytest.raises(NotProven, match=r"_VARS\.fd, which is not this start's own"):
        start.prove(live)


def tpm_states(daemon: PrivateLibvirtd) -> list[str]:
    """List the UUIDs that libvirt keeps a TPM's state for."""
    listing = daemon.sandbox.run("sh", "-c", f"mkdir -p {TPM_STATES} && ls {TPM_STATES}")
    return listing.split()


def test_a_tpm_of_a_transient_domain_leaves_nothing(start: Start, daemon: PrivateLibvirtd) -> None:
    """A start's emulated TPM is its own, and its state is gone with it."""
    tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
    live = start.create(with_devices(start.generated(), tpm))
    start.prove(live, own_uuid=True)
    assert tpm_states(daemon) == [UUID]
    start.destroy()
    assert tpm_states(daemon) == []


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        (
            "<shmem name='latentvirt-live'><model type='ivshmem-plain'/><size unit='M'>4</size></shmem>",
            "shared memory",
        ),
        ("<filesystem><source dir='/tmp'/><target dir='t'/></filesystem>", "shared folder 't'"),
    ],
)
def test_what_libvirt_reads_back_is_still_recognised(start: Start, devices: str, words: str) -> None:
    """What outlives a start is found in libvirt's own words too."""
    live = start.create(with_devices(start.generated(), devices))
    with pytest.raises(NotProven, match=words):
        start.prove(live)
