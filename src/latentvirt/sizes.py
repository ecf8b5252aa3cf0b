"""How large VMs may be, as a person writes it in master.cfg: one size, or flavors to choose from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs

from latentvirt.amounts import mebibytes
from latentvirt.errors import ConfigError
from latentvirt.labels import Labels, is_text, read_labels
from latentvirt.showing import shown

LEAST_MEMORY_MIB = 16
"""Who gives a VM less has meant another unit."""


def _if_readable(read: Callable[[Any, str], Any], value: Any, what: str) -> Any:
    try:
        return read(value, what)
    except ConfigError:
        return value  # `check` says what is wrong with it


def _memory(value: int | str) -> Any:
    return _if_readable(mebibytes, value, "memory")


def _disk(value: int | str | None) -> Any:
    return None if value is None else _if_readable(mebibytes, value, "disk")


def _vcpus(value: int | str) -> Any:
    # A build's properties that a person has typed into a form are texts.
    return int(value) if isinstance(value, str) and value.strip().isdecimal() else value


def _labels(given: object) -> Any:
    return _if_readable(read_labels, given, "labels")


def _are_read(labels: object) -> bool:
    return isinstance(labels, tuple) and all(
        isinstance(pair, tuple) and any(isinstance(part, frozenset) for part in pair) for pair in labels
    )


def _check_vcpus(value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"vcpus={shown(value)} is not a number of processors", remedy="write 1 or more")


@attrs.frozen(kw_only=True)
class Size:
    """How large a generated VM is; what is wrong with it is told by `check`.

    Args:
        memory: MiB, or a string with a unit such as ``'4 GiB'``.
        vcpus: number of virtual processors.
        disk: size of the system disk, as ``memory``; None leaves it as large as the base image.
    """

    memory: int = attrs.field(default=1024, converter=_memory)
    vcpus: int = attrs.field(default=1, converter=_vcpus)
    disk: int | None = attrs.field(default=None, converter=_disk)

    def check(self) -> None:
        """Check it.

        Raises:
            ConfigError: an argument is no amount, or no number of processors.
        """
        if mebibytes(self.memory, "memory") < LEAST_MEMORY_MIB:
            raise ConfigError(
                f"memory={shown(self.memory)} is {self.memory} MiB, in which no system boots",
                remedy="write the unit, as in '4 GiB'; a plain number is one of MiB",
            )
        if self.disk is not None:
            mebibytes(self.disk, "disk")
        _check_vcpus(self.vcpus)


@attrs.frozen
class Flavor:
    """Name a size that builds may be given; what is wrong with it is told by `check`.

    Args:
        name: what messages call it.
        memory: as in `Size`.
        vcpus: as in `Size`.
        disk: as in `Size`.
        labels: what a host must have to run such VMs: of each label a value, or a list of those that will do.
    """

    name: str
    memory: int = attrs.field(default=1024, converter=_memory, kw_only=True)
    vcpus: int = attrs.field(default=1, converter=_vcpus, kw_only=True)
    disk: int | None = attrs.field(default=None, converter=_disk, kw_only=True)
    labels: Labels = attrs.field(factory=dict, converter=_labels, kw_only=True)

    def check(self) -> None:
        """Check it.

        Raises:
            ConfigError: an argument cannot be right.
        """
        if not is_text(self.name):
            raise ConfigError(
                f"a flavor's name is {shown(self.name)}", remedy="give it one that can be read: 'small'"
            )
        self.size.check()
        if not _are_read(self.labels):
            read_labels(self.labels, "labels")

    @classmethod
    def of(cls, size: Size, name: str = "this worker's size") -> Flavor:
        """Make the only flavor of a worker that has but a size."""
        return cls(name, memory=size.memory, vcpus=size.vcpus, disk=size.disk)

    @property
    def size(self) -> Size:
        """How large such a VM is."""
        return Size(memory=self.memory, vcpus=self.vcpus, disk=self.disk)


def check_flavors(flavors: Iterable[object]) -> None:
    """Check a worker's flavors.

    Raises:
        ConfigError: one is no `Flavor`, cannot be right, or has the name of another.
    """
    seen = set()
    for flavor in flavors:
        if not isinstance(flavor, Flavor):
            raise ConfigError(
                f"flavors has {shown(flavor)}, which is no Flavor",
                remedy="write Flavor('small', memory='1 GiB', vcpus=1)",
            )
        try:
            flavor.check()
        except ConfigError as error:
            raise error.about(f"flavor {flavor.name!r}") if is_text(flavor.name) else error from None
        if flavor.name in seen:
            raise ConfigError(f"two flavors are called {flavor.name!r}", remedy="rename one of them")
        seen.add(flavor.name)
