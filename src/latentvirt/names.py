"""Names that say whose a thing is: after a crash, they are all that is left to know it by.

Everything that we make on a host is a domain that carries an `Ownership` in its metadata, or a file in the
directory ``latentvirt-<owner>`` whose whole name parses as a `FileName` or a `Lease`. That, and nothing
else, makes a thing ours.
"""

from __future__ import annotations

import hashlib
import re
import secrets

import attrs

from latentvirt.errors import ConfigError
from latentvirt.showing import shown

METADATA_NAMESPACE = "urn:latentvirt:vm:1"
METADATA_PREFIX = "latentvirt"
GUEST_NAMESPACE = "urn:latentvirt:guest:1"
GUEST_PREFIX = "latentvirt-guest"
"""Of what a guest told of itself; libvirt keeps one element for each namespace."""
CHANNEL_PORT = "org.latentvirt.worker.0"

OWNER_PATTERN = re.compile(r"[0-9a-f]{16}")
START_PATTERN = re.compile(r"[0-9a-f]{12}")
SLOT_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}")

MAC_PREFIX = "52:54"
"""What the addresses that we make up begin with; as an address, it is nobody's."""

MAC_DIGITS = 8

_DIRECTORY = re.compile(rf"latentvirt-({OWNER_PATTERN.pattern})")
_FILE = re.compile(
    rf"({SLOT_PATTERN.pattern})\.({START_PATTERN.pattern})\.(overlay|disk|vars|memory|frozen)"
    r"\.([A-Za-z0-9_-]{1,64})"
)
_LOOK_POOL = re.compile(rf"latentvirt-(?:{OWNER_PATTERN.pattern}|images)-[0-9a-f]{{8}}-look")
_LEASE = re.compile(r"lease\.(\d{1,12})")


def new_owner() -> str:
    """Make a random owner id, for one master's installation."""
    return secrets.token_hex(8)


def new_start() -> str:
    """Make a random start id, for one start of one VM."""
    return secrets.token_hex(6)


@attrs.frozen
class Ownership:
    """Whose a domain is and for what it was started, as its metadata says.

    Args:
        owner: id of the master's installation.
        slot: the place that the VM takes.
        start: id of the start.
    """

    owner: str = attrs.field(validator=attrs.validators.matches_re(OWNER_PATTERN))
    slot: str = attrs.field(validator=attrs.validators.matches_re(SLOT_PATTERN))
    start: str = attrs.field(validator=attrs.validators.matches_re(START_PATTERN))


@attrs.frozen
class FileName:
    """The name of a file of one start.

    Args:
        slot: as in `Ownership`.
        start: as in `Ownership`.
        kind: ``overlay`` for a disk's, ``disk`` for that of a disk which begins empty, ``vars`` for UEFI
            variables, ``memory`` for a frozen guest's, ``frozen`` for the empty file that makes all of a
            start's files a frozen image.
        target: the disk's target (``vda``), ``nvram``, ``ram``, or what a frozen image is valid for.
    """

    slot: str
    start: str
    kind: str
    target: str

    def __str__(self) -> str:
        return f"{self.slot}.{self.start}.{self.kind}.{self.target}"

    @classmethod
    def parse(cls, name: str) -> FileName | None:
        """Read a name; None if it is not one of ours."""
        found = _FILE.fullmatch(name)
        return cls(*found.groups()) if found else None


@attrs.frozen
class Lease:
    """The name of the empty file that says until when an owner claims its directory.

    Args:
        until: seconds since the epoch.
    """

    until: int

    def __str__(self) -> str:
        return f"lease.{self.until}"

    @classmethod
    def parse(cls, name: str) -> Lease | None:
        """Read a name; None if it is not a lease's."""
        found = _LEASE.fullmatch(name)
        return cls(int(found.group(1))) if found else None


def directory_name(owner: str) -> str:
    """Name the directory that an owner's files on one host lie in."""
    return f"latentvirt-{owner}"


def directory_owner(name: str) -> str | None:
    """Read the owner from a directory's name; None if it is not one of ours."""
    found = _DIRECTORY.fullmatch(name)
    return found.group(1) if found else None


def pool_name(owner: str, folder: str) -> str:
    """Name the libvirt pool over an owner's directory in a folder; one owner may have several."""
    return f"latentvirt-{owner}-{hashlib.sha256(folder.encode()).hexdigest()[:8]}"


def look_pool_name(owner: str, folder: str) -> str:
    """Name the libvirt pool that exists over a person's folder for the moment of a look."""
    return f"{pool_name(owner, folder)}-look"


def is_look_pool(name: str) -> bool:
    """Say whether a pool is there for the moment of some master's look only."""
    return _LOOK_POOL.fullmatch(name) is not None


def check_domain_name(name: str, what: str) -> str:
    """Check the name of a domain, and return it.

    Args:
        name: as it was written.
        what: where that was, for the message.

    Raises:
        ConfigError: libvirt would refuse it: it names files after its domains.
    """
    if "/" in name:
        raise ConfigError(f"{what} {shown(name)} has a slash in it", remedy="write it without")
    return name


def slot_of_domain(domain: str) -> str:
    """Name the slot that a predefined or given domain is: readable, and as unique as the domain's name."""
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", domain)[:40]
    return f"{readable}-{hashlib.sha256(domain.encode()).hexdigest()[:8]}"


def slot_of_number(number: int) -> str:
    """Name a numbered slot of generated domains."""
    return f"slot{number}"


def generated_domain_name(owner: str, slot: str) -> str:
    """Name the domain that is generated for a slot."""
    return f"latentvirt-{owner}-{slot}"


def mac_of_slot(host: str, owner: str, slot: str, number: int) -> str:
    """Make up a network card's address: always the same for a slot, so that networks know its VM again.

    Args:
        host: the host's URI.
        owner: whose slot it is.
        slot: the place on that host.
        number: which of its cards, counted from 0.
    """
    digest = hashlib.sha256(f"{host} {owner} {slot} {number}".encode()).hexdigest()[:MAC_DIGITS]
    return ":".join([MAC_PREFIX, *(digest[place : place + 2] for place in range(0, MAC_DIGITS, 2))])
