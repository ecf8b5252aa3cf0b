"""`latentvirt xml`: the domain XML that a start would use, without a start."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import TextIO
from uuid import NAMESPACE_URL, uuid5

import click
from click.core import ParameterSource
from lxml import etree

from latentvirt import domainxml
from latentvirt.amounts import mebibytes
from latentvirt.capabilities import HostCapabilities, cpu_features_of, read_capabilities
from latentvirt.cli.values import line_of_text, read_by
from latentvirt.config import BYTES_PER_MIB
from latentvirt.devices import Disk, Nic, read_disks, read_nic, read_nics
from latentvirt.errors import ConfigError
from latentvirt.imagefiles import FORMATS, check_image_path
from latentvirt.names import (
    FileName,
    Ownership,
    check_domain_name,
    directory_name,
    generated_domain_name,
    slot_of_domain,
    slot_of_number,
)
from latentvirt.showing import shown
from latentvirt.sizes import Size
from latentvirt.spec import VirtType

PLACEHOLDER_OWNER = "0" * 16
PLACEHOLDER_START = "0" * 12
PLACEHOLDER_NAME = "domain"

HOW_TO_GET_CAPABILITIES = (
    "run `virsh -c URI domcapabilities --virttype qemu > qemu.xml` on the host (and the same with kvm, and "
    "`virsh -c URI capabilities`) and give each file with --capabilities"
)

CAPABILITIES_ROOT = "capabilities"
DOMAIN_CAPABILITIES_ROOT = "domainCapabilities"

ONLY_GENERATED = ("capability_files", "memory", "vcpus", "network", "virt_type")
ONLY_READ = ("predefined",)
"""Options that say something only of a domain that is generated, and only of one that is given."""


def _base_image(value: str) -> str:
    """Check the path of a base image.

    Raises:
        ConfigError: it is none, as the name of an image is not.
    """
    if value and "/" not in value:
        raise ConfigError(
            f"base_image={shown(value)} is no path: no host is asked where its copy of an image lies",
            remedy="write the absolute path of a copy there, as latentvirt image push prints it",
        )
    return check_image_path(value, "base_image")


def _refuse_idle(context: click.Context, generate: bool) -> None:
    """Refuse options that were given and would change nothing.

    Raises:
        click.UsageError: there is one.
    """
    idle = ONLY_READ if generate else ONLY_GENERATED
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if given and option.name in idle:
            why = (
                "goes with FILE: what is generated is not defined anywhere"
                if generate
                else "goes with --generate: a FILE's domain has what is written there"
            )
            raise click.UsageError(f"{option.opts[0]} {why}; leave it out")


@click.command(
    short_help="Print the domain XML of a start.",
    epilog="Exit status: 0 printed, 1 the XML was refused (with the reason), 2 wrong command line.",
)
@click.argument("file", type=click.File("r", encoding="utf-8"), required=False)
@click.option("--generate", is_flag=True, help="Generate a domain instead of reading one.")
@click.option(
    "--capabilities",
    "capability_files",
    type=click.File("r", encoding="utf-8"),
    multiple=True,
    help="What `virsh domcapabilities` or `virsh capabilities` prints; repeat it for each file you have.",
)
@click.option(
    "--predefined", is_flag=True, help="FILE is defined on the host, and its starts share its UUID."
)
@click.option(
    "--name",
    callback=read_by(lambda value: check_domain_name(line_of_text(value), "the name")),
    help="Name of the domain.",
)
@click.option(
    "--memory",
    default="1 GiB",
    show_default=True,
    callback=read_by(lambda value: mebibytes(value, "memory")),
    help="MiB, or with a unit; generated only.",
)
@click.option("--vcpus", type=click.IntRange(min=1), default=1, show_default=True, help="Generated only.")
@click.option(
    "--hd-image",
    callback=read_by(lambda value: check_image_path(value, "hd_image")),
    help="Path on the host of the disk image that is replaced by an overlay.",
)
@click.option(
    "--base-image",
    callback=read_by(_base_image),
    help="Path on the host of the image that the overlay stands on.",
)
@click.option(
    "--base-format",
    type=click.Choice(FORMATS),
    metavar="FORMAT",
    default="qcow2",
    show_default=True,
    help="Format of the base image.",
)
@click.option(
    "--network",
    default="user",
    show_default=True,
    callback=read_by(read_nic),
    help="libvirt's network; generated only.",
)
@click.option(
    "--disk",
    "disks",
    multiple=True,
    metavar="SIZE[,KEY=VALUE]...",
    callback=read_by(lambda values: read_disks([_device(one, "size") for one in values])),
    help="An extra disk, such as `10GiB,serial=data`; keys are those of Disk. Repeat it for more.",
)
@click.option(
    "--nic",
    "nics",
    multiple=True,
    metavar="[NETWORK][,KEY=VALUE]...",
    callback=read_by(lambda values: read_nics([_device(one, "network") for one in values])),
    help="An extra network card, such as `lab` or `bridge=br0,model=e1000e`; keys are those of Nic. Repeat "
    "it for more.",
)
@click.option(
    "--virt-type",
    type=click.Choice(["auto", "kvm", "qemu"]),
    default="auto",
    show_default=True,
    help="auto is kvm where it really works; generated only.",
)
@click.option("--allow-shared", multiple=True, help="A thing that may outlive a start; repeat it for more.")
@click.pass_context
def xml(
    context: click.Context,
    file: TextIO | None,
    generate: bool,
    capability_files: Sequence[TextIO],
    predefined: bool,
    name: str | None,
    memory: int,
    vcpus: int,
    hd_image: str | None,
    base_image: str | None,
    base_format: str,
    network: Nic,
    disks: tuple[Disk, ...],
    nics: tuple[Nic, ...],
    virt_type: VirtType,
    allow_shared: Sequence[str],
) -> None:
    """Print the domain XML that a start would use, for FILE (- is standard input) or generated.

    No host is asked: the ids of owner and start are zeros, a base image's own backing chain is left out.
    """
    if generate == (file is not None):
        raise click.UsageError("give either FILE or --generate")
    _refuse_idle(context, generate)
    if file is None:
        if base_image is None:
            raise click.UsageError("--generate needs --base-image, which the generated disk stands on")
        slot = slot_of_number(0)
        name = name or generated_domain_name(PLACEHOLDER_OWNER, slot)
        text = domainxml.generate(
            name=name,
            uuid=_uuid(name),
            capabilities=capabilities_from([_read(each) for each in capability_files]),
            size=Size(memory=memory, vcpus=vcpus),
            network=network,
            virt_type=virt_type,
        )
    else:
        text = _read(file)
        slot = slot_of_domain(name or domainxml.domain_name(text) or PLACEHOLDER_NAME)
    click.echo(
        preview(
            text,
            slot=slot,
            name=name,
            predefined=predefined,
            hd_image=hd_image,
            base_image=base_image,
            base_format=base_format,
            allow_shared=frozenset(allow_shared),
            disks=disks,
            nics=nics,
            own_cards=len(nics) + (file is None),
        ).encode(),  # of no other encoding, whatever the terminal's is
        nl=False,
    )


def preview(
    text: str,
    *,
    slot: str,
    name: str | None,
    predefined: bool,
    hd_image: str | None,
    base_image: str | None,
    base_format: str,
    allow_shared: frozenset[str],
    disks: tuple[Disk, ...] = (),
    nics: tuple[Nic, ...] = (),
    own_cards: int = 0,
) -> str:
    """Make the XML of a start whose owner and start ids are zeros.

    Raises:
        ConfigError: no start could use the XML, or none freshly.
    """
    domainxml.check(
        text, base_image=base_image, hd_image=hd_image, allow_shared=allow_shared, own_uuid=not predefined
    )
    ownership = Ownership(PLACEHOLDER_OWNER, slot, PLACEHOLDER_START)
    folder = posixpath.join(
        posixpath.dirname(hd_image or base_image or ""), directory_name(PLACEHOLDER_OWNER)
    )

    def path(kind: str, target: str) -> str:
        return posixpath.join(folder, str(FileName(slot, PLACEHOLDER_START, kind, target)))

    overlays = []
    vars_path = None
    if base_image is not None:
        for disk in domainxml.writable_disks(text, hd_image=hd_image, allow_shared=allow_shared):
            layer = _layer(disk, base_image, base_format)
            overlays.append(domainxml.Overlay(disk.target, path("overlay", disk.target), (layer,)))
        if domainxml.uses_vars(text) and "nvram" not in allow_shared:
            vars_path = path("vars", "nvram")
    if disks and base_image is None:
        raise ConfigError("extra disks need a base image", remedy="give --base-image")
    text, targets = domainxml.with_devices(text, disks, nics)
    for target, extra in zip(targets, disks, strict=True):
        overlays.append(domainxml.Overlay(target, path("disk", target), (), extra.format))
    fresh = not predefined and domainxml.has_emulated_tpm(text)
    return domainxml.rewrite(
        text,
        name=name,
        uuid=_uuid(f"{slot}.{PLACEHOLDER_START}") if fresh else None,
        ownership=ownership,
        overlays=overlays,
        vars_path=vars_path,
        own_cards=domainxml.OwnCards("", own_cards),
    )


def _device(text: str, first: str) -> dict[str, object]:
    """Read what an option says of a disk or a network card.

    Raises:
        ConfigError: it has something that is no key and its value.
    """
    said: dict[str, object] = {}
    for number, part in enumerate(text.split(",")):
        key, equals, value = part.partition("=")
        if not equals and number == 0:
            key, value = first, part
        elif not equals:
            raise ConfigError(f"{part!r} is no key=value", remedy="write it as in 10GiB,serial=data,count=2")
        said[key] = int(value) if key == "count" and value.isdecimal() else value
    return said


def capabilities_from(texts: Sequence[str]) -> HostCapabilities:
    """Read a host's capabilities from what virsh printed, in any order.

    Raises:
        ConfigError: a text is something else, or the one that is needed is missing.
    """
    host, domains = None, {}
    features: frozenset[str] = frozenset()
    for text in texts:
        root = _root(text)
        if root.tag == CAPABILITIES_ROOT:
            host = text
            features |= cpu_features_of(text)
        elif root.tag == DOMAIN_CAPABILITIES_ROOT:
            domains[(root.findtext("domain") or "").strip()] = text
        else:
            raise ConfigError(f"<{root.tag!s}> is not a host's capabilities", remedy=HOW_TO_GET_CAPABILITIES)
    kvm = domains.get("kvm")
    described = domains.get("qemu", kvm)
    if described is None:
        raise ConfigError(
            "a host's domain capabilities are needed to generate for it", remedy=HOW_TO_GET_CAPABILITIES
        )
    if kvm is not None:
        features |= cpu_features_of(kvm)
    return read_capabilities(host, described, kvm_domain_capabilities_xml=kvm, host_cpu_features=features)


def _root(text: str) -> etree._Element:
    try:
        return etree.fromstring(text.encode(), etree.XMLParser(encoding="utf-8", resolve_entities=False))
    except etree.XMLSyntaxError as error:
        raise ConfigError(
            f"the capabilities cannot be read: {error.msg}", remedy=HOW_TO_GET_CAPABILITIES
        ) from error


def _read(file: TextIO) -> str:
    """Read a file, and of one without end, such as a device, no more than shows that it is none of XML.

    Raises:
        ConfigError: it is no text, or longer than XML that is read.
    """
    try:
        text = file.read(domainxml.MAX_BYTES + 1)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file.name} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise ConfigError(f"{file.name} cannot be read: {error.strerror}") from error
    if len(text) > domainxml.MAX_BYTES:
        raise ConfigError(
            f"{file.name} is longer than {domainxml.MAX_BYTES // BYTES_PER_MIB} MiB, and neither a domain's "
            "description nor a host's capabilities are",
            remedy="name the file of what virsh prints",
        )
    return text


def _layer(disk: domainxml.WritableDisk, base_image: str, base_format: str) -> domainxml.Layer:
    source = disk.source
    if disk.system or source is None:
        return domainxml.Layer(base_image, base_format)
    # libvirt takes a disk of which it is told no format for a raw one.
    format = source.format or "raw"
    if source.kind == "volume":
        return domainxml.Layer(f"{source.pool}/{source.path}", format)
    return domainxml.Layer(source.path, format, source.kind)


def _uuid(text: str) -> str:
    return str(uuid5(NAMESPACE_URL, f"urn:latentvirt:{text}"))
