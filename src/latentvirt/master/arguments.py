"""The worker's arguments, checked without a network and without libvirt, for `buildbot checkconfig`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, get_args

import attrs
from buildbot.interfaces import IRenderable

from latentvirt import domainxml
from latentvirt.config import Image
from latentvirt.devices import USER_NETWORK, Nic, read_disks, read_nic, read_nics, written
from latentvirt.errors import ConfigError
from latentvirt.hold import read_duration
from latentvirt.hosts import Hosts
from latentvirt.imagefiles import check_format
from latentvirt.master.baseimages import archs_of, by_name, read_image, written_image
from latentvirt.master.checking import check_place, check_spec, check_thawing, known_macs
from latentvirt.master.depending import depends, known_part
from latentvirt.master.firstboot import read_cloud_init
from latentvirt.master.placing import Need
from latentvirt.master.whereabouts import read_fqdn, read_hosts
from latentvirt.placement import Wish
from latentvirt.requirements import Requirements, choose_flavor, read_requirements, wish_for
from latentvirt.sizes import Flavor, Size, check_flavors
from latentvirt.spec import IdentityMode, Kind, MachineSpec, StartMode, VirtType, image_folder

GRACEFUL_SHUTDOWN_S = 30

HostKeyMode = Literal["reported", "stable"]

RENDERED = ("hd_image", "base_image", "xml", "size", "requires", "disks", "networks")
"""The arguments that may depend on a build's properties, in the order of `Arguments.rendered`."""

UNKNOWN = ""
"""Stands for a worker's name where arguments are checked before any build."""


@attrs.frozen(kw_only=True)
class Arguments:
    """What a person wrote about the VM, before any build's properties are known.

    Args:
        hosts: those that its VMs may run on.
        hd_image: path, or a renderable of one.
        base_image: path, name or `Image`, or a renderable of one.
        base_format: format of the base image; None asks the host.
        xml: domain XML, or a renderable of it.
        size: `Size`, a mapping of its arguments, or a renderable of either.
        flavors: sizes to choose from; empty if there is only `size`.
        requires: what a build asks for, by criterion, or a renderable of that.
        network: the first network card of a generated domain.
        virt_type: of a generated domain.
        identity: how the guest learns who it is.
        allow_shared: what may outlive a start although the guest writes to it.
        master_fqdn: where guests find the master: ``host`` or ``host:port``.
        graceful_shutdown_s: seconds that a guest gets to power itself off.
        start: whether it may be thawed, or must be.
        standby: whether a VM is to stand by while the worker is idle.
        disks: those that a VM has besides, in any way a person can write them, or a renderable of that.
        networks: likewise the network cards that it has besides.
        ssh_host_key: whose SSH host key a guest has, its own or always the same.
        hold_on_failure_s: seconds that the VM of a failed build is held; 0 for not at all.
        cloud_init: what `read_cloud_init` returned.
    """

    hosts: Hosts
    hd_image: Any = None
    base_image: Any = None
    base_format: str | None = None
    xml: Any = None
    size: Any = None
    flavors: tuple[Flavor, ...] = ()
    requires: Any = None
    network: Nic = attrs.field(default=Nic(USER_NETWORK))
    virt_type: VirtType = "auto"
    identity: IdentityMode = "auto"
    allow_shared: frozenset[str] = frozenset()
    master_fqdn: str | None = None
    graceful_shutdown_s: float = 0.0
    start: StartMode = "auto"
    standby: bool = False
    disks: Any = ()
    networks: Any = ()
    ssh_host_key: HostKeyMode = "reported"
    hold_on_failure_s: int = 0
    cloud_init: str | None = None

    @property
    def rendered(self) -> tuple[Any, ...]:
        """What may depend on a build's properties, in the order of `RENDERED`."""
        size = attrs.asdict(self.size) if isinstance(self.size, Size) else self.size
        disks, networks = written(self.disks), written(self.networks)
        return (self.hd_image, written_image(self.base_image), self.xml, size, self.requires, disks, networks)

    @property
    def macs(self) -> frozenset[str]:
        """The addresses that were given to network cards."""
        return known_macs(self.network, self.networks)

    @property
    def static_folder(self) -> str | None:
        """The image folder, if it is known before a build."""
        images = (self.hd_image, self.base_image)
        if any(IRenderable.providedBy(image) or isinstance(image, Image) for image in images):
            return None
        return image_folder(*images)

    def static_need(self, worker: str) -> Need | None:
        """Say what any build's start needs, if it depends on none; None if it does."""
        if any(depends(value) for value in self.rendered):
            return None
        return self.need(worker, self.rendered)

    def need(self, worker: str, rendered: Sequence[Any], builder: str = "") -> Need:
        """Say what one build's start needs.

        Args:
            worker: its worker's name.
            rendered: what was rendered for it, in the order of `rendered`.
            builder: its builder's name.

        Raises:
            ConfigError: a value that was rendered cannot be right.
            ImpossibleWish: there is no size that the build could be content with.
        """
        hd_image, base_image, xml, size, requires, disks, networks = rendered
        required = read_requirements({} if requires is None else requires)
        chosen = choose_flavor(required, self.flavors) if self.flavors else None
        size = size if chosen is None else chosen.size
        spec = self.spec(worker, hd_image, base_image, xml, size, disks, networks)
        flavor = chosen or Flavor.of(self._guessed() if spec.kind == "auto" else _size_of(spec))
        if chosen is None and spec.kind != "auto":
            choose_flavor(required, [flavor])
        wish = wish_for(required, flavor, spec.disks, archs_of(spec.image))
        return Need(worker=worker, hosts=self.hosts, wish=wish, spec=spec, builder=builder)

    def _guessed(self) -> Size:
        """Guess how large a domain is that may be defined on a host; no larger than each host may take."""
        most = [mib for connection in self.hosts.connections if (mib := connection.memory_mib) is not None]
        return Size(memory=min([Size().memory, *most]))

    def spec(
        self,
        worker: str,
        hd_image: Any,
        base_image: Any,
        xml: Any,
        size: Any,
        disks: Any = (),
        networks: Any = (),
    ) -> MachineSpec:
        """Make the spec of one build from what was rendered for it.

        Raises:
            ConfigError: a value that was rendered cannot be right.
        """
        base_image = read_image(base_image, stock=self.cloud_init is not None)
        image = base_image if isinstance(base_image, Image) else None
        path = base_image if image is None else None
        for what, value in (("hd_image", hd_image), ("base_image", path), ("xml", xml)):
            _check_text(what, value)
        for what, given, value in (
            ("hd_image", self.hd_image, hd_image),
            ("base_image", written_image(self.base_image), base_image),
            ("xml", self.xml, xml),
        ):
            if given is not None and not value and not (worker == UNKNOWN and depends(given)):
                raise ConfigError(
                    f"{what} is empty" + (" for this build" if depends(given) else ""),
                    remedy=f"give {what} a value, or a default in its renderable, or leave it out",
                )
        if xml and xml.startswith("/"):
            raise ConfigError(
                f"xml={xml!r} is a path, not a domain's XML", remedy=f"write xml=open({xml!r}).read()"
            )
        if size is not None and not isinstance(size, (Size, Mapping)):
            raise ConfigError(f"size={size!r} is not a size", remedy="write Size(memory='2 GiB', vcpus=2)")
        kind: Kind = "xml" if xml else "generated" if size is not None else "auto"
        spec = MachineSpec(
            worker=worker,
            kind=kind,
            xml=xml or None,
            hd_image=hd_image or None,
            base_image=path or None,
            image=image,
            base_format=self.base_format,
            size=size if isinstance(size, Size) else read_size(size or {}),
            network=self.network,
            virt_type=self.virt_type,
            identity=self.identity,
            allow_shared=self.allow_shared,
            start=self.start,
            disks=read_disks(disks),
            networks=read_nics(networks),
            cloud_init=self.cloud_init,
        )
        check_spec(spec, self.macs)
        return spec


