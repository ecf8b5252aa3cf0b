"""The values that a person writes in master.cfg."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import attrs

from latentvirt.amounts import BYTES_PER_MIB as BYTES_PER_MIB
from latentvirt.amounts import MIB_PER_UNIT as MIB_PER_UNIT
from latentvirt.amounts import MORE_THAN_ANY_AMOUNT as MORE_THAN_ANY_AMOUNT
from latentvirt.amounts import mebibytes as mebibytes
from latentvirt.errors import ConfigError
from latentvirt.labels import is_text
from latentvirt.roots import check_root, is_embed
from latentvirt.showing import shown

DEFAULT_FROZEN_SPACE = "20 GiB"
DEFAULT_IMAGES = "/var/lib/libvirt/images"

TEST_SCHEME = "test"
SESSION_PATH = "/session"
"""Where a user's own daemon is, which runs as that user."""

DRIVERS = frozenset(
    {
        *("bhyve", "ch", "esx", "gsx", "hyperv", "lxc", "openvz", "qemu", "remote", "test", "vbox"),
        *("vmwareplayer", "vmwarews", "vpx", "vz", "xen"),
    }
)
"""What libvirt's connection URIs can begin with; latentvirt is tried with ``qemu`` and ``test``."""

TRANSPORTS = frozenset({"ext", "libssh", "libssh2", "ssh", "tcp", "tls", "unix"})
"""How libvirt's client reaches a daemon (libvirt's page on remote support)."""

_ALIAS = re.compile(r"[A-Za-z0-9_.-]+")
"""Whether there is such an alias only libvirt's own configuration knows."""


def _is_uri(text: str) -> bool:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    return (
        re.fullmatch(r"[a-z0-9]+(\+[a-z0-9]+)?", parts.scheme) is not None
        and text.startswith(f"{parts.scheme}://")
        and port != 0
    )


def comparable_labels(given: object) -> object:
    """Make a mapping of labels comparable; what cannot be labels is left for the check to name."""
    return tuple(sorted(given.items())) if isinstance(given, Mapping) and _are_texts(given.keys()) else given


def _are_texts(values: Iterable[object]) -> bool:
    return all(map(is_text, values))


def check_labels(what: str, labels: object) -> None:
    """Check labels: a mapping of texts to texts.

    Args:
        what: name of the argument, for the message.
        labels: as `Connection` keeps them.

    Raises:
        ConfigError: they are something else.
    """
    remedy = "write names and values as texts: {'region': 'lab-1'}"
    pairs = isinstance(labels, tuple) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in labels)
    if not isinstance(labels, tuple) or not pairs:
        raise ConfigError(f"{what}={shown(labels)} are not labels", remedy=remedy)
    for name, value in labels:
        if not _are_texts((name, value)):
            raise ConfigError(
                f"{what} has {name!r}: {shown(value)}; a host has one value of each label, and it is text",
                remedy=remedy,
            )


