"""Disks and network cards that a VM has besides its first ones: what a person writes, and how it is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import attrs

from latentvirt.config import mebibytes
from latentvirt.errors import ConfigError
from latentvirt.labels import is_text
from latentvirt.showing import shown

DISK_BUSES = ("virtio", "scsi", "sata")
DISK_FORMATS = ("qcow2", "raw")

MOST_DISKS = 24
"""How many extra disks a VM may have; a PC has no more slots for virtio disks."""

MOST_NICS = 16
"""How many extra network cards a VM may have."""

DEFAULT_SERIAL = "extra"
"""What the serial of a disk begins with that was given none; its number among the extra disks follows."""

USER_NETWORK = "user"
"""Stands for QEMU's user-mode networking where a libvirt network's name could."""

_SERIAL = re.compile(r"[A-Za-z0-9_.-]{1,20}")  # a virtio disk tells no more than 20 characters
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_MODEL = re.compile(r"[A-Za-z0-9_-]{1,40}")

MULTICAST_BIT = 0x01
RESERVED_FIRST_BYTE = "fe"
"""libvirt gives addresses that begin so to the host's side of a card, and refuses them to the guest's."""

T = TypeVar("T", "Disk", "Nic")


def _lower(mac: str | None) -> str | None:
    given: object = mac
    return given.lower() if isinstance(given, str) else mac


@attrs.frozen
class Disk:
    """Describe a disk that a VM has besides its system disk, empty at each start.

    What is wrong with it is told by `check`.

    Args:
        size: MiB, or a string with a unit such as ``'10 GiB'``.
        count: how many such disks; None for one.
        serial: what the guest reads as the disk's serial number; with a ``count``, a number from 0 on is put
            after it. None for ``extra0``, ``extra1``... by the disk's place among the extra ones.
        bus: ``'virtio'``, ``'scsi'`` or ``'sata'``.
        format: of the file on the host, ``'qcow2'`` or ``'raw'``; the guest sees no difference.
    """

    size: int | str
    count: int | None = attrs.field(default=None, kw_only=True)
    serial: str | None = attrs.field(default=None, kw_only=True)
    bus: str = attrs.field(default="virtio", kw_only=True)
    format: str = attrs.field(default="qcow2", kw_only=True)

    def check(self) -> None:
        """Check it.

        Raises:
            ConfigError: an argument cannot be right.
        """
        _ = self.mib
        count: object = self.count
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 0):
            raise ConfigError(
                f"a disk's count={shown(count)} is not a number of disks", remedy="write a whole number"
            )
        serial: object = self.serial
        if serial is not None and not (isinstance(serial, str) and _SERIAL.fullmatch(serial)):
            raise ConfigError(
                f"a disk's serial={shown(serial)} cannot be one",
                remedy="write at most 20 letters, digits, dots, dashes and underscores",
            )
        for what, value, choices in (
            ("bus", self.bus, DISK_BUSES),
            ("format", self.format, DISK_FORMATS),
        ):
            if value not in choices:
                raise ConfigError(f"a disk's {what}={shown(value)} is none of {', '.join(choices)}")

    @property
    def mib(self) -> int:
        """How large it is."""
        return mebibytes(self.size, "a disk's size")


@attrs.frozen
class Nic:
    """Describe a network card of a VM; `check` tells what is wrong.

    Args:
        network: name of a libvirt network, or ``'user'`` for user-mode networking.
        bridge: name of a bridge on the host, instead of ``network``.
        mac: its address, which no other VM may have; None gives each slot one that stays the same.
        model: what card the guest sees.
    """

    network: str | None = None
    bridge: str | None = attrs.field(default=None, kw_only=True)
    mac: str | None = attrs.field(default=None, kw_only=True, converter=_lower)
    model: str = attrs.field(default="virtio", kw_only=True)

    def check(self) -> None:
        """Check it.

        Raises:
            ConfigError: an argument cannot be right.
        """
        if (self.network is None) == (self.bridge is None):
            raise ConfigError(
                "a network card needs either a network or a bridge",
                remedy="write Nic('default'), Nic('user') or Nic(bridge='br0')",
            )
        for what, value in (("network", self.network), ("bridge", self.bridge)):
            if value is not None and not is_text(value):
                raise ConfigError(
                    f"a network card's {what}={shown(value)} is no name", remedy="write it as plain text"
                )
        if self.mac is not None:
            _check_mac(self.mac)
        model: object = self.model
        if not (isinstance(model, str) and _MODEL.fullmatch(model)):
            raise ConfigError(
                f"a network card's model={shown(model)} cannot be one", remedy="write 'virtio' or 'e1000e'"
            )

    @property
    def text(self) -> str:
        """A plain one's network as a person may write it, else all that is known of it."""
        return str(self.network) if self == Nic(self.network) else str(self)


