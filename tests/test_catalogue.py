"""The catalogue: the names that people use, and what files of their own add and change."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from barring import barred
from latentvirt.errors import ConfigError
from latentvirt.images import catalogue as catalogue_module
from latentvirt.images.catalogue import Catalogue, load_catalogue, user_files
from latentvirt.images.items import KEYS, Item

SHA = hashlib.sha256(b"").hexdigest()
OWN = f'[images.own]\nurl = "http://mirror/own.qcow2"\nsha256 = "{SHA}"\n'


@pytest.fixture(autouse=True)
def _no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No file of this machine's counts."""
    monkeypatch.setattr(catalogue_module, "SYSTEM_CATALOGUE", str(tmp_path / "etc" / "images.toml"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("LATENTVIRT_CATALOGUE", raising=False)


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file that the environment names."""
    path = tmp_path / "images.toml"
    monkeypatch.setenv("LATENTVIRT_CATALOGUE", str(path))
    return path


def with_file(file: Path, text: str) -> Catalogue:
    """Read the catalogue with a file of the person's."""
    file.write_text(text)
    return load_catalogue()


def refusal(file: Path, text: str) -> str:
    """Say how a file is refused."""
    with pytest.raises(ConfigError) as caught:
        with_file(file, text)
    return str(caught.value)


# Built in


@pytest.mark.parametrize(
    "name",
    [
        *(
            "debian-11",
            "debian-12",
            "debian-13",
            "ubuntu-20.04",
            "ubuntu-22.04",
            "ubuntu-24.04",
            "ubuntu-26.04",
        ),
        *("fedora-43", "fedora-44", "centos-stream-9", "centos-stream-10", "rocky-8", "rocky-9", "rocky-10"),
        *("alma-8", "alma-9", "alma-10", "opensuse-leap-15.6", "opensuse-leap-16.0", "opensuse-tumbleweed"),
    ],
)
@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_each_image_that_is_built_in_can_be_had_safely(name: str, arch: str) -> None:
    """Vendors' images are known for both architectures, over HTTPS, with a list of checksums."""
    item = load_catalogue().item(name, arch)
    assert urlsplit(item.url or item.page).scheme == "https"
    assert item.sums
    assert "{" not in item.url + item.page + item.file
    vendors_arch = {"x86_64": ("x86_64", "amd64"), "aarch64": ("aarch64", "arm64")}[arch]
    assert any(one in item.url + item.page for one in vendors_arch)
    assert item.kind == "stock"


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("debian-12", "debian-12"),
        ("bookworm", "debian-12"),
        ("debian-bookworm", "debian-12"),
        ("Debian-12", "debian-12"),
        ("noble", "ubuntu-24.04"),
        ("ubuntu-noble", "ubuntu-24.04"),
        ("centos-9", "centos-stream-9"),
        ("centos-9.stream", "centos-stream-9"),
        ("opensuse-15.6", "opensuse-leap-15.6"),
        ("opensuse-leap-15.6", "opensuse-leap-15.6"),
        ("tumbleweed", "opensuse-tumbleweed"),
        ("opensuse-tumbleweed", "opensuse-tumbleweed"),
        ("almalinux-9", "alma-9"),
    ],
)
def test_an_image_is_known_by_all_that_people_call_it(called: str, name: str) -> None:
    """Versions, codenames, and either with the distribution before it lead to one image."""
    assert load_catalogue().name_of(called) == name


