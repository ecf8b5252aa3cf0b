"""What can be known to be wrong with what a build needs, without a host."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from buildbot.config import errors

from latentvirt import domainxml
from latentvirt.devices import Nic, read_nics, refuse_same_macs, written
from latentvirt.errors import ConfigError
from latentvirt.hosts import Hosts
from latentvirt.imagefiles import check_image_path
from latentvirt.master.depending import depends, known_part
from latentvirt.placement import HostView, Limits, Wish, explain
from latentvirt.spec import BY_CHANNEL, IdentityMode, MachineSpec, StartMode

SAME_TIME = ", so that two VMs could have it at the same time"
MAC_AS_IT_IS = "write it as it is into networks=, or leave it out"

_read: WeakKeyDictionary[errors.ConfigErrors, dict[str, str]] = WeakKeyDictionary()
"""Whose each address is, by the reading of master.cfg that it was found in."""


def known_macs(first: Nic, networks: Any) -> frozenset[str]:
    """Read the addresses that a person gave to network cards.

    Args:
        first: a generated domain's first card.
        networks: those that are added, in any way a person can write them.

    Raises:
        ConfigError: one depends on the build, or cannot be right.
    """
    given = written(networks)
    for one in given if isinstance(given, list) else [given]:
        if isinstance(one, Mapping) and depends(one.get("mac")):
            raise ConfigError("a network card's mac depends on the build" + SAME_TIME, remedy=MAC_AS_IT_IS)
    cards = (first, *read_nics(known_part(given)))
    return frozenset(card.mac for card in cards if card.mac is not None)


def refuse_others_macs(worker: str, macs: Iterable[str]) -> None:
    """Refuse an address that another worker has in the same master.cfg.

    Args:
        worker: its name.
        macs: the addresses that its VM's network cards are given.

    Raises:
        ConfigError: another worker's VM has one of them.
    """
    # Workers are checked one by one; what all checks of one reading share is where Buildbot collects errors.
    reading = errors._errors
    if reading is None:
        return  # a worker that is made by itself
    owners = _read.setdefault(reading, {})
    for mac in macs:
        other = owners.setdefault(mac, worker)
        if other != worker:
            raise ConfigError(
                f"mac={mac!r} is that of worker {other!r} as well",
                remedy="give each worker another, or leave mac= out: each VM's place then has one of its own",
            )


def check_thawing(start: StartMode, standby: Any, identity: IdentityMode, base_image: Any) -> None:
    """Check that a VM can be thawed if a person says that it must.

    Args:
        start: how VMs start.
        standby: whether one is to stand by.
        identity: how a guest learns who it is.
        base_image: the base image; None if there is none.

    Raises:
        ConfigError: it never can, whatever a build asks for, or `standby` is neither True nor False.
    """
    if not isinstance(standby, bool):
        raise ConfigError(
            f"standby={standby!r} is neither True nor False", remedy="write True, or leave it out"
        )
    if not standby and start != "thaw":
        return
    wanted = "standby=True" if standby else "start='thaw'"
    needs = f"{wanted} needs a VM that may be thawed"
    if start == "boot":
        raise ConfigError(f"{needs}, and start='boot' forbids that", remedy="leave start= out")
    if identity not in BY_CHANNEL:
        raise ConfigError(
            f"{needs}; identity={identity!r} forbids that: a thawed guest learns who it is over the channel",
            remedy=f"leave {wanted.partition('=')[0]}= or identity= out",
        )
    if base_image is None:
        raise ConfigError(
            f"{needs}, and without a base_image its disk is not ours to freeze", remedy="give base_image="
        )


def check_place(hosts: Hosts, wishes: Sequence[Wish]) -> None:
    """Check that there is a host for a VM, by what a person says of them.

    Args:
        hosts: those that it may go to.
        wishes: what it needs at least, or what each of those needs that it may be.

    Raises:
        ConfigError: for all of these each host lacks something, even if it were empty.
    """
    views = [
        HostView(
            uri=connection.uri,
            labels=dict(connection.labels),
            limit=Limits(connection.slots, connection.memory_mib, connection.vcpus, connection.disk_mib),
        )
        for connection in hosts.connections
    ]
    reasons = [explain(views, wish) for wish in wishes]
    if reasons[0] is not None and None not in reasons:
        raise ConfigError(reasons[0], remedy="ask for less, or name a host that has it")


def check_spec(spec: MachineSpec, macs: Collection[str]) -> None:
    """Check what one build needs.

    Args:
        spec: what it needs.
        macs: the addresses that were given to network cards, and do not depend on a build.

    Raises:
        ConfigError: something in it cannot be right.
        BadXML: no start could use the domain's XML.
        NotFresh: none could use it freshly.
    """
    spec.size.check()
    for what, path in (("hd_image", spec.hd_image), ("base_image", spec.base_image)):
        if path is not None:
            check_image_path(path, what)
    if spec.base_image is not None and spec.base_image == spec.hd_image:
        raise ConfigError(
            f"hd_image and base_image are the same file, {spec.base_image!r}",
            remedy="name as hd_image the path that the domain's disk has; the base image is only read",
        )
    if spec.kind == "generated" and not spec.proven:
        raise ConfigError("size= generates a domain, which needs a base_image", remedy="give base_image=")
    if spec.xml is not None:
        domainxml.check(
            spec.xml, base_image=spec.base_image, hd_image=spec.hd_image, allow_shared=spec.allow_shared
        )
    _check_added(spec, macs)


def _check_added(spec: MachineSpec, macs: Collection[str]) -> None:
    if spec.disks and not spec.proven:
        raise ConfigError(
            "disks= needs a base_image: without one a VM has no files of its own",
            remedy="give base_image=, or leave disks= out",
        )
    for card in spec.networks:
        if card.mac is not None and card.mac not in macs:
            raise ConfigError(f"mac={card.mac!r} depends on the build{SAME_TIME}", remedy=MAC_AS_IT_IS)
    first = (spec.network,) if spec.kind in ("generated", "auto") else ()
    refuse_same_macs((*first, *spec.networks))
    if spec.xml is not None:
        domainxml.with_devices(spec.xml, spec.disks, spec.networks)