def _size_of(spec: MachineSpec) -> Size:
    """Say how large a VM is, as far as that is known before a host was asked for its definition."""
    if spec.xml is None:
        return spec.size
    memory, vcpus = domainxml.memory_of(spec.xml), domainxml.vcpus_of(spec.xml)
    return Size(memory=memory or Size().memory, vcpus=vcpus, disk=spec.size.disk)


def read_size(given: Mapping[str, Any]) -> Size:
    """Make a `Size` of a mapping.

    Raises:
        ConfigError: it has other keys than a size has.
    """
    known = {field.name for field in attrs.fields(Size)}
    wrong = sorted(set(given) - known)
    if wrong:
        raise ConfigError(f"size has no {wrong[0]!r}", remedy=f"use {', '.join(sorted(known))}")
    return Size(**{key: value for key, value in given.items() if value is not None})


def _check_text(what: str, value: Any) -> None:
    if value is not None and not isinstance(value, str):
        raise ConfigError(
            f"{what}={value!r} is not a string", remedy=f"write {what} as text, or a renderable of it"
        )


def _refuse_renderables(**given: Any) -> None:
    for what, value in given.items():
        if IRenderable.providedBy(value):
            raise ConfigError(
                f"{what} cannot depend on a build's properties, as {value!r} does",
                remedy=f"write its value; what can depend on them is {', '.join(RENDERED)}",
            )


def _choice(what: str, value: Any, choices: Any) -> Any:
    if value not in get_args(choices):
        known = ", ".join(get_args(choices))
        raise ConfigError(f"{what}={value!r} is none of {known}", remedy="write one of them, or leave it out")
    return value


def _host_key(value: Any, identity: Any) -> Any:
    if _choice("ssh_host_key", value, HostKeyMode) == "stable" and identity in ("static", "metadata"):
        raise ConfigError(
            f"ssh_host_key='stable' is handed over on the channel, which identity={identity!r} does not use",
            remedy="leave one of them out",
        )
    return value


def _graceful(value: Any) -> float:
    if isinstance(value, bool):
        return GRACEFUL_SHUTDOWN_S if value else 0.0
    if isinstance(value, (int, float)) and 0 <= value < math.inf:
        return float(value)
    raise ConfigError(
        f"graceful_shutdown={value!r} is neither True, False nor seconds", remedy="write a number, as in 30"
    )


