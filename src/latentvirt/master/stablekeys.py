"""SSH host keys that stay the same for a worker's VMs, kept in the master's base directory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from urllib.parse import quote

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from latentvirt.errors import ConfigError
from latentvirt.hostkeys import HostKey, PrivateKey

FOLDER = "latentvirt-keys"
"""Below the base directory; closed to all but its user."""


def stable_key(basedir: str, worker: str) -> PrivateKey:
    """Return a worker's SSH host key; it is made when it is asked for first.

    Args:
        basedir: of the master.
        worker: its name.

    Raises:
        ConfigError: it can neither be read nor made.
    """
    path = Path(basedir, FOLDER, quote(worker, safe=""))
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if not path.exists():
            _publish(path)
        return _read(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the SSH host key of worker {worker!r} cannot be used: {path}: {_why(error)}",
            remedy="let the master's user write there; remove a key that is damaged, and a new one is made",
        ) from error


def _why(error: Exception) -> str:
    # What a parser says of a private key could quote it.
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "it is no ed25519 key"


def _read(data: bytes) -> PrivateKey:
    key = serialization.load_ssh_private_key(data, password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("another kind of key")
    return PrivateKey(data.decode("ascii"), _public(key))


def _public(key: Ed25519PrivateKey) -> HostKey:
    text = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    kind, data = text.decode("ascii").split()
    return HostKey(kind, data)


def _publish(path: Path) -> None:
    """Make a key, and put it there whole; the public half beside it is for people."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    _write(path.with_name(f"{path.name}.pub"), f"{_public(key)}\n".encode())
    _write(path, private)


def _write(path: Path, data: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
