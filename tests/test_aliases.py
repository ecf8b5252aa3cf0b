"""Names of hosts from libvirt's own configuration, checked before anything connects."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentvirt.aliases import check_alias, client_config, read_aliases
from latentvirt.errors import ConfigError
from latentvirt.hosts import Hosts
from latentvirt.master.arguments import read_arguments

LAB = """
# 'mira000=qemu+ssh://nobody@mira000/system',
uri_default = "qemu:///system"
uri_aliases = [
    'mira001=qemu+ssh://ubuntu@mira001.front.sepia.example.com/system?no_tty=1',
    # 'mira002=qemu+ssh://ubuntu@mira002.front.sepia.example.com/system?no_tty=1',
    "mira003=qemu+ssh://ubuntu@mira003.front.sepia.example.com/system?no_tty=1",
    'broken=mira001',
]
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The client's configuration of an ordinary user."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file = tmp_path / "libvirt/libvirt.conf"
    assert client_config() == file
    file.parent.mkdir()
    file.write_text(LAB)
    return file


def test_downburst_hosts_are_named_by_uri_aliases() -> None:
    """All aliases of a lab's libvirt.conf are read, with options in their URIs, and no comments."""
    aliases = read_aliases(LAB)
    assert sorted(aliases) == ["broken", "mira001", "mira003"]
    assert aliases["mira003"] == "qemu+ssh://ubuntu@mira003.front.sepia.example.com/system?no_tty=1"


@pytest.mark.parametrize("text", ["", "uri_aliases = []", "uri_aliases = [", "uri_aliases = ['no sign']"])
def test_a_configuration_without_aliases_has_none(text: str) -> None:
    """What is not there, or cannot be read, names no host."""
    assert read_aliases(text) == {}


def test_root_has_the_systems_aliases(monkeypatch: pytest.MonkeyPatch) -> None:
    """A master that runs as root reads the system's libvirt.conf, as libvirt does."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert client_config() == Path("/etc/libvirt/libvirt.conf")


def test_aliases_and_uris_are_accepted(config: Path) -> None:
    """A worker's hosts can be named by either."""
    hosts = Hosts("mira001", "qemu:///system", "mira003")
    read_arguments("x", hosts, base_image="/images/base", size={})


def test_an_unknown_alias_is_named_with_its_file(config: Path) -> None:
    """A typing error in an alias is told by checkconfig, with what was probably meant."""
    with pytest.raises(ConfigError, match=r"'mira01' is no URI, .*libvirt.conf has no .*mean 'mira001'"):
        read_arguments("x", Hosts("mira003", "mira01"), base_image="/images/base", size={})


def test_an_alias_that_leads_nowhere_is_named(config: Path) -> None:
    """An alias that does not stand for a URI is told with the file it is in."""
    with pytest.raises(ConfigError, match=r"'broken' in .*libvirt.conf stands for 'mira001', which"):
        check_alias("broken")


def test_without_a_configuration_no_alias_is_known(config: Path) -> None:
    """Where there is no libvirt.conf, the error says which file would be read."""
    config.unlink()
    with pytest.raises(ConfigError, match=r"'mira001' is no URI.*libvirt/libvirt.conf"):
        check_alias("mira001")
    check_alias("qemu:///system")