def read_arguments(
    password: Any,
    connection: Any = None,
    hd_image: Any = None,
    base_image: Any = None,
    xml: Any = None,
    *,
    uri: Any = None,
    masterFQDN: Any = None,
    size: Any = None,
    flavors: Any = (),
    requires: Any = None,
    network: Any = "user",
    networks: Any = (),
    disks: Any = (),
    virt_type: Any = "auto",
    identity: Any = "auto",
    allow_shared: Any = (),
    base_format: Any = None,
    graceful_shutdown: Any = False,
    start: Any = "auto",
    standby: Any = False,
    ssh_host_key: Any = "reported",
    hold_on_failure: Any = None,
    cloud_init: Any = None,
) -> Arguments:
    """Check what a person wrote; the order of the first ones is that of Buildbot's old documentation.

    Raises:
        ConfigError: something in it cannot be right.
    """
    if password is not None and not isinstance(password, str) and not IRenderable.providedBy(password):
        raise ConfigError(
            f"password is not a string but of type {type(password).__name__}",
            remedy="write it in quotes, or use util.Secret('name')",
        )
    if password == "":
        raise ConfigError("password is empty", remedy="give one, or None for one-time passwords")
    _refuse_renderables(
        connection=connection,
        uri=uri,
        masterFQDN=masterFQDN,
        flavors=flavors,
        network=network,
        virt_type=virt_type,
        identity=identity,
        allow_shared=allow_shared,
        base_format=base_format,
        graceful_shutdown=graceful_shutdown,
        start=start,
        standby=standby,
        ssh_host_key=ssh_host_key,
        hold_on_failure=hold_on_failure,
        cloud_init=cloud_init,
    )
    if password is None and identity == "static":
        raise ConfigError("identity='static' needs a password that the image knows", remedy="give one")
    if isinstance(allow_shared, str) or not (
        isinstance(allow_shared, Collection) and all(isinstance(name, str) for name in allow_shared)
    ):
        raise ConfigError(f"allow_shared={allow_shared!r} is not a list of names", remedy="write ['vdb']")
    if base_format is not None:
        check_format(base_format, "base_format")
    arguments = Arguments(
        hosts=read_hosts(connection, uri),
        hd_image=hd_image,
        base_image=by_name(base_image),
        base_format=base_format,
        xml=xml,
        size=size,
        flavors=_flavors(flavors, size, xml),
        requires=requires,
        network=read_nic(network),
        networks=networks,
        disks=disks,
        virt_type=_choice("virt_type", virt_type, VirtType),
        identity=_choice("identity", identity, IdentityMode),
        allow_shared=frozenset(allow_shared),
        master_fqdn=read_fqdn(masterFQDN),
        graceful_shutdown_s=_graceful(graceful_shutdown),
        start=_choice("start", start, StartMode),
        standby=standby,
        ssh_host_key=_host_key(ssh_host_key, identity),
        cloud_init=read_cloud_init(cloud_init, identity, base_image),
        hold_on_failure_s=0 if hold_on_failure is None else read_duration(hold_on_failure, "hold_on_failure"),
    )
    check_thawing(arguments.start, standby, arguments.identity, base_image)
    _check_what_is_known(arguments)
    return arguments


def _flavors(flavors: Any, size: Any, xml: Any) -> tuple[Flavor, ...]:
    if isinstance(flavors, str) or not isinstance(flavors, Collection):
        raise ConfigError(
            f"flavors={flavors!r} is not a list", remedy="write [Flavor('small', memory='1 GiB')]"
        )
    if flavors and (size is not None or xml is not None):
        raise ConfigError(
            f"flavors= and {'xml' if size is None else 'size'}= were given; both say how large a VM is",
            remedy="leave one of them out",
        )
    check_flavors(list(flavors))
    return tuple(flavors)


def _check_what_is_known(arguments: Arguments) -> None:
    """Check as a build would, with what does not depend on one."""
    given = arguments.rendered
    for written_by_name, read in ((given[3], read_size), (given[4], read_requirements)):
        if isinstance(written_by_name, Mapping):
            read(dict.fromkeys(written_by_name))  # what is asked for by name does not depend on a build
    known = [None if depends(value) else value for value in given]
    if known[1] is None and arguments.base_image is not None:
        known[2] = None  # whether the XML goes with the base image is known when that is
    known[5:] = known_part(given[5]), known_part(given[6])
    if arguments.base_image is not None and known[1] is None:
        known[3] = None
        read_disks(known[5])
        known[5] = ()  # whether a VM has files of its own is known when the base image is
    wish = arguments.need(UNKNOWN, known).wish
    if arguments.flavors and depends(arguments.requires):
        check_place(arguments.hosts, [wish_for(Requirements(), flavor) for flavor in arguments.flavors])
    else:
        sized = arguments.flavors or (known[2] is given[2] and known[3] is given[3])
        check_place(arguments.hosts, [wish if sized else Wish(labels=wish.labels)])


OURS = frozenset(inspect.signature(read_arguments).parameters) - {"password"}
