"""The host's side of what host and guest say to each other."""

from __future__ import annotations

import base64
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentvirt.guest import (
    ENTROPY_BYTES,
    LONGEST_LINE,
    Attaching,
    Complaint,
    GuestReader,
    Identity,
    Message,
    Prepared,
    Ready,
    freeze_line,
    identity_line,
)
from latentvirt.hostkeys import HostKey, PrivateKey

KEY = HostKey("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAIG1hdGVyaWFs")
READY = b'{"latentvirt": 1, "say": "ready", "helper": "1", "system": "linux"}\n'
ABLE = b'{"latentvirt": 1, "say": "ready", "helper": "2", "system": "linux", "can": ["freeze", "fly"]}\n'
FROZEN = b'{"latentvirt": 1, "say": "frozen"}\n'
ATTACHING = b'{"latentvirt": 1, "say": "attaching"}\n'
ERROR = b'{"latentvirt": 1, "say": "error", "why": "no network"}\n'

PIECES = st.lists(
    st.sampled_from(
        [READY, ABLE, FROZEN, ATTACHING, ERROR, b"\n", b"getty\r\n", b"{", b"x" * LONGEST_LINE, b"\xff\xfe"]
    ),
    max_size=12,
)


def _messages(parts: list[bytes]) -> list[Message]:
    reader = GuestReader()
    return [message for part in parts for message in reader.feed(part)]


@given(PIECES, st.lists(st.integers(0, 10**6), max_size=12))
def test_any_split_gives_the_same_messages(pieces: list[bytes], cuts: list[int]) -> None:
    """How the bytes are cut on their way does not change what is understood."""
    data = b"".join(pieces)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    parts = [data[start:end] for start, end in pairwise(edges)]
    assert _messages(parts) == _messages([data])


@given(st.binary(max_size=300))
def test_garbage_is_passed_over(garbage: bytes) -> None:
    """Whatever a guest writes, the next line that is ours is understood."""
    assert _messages([garbage + b"\n" + READY])[-1:] == [Ready("1", "linux")]


def test_what_a_guest_says() -> None:
    """Ready, being ready to be frozen, attaching and a complaint are told apart."""
    assert _messages([READY + FROZEN + ATTACHING + ERROR]) == [
        Ready("1", "linux"),
        Prepared(),
        Attaching(),
        Complaint("no network"),
    ]


def test_a_guest_says_what_it_can() -> None:
    """A guest that can be frozen is known from one of an older helper, which is not asked for it."""
    assert [message.can for message in _messages([READY, ABLE])] == [frozenset(), {"freeze", "fly"}]


@pytest.mark.parametrize(
    "said",
    [
        '"freeze"',
        '{"freeze": 1}',
        "null",
        "7",
        '["freeze", 1]',
        '["freeze", []]',
        '["freeze", ""]',
        json.dumps(["freeze", "x" * 65]),
        json.dumps(["freeze"] * 17),
    ],
)
def test_an_odd_list_of_what_a_guest_can_means_nothing(said: str) -> None:
    """A guest that says nonsense about itself is started as one that can do nothing special."""
    line = READY.replace(b"}", b', "can": ' + said.encode() + b"}")
    assert _messages([line]) == [Ready("1", "linux")]


@pytest.mark.parametrize(
    "line",
    [
        b'{"latentvirt": 2, "say": "ready"}',
        b'{"say": "ready"}',
        b'{"latentvirt": 1, "say": "dance"}',
        b'{"latentvirt": 1, "say": ["ready"]}',
        b'["latentvirt"]',
        b"1" * 6000,
        b"[" * 60000,
        b'{"latentvirt": 1, "say": "ready", "x": "' + b"y" * LONGEST_LINE + b'"}',
    ],
    ids=["version", "unmarked", "unknown", "list", "array", "number", "nested", "long"],
)
def test_what_is_no_message(line: bytes) -> None:
    """Lines of other protocols, versions and sizes are passed over."""
    assert _messages([line + b"\n"]) == []


def test_what_a_guest_says_is_one_printable_line() -> None:
    """A guest can neither fake a line of the build's log nor put in what cannot be written."""
    said = json.dumps({"latentvirt": 1, "say": "error", "why": "a\nb\x1b[31m\ud800" + "z" * 5000}).encode()
    (message,) = _messages([said + b"\n"])
    assert isinstance(message, Complaint)
    assert message.why.startswith("a b [31m z")
    assert len(message.why) == 1000
    message.why.encode()


def test_a_line_without_end_takes_little_memory() -> None:
    """A guest that never ends its line does not fill the master's memory, and is understood afterwards."""
    reader = GuestReader()
    for _ in range(50):
        assert reader.feed(b"x" * 65536) == []
        assert len(reader._rest) <= LONGEST_LINE
    assert reader.feed(b"\n" + READY) == [Ready("1", "linux")]


def test_the_identity_is_one_line() -> None:
    """The guest is told name, password, master, time and fresh entropy, in one line."""
    identity = Identity(name="minion1", password='p"w\n', master="10.0.2.2:9989")
    lines = [identity_line(identity, start="0a1b2c3d4e5f", now=1234.5) for _ in range(2)]
    assert all(line.count(b"\n") == 1 and line.endswith(b"\n") for line in lines)
    first, second = (json.loads(line) for line in lines)
    assert (first["name"], first["password"], first["master"]) == ("minion1", 'p"w\n', "10.0.2.2:9989")
    assert (first["start"], first["time"]) == ("0a1b2c3d4e5f", 1234.5)
    assert len(base64.b64decode(first["entropy"])) == ENTROPY_BYTES
    assert first["entropy"] != second["entropy"]
    assert "thawed" not in first


def test_a_guest_is_told_that_it_slept() -> None:
    """A guest whose memory was restored learns it, so that it makes itself new."""
    identity = Identity(name="minion1", password="p", master="10.0.2.2:9989")
    assert (
        json.loads(identity_line(identity, start="0a1b2c3d4e5f", now=1234.5, thawed=True))["thawed"] is True
    )


def test_the_guest_is_asked_to_make_itself_ready() -> None:
    """What asks a guest to prepare is one line of the protocol."""
    assert freeze_line() == b'{"latentvirt": 1, "say": "freeze"}\n'


def test_an_identity_does_not_show_its_password() -> None:
    """The password is in no traceback or log by way of the identity's description."""
    assert "sekrit" not in repr(Identity(name="a", password="sekrit", master="b:1"))


def test_a_guest_tells_its_host_keys() -> None:
    """The SSH host keys that a guest tells are read; what is none of a known kind is passed over."""
    told = {"latentvirt": 1, "say": "attaching", "ssh": [f"{KEY} root@guest", "ssh-new AAAA", 7]}
    assert _messages([json.dumps(told).encode() + b"\n"]) == [Attaching((KEY,))]


def test_a_guest_is_given_a_host_key_only_if_there_is_one() -> None:
    """The line of an identity has a private key where the worker has one, and nobody's text of it does."""
    given = PrivateKey("-----BEGIN", KEY)
    identity = Identity(name="n", password="p", master="m:1", ssh_host_key=given)
    assert json.loads(identity_line(identity, start="s", now=0))["ssh_host_key"] == {
        "private": "-----BEGIN",
        "public": str(KEY),
    }
    assert "BEGIN" not in repr(identity)
    plain = Identity(name="n", password="p", master="m:1")
    assert "ssh_host_key" not in json.loads(identity_line(plain, start="s", now=0))
