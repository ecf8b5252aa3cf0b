"""Which address a guest reaches its master at."""

from __future__ import annotations

import pytest

from latentvirt.address import USER_MODE_HOST, master_host, master_port, read_address, split_address
from latentvirt.domainxml import NetworkUse
from latentvirt.errors import ConfigError


@pytest.mark.parametrize(
    ("kind", "local", "network_address", "given", "expected"),
    [
        ("user", True, None, None, USER_MODE_HOST),
        ("user", False, None, None, "master.example"),
        ("network", True, "192.168.122.1", None, "192.168.122.1"),
        ("network", True, None, None, "master.example"),
        ("network", False, "192.168.122.1", None, "master.example"),
        ("bridge", True, None, None, "master.example"),
        ("none", True, None, None, "master.example"),
        ("user", True, None, "said.example", "said.example"),
        ("network", True, "192.168.122.1", "said.example", "said.example"),
    ],
)
def test_master_host(
    kind: str, local: bool, network_address: str | None, given: str | None, expected: str
) -> None:
    """What the person said wins; else the address of the guest's own network, if the host is this machine."""
    found = master_host(
        NetworkUse(kind, "default"),
        given=given,
        host_is_local=local,
        network_address=network_address,
        fallback=lambda: "master.example",
    )
    assert found == expected


@pytest.mark.parametrize(
    ("portstr", "port"),
    [
        (9989, 9989),
        ("9989", 9989),
        ("tcp:9989", 9989),
        ("tcp:port=9989", 9989),
        ("tcp:9989:interface=127.0.0.1", 9989),
        ("tcp6:9989", 9989),
        ("ssl:9989:privateKey=k:certKey=c", 9989),
        ("tcp:interface=127.0.0.1:port=9989", 9989),
        (0, None),
        ("tcp:0", None),
        ("unix:/run/b.sock", None),
        ("", None),
    ],
)
def test_master_port(portstr: str | int, port: int | None) -> None:
    """The port is found in what Buildbot takes for one; none is made up."""
    assert master_port(portstr) == port


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (None, (None, None)),
        ("", (None, None)),
        ("master.example", ("master.example", None)),
        ("master.example:9999", ("master.example", 9999)),
        ("10.0.2.2:9989", ("10.0.2.2", 9989)),
        ("fd00::2", ("fd00::2", None)),
        ("[fd00::2]:9989", ("[fd00::2]", 9989)),
    ],
)
def test_split_address(given: str | None, parts: tuple[str | None, int | None]) -> None:
    """A master's address may name a port; an IPv6 address is not taken apart."""
    assert split_address(given) == parts


@pytest.mark.parametrize(
    "given", ["master", "master.example:9989", "münchen.example", "10.0.2.2:1", "fd00::2", "[fd00::2]:9989"]
)
def test_an_address_of_a_master_is_taken_as_it_is(given: str) -> None:
    """Names and addresses of hosts are good, with a port and without."""
    assert read_address(given, "masterFQDN") == given


@pytest.mark.parametrize(
    "given",
    ["master:port", "master:", "http://master", "a b", "master:0", "master:65536", "[fd00]:1", "x\n", 5, " "],
)
def test_what_no_guest_could_connect_to_is_refused(given: object) -> None:
    """An address with a port that is none, or that is no host's, is told when the configuration is read."""
    with pytest.raises(ConfigError, match="masterFQDN="):
        read_address(given, "masterFQDN")
