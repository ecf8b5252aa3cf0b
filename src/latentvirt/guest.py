"""What host and guest say to each other over the channel.

One JSON object a line, in UTF-8, both ways. The guest says it is ready, again and again; the host answers
once with who the guest is; the guest says that it attaches, or what is wrong. Before that the host may have a
guest that can do so make itself ready to be frozen, or rehearse its attachment: it then falls silent for a
while.
"""

from __future__ import annotations

import base64
import json
import secrets

import attrs

from latentvirt.hostkeys import HostKey, PrivateKey, read_keys

PROTOCOL = 1
LONGEST_LINE = 64 * 1024
ENTROPY_BYTES = 64
FREEZE = "freeze"
"""The word in what a guest `can` that says that it understands `freeze_line`."""
REHEARSE = "rehearse"
"""The same for `rehearse_line`."""
MOST_ABILITIES = 16
LONGEST_WORD = 64


@attrs.frozen(kw_only=True)
class Identity:
    """Who a guest is to be.

    Args:
        name: the Buildbot worker's name.
        password: good for this start only.
        master: ``host:port`` that the worker connects to.
        ssh_host_key: to be its only one; None leaves its own.
    """

    name: str
    password: str = attrs.field(repr=False)
    master: str
    ssh_host_key: PrivateKey | None = None


@attrs.frozen
class Ready:
    """The guest has booted and waits for its identity.

    Args:
        helper: version of the guest's helper.
        system: kind of operating system.
        can: what it understands beyond being told who it is.
    """

    helper: str
    system: str
    can: frozenset[str] = frozenset()


@attrs.frozen
class Prepared:
    """The guest has made itself ready to be frozen, and says nothing more until somebody speaks to it."""


@attrs.frozen
class Rehearsed:
    """The guest has done once what it does to attach, and waits to be told who it is."""


@attrs.frozen
class Attaching:
    """The guest took its identity and connects.

    Args:
        keys: its public SSH host keys, now that it has made itself new.
    """

    keys: tuple[HostKey, ...] = ()


@attrs.frozen
class Complaint:
    """The guest cannot go on.

    Args:
        why: one sentence.
    """

    why: str


Message = Ready | Prepared | Rehearsed | Attaching | Complaint


class GuestReader:
    """Turn the channel's bytes into messages; one per start."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False

    def feed(self, data: bytes) -> list[Message]:
        """Take bytes as they come; what is no message of ours is passed over: guests are not trusted."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self._skipping and lines:
            lines.pop(0)
            self._skipping = False
        if len(self._rest) > LONGEST_LINE:
            self._rest = b""
            self._skipping = True
        messages = (_message(line) for line in lines if len(line) <= LONGEST_LINE)
        return [message for message in messages if message is not None]


def _message(line: bytes) -> Message | None:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or said.get("latentvirt") != PROTOCOL:
        return None
    kind = said.get("say")
    if kind == "ready":
        helper, system = (_text(said.get(key, "?"), LONGEST_WORD) for key in ("helper", "system"))
        return Ready(helper, system, _words(said.get("can")))
    if kind == "frozen":
        return Prepared()
    if kind == "rehearsed":
        return Rehearsed()
    if kind == "attaching":
        return Attaching(read_keys(said.get("ssh")))
    if kind == "error":
        return Complaint(_text(said.get("why", "it did not say why"), 1000))
    return None


def _words(said: object) -> frozenset[str]:
    """Read a short list of words; anything else means none."""
    if not isinstance(said, list) or len(said) > MOST_ABILITIES:
        return frozenset()
    words = [word for word in said if isinstance(word, str) and 0 < len(word) <= LONGEST_WORD]
    return frozenset(words) if len(words) == len(said) else frozenset()


def _text(said: object, longest: int) -> str:
    """Make one printable line of what a guest says: guests could fake lines of a log, or break its writer."""
    return "".join(character if character.isprintable() else " " for character in str(said)[:longest])


def freeze_line() -> bytes:
    """Write the line that asks a guest to make itself ready to be frozen."""
    return _line(say=FREEZE)


def rehearse_line(*, now: float) -> bytes:
    """Write the line that asks a thawed guest to become a VM of its own, and to rehearse its attachment.

    Args:
        now: seconds since the epoch.
    """
    return _line(say=REHEARSE, time=now, entropy=_entropy())


def identity_line(identity: Identity, *, start: str, now: float, thawed: bool = False) -> bytes:
    """Write the line that tells a guest who it is, with the time and fresh entropy.

    Args:
        identity: who it is.
        start: id of the start.
        now: seconds since the epoch.
        thawed: whether the guest's memory was restored, so that others had, or will have, the same.
    """
    key = identity.ssh_host_key
    return _line(
        say="identity",
        name=identity.name,
        password=identity.password,
        master=identity.master,
        start=start,
        time=now,
        entropy=_entropy(),
        **({"thawed": True} if thawed else {}),
        **({"ssh_host_key": {"private": key.private, "public": str(key.public)}} if key else {}),
    )


def _entropy() -> str:
    return base64.b64encode(secrets.token_bytes(ENTROPY_BYTES)).decode()


def _line(**said: object) -> bytes:
    return json.dumps({"latentvirt": PROTOCOL, **said}).encode() + b"\n"