def _check_mac(mac: object) -> None:
    if not (isinstance(mac, str) and _MAC.fullmatch(mac)):
        raise ConfigError(
            f"mac={shown(mac)} is not a network card's address",
            remedy="write one such as '52:54:00:12:34:56'",
        )
    if int(mac[:2], 16) & MULTICAST_BIT:
        raise ConfigError(
            f"mac={mac!r} is the address of a group, not of one network card",
            remedy="let its first byte be even, as in '52:54:00:12:34:56'",
        )
    if mac.startswith(RESERVED_FIRST_BYTE) or not mac.strip("0:"):
        raise ConfigError(
            f"mac={mac!r} is not for guests", remedy="let it begin with 52:54:00, as in '52:54:00:12:34:56'"
        )


def read_nic(given: object, what: str = "network") -> Nic:
    """Make a card of a name, a mapping or a `Nic`.

    Raises:
        ConfigError: it cannot be one.
    """
    card = Nic(given) if isinstance(given, str) else _of_mapping(Nic, given, what, "Nic('default')")
    card.check()
    return card


def read_disks(given: object) -> tuple[Disk, ...]:
    """Make the extra disks of what a person wrote: one, or a list, of sizes, mappings and `Disk`.

    Returns:
        Each disk by itself, with its size in MiB and its serial.

    Raises:
        ConfigError: one cannot be right, or two have the same serial.
    """
    disks: list[Disk] = []
    for one in _list(given, "disks", "[Disk('10 GiB')]"):
        plain = isinstance(one, (str, int)) and not isinstance(one, bool)
        disk = Disk(one) if plain else _of_mapping(Disk, one, "disks", "Disk('10 GiB')")  # type: ignore[arg-type]
        disk.check()
        for number in range(1 if disk.count is None else min(disk.count, MOST_DISKS + 1)):
            serial = disk.serial or f"{DEFAULT_SERIAL}{len(disks)}"
            if disk.serial is not None and disk.count is not None:
                serial += str(number)
            single = attrs.evolve(disk, size=disk.mib, count=None, serial=serial)
            single.check()
            disks.append(single)
    if len(disks) > MOST_DISKS:
        raise ConfigError(f"there are more than {MOST_DISKS} extra disks", remedy="leave some out")
    _refuse_twice("disks have the serial", [disk.serial for disk in disks])
    return tuple(disks)


def read_nics(given: object) -> tuple[Nic, ...]:
    """Make the extra network cards of what a person wrote: one, or a list, of names, mappings and `Nic`.

    Raises:
        ConfigError: one cannot be right, or two have the same address.
    """
    cards = tuple(read_nic(one, "networks") for one in _list(given, "networks", "[Nic('default')]"))
    if len(cards) > MOST_NICS:
        raise ConfigError(f"there are more than {MOST_NICS} extra network cards", remedy="leave some out")
    refuse_same_macs(cards)
    return cards


def refuse_same_macs(cards: Iterable[Nic]) -> None:
    """Refuse cards of one VM that have the same address.

    Raises:
        ConfigError: two have.
    """
    _refuse_twice("network cards have the mac", [card.mac for card in cards if card.mac is not None])


def written(given: Any) -> Any:
    """Turn our values into mappings, in which Buildbot finds what depends on a build."""
    if isinstance(given, (Disk, Nic)):
        return attrs.asdict(given, recurse=False)
    return [written(one) for one in given] if isinstance(given, (list, tuple)) else given


def _list(given: object, what: str, example: str) -> Sequence[object]:
    if given is None:
        return ()
    if isinstance(given, (list, tuple)):
        return given
    if isinstance(given, (str, Mapping, Disk, Nic)):
        return (given,)
    raise ConfigError(f"{what}={shown(given)} is not a list", remedy=f"write {what}={example}")


def _of_mapping(kind: type[T], given: object, what: str, example: str) -> T:
    if isinstance(given, kind):
        return given
    if not isinstance(given, Mapping):
        raise ConfigError(f"{what} has {shown(given)}", remedy=f"write {example} in its place")
    known = [field.name for field in attrs.fields(kind)]
    wrong = sorted(str(key) for key in set(given) - set(known))
    if wrong:
        raise ConfigError(f"{what}: there is no {wrong[0]!r}", remedy=f"use {', '.join(known)}")
    values = {key: value for key, value in given.items() if value is not None}
    if kind is Disk and "size" not in values:
        raise ConfigError(f"{what}: a disk has no size", remedy=f"write {example}")
    return kind(**values)


def _refuse_twice(what: str, values: Sequence[str | None]) -> None:
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise ConfigError(f"two {what} {twice[0]!r}", remedy="give each its own")
