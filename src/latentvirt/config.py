"""The values that a person writes in master.cfg."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import attrs

from latentvirt.errors import ConfigError

MIB_PER_UNIT = {
    "": 1,
    "MIB": 1,
    "MB": 1,
    "M": 1,
    "GIB": 1024,
    "GB": 1024,
    "G": 1024,
    "TIB": 1024 * 1024,
    "TB": 1024 * 1024,
    "T": 1024 * 1024,
}
"""What one of each unit is in MiB; like libvirt's tools and QEMU's, a "GB" here is 1024 MiB."""

_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def mebibytes(value: int | str, what: str) -> int:
    """Read an amount of memory or disk.

    Args:
        value: a plain number of MiB, or a string with a unit: ``'4 GiB'``, ``'512M'``.
        what: name of the argument, for the message.

    Returns:
        The amount in MiB, rounded up.

    Raises:
        ConfigError: it is not a positive amount in a unit known here.
    """
    found = None if isinstance(value, bool) else _AMOUNT.fullmatch(str(value))
    unit = MIB_PER_UNIT.get(found.group(2).upper()) if found else None
    amount = -(-float(found.group(1)) * unit // 1) if found and unit else 0
    if amount <= 0:
        raise ConfigError(
            f"{what}={value!r} is not an amount",
            remedy="write a number of MiB, or a number with MiB, GiB or TiB, as in '4 GiB'",
        )
    return int(amount)


def _amount(value: int | str | None, field: attrs.Attribute[int | None]) -> int | None:
    return None if value is None else mebibytes(value, field.name)


@attrs.frozen(kw_only=True)
class Size:
    """How large a generated VM is.

    Args:
        memory: MiB, or a string with a unit such as ``'4 GiB'``.
        vcpus: number of virtual processors.
        disk: size of the system disk, as ``memory``; None leaves it as large as the base image.
    """

    memory: int = attrs.field(
        default=1024, converter=attrs.Converter(_amount, takes_field=True)  # type: ignore[call-overload]
    )
    vcpus: int = attrs.field(default=1)
    disk: int | None = attrs.field(
        default=None, converter=attrs.Converter(_amount, takes_field=True)  # type: ignore[call-overload]
    )

    @vcpus.validator
    def _check_vcpus(self, _: object, value: object) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"vcpus={value!r} is not a number of processors", remedy="write 1 or more")


EMBED_SCHEME = "qemu"
EMBED_PATH = "/embed"


@attrs.frozen
class Connection:
    """Name a libvirt host.

    Args:
        uri: libvirt's connection URI, or an alias from libvirt.conf's ``uri_aliases``.
        slots: how many VMs may run there at a time for this master; None for no limit of ours.

    Raises:
        ConfigError: the URI cannot be one, or slots is not a positive number.
    """

    uri: str = attrs.field()
    slots: int | None = attrs.field(default=None, kw_only=True)

    @uri.validator
    def _check_uri(self, _: object, value: object) -> None:
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(
                f"connection URI {value!r} is not a string",
                remedy="write one such as 'qemu:///system' or 'qemu+ssh://user@host/system'",
            )
        if ":" not in value and re.fullmatch(r"[A-Za-z0-9_.-]+", value):
            return  # an alias; only libvirt's own configuration knows whether it exists
        try:
            parts = urlsplit(value)
            readable = bool(parts.scheme) and value.startswith(f"{parts.scheme}://") and (parts.port or 1)
        except ValueError:
            readable = False
        if not readable or not re.fullmatch(r"[a-z0-9]+(\+[a-z0-9]+)?", parts.scheme):
            raise ConfigError(
                f"connection URI {value!r} cannot be read",
                remedy="write driver[+transport]://[user@][host][:port]/path, as in 'qemu:///session' or "
                "'qemu+ssh://user@host/system'",
            )

    @slots.validator
    def _check_slots(self, _: object, value: object) -> None:
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ConfigError(
                f"slots={value!r} is not a number of VMs", remedy="write 1 or more, or leave it out"
            )

    @property
    def is_embed(self) -> bool:
        """Whether QEMU's driver runs inside our own process: no daemon, no storage and network drivers."""
        parts = urlsplit(self.uri)
        return parts.scheme == EMBED_SCHEME and not parts.netloc and parts.path == EMBED_PATH

    @property
    def is_local(self) -> bool:
        """Whether the host is surely this machine. An alias is not: only libvirt knows where it leads."""
        return bool(urlsplit(self.uri).scheme) and not urlsplit(self.uri).netloc
