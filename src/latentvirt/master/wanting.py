"""What a master.cfg wants of each host, for `latentvirt doctor`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from latentvirt import domainxml
from latentvirt.address import master_port, split_address
from latentvirt.config import Connection, Image
from latentvirt.devices import USER_NETWORK
from latentvirt.doctor import MasterAddress, NamedImage, Wanted
from latentvirt.errors import LatentvirtError
from latentvirt.labels import is_text
from latentvirt.master.arguments import Arguments
from latentvirt.master.baseimages import archs_of, read_image, written_image
from latentvirt.master.depending import depends
from latentvirt.master.placing import Need
from latentvirt.master.reading import workers_in
from latentvirt.spec import MachineSpec

_INTERFACE = re.compile(r"interface=((?:\\.|[^:\\])+)")


def wanted_in(path: str, folders: Sequence[str] = ()) -> list[Wanted]:
    """Read what is wanted of each host that a master.cfg's workers name, as far as it depends on no build.

    Args:
        path: of the file, or of the master's directory that it is in.
        folders: image folders that are wanted besides.

    Raises:
        ConfigError: as for `latentvirt.master.reading.hosts_in`.
    """
    workers, protocols = workers_in(path)
    hosts: dict[str, tuple[Connection, list[tuple[str, Arguments]]]] = {}
    for name, arguments in workers:
        for connection in arguments.hosts.connections:
            hosts.setdefault(connection.uri, (connection, []))[1].append((name, arguments))
    pb = protocols.get("pb", {}).get("port", 0)
    return [_of_host(connection, theirs, pb, folders) for connection, theirs in hosts.values()]


def _of_host(
    connection: Connection, workers: list[tuple[str, Arguments]], pb: Any, folders: Sequence[str]
) -> Wanted:
    needs = [(name, arguments, _need(name, arguments)) for name, arguments in workers]
    specs = [(name, arguments, None if need is None else need.spec) for name, arguments, need in needs]
    own = [one.static_folder for _, one in workers if one.static_folder]
    if any(isinstance(one.base_image, Image) for _, one in workers) or not own:
        own.append(connection.images)
    return Wanted(
        connection=connection,
        folders=_once([*own, *folders]),
        images=_once(
            image for _, one in workers if is_text(image := one.base_image) and image.startswith("/")
        ),
        named_images=_named_images(needs),
        varying=_once(name for name, one in workers if _varies(one)),
        networks=_once(name for _, arguments, spec in specs for name in _networks(arguments, spec)),
        domains=_once(name for name, _, spec in specs if spec is not None and _is_predefined(spec)),
        kvm=_once(name for name, one in workers if one.virt_type == "kvm"),
        helper=_once(name for name, one in workers if _needs_helper(one)),
        addresses=_once(
            _address(arguments, network, pb)
            for _, arguments, spec in specs
            if arguments.identity != "static" and (network := _first_network(arguments, spec)) is not None
        ),
    )


def _once(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def _need(name: str, arguments: Arguments) -> Need | None:
    """Say what any build needs; None if that depends on the build."""
    try:
        return arguments.static_need(name)
    except LatentvirtError:
        return None  # checkconfig, or the build, says what is wrong with it


def _varies(arguments: Arguments) -> bool:
    """Whether a worker's base image depends on the build."""
    return depends(written_image(arguments.base_image))


def _named_images(needs: Sequence[tuple[str, Arguments, Need | None]]) -> tuple[NamedImage, ...]:
    found: dict[tuple[Image, frozenset[str]], list[str]] = {}
    for name, arguments, need in needs:
        if _varies(arguments):
            continue
        image = read_image(arguments.base_image, stock=arguments.cloud_init is not None)
        if isinstance(image, Image) and image.called:
            archs = archs_of(image) if need is None else need.wish.arch
            found.setdefault((image, archs), []).append(name)
    return tuple(
        NamedImage(image=image, archs=archs, workers=tuple(names)) for (image, archs), names in found.items()
    )


def _first_network(arguments: Arguments, spec: MachineSpec | None) -> str | None:
    """Name the network by which a worker's VMs reach the master.

    Returns:
        Its name, or ``user``; empty if that is known only when a build, or the host, is asked; None if a VM
        has no network.
    """
    if spec is not None and spec.xml is not None:
        use = domainxml.network_of(spec.xml)
        return {"user": USER_NETWORK, "network": use.name, "none": None}.get(use.kind, "")
    card = arguments.network
    if (spec is not None and spec.kind == "generated") or arguments.flavors or card.network != USER_NETWORK:
        return card.network or ""
    return ""


def _needs_helper(arguments: Arguments) -> bool:
    """Whether a worker's guests must be spoken to over the channel."""
    return arguments.start == "thaw" or arguments.identity == "channel" or arguments.standby


def _is_predefined(spec: MachineSpec) -> bool:
    """Whether a worker can start nothing but the domain of its name."""
    return spec.kind == "auto" and not spec.proven


def _networks(arguments: Arguments, spec: MachineSpec | None) -> list[str]:
    """Name the networks of libvirt's that a worker's VMs are to have."""
    extra = [card.network for card in spec.networks] if spec is not None else []
    return [name for name in (_first_network(arguments, spec), *extra) if name and name != USER_NETWORK]


def _address(arguments: Arguments, network: str, pb: Any) -> MasterAddress:
    given, port = split_address(arguments.master_fqdn)
    found = _INTERFACE.search(str(pb))
    return MasterAddress(
        network=network,
        given=given,
        port=port or master_port(pb),
        interface="" if found is None else found[1].replace("\\", ""),
        sure=_needs_helper(arguments),
    )