@pytest.mark.parametrize(
    ("called", "near"),
    [
        ("debain-12", "debian-12"),
        ("bookwurm", "bookworm"),
        ("ubuntu-24.4", "ubuntu-24.04"),
        ("nobel", "noble"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(called: str, near: str) -> None:
    """Who mistypes a name is shown what may have been meant, and how to see all."""
    with pytest.raises(ConfigError, match=f"did you mean .*{near}") as caught:
        load_catalogue().name_of(called)
    assert "image list --available" in str(caught.value)


def test_a_name_like_no_other_is_refused_without_a_guess() -> None:
    """Nothing is offered where nothing is near."""
    with pytest.raises(ConfigError) as caught:
        load_catalogue().name_of("zzzzzz")
    assert "did you mean" not in str(caught.value)


def test_no_two_images_that_are_built_in_share_a_name() -> None:
    """Each name leads to one image."""
    catalogue = load_catalogue()
    for item in catalogue:
        for name in item.names:
            assert catalogue.name_of(name) == item.name


def test_an_architecture_that_the_vendor_has_not_is_refused_with_those_it_has() -> None:
    """Architectures are understood by any of their names."""
    assert load_catalogue().item("noble", "arm64").arch == "aarch64"
    with pytest.raises(ConfigError, match=r"no image debian-12 for s390x.* aarch64, x86_64"):
        load_catalogue().item("debian-12", "s390x")


def test_a_pinned_build_has_an_address_of_its_own(file: Path) -> None:
    """One line pins the vendor's build of an image that is built in, for each architecture."""
    catalogue = with_file(file, '[images.debian-12]\nserial = "20240211-1654"')
    item = catalogue.item("debian-12", "x86_64")
    assert item.url.endswith("/bookworm/20240211-1654/debian-12-genericcloud-amd64-20240211-1654.qcow2")
    assert "arm64-20240211-1654" in catalogue.item("debian-12", "aarch64").url
    fedora = with_file(file, '[images.fedora-43]\nserial = "1.6"').item("fedora-43", "x86_64")
    assert fedora.file == "Fedora-Cloud-Base-Generic-43-1.6.x86_64.qcow2"
    assert fedora.sums == "Fedora-Cloud-43-1.6-x86_64-CHECKSUM"


# Files of the person's own


def test_a_file_adds_an_image(file: Path) -> None:
    """A private image is known beside those that are built in; its architecture is x86_64 unless said."""
    catalogue = with_file(file, OWN)
    assert catalogue.item("own", "x86_64") == Item(
        name="own", arch="x86_64", url="http://mirror/own.qcow2", sha256=SHA, defined_in=str(file)
    )
    assert catalogue.name_of("debian-12") == "debian-12"
    assert len(list(catalogue)) == len({(item.name, item.arch) for item in catalogue}) > 40


def test_a_file_changes_single_keys_of_an_image(file: Path) -> None:
    """What a file does not say of an image stays."""
    text = (
        '[images."ubuntu-24.04"]\nkeyring = "/usr/share/keyrings/x.gpg"\ncodenames = ["noble", "our-noble"]'
    )
    item = with_file(file, text).item("our-noble", "x86_64")
    assert item.keyring == "/usr/share/keyrings/x.gpg"
    assert item.url.startswith("https://cloud-images.ubuntu.com/")
    assert item.signature == "SHA256SUMS.gpg"


def test_an_image_from_elsewhere_keeps_nothing_of_the_vendors_checks(file: Path) -> None:
    """Another source brings checksums and signatures of its own, or none is believed to be there."""
    said = refusal(file, '[images.debian-12]\nurl = "https://mirror/d.qcow2"')
    assert "nothing says what its checksum is" in said
    text = f'[images.opensuse-tumbleweed]\nurl = "https://mirror/{{arch}}.qcow2"\nsha256 = "{SHA}"'
    item = with_file(file, text).item("tumbleweed", "aarch64")
    assert (item.url, item.sums, item.os_type) == ("https://mirror/aarch64.qcow2", "", "opensuse")


def test_a_path_is_relative_to_the_file_that_names_it(file: Path) -> None:
    """Catalogue and images can be moved together."""
    item = with_file(file, '[images.own]\npath = "disks/own.raw"\nformat = "raw"\nready = true').item(
        "own", "x86_64"
    )
    assert (item.path, item.format, item.kind) == (str(file.parent / "disks/own.raw"), "raw", "built")


def test_mirrors_replace_the_beginnings_of_addresses(file: Path) -> None:
    """One line sends all images of a vendor to a mirror; the longest of those that fit counts."""
    catalogue = with_file(
        file,
        '[mirrors]\n"https://cloud.debian.org/" = "http://mirror/"\n'
        '"https://cloud.debian.org/images/" = "http://mirror/debian/"\n',
    )
    assert catalogue.item("bookworm", "x86_64").url.startswith("http://mirror/debian/cloud/bookworm/latest/")
    assert catalogue.item("noble", "x86_64").url.startswith("https://cloud-images.ubuntu.com/")


def test_of_several_files_the_later_has_the_last_word(file: Path, tmp_path: Path) -> None:
    """The system's file is overruled by the user's, and both by that which the environment names."""
    assert [path.parent.name for path in user_files()] == ["etc", "latentvirt", file.parent.name]
    for number, path in enumerate(user_files()):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f'[images.own]\nurl = "http://mirror/{number}"\nsha256 = "{SHA}"\n'
            f'[images.own-{number}]\nurl = "http://mirror/x"\nsha256 = "{SHA}"\n'
        )
    catalogue = load_catalogue()
    assert catalogue.item("own", "x86_64").url == "http://mirror/2"
    assert [catalogue.name_of(f"own-{number}") for number in range(3)] == ["own-0", "own-1", "own-2"]


def test_a_file_that_was_changed_is_read_again(file: Path) -> None:
    """A master that reconfigures sees what was written meanwhile."""
    with_file(file, OWN)
    catalogue = with_file(file, OWN.replace("own.qcow2", "other.qcow2"))
    assert catalogue.item("own", "x86_64").url == "http://mirror/other.qcow2"


def test_what_a_codename_can_mean_twice_is_refused(file: Path) -> None:
    """Who asks by a name that two images have is told their own names."""
    catalogue = with_file(file, OWN + 'codenames = ["bookworm"]')
    with pytest.raises(ConfigError, match="may be any of debian-12, own"):
        catalogue.name_of("bookworm")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[images", "is no TOML"),
        ("[image.x]", "there is no table 'image'"),
        ("images = 3", "images is no table"),
        ('[images."Own Image"]', "[images.Own Image] is no image"),
        (OWN + 'codename = ["x"]', "[images.own]: there is no key 'codename'; did you mean 'codenames'?"),
        (OWN + 'codenames = "x"', "[images.own]: codenames = 'x' cannot be right"),
        (OWN + "os_version = 12", "[images.own]: os_version = 12 cannot be right"),
        (OWN + 'format = "vmdk"', "[images.own]: format = 'vmdk' cannot be right"),
        (OWN + 'ready = "yes"', "[images.own]: ready = 'yes' cannot be right"),
        (OWN + "arch = []", "[images.own]: arch = [] cannot be right"),
        (OWN + "arch = { x86_64 = 3 }", "[images.own.arch]: x86_64 = 3 cannot be right"),
        (OWN + 'arch.x86_64 = { color = "red" }', "[images.own.arch.x86_64]: there is no key 'color'"),
        (OWN + 'sha512 = "12"', "[images.own]: sha512 = '12' cannot be right"),
        (OWN + 'path = "/x"', "[images.own]: it has path and url"),
        (OWN + 'file = "x"', "[images.own]: it has url"),
        (OWN + 'keyring = "/x"', "[images.own]: keyring has no list to check"),
        (OWN + 'serial = "1"', "[images.own]: serial has no place in it"),
        ('[images.own]\nos_type = "x"', "[images.own]: it has no source"),
        ('[images.own]\nurl = "ftp://x/y"', "[images.own]: url = 'ftp://x/y' cannot be right"),
        ('[images.own]\nurl = "http://x/y"', "[images.own]: nothing says what its checksum is"),
        ('[images.own]\nurl = "http://x/{serial}"\nunverified = true', "say which build it is with serial"),
        ('[images.own]\npage = "http://x/y"\nfile = "z"', "write it with a slash at its end"),
        (
            '[images.own]\nurl = "http://x/{foo}"\nunverified = true',
            "[images.own]: url = 'http://x/{foo}' cannot be right. What to do: nothing is put "
            "in place of {foo}; write one of {arch}, {version}, {serial}",
        ),
        (OWN + 'sums = "{name}.sums"', "[images.own]: sums = '{name}.sums' cannot be right"),
        ('[mirrors]\n"http://x" = 3', "[mirrors]: http://x = 3 cannot be right"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_file_entry_and_key(file: Path, text: str, says: str) -> None:
    """Who writes a catalogue is told where in it something cannot be right."""
    said = refusal(file, text)
    assert str(file) in said
    assert says in said


def test_a_file_that_the_environment_names_must_be_there(file: Path) -> None:
    """A wrong path in the environment is not taken for an empty catalogue."""
    with pytest.raises(ConfigError, match="LATENTVIRT_CATALOGUE"):
        load_catalogue()


def test_a_password_in_an_address_is_not_shown(file: Path) -> None:
    """Listings show where images come from without the password for it."""
    text = OWN.replace("http://", "http://me:geheim@")
    assert with_file(file, text).item("own", "x86_64").origin == "http://mirror/own.qcow2"


def test_a_folder_in_a_files_place_is_named(file: Path) -> None:
    """A catalogue that cannot be read is an error, not an empty one."""
    os.mkdir(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_catalogue()


def test_a_file_that_may_not_be_seen_is_named_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Who works with somebody else's HOME is told so in a sentence."""
    home = tmp_path / "theirs"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    with (
        barred(home),
        pytest.raises(ConfigError, match=r"images.toml cannot be read: Permission.*correct HOME"),
    ):
        load_catalogue()


def test_a_byte_order_mark_is_no_fault(file: Path) -> None:
    """A catalogue that an editor of another system wrote is read."""
    assert with_file(file, "\ufeff" + OWN).item("own", "x86_64").name == "own"


@pytest.mark.parametrize("content", [b"[images", b"# Gr\xfc\xdfe"])
def test_what_is_no_toml_is_named_with_a_way_out(file: Path, content: bytes) -> None:
    """Who broke a catalogue is told where to correct it."""
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"images.toml is no TOML: .* What to do: correct it"):
        load_catalogue()


# Documentation

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_every_key_of_a_catalogue_is_documented_and_no_other() -> None:
    """The reference has each key that an image can have."""
    text = (DOCS / "reference" / "catalogue.rst").read_text()
    told = re.findall(r"^``([a-z0-9_]+)``$", text, re.MULTILINE)
    assert sorted(told) == sorted(KEYS)


def test_the_example_of_the_documentation_is_a_catalogue(file: Path) -> None:
    """What the page shows can be written into a file as it is."""
    catalogue = with_file(file, (DOCS / "examples" / "images.toml").read_text())
    assert catalogue.item("bookworm", "x86_64").url == (
        "https://mirror.example.org/debian-cloud/cloud/bookworm/20240211-1654/"
        "debian-12-genericcloud-amd64-20240211-1654.qcow2"
    )
    assert catalogue.item("lab-stable", "x86_64").kind == "built"
    assert catalogue.item("lab-nightly", "arm64").file == "lab-*.aarch64.qcow2"