@attrs.frozen
class Connection:
    """Name a libvirt host.

    What is wrong with it is told by `check`, not here: Buildbot shows what is raised while it reads
    master.cfg with a traceback, and nobody could say which worker it concerns.

    Args:
        uri: libvirt's connection URI, or an alias from libvirt.conf's ``uri_aliases``.
        slots: how many VMs may run there at a time; None for no limit. For a host among several (`Hosts`)
            those of other masters count as well, else this master's alone.
        images: the folder there for disks and copied images, where none is named by ``hd_image`` or
            ``base_image``.
        frozen_space: how much room on its disk frozen images may take, in each image folder: a number of MiB,
            or a string with a unit.
        memory: how much of its memory VMs may have, everyone's together: a number of MiB, or a string with a
            unit. None for no limit; for a host among several, for what it has, less a reserve.
        vcpus: how many virtual processors VMs may have, everyone's together; None for no limit, or for a host
            among several for its processors times `Hosts`'s ``overcommit``.
        disk: how large the disks of this master's VMs may be together, as far as flavors, sizes and ``disks``
            say it: a number of MiB, or a string with a unit; None for no limit.
        labels: what a build may ask for: ``{'region': 'lab-1', 'cpu': 'avx512'}``.
        drain: whether no further VM is started there; those that run are left alone.
        copy_rate: how much of an `Image` may be sent there per second: a number of MiB, or a string with a
            unit; None for as fast as it goes.
    """

    uri: str
    slots: int | None = attrs.field(default=None, kw_only=True)
    images: str = attrs.field(default=DEFAULT_IMAGES, kw_only=True)
    frozen_space: int | str = attrs.field(default=DEFAULT_FROZEN_SPACE, kw_only=True)
    memory: int | str | None = attrs.field(default=None, kw_only=True)
    vcpus: int | None = attrs.field(default=None, kw_only=True)
    disk: int | str | None = attrs.field(default=None, kw_only=True)
    labels: Any = attrs.field(default=(), kw_only=True, converter=comparable_labels)
    drain: bool = attrs.field(default=False, kw_only=True)
    copy_rate: int | str | None = attrs.field(default=None, kw_only=True)

    def check(self) -> None:
        """Check it as far as that goes without libvirt.

        Raises:
            ConfigError: the URI cannot be one, slots is not a positive number, or frozen_space or copy_rate
                is no amount.
        """
        uri: object = self.uri
        if not isinstance(uri, str) or not uri.strip():
            what = "is empty" if isinstance(uri, str) else "is not a string"
            raise ConfigError(
                f"connection URI {uri!r} {what}",
                remedy="write one such as 'qemu:///system' or 'qemu+ssh://user@host/system'",
            )
        if not _ALIAS.fullmatch(uri) and not _is_uri(uri):
            raise ConfigError(
                f"connection URI {uri!r} cannot be read",
                remedy="write driver[+transport]://[user@][host][:port]/path, as in 'qemu:///session' or "
                "'qemu+ssh://user@host/system'",
            )
        driver, _, transport = (urlsplit(uri).scheme if _is_uri(uri) else "").partition("+")
        for what, part, known in (("driver", driver, DRIVERS), ("transport", transport, TRANSPORTS)):
            if part and part not in known:
                raise ConfigError(
                    f"connection URI {uri!r}: libvirt has no {what} {part!r}",
                    remedy="write one such as 'qemu:///system' or 'qemu+ssh://user@host/system'",
                )
        check_root(uri)
        for what, number, unit in (("slots", self.slots, "VMs"), ("vcpus", self.vcpus, "processors")):
            whole = isinstance(number, int) and not isinstance(number, bool)
            if number is not None and (not whole or number < 1):
                raise ConfigError(
                    f"{what}={number!r} is not a number of {unit}", remedy="write 1 or more, or leave it out"
                )
        mebibytes(self.frozen_space, "frozen_space")
        if not is_text(self.images) or not self.images.startswith("/"):
            raise ConfigError(
                f"images={shown(self.images)} is not an absolute path", remedy="name a folder on the host"
            )
        for what, amount in (("memory", self.memory), ("disk", self.disk)):
            if amount is not None:
                mebibytes(amount, what)
        check_labels("labels", self.labels)
        if not isinstance(self.drain, bool):
            raise ConfigError(
                f"drain={self.drain!r} is neither True nor False", remedy="write True, or leave it out"
            )
        if self.copy_rate is not None:
            mebibytes(self.copy_rate, "copy_rate")

    @property
    def frozen_bytes(self) -> int:
        """How much room frozen images may take."""
        return mebibytes(self.frozen_space, "frozen_space") * BYTES_PER_MIB

    @property
    def disk_mib(self) -> int | None:
        """How large VMs' disks may be there together; None if that was not said."""
        return None if self.disk is None else mebibytes(self.disk, "disk")

    @property
    def memory_mib(self) -> int | None:
        """How much memory VMs may have there; None if that was not said."""
        return None if self.memory is None else mebibytes(self.memory, "memory")

    @property
    def copy_bytes_per_s(self) -> int | None:
        """How many bytes of an image may be sent there per second; None for any number."""
        return None if self.copy_rate is None else mebibytes(self.copy_rate, "copy_rate") * BYTES_PER_MIB

    @property
    def is_embed(self) -> bool:
        """Whether QEMU's driver runs inside our own process: no daemon, no storage and network drivers."""
        return is_embed(self.uri)

    @property
    def is_in_process(self) -> bool:
        """Whether the driver runs inside our own process: embed, and libvirt's test driver."""
        return self.is_embed or urlsplit(self.uri).scheme == TEST_SCHEME

    @property
    def is_local(self) -> bool:
        """Whether the host is surely this machine. An alias is not: only libvirt knows where it leads."""
        return bool(urlsplit(self.uri).scheme) and not urlsplit(self.uri).netloc

    @property
    def local_uid(self) -> int | None:
        """The user that libvirt runs as on this machine; None if the host may be another."""
        if not self.is_local:
            return None
        return os.geteuid() if self.is_session else 0

    @property
    def is_session(self) -> bool:
        """Whether libvirt runs there as the user who connects."""
        return urlsplit(self.uri).path == SESSION_PATH


