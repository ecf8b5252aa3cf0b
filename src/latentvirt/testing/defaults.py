"""What a fake host says of itself, and how it words the XML that it is given."""

from __future__ import annotations

import functools
from collections.abc import Callable

import libvirt
from lxml import etree

from latentvirt.testing.trouble import libvirt_error

CAPABILITIES = """<capabilities><host><cpu><arch>x86_64</arch><model>qemu64</model></cpu>
<secmodel><model>dac</model><doi>0</doi></secmodel></host>
<guest><os_type>hvm</os_type><arch name='x86_64'><wordsize>64</wordsize>
<emulator>/usr/bin/qemu-system-x86_64</emulator>
<machine canonical='pc-q35-7.2'>q35</machine><machine>pc-q35-7.2</machine>
<domain type='qemu'/></arch></guest></capabilities>"""

DOMAIN_CAPABILITIES = """<domainCapabilities><path>/usr/bin/qemu-system-x86_64</path><domain>qemu</domain>
<machine>pc-i440fx-7.2</machine><arch>x86_64</arch>
<os supported='yes'><enum name='firmware'/></os>
<cpu><mode name='maximum' supported='yes'/></cpu>
<devices/><features><genid supported='yes'/></features></domainCapabilities>"""

UNITS = {
    **{"b": 1, "bytes": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4},
    **{unit: 1024**power for power, unit in enumerate(("", "KiB", "MiB", "GiB", "TiB")) if unit},
    **{unit: 1024**power for power, unit in enumerate(("", "k", "M", "G", "T")) if unit},
}

REMEMBERED_DOMAINS = 4096
"""How many domains' XML is not read again."""


def normalised(
    xml: str, *, uuid: str, id: int | None, below: Callable[[str], list[tuple[str, str]]] = lambda _: []
) -> str:
    """Word a domain's XML as libvirt does.

    Args:
        xml: as given.
        uuid: filled in where it is missing.
        id: of a run; adds what a live domain's XML has; None for a definition.
        below: tells path and format of each image that a file stands on.
    """
    root = etree.fromstring(xml, etree.XMLParser(remove_comments=True))
    name = root.find("name")
    if root.find("uuid") is None and name is not None:
        name.addnext(etree.Element("uuid"))
    for found in root.iterfind("uuid"):
        found.text = uuid
    for memory in root.iterfind("memory"):
        unit = memory.get("unit", "KiB")
        if unit not in UNITS:
            raise libvirt_error(libvirt.VIR_ERR_INVALID_ARG, f"invalid argument: unknown suffix '{unit}'")
        memory.text = str(int(memory.text or 0) * UNITS[unit] // 1024)
        memory.set("unit", "KiB")
    serial, console = root.find("devices/serial"), root.find("devices/console")
    if serial is not None and console is None:
        console = etree.Element("console", type=serial.get("type", "pty"))
        etree.SubElement(console, "target", type="serial", port="0")
        serial.addnext(console)
    if id is not None:
        root.set("id", str(id))
        _liven(root, id)
        for disk in root.iterfind("devices/disk"):
            _add_chain(disk, below)
    return etree.tostring(root, encoding="unicode")


def _add_chain(disk: etree._Element, below: Callable[[str], list[tuple[str, str]]]) -> None:
    source = disk.find("source[@file]")
    if source is None or disk.find("backingStore") is not None:
        return
    upper = disk
    for path, format in below(source.get("file", "")):
        upper = etree.SubElement(upper, "backingStore", type="file")
        etree.SubElement(upper, "format", type=format)
        etree.SubElement(upper, "source", file=path)
    if upper is not disk:
        etree.SubElement(upper, "backingStore")


def dormant(xml: str) -> str:
    """Take out of a live domain's XML what is of that run only.

    Args:
        xml: as `normalised` has it for a run.
    """
    root = etree.fromstring(xml)
    root.attrib.pop("id", "")
    for console in root.iterfind("devices/console"):
        console.attrib.pop("tty", "")
    for source in root.iterfind("devices/disk/source"):
        source.attrib.pop("index", "")
    for channel in root.iterfind("devices/channel"):
        for source in channel.findall("source"):
            channel.remove(source)
    for device in root.iterfind("devices/*"):
        for alias in device.findall("alias"):
            device.remove(alias)
    return etree.tostring(root, encoding="unicode")


def _liven(root: etree._Element, id: int) -> None:
    for number, device in enumerate(root.iterfind("devices/*")):
        if device.tag != "emulator" and device.find("alias") is None:
            etree.SubElement(device, "alias", name=f"{device.tag}{number}")
    for number, source in enumerate(root.iterfind("devices/disk/source"), 1):
        source.set("index", str(number))
    for console in root.iterfind("devices/console"):
        console.set("tty", f"/dev/pts/{id}")
    for channel in root.iterfind("devices/channel[@type='unix']"):
        target = channel.find("target")
        if channel.find("source") is None and target is not None:
            path = f"/fake/domain-{id}/{target.get('name')}"
            channel.insert(0, etree.Element("source", mode="bind", path=path))


def stats(live: str) -> dict[str, int]:
    """Say what libvirt's statistics tell of a domain that runs.

    Args:
        live: its XML.
    """
    memory, vcpus, _ = _read(live)
    return {"balloon.maximum": memory, "vcpu.maximum": vcpus}


def number_of(live: str) -> int:
    """Say which number libvirt has given a domain that runs.

    Args:
        live: its XML.
    """
    return _read(live)[2]


@functools.lru_cache(maxsize=REMEMBERED_DOMAINS)
def _read(live: str) -> tuple[int, int, int]:
    # Whoever lists a host's domains asks for each one's, every time.
    root = etree.fromstring(live)
    return int(root.findtext("memory") or 0), int(root.findtext("vcpu") or 1), int(root.get("id", "-1"))
