"""`latentvirt xml`, as a person calls it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from domainxml.support import HERE, domain
from latentvirt.cli import main
from latentvirt.domainxml import ownership_of, parse

CAPABILITIES = [f"--capabilities={HERE / 'capabilities' / f'{name}.xml'}" for name in ("qemu", "host", "kvm")]

BOUNDED = """
import resource
from latentvirt.cli import main
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
main()
"""
"""The command in a process that cannot take all of the machine's memory."""


def xml(*arguments: str, stdin: str | None = None) -> Result:
    """Run the command."""
    return CliRunner().invoke(main, ["xml", *arguments], input=stdin)


def test_a_domain_from_standard_input_is_shown_as_a_start_has_it() -> None:
    """Disks, port and mark are those of a start whose id is zeros."""
    second = "<disk type='volume'><source pool='p' volume='v'/><target dev='vdb'/></disk>"
    result = xml("-", "--base-image=/images/base.raw", "--base-format=raw", stdin=domain(second))
    assert result.exit_code == 0
    owned = ownership_of(result.stdout)
    assert owned is not None
    assert owned.start == "0" * 12
    assert [source.get("file") for source in parse(result.stdout).iterfind("devices/disk/source")] == [
        f"/images/latentvirt-{'0' * 16}/{owned.slot}.{'0' * 12}.overlay.{target}" for target in ("vda", "vdb")
    ]
    assert [
        source.get("file") for source in parse(result.stdout).iterfind("devices/disk/backingStore/source")
    ] == [
        "/images/base.raw",
        "p/v",
    ]


def test_a_domain_without_a_base_image_keeps_its_disks() -> None:
    """Where nothing is replaced, the disks are shown as they are."""
    result = xml("-", stdin=domain())
    assert parse(result.stdout).find("devices/disk/source").get("file") == "/images/hd.img"


def test_uefi_variables_and_tpm_are_the_starts_own() -> None:
    """A start's file of UEFI variables is shown, and a UUID of its own for the TPM's state."""
    text = domain("<tpm><backend type='emulator'/></tpm>", os=" firmware='efi'/>")
    result = xml("-", "--base-image=/images/base", stdin=text)
    assert parse(result.stdout).findtext("os/nvram").endswith(f"{'0' * 12}.vars.nvram")
    assert parse(result.stdout).findtext("uuid")
    refused = xml("-", "--predefined", "--base-image=/images/base", stdin=text)
    assert (refused.exit_code, "TPM" in refused.stderr) == (1, True)
    allowed = xml(
        "-", "--predefined", "--base-image=/b", "--allow-shared=tpm", "--allow-shared=nvram", stdin=text
    )
    assert parse(allowed.stdout).find("os/nvram") is None


def test_extra_devices_are_shown_as_a_start_has_them() -> None:
    """Disks with their own files, counted and on their bus, and cards in their networks are in the XML."""
    devices = [
        "--disk=1GiB,serial=osd,count=2",
        "--disk=512,bus=scsi,format=raw",
        "--nic=lab",
        "--nic=bridge=br0",
    ]
    result = xml("-", "--base-image=/images/base", *devices, stdin=domain("<interface type='user'/>"))
    root = parse(result.stdout)
    assert [
        (disk.find("target").get("dev"), disk.findtext("serial"), disk.find("driver").get("type"))
        for disk in root.findall("devices/disk")
    ] == [
        ("vda", None, "qcow2"),
        ("vdb", "osd0", "qcow2"),
        ("vdc", "osd1", "qcow2"),
        ("sda", "extra2", "raw"),
    ]
    cards = root.findall("devices/interface")
    assert [card.get("type") for card in cards] == ["user", "network", "bridge"]
    assert [card.find("mac") is None for card in cards] == [True, False, False]