IMAGE_FORMATS = ("qcow2", "raw")
"""What can be copied: of these it is known whether one file is the whole image."""

IMAGE_CHECKS = ("sent", "read-back")


@attrs.frozen
class Image:
    """Name an image that is copied to the hosts that need it; what is wrong with it is told by `check`.

    It is a file, or one of the images on the master's machine, by its name or its distribution.

    Args:
        path: absolute path of the file; empty for an image that has a name.
        at: the host where it lies; None for the master's own machine.
        format: ``'qcow2'`` or ``'raw'``; None reads it from the file.
        verify: what is compared with the image's digest before a copy is used: ``'sent'``, the bytes that
            were sent, or ``'read-back'``, also those that the host gives back.
        name: of an image there: ``'debian-12'``, ``'bookworm'``.
        os_type: its distribution, instead of the name: ``'debian'``.
        os_version: and the version of that: ``'12'``, or a codename.
        arch: its architecture; None for that of the host.
        stock: whether the image of that name is meant as its vendor made it, not what was built of it;
            where the worker has ``cloud_init``, it is.
    """

    path: str = ""
    at: Connection | None = attrs.field(default=None, kw_only=True)
    format: str | None = attrs.field(default=None, kw_only=True)
    verify: str = attrs.field(default="sent", kw_only=True)
    name: Any = attrs.field(default=None, kw_only=True)
    os_type: Any = attrs.field(default=None, kw_only=True)
    os_version: Any = attrs.field(default=None, kw_only=True)
    arch: Any = attrs.field(default=None, kw_only=True)
    stock: bool = attrs.field(default=False, kw_only=True)

    @property
    def called(self) -> str:
        """The name by which it is looked up; empty for a file."""
        if self.path:
            return ""
        if self.name is not None:
            return str(self.name)
        return f"{self.os_type}-{self.os_version}" if self.os_type is not None else ""

    def check(self) -> None:
        """Check it as far as that goes without looking at the file, or for the name.

        Raises:
            ConfigError: an argument cannot be right.
        """
        path: object = self.path
        at: object = self.at
        if any(part is not None for part in (self.name, self.os_type, self.os_version, self.arch)):
            self._check_name()
        elif not isinstance(path, str) or not path.startswith("/") or path.endswith("/"):
            raise ConfigError(
                f"Image({path!r}) is not the absolute path of a file",
                remedy="write one such as Image('/srv/images/debian.qcow2')",
            )
        if at is not None and not isinstance(at, Connection):
            raise ConfigError(
                f"Image({path!r}, at={at!r}) names no host",
                remedy="write at=Connection('qemu+ssh://user@host/system'), or leave it out for the master",
            )
        if self.at is not None:
            self.at.check()
        if self.format not in (None, *IMAGE_FORMATS):
            raise ConfigError(
                f"Image({path!r}, format={self.format!r}) cannot be copied",
                remedy="write 'qcow2' or 'raw'; qemu-img convert makes either of other formats",
            )
        if self.verify not in IMAGE_CHECKS:
            raise ConfigError(
                f"Image({path!r}, verify={self.verify!r}) is no check", remedy="write 'sent' or 'read-back'"
            )

    def _check_name(self) -> None:
        by_name, by_distribution = (
            self.name is not None,
            (self.os_type is not None, self.os_version is not None),
        )
        if (self.path, self.at, self.format) != ("", None, None):
            raise ConfigError(
                f"Image({self.path!r}, name or os_type=...) is said to be two things",
                remedy="an image with a name is the master's own, and has no path, at and format",
            )
        if by_distribution != (not by_name, not by_name):
            raise ConfigError(
                f"Image(name={shown(self.name)}, os_type={shown(self.os_type)}, "
                f"os_version={shown(self.os_version)}) names no image",
                remedy="write name='debian-12', or os_type='debian' and os_version='12' together",
            )
        for what in ("name", "os_type", "os_version", "arch"):
            value = getattr(self, what)
            if value is not None and not is_text(value):
                raise ConfigError(
                    f"Image({what}={shown(value)}) is no text", remedy="write it in quotes: os_version='12'"
                )

    def __str__(self) -> str:
        if self.called:
            return self.called if self.arch is None else f"{self.called} for {self.arch}"
        return self.path if self.at is None else f"{self.path} at {self.at.uri}"
