"""SSH host keys of guests: read with suspicion, since guests tell them, and written for ``known_hosts``."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable

import attrs

MOST_KEYS = 8
LONGEST_KEY = 4096
"""Characters of a public key, type included; RSA keys of 16384 bits have 2800."""

KINDS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
)
_LENGTH_BYTES = 4
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.:][A-Za-z0-9_.:-]*|\[[0-9A-Fa-f.:]+\]:[0-9]+")
"""What means itself in a known_hosts file: no pattern, no marker, no list; an address may have a port."""


@attrs.frozen
class HostKey:
    """A public SSH host key.

    Args:
        kind: as OpenSSH calls it, such as ``ssh-ed25519``.
        data: the key in base64.
    """

    kind: str
    data: str

    def __str__(self) -> str:
        return f"{self.kind} {self.data}"

    @classmethod
    def parse(cls, said: object) -> HostKey | None:
        """Read a key as in a ``.pub`` file; None if it is not one that is known to be well formed."""
        if not isinstance(said, str) or len(said) > LONGEST_KEY:
            return None
        kind, _, rest = said.partition(" ")
        data = rest.partition(" ")[0]
        try:
            blob = base64.b64decode(data.encode("ascii"), validate=True)
        except (UnicodeEncodeError, binascii.Error):
            return None
        # The key itself begins with its kind; what is one thing outside and another inside is no key.
        begins = len(kind).to_bytes(_LENGTH_BYTES, "big") + kind.encode()
        if kind not in KINDS or not blob.startswith(begins) or len(blob) == len(begins):
            return None
        return cls(kind, data)


@attrs.frozen
class PrivateKey:
    """A host key that a guest is given.

    Args:
        private: in OpenSSH's format.
        public: the key that it belongs to.
    """

    private: str = attrs.field(repr=False)
    public: HostKey


def read_keys(said: object) -> tuple[HostKey, ...]:
    """Read a list of keys; those that are not well formed are passed over, as is what is no list."""
    if not isinstance(said, list):
        return ()
    keys = (HostKey.parse(one) for one in said[:MOST_KEYS])
    return tuple(dict.fromkeys(key for key in keys if key is not None))


def is_plain_name(name: str) -> bool:
    """Say whether a name means itself, and nothing more, in a ``known_hosts`` file."""
    return _PLAIN_NAME.fullmatch(name) is not None


def known_hosts(names: Iterable[str], keys: Iterable[HostKey]) -> str:
    """Write the lines for a ``known_hosts`` file; empty if there is no name, or no key.

    Args:
        names: names and addresses of one machine; those that are not plain are left out.
        keys: its keys.
    """
    plain = ",".join(filter(is_plain_name, dict.fromkeys(names)))
    return "".join(f"{plain} {key}\n" for key in keys) if plain else ""