def test_a_domain_is_generated_from_stored_capabilities() -> None:
    """With what virsh printed on a host, its domain is shown on any machine."""
    result = xml("--generate", "--base-image=/images/base", "--memory=2 GiB", "--vcpus=3", *CAPABILITIES)
    root = parse(result.stdout)
    assert (root.get("type"), root.findtext("memory"), root.findtext("vcpu")) == ("kvm", "2048", "3")
    assert root.find("os/type").get("machine") == "pc-q35-7.2"
    emulated = xml("--generate", "--base-image=/images/base", "--virt-type=qemu", *CAPABILITIES)
    assert parse(emulated.stdout).get("type") == "qemu"


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        (["-"], "<domain>\n<x>", "line 2: the XML is malformed"),
        (["-", "--base-image=/b"], "<domain type='kvm'/>", "no disk"),
        (["-", "--base-image=/b"], domain("<shmem name='a'/>"), "allow_shared={'shmem'}"),
        (["--generate", "--base-image=/b"], None, "virsh -c URI domcapabilities"),
        (["-"], domain().replace(">small<", ">a/b<"), "line 2: the domain's name 'a/b' has a slash in it"),
        (["-", "--disk=1GiB"], domain(), "give --base-image"),
        (["--generate", "--base-image=/b", "--capabilities=-"], "<domain/>", "is not a host's capabilities"),
        (["--generate", "--base-image=/b", "--capabilities=-"], "<", "capabilities cannot be read"),
    ],
)
def test_a_refusal_is_a_sentence_and_status_1(arguments: list[str], stdin: str | None, words: str) -> None:
    """What is wrong is said on standard error, without a traceback, and nothing is printed."""
    result = xml(*arguments, stdin=stdin)
    assert (result.exit_code, result.stdout) == (1, "")
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        (["-", "--base-image=/b", "--disk=lots"], domain(), "size='lots' is not an amount"),
        (["-", "--base-image=/b", "--disk=1GiB,data"], domain(), "'data' is no key=value"),
        (["-", "--base-image=/b", "--disk=serial=data"], domain(), "a disk has no size"),
        (["-", "--nic=lab,source=x"], domain(), "there is no 'source'"),
        (["-", "--nic=lab,mac=01:00:00:00:00:00"], domain(), "the address of a group"),
        (["--generate", "--base-image=/b", "--memory=lots", *CAPABILITIES], None, "memory='lots'"),
        (["-", "--base-image=/a\nb"], domain(), "'/a\\nb' has characters that no path"),
        (["-", "--base-image="], domain(), "'--base-image': base_image='' is not an absolute path"),
        (
            ["-", "--base-image=images/b"],
            domain(),
            "'--base-image': base_image='images/b' is not an absolute",
        ),
        (["-", "--base-image=debian-12"], domain(), "'debian-12' is no path: no host is asked"),
        (["-", "--hd-image=disk.img"], domain(), "'--hd-image': hd_image='disk.img' is not an absolute path"),
        (["-", "--base-format=banana", "--base-image=/b"], domain(), "'banana' is not one of 'bochs'"),
        (["-", "--name=a/b"], domain(), "'--name': the name 'a/b' has a slash in it"),
        (
            ["--generate", "--base-image=/b", "--memory=999999999999 TiB", *CAPABILITIES],
            None,
            "'--memory': memory='999999999999 TiB' is more than any machine can have",
        ),
        (["-", "--memory=2 GiB"], domain(), "--memory goes with --generate"),
        (["-", "--vcpus=1"], domain(), "--vcpus goes with --generate"),
        (["-", "--network=lab"], domain(), "--network goes with --generate"),
        (["-", "--virt-type=qemu"], domain(), "--virt-type goes with --generate"),
        (["-", *CAPABILITIES], domain(), "--capabilities goes with --generate"),
        (
            ["--generate", "--predefined", "--base-image=/b", *CAPABILITIES],
            None,
            "--predefined goes with FILE",
        ),
        (["--generate", "--base-image=/b", "--name=\x1b", *CAPABILITIES], None, "is not a line of text"),
        (["--generate", "--base-image=/b", "--network=\x01", *CAPABILITIES], None, "is no name"),
        (["-", "--hd-image=\udc80"], domain(), "is not an absolute path"),
    ],
)
def test_a_bad_value_is_a_sentence_and_status_2(arguments: list[str], stdin: str | None, words: str) -> None:
    """What an option cannot mean is a wrong command line, also what no XML can hold."""
    result = xml(*arguments, stdin=stdin)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("words", [["{}"], ["--generate", "--base-image=/images/base", "--capabilities={}"]])
@pytest.mark.parametrize(
    ("file", "status", "said"),
    [
        ("/dev/zero", 1, "is longer than 4 MiB"),
        ("/dev/urandom", 1, "is not UTF-8 text"),
        ("/proc/self/mem", 1, "cannot be read: Input/output error"),
        (str(HERE), 2, "Is a directory"),
    ],
)
def test_what_is_no_file_of_xml_is_refused_at_once(
    words: list[str], file: str, status: int, said: str
) -> None:
    """A device without end, or a folder, named by mistake takes neither time nor memory."""
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, "xml", *(word.format(file) for word in words)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, said in done.stderr) == (status, True), done.stderr


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """An image given in place of its XML is refused with a sentence."""
    (tmp_path / "disk.img").write_bytes(b"QFI\xfb")
    result = xml(str(tmp_path / "disk.img"))
    assert (result.exit_code, "is not UTF-8 text" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    "arguments", [[], ["--generate", "-"], ["--generate"], ["/does/not/exist"], ["--what"]]
)
def test_a_wrong_command_line_is_status_2(arguments: list[str]) -> None:
    """A command line that makes no sense is told from XML that was refused."""
    assert xml(*arguments, stdin="").exit_code == 2


def test_the_command_needs_neither_buildbot_nor_libvirt() -> None:
    """The command starts quickly, and where Buildbot and libvirt are not."""
    program = (
        "import sys, latentvirt.cli; latentvirt.cli.main.get_command(None, 'xml'); "
        "print({'buildbot', 'libvirt', 'twisted'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
