"""Downloads from vendors that are slow, broken, or not honest, and what is then in the store."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner

from latentvirt.cli import main
from latentvirt.durations import DAY_S
from latentvirt.errors import ImageError
from latentvirt.images import download, web
from latentvirt.images.download import Pulled, pull
from latentvirt.images.items import Item
from latentvirt.images.parts import partial_files
from latentvirt.images.store import BUILT, STOCK, ImageStore
from latentvirt.images.vendor import find_sum, names_on, newest, read_sums
from vendors import MIB, PATIENCE_S, Vendor, disk, vendor_running, write_catalogue

IMAGE = "/images/disk.qcow2"
LIST = "/images/SHA512SUMS"


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    """A vendor on loopback."""
    with vendor_running() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """An empty store."""
    return ImageStore(tmp_path / "store")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(web, "LONGEST_PAUSE_S", 0.05)


@attrs.define
class Heard:
    """What a listener heard."""

    said: list[str] = attrs.field(factory=list)
    seen: list[tuple[int, int | None]] = attrs.field(factory=list)

    def say(self, line: str) -> None:
        """Hear what happens."""
        self.said.append(line)

    def progress(self, done: int, length: int | None) -> None:
        """Hear how many bytes there are."""
        self.seen.append((done, length))


def item_of(vendor: Vendor, **changes: Any) -> Item:
    """Name the vendor's image."""
    given = {"name": "lab-1", "arch": "x86_64", "url": f"{vendor.url}{IMAGE}", "sums": "SHA512SUMS"}
    return Item(**{**given, **changes})


def get(vendor: Vendor, store: ImageStore, heard: Heard | None = None, **changes: Any) -> Pulled:
    """Pull the vendor's image."""
    options = {key: changes.pop(key) for key in ("refresh", "max_age_s") if key in changes}
    return pull(item_of(vendor, **changes), store, heard or Heard(), **options)


def content_of(store: ImageStore) -> bytes | None:
    """Read the image in the store; None if there is none."""
    entry = store.find("lab-1", "x86_64", STOCK)
    return store.path_of(entry).read_bytes() if entry else None


# The ordinary way


def test_an_image_with_the_right_checksum_is_published(vendor: Vendor, store: ImageStore) -> None:
    """The store has the vendor's image, and says where it is from; nothing else is left."""
    image = disk()
    vendor.put_image(image)
    heard = Heard()
    pulled = get(vendor, store, heard)
    assert pulled.how == "new"
    assert content_of(store) == image
    assert pulled.entry.digest == hashlib.sha256(image).hexdigest()
    assert pulled.entry.source["origin"] == f"{vendor.url}{IMAGE}"
    assert pulled.entry.source["checksum"] == f"sha512:{hashlib.sha512(image).hexdigest()}"
    assert heard.seen[0] == (0, len(image))
    assert heard.seen[-1] == (len(image), len(image))
    assert list(store.scratch().glob("*.part")) == list(store.scratch().glob("*.note")) == []


def test_a_young_image_is_used_without_asking_anybody(vendor: Vendor, store: ImageStore) -> None:
    """A second pull in the same month asks the vendor nothing."""
    vendor.put_image(disk())
    get(vendor, store)
    before = len(vendor.log)
    assert get(vendor, store).how == "kept"
    assert len(vendor.log) == before


def test_an_old_image_is_asked_after_and_then_young_again(
    vendor: Vendor, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the age that was allowed the vendor's list is looked at; if it is the same, that is all."""
    vendor.put_image(disk())
    get(vendor, store)
    later = time.time() + 31 * DAY_S
    monkeypatch.setattr(time, "time", lambda: later)
    assert get(vendor, store).how == "unchanged"
    assert get(vendor, store).how == "kept"
    assert len(vendor.asked(IMAGE)) == 1
    assert len(vendor.asked(LIST)) == 2


def test_a_refresh_downloads_only_what_has_changed(vendor: Vendor, store: ImageStore) -> None:
    """Asked anew, an image that is the same is not downloaded again, and another one is."""
    vendor.put_image(disk())
    get(vendor, store)
    assert get(vendor, store, refresh=True).how == "unchanged"
    assert len(vendor.asked(IMAGE)) == 1
    newer = disk(seed=2)
    vendor.put_image(newer)
    assert get(vendor, store).how == "kept"
    assert get(vendor, store, refresh=True).how == "new"
    assert content_of(store) == newer


def test_without_a_list_the_vendors_tag_says_whether_it_changed(vendor: Vendor, store: ImageStore) -> None:
    """An image that nobody gives a checksum for is downloaded again only if its tag is another."""
    vendor.put(IMAGE, disk(), etag='"one"')
    options = {"sums": "", "unverified": True}
    assert get(vendor, store, **options).how == "new"
    sent = vendor.served[IMAGE]
    assert sent == len(disk())
    assert get(vendor, store, refresh=True, **options).how == "unchanged"
    assert vendor.served[IMAGE] == sent + 1
    vendor.put(IMAGE, disk(seed=2), etag='"two"')
    assert get(vendor, store, refresh=True, **options).how == "new"
    assert content_of(store) == disk(seed=2)


def test_an_image_from_elsewhere_is_another_image(vendor: Vendor, store: ImageStore) -> None:
    """With another place or another checksum in the catalogue the stored image counts no more."""
    vendor.put_image(disk())
    vendor.put_image(disk(seed=2), folder="/mirror")
    get(vendor, store)
    assert get(vendor, store, url=f"{vendor.url}/mirror/disk.qcow2").how == "new"
    assert content_of(store) == disk(seed=2)
    pinned = hashlib.sha256(disk()).hexdigest()
    assert get(vendor, store, sha256=pinned.upper(), sums="").how == "new"
    assert content_of(store) == disk()
    assert get(vendor, store, sha256=pinned.upper(), sums="").how == "kept"


def test_an_image_that_is_ready_is_one_of_the_built_ones(vendor: Vendor, store: ImageStore) -> None:
    """What a mirror has for workers as it is need not be built again."""
    vendor.put_image(disk())
    assert get(vendor, store, ready=True).entry.kind == BUILT


def test_a_redirect_is_followed(vendor: Vendor, store: ImageStore) -> None:
    """A vendor that sends everybody to a mirror is no trouble."""
    vendor.put_image(disk(), folder="/there")
    vendor.redirects = {path: path.replace("/images", "/there") for path in (IMAGE, LIST)}
    get(vendor, store)
    assert content_of(store) == disk()


def test_redirects_in_a_circle_end(vendor: Vendor, store: ImageStore) -> None:
    """A vendor that sends people in a circle is named, and nothing is stored."""
    vendor.redirects = {LIST: IMAGE, IMAGE: LIST}
    with pytest.raises(ImageError, match="cannot be read"):
        get(vendor, store)


# Pages and lists

PAGE = """<html><body><a href="?C=M;O=A">Last modified</a><a href="../">Up</a>
<a href="Lab-Cloud-1-9.9.x86_64.qcow2">x</a> <a href="./Lab-Cloud-1-10.1.x86_64.qcow2">x</a>
<A HREF="/pool/Lab-Cloud-1-10.0.x86_64.qcow2">x</A><a href="Lab-Cloud-1-99.0.aarch64.qcow2">x</a>
<a href="Lab-1-9.9-SUMS">x</a><a href="Lab-1-10.1-SUMS">x</a>
"""


def test_the_newest_file_on_a_page_is_taken(vendor: Vendor, store: ImageStore) -> None:
    """Where names carry a serial, the highest counts, as numbers do: 10.1 is newer than 9.9."""
    image, file = disk(), "Lab-Cloud-1-10.1.x86_64.qcow2"
    vendor.put("/page/", PAGE)
    vendor.put(f"/page/{file}", image)
    vendor.put("/page/Lab-1-10.1-SUMS", f"SHA256 ({file}) = {hashlib.sha256(image).hexdigest()}\n")
    pulled = get(
        vendor,
        store,
        url="",
        page=f"{vendor.url}/page/",
        file="Lab-Cloud-1-*.x86_64.qcow2",
        sums="Lab-1-*-SUMS",
    )
    assert pulled.entry.source["file"] == file
    assert content_of(store) == image


def test_a_page_without_the_image_is_named_with_what_was_looked_for(
    vendor: Vendor, store: ImageStore
) -> None:
    """A vendor that has renamed its files is told of as that."""
    vendor.put("/page/", "<html>we have moved</html>")
    with pytest.raises(ImageError, match=r"/page/ has no file like Lab-\*"):
        get(vendor, store, url="", page=f"{vendor.url}/page/", file="Lab-*")


def test_names_on_a_page_are_read_whatever_its_markup() -> None:
    """A page that is no good HTML, or escapes names, still says what it leads to."""
    assert names_on("<a href='a%2Bb.img'><p><a HREF=c.img>") == ["a+b.img", "c.img"]
    assert newest("http://x/", ["a-2.img", "a-10.img", "a-9.img"], "a-*.img") == "a-10.img"


HEX256, HEX512 = "ab" * 32, "CD" * 64
SIGNED = f"""-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

# disk.qcow2: 123 bytes
SHA256 (disk.qcow2) = {HEX256}
-----BEGIN PGP SIGNATURE-----

{"ef" * 32}
-----END PGP SIGNATURE-----
"""


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (f"{HEX256}  disk.qcow2\n", "http://x/SHA256SUMS"),
        (f"{HEX256} *disk.qcow2\n", "http://x/SHA256SUMS"),
        (f"{'0' * 64}  other.qcow2\r\n{HEX256}  ./disk.qcow2\r\n", "http://x/SHA256SUMS"),
        (f"SHA256 (disk.qcow2) = {HEX256}", "http://x/CHECKSUM"),
        (SIGNED, "http://x/CHECKSUM"),
        (f"MD5 (disk.qcow2) = {'0' * 32}\nSHA256 (disk.qcow2) = {HEX256}", "http://x/CHECKSUM"),
        (f"{HEX256}\n", "http://x/disk.qcow2.sha256"),
        (f"{HEX256}  disk-15.6.0-Build19.qcow2\n", "http://x/disk.qcow2.sha256"),
    ],
)
def test_all_ways_to_write_a_list_are_read(text: str, where: str) -> None:
    """Lists of GNU's and BSD's tools, signed ones, and those of a single file say the same."""
    assert str(find_sum(text, "disk.qcow2", where)[1]) == f"sha256:{HEX256}"


def test_the_stronger_of_two_checksums_counts() -> None:
    """A list that has both is believed by its SHA-512."""
    text = f"SHA512 (a) = {HEX512}\nSHA256 (a) = {HEX256}\n"
    assert str(find_sum(text, "a", "http://x/S")[1]) == f"sha512:{HEX512.lower()}"
    assert len(read_sums(text)) == 2


@pytest.mark.parametrize("text", [f"{HEX256}  other.qcow2\n", "", f"{'0' * 32}  disk.qcow2\n", "<html>"])
def test_a_list_without_the_image_publishes_nothing(vendor: Vendor, store: ImageStore, text: str) -> None:
    """An image that the list does not have, or only with a weak checksum, is not even downloaded."""
    vendor.put_image(disk())
    vendor.put(LIST, text)
    with pytest.raises(ImageError, match=r"has no SHA-256 or SHA-512 of disk.qcow2"):
        get(vendor, store)
    assert vendor.asked(IMAGE) == []
    assert store.entries() == []


def test_a_page_that_never_ends_is_given_up(
    vendor: Vendor, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image in a list's place does not fill the memory."""
    monkeypatch.setattr(web, "LONGEST_TEXT_BYTES", MIB)
    vendor.put(LIST, disk())
    with pytest.raises(ImageError, match="does not end"):
        get(vendor, store)


# Signatures


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two signers: signs by name, and the keyring of the first."""
    home = tmp_path_factory.mktemp("gnupg", numbered=True)
    home.chmod(0o700)
    environment = {**os.environ, "GNUPGHOME": str(home)}

    def gpg(*arguments: str, data: bytes = b"") -> bytes:
        command = [
            "gpg",
            "--batch",
            "--no-tty",
            "--pinentry-mode",
            "loopback",
            "--passphrase",
            "",
            *arguments,
        ]
        done = subprocess.run(command, input=data, capture_output=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    try:
        for name in ("good", "evil"):
            gpg("--quick-generate-key", f"{name}@example.org", "ed25519", "sign", "never")
    except FileNotFoundError:
        pytest.skip("gpg is not installed here")
    ring = home / "vendor.gpg"
    ring.write_bytes(gpg("--export", "good@example.org"))
    yield lambda name, how, data: gpg("-u", f"{name}@example.org", *how, data=data), ring
    subprocess.run(["gpgconf", "--kill", "all"], env=environment, check=False)


@pytest.mark.parametrize("how", [["--clearsign"], ["--detach-sign"], ["--armor", "--detach-sign"]])
def test_a_list_signed_by_a_key_of_the_keyring_is_believed(
    vendor: Vendor, store: ImageStore, keys: Any, how: list[str]
) -> None:
    """With a keyring only a list counts that one of its keys has signed, in any of the usual ways."""
    sign, ring = keys
    vendor.put_image(disk())
    text = vendor.files[LIST].content
    options = {"keyring": str(ring)}
    if how == ["--clearsign"]:
        vendor.put(LIST, sign("good", how, text))
    else:
        vendor.put(f"{LIST}.gpg", sign("good", how, text))
        options["signature"] = "{file}.gpg"
    get(vendor, store, **options)
    assert content_of(store) == disk()


@pytest.mark.parametrize("wrong", ["evil", "none", "changed", "put before", "detached"])
def test_a_list_that_the_vendor_did_not_sign_publishes_nothing(
    vendor: Vendor, store: ImageStore, keys: Any, wrong: str
) -> None:
    """A list by another key, unsigned, changed later, or with lines of others in it, is not believed."""
    sign, ring = keys
    other = f"{hashlib.sha512(b'other').hexdigest()}  disk.qcow2\n".encode()
    vendor.put_image(disk())
    text = vendor.files[LIST].content
    options = {"keyring": str(ring)}
    if wrong == "evil":
        vendor.put(LIST, sign("evil", ["--clearsign"], text))
    elif wrong == "changed":
        vendor.put(LIST, sign("good", ["--clearsign"], other).replace(other.strip(), text.strip()))
    elif wrong == "put before":
        vendor.put(LIST, text + sign("good", ["--clearsign"], b"something else\n"))
    elif wrong == "detached":
        vendor.put(f"{LIST}.sig", sign("good", ["--detach-sign"], other))
        options["signature"] = "{file}.sig"
    with pytest.raises(ImageError, match=r"is not signed by a key in|has no SHA-256 or SHA-512"):
        get(vendor, store, **options)
    assert store.entries() == []


def test_a_keyring_that_is_not_there_is_named(vendor: Vendor, store: ImageStore, tmp_path: Path) -> None:
    """A keyring that cannot be read does not come to an unchecked list."""
    vendor.put_image(disk())
    with pytest.raises(ImageError, match=r"keyring .*nowhere.gpg cannot be read"):
        get(vendor, store, keyring=str(tmp_path / "nowhere.gpg"))


def test_without_gpgv_a_keyring_cannot_be_obeyed(
    vendor: Vendor, store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that cannot check signatures says what to install, and publishes nothing."""
    vendor.put_image(disk())
    (tmp_path / "ring").write_bytes(b"")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError, match="there is no gpgv"):
        get(vendor, store, keyring=str(tmp_path / "ring"))


def test_a_list_that_https_leads_to_http_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the list is trusted for its way here, no part of that way may be open to others."""

    class Answer:
        url = "http://mirror/SHA512SUMS"
        status_code = 200

        def __enter__(self) -> Answer:
            return self

        def __exit__(self, *args: object) -> None:
            pass

        def iter_content(self, size: int) -> Iterator[bytes]:
            yield b"list"

    asks = web.Web(lambda line: None)
    monkeypatch.setattr(asks, "open", lambda url: Answer())
    with pytest.raises(ImageError, match="leads to http://mirror"):
        asks.data("https://vendor/SHA512SUMS")
    assert asks.data("https://vendor/SHA512SUMS", only_safe=False) == b"list"


# Trouble


def test_a_wrong_sum_publishes_nothing_and_keeps_nothing(vendor: Vendor, store: ImageStore) -> None:
    """An image that is not what the list says is gone, and the message has both checksums."""
    vendor.put_image(disk())
    vendor.put(IMAGE, disk(seed=666))
    with pytest.raises(ImageError) as caught:
        get(vendor, store)
    for image in (disk(), disk(seed=666)):
        assert hashlib.sha512(image).hexdigest() in str(caught.value)
    assert store.entries() == []
    assert partial_files(store) == {}
    assert list(store.scratch().iterdir()) == []
    assert not (store.root / "blobs").exists()


def test_a_wrong_sum_leaves_the_older_image_in_its_place(vendor: Vendor, store: ImageStore) -> None:
    """Who has an image keeps it when a newer one turns out to be broken."""
    vendor.put_image(disk())
    get(vendor, store)
    vendor.put_image(disk(seed=2))
    vendor.put(IMAGE, disk(seed=666))
    with pytest.raises(ImageError, match="not what it should be"):
        get(vendor, store, refresh=True)
    assert content_of(store) == disk()


@pytest.mark.parametrize("image", [b"<html>sorry</html>", b"QFI\xfb" * 30000, b"x" * 100_000])
def test_what_is_no_image_is_not_published(vendor: Vendor, store: ImageStore, image: bytes) -> None:
    """A page, or an image that stands on others, is refused though its checksum is right."""
    vendor.put_image(image)
    with pytest.raises(ImageError):
        get(vendor, store)
    assert store.entries() == []
    assert partial_files(store) == {}


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_vendor_that_is_busy_is_asked_again(vendor: Vendor, store: ImageStore, status: int) -> None:
    """An answer that may be another soon does not end a download, and is told."""
    vendor.put_image(disk())
    vendor.troubles = {LIST: [status], IMAGE: [status, (status, {"Retry-After": "0"})]}
    heard = Heard()
    get(vendor, store, heard)
    assert content_of(store) == disk()
    assert len([line for line in heard.said if f"answers {status}" in line]) == 3


def test_a_vendor_that_stays_busy_is_given_up(vendor: Vendor, store: ImageStore) -> None:
    """The tries are bounded, and so is each pause, whatever the vendor wishes for."""
    vendor.put_image(disk())
    vendor.troubles = {LIST: [(503, {"Retry-After": "100000"})] * 99}
    with pytest.raises(ImageError, match="answers 503"):
        get(vendor, store)
    assert len(vendor.asked(LIST)) == web.TRIES


def test_what_will_not_change_is_not_asked_twice(vendor: Vendor, store: ImageStore) -> None:
    """A file that is not there ends the download at once, with what to do."""
    vendor.put(LIST, f"{HEX512}  disk.qcow2\n")
    with pytest.raises(ImageError, match=r"disk.qcow2 answers 404 .*catalogue of your own"):
        get(vendor, store)
    assert len(vendor.asked(IMAGE)) == 1


def test_a_vendor_that_is_down_is_named(store: ImageStore) -> None:
    """A refused connection is tried again, and then told of in a sentence."""
    with vendor_running() as gone:
        pass
    heard = Heard()
    with pytest.raises(ImageError, match=r"the connection to http://127.0.0.1.*failed"):
        get(gone, store, heard)
    assert len(heard.said) == web.TRIES - 1


def test_a_body_that_ends_too_early_is_gone_on_with(vendor: Vendor, store: ImageStore) -> None:
    """A connection that breaks half-way costs only what is missing."""
    image = disk()
    vendor.put_image(image)
    vendor.troubles = {IMAGE: [("cut", MIB), ("cut", MIB)]}
    get(vendor, store)
    assert content_of(store) == image
    assert [wanted for wanted, _ in vendor.asked(IMAGE)] == [None, f"bytes={MIB}-", f"bytes={2 * MIB}-"]
    assert vendor.served[IMAGE] == len(image)


def test_a_line_that_breaks_often_but_brings_something_is_not_given_up(
    vendor: Vendor, store: ImageStore
) -> None:
    """Only tries that bring nothing count."""
    vendor.put_image(disk(12 * MIB))
    vendor.troubles = {IMAGE: [("cut", MIB)] * 10}
    get(vendor, store)
    assert content_of(store) == disk(12 * MIB)


def test_a_vendor_that_breaks_off_at_once_is_given_up(vendor: Vendor, store: ImageStore) -> None:
    """A vendor that never sends more than a little is not asked for ever; what there is stays."""
    vendor.put_image(disk())
    vendor.troubles = {IMAGE: [("cut", 40_000)] * 99}
    with pytest.raises(ImageError):
        get(vendor, store)
    assert len(vendor.asked(IMAGE)) == web.TRIES
    (part, _) = partial_files(store)["lab-1", "x86_64", STOCK]
    assert 0 < part.stat().st_size <= 40_000 * web.TRIES


def test_a_vendor_that_falls_silent_is_asked_again(
    vendor: Vendor, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download that hangs goes on over another connection."""
    monkeypatch.setattr(web, "SILENT_S", 0.3)
    vendor.put_image(disk())
    vendor.troubles = {IMAGE: [("stall", MIB)]}
    heard = Heard()
    get(vendor, store, heard)
    assert content_of(store) == disk()
    assert any("silent for too long" in line for line in heard.said)


def test_a_slow_vendor_is_waited_for(vendor: Vendor, store: ImageStore) -> None:
    """Progress is told while an image trickles in."""
    vendor.put_image(disk(MIB))
    vendor.chunk, vendor.after = 16 * 1024, 512 * 1024
    heard = Heard()
    done: list[Pulled] = []
    thread = threading.Thread(target=lambda: done.append(get(vendor, store, heard)))
    thread.start()
    until(lambda: vendor.served.get(IMAGE, 0) >= vendor.after)
    assert done == []
    vendor.gate.set()
    thread.join(PATIENCE_S)
    assert done[0].how == "new"
    assert len(heard.seen) > 2


def until(met: Any) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_without_ranges_a_broken_download_begins_anew(vendor: Vendor, store: ImageStore) -> None:
    """A vendor that sends no parts of files sends the whole again, and no byte twice into the image."""
    vendor.put_image(disk())
    vendor.ranges = False
    vendor.troubles = {IMAGE: [("cut", 2 * MIB)]}
    heard = Heard()
    get(vendor, store, heard)
    assert content_of(store) == disk()
    assert [status for _, status in vendor.asked(IMAGE)] == [200, 200]
    assert "the vendor sends it from its beginning again" in heard.said


def test_a_file_that_changed_meanwhile_is_not_put_behind_the_old_one(
    vendor: Vendor, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the vendor publishes a new image between two tries, the new one is downloaded whole."""
    monkeypatch.setattr(web, "TRIES", 1)
    vendor.put_image(disk())
    vendor.troubles = {IMAGE: [("cut", MIB // 2)]}
    with pytest.raises(ImageError):
        get(vendor, store)
    vendor.put_image(disk(seed=2))
    assert get(vendor, store).how == "new"
    assert content_of(store) == disk(seed=2)
    assert vendor.asked(IMAGE)[-1] == (None, 200)


def test_without_a_checksum_the_vendors_tag_keeps_files_apart(
    vendor: Vendor, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If-Range makes the vendor send the whole new file where the rest would not belong to the beginning."""
    monkeypatch.setattr(web, "TRIES", 1)
    options = {"sums": "", "unverified": True}
    vendor.put(IMAGE, disk(), etag='"one"')
    vendor.troubles = {IMAGE: [("cut", MIB // 2)]}
    with pytest.raises(ImageError):
        get(vendor, store, **options)
    vendor.put(IMAGE, disk(seed=2), etag='"two"')
    get(vendor, store, **options)
    assert content_of(store) == disk(seed=2)
    assert vendor.asked(IMAGE)[-1] == (f"bytes={MIB // 2}-", 200)


def test_without_tag_and_checksum_nothing_is_gone_on_with(
    vendor: Vendor, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing tells one file from another, each try begins at the beginning."""
    options = {"sums": "", "unverified": True}
    vendor.put(IMAGE, disk(), etag='W/"weak"')
    vendor.troubles = {IMAGE: [("cut", MIB)]}
    get(vendor, store, **options)
    assert content_of(store) == disk()
    assert vendor.asked(IMAGE) == [(None, 200), (None, 200)]


def test_a_beginning_that_does_not_go_with_the_rest_is_downloaded_again(
    vendor: Vendor, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partial file that was damaged on this disk costs one whole download, not the image."""
    monkeypatch.setattr(web, "TRIES", 1)
    vendor.put_image(disk())
    vendor.troubles = {IMAGE: [("cut", MIB // 2)]}
    with pytest.raises(ImageError):
        get(vendor, store)
    (part, _) = partial_files(store)["lab-1", "x86_64", STOCK]
    part.write_bytes(b"\0" * part.stat().st_size)
    heard = Heard()
    get(vendor, store, heard)
    assert content_of(store) == disk()
    assert [status for _, status in vendor.asked(IMAGE)] == [200, 206, 200]


def test_a_part_longer_than_the_whole_is_dropped(
    vendor: Vendor, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vendor that has nothing after what is here is asked for the whole again."""
    monkeypatch.setattr(web, "TRIES", 1)
    vendor.put_image(disk())
    vendor.troubles = {IMAGE: [("cut", MIB // 2)]}
    with pytest.raises(ImageError):
        get(vendor, store)
    monkeypatch.setattr(web, "TRIES", 5)
    (part, _) = partial_files(store)["lab-1", "x86_64", STOCK]
    part.write_bytes(b"\0" * 4 * MIB)
    get(vendor, store)
    assert content_of(store) == disk()
    assert [status for _, status in vendor.asked(IMAGE)] == [200, 416, 200]


def test_a_note_that_cannot_be_read_costs_what_was_downloaded(
    vendor: Vendor, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partial file of which nothing is known is not built on."""
    monkeypatch.setattr(web, "TRIES", 1)
    vendor.put_image(disk())
    vendor.troubles = {IMAGE: [("cut", MIB // 2)]}
    with pytest.raises(ImageError):
        get(vendor, store)
    (_, note) = partial_files(store)["lab-1", "x86_64", STOCK]
    note.write_text("{")
    get(vendor, store)
    assert content_of(store) == disk()


def test_an_image_that_does_not_fit_is_refused_before_it_is_fetched(
    vendor: Vendor, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says how much is needed and how much there is."""
    vendor.put_image(disk())
    usage = type("Usage", (), {"free": MIB})()
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ImageError, match=r"no room for 3 MiB in .*: 1 MiB are free"):
        get(vendor, store)
    assert partial_files(store) == {}


def test_what_the_store_does_not_take_is_not_downloaded_again(
    vendor: Vendor, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the disk is full at the very end, what was downloaded is kept, as the message says."""
    vendor.put_image(disk())

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(ImageStore, "publish", full)
        with pytest.raises(ImageError, match="what was downloaded is kept"):
            get(vendor, store)
    get(vendor, store)
    assert content_of(store) == disk()
    assert vendor.served[IMAGE] == len(disk())


def test_no_password_in_a_url_is_shown_or_kept(vendor: Vendor, store: ImageStore) -> None:
    """A private mirror's password is in no message and in nothing that others can read."""
    vendor.put_image(disk())
    url = f"{vendor.url}{IMAGE}".replace("http://", "http://me:geheim@")
    vendor.troubles = {IMAGE: [503, ("cut", MIB)]}
    heard = Heard()
    pulled = get(vendor, store, heard, url=url)
    assert "geheim" not in str(heard.said) + str(pulled.entry)
    vendor.put(IMAGE, disk(seed=666))
    vendor.put(LIST, f"{HEX512}  disk.qcow2\n")
    with pytest.raises(ImageError) as caught:
        get(vendor, store, refresh=True, url=url)
    assert "geheim" not in str(caught.value)


def test_without_the_library_it_is_said_what_to_install(
    vendor: Vendor, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has not installed what downloads need is told how."""
    monkeypatch.setitem(sys.modules, "requests", None)
    with pytest.raises(ImageError, match=r"pip install 'latentvirt\[images\]'"):
        get(vendor, store)


# Files


def test_a_file_on_this_machine_is_copied_once(vendor: Vendor, store: ImageStore, tmp_path: Path) -> None:
    """A path in the catalogue comes into the store, and again only after it has changed."""
    file = tmp_path / "own.qcow2"
    file.write_bytes(disk())
    options = {"url": "", "sums": "", "path": str(file)}
    assert get(vendor, store, **options).how == "new"
    assert content_of(store) == file.read_bytes() == disk()
    assert get(vendor, store, refresh=True, **options).how == "unchanged"
    file.write_bytes(disk(2 * MIB, seed=2))
    assert get(vendor, store, refresh=True, **options).how == "new"
    assert content_of(store) == disk(2 * MIB, seed=2)


def test_a_file_that_is_not_as_pinned_or_not_there_is_refused(
    vendor: Vendor, store: ImageStore, tmp_path: Path
) -> None:
    """A file's checksum counts if the catalogue has one, and no vendor is blamed; a wrong path is named."""
    file = tmp_path / "own.qcow2"
    file.write_bytes(disk())
    with pytest.raises(ImageError, match="not what it should be") as caught:
        get(vendor, store, url="", sums="", path=str(file), sha256=HEX256)
    assert "correct sha256 in" in caught.value.remedy
    assert "vendor" not in caught.value.remedy
    with pytest.raises(ImageError, match=r"nowhere cannot be copied"):
        get(vendor, store, url="", sums="", path=str(tmp_path / "nowhere"))
    assert (store.entries(), list(store.scratch().iterdir())) == ([], [])


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_at_once(
    vendor: Vendor, store: ImageStore, tmp_path: Path, kind: str
) -> None:
    """A path of the catalogue that names what has no end is told, instead of being read for ever."""
    path = {"pipe": str(tmp_path / "pipe"), "device": os.devnull, "folder": str(tmp_path)}[kind]
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(
        ImageError, match=r"is (no ordinary file|a directory).*What to do: name the image file"
    ):
        get(vendor, store, url="", sums="", path=path)
    assert (store.entries(), list(store.scratch().iterdir())) == ([], [])


# Processes

PULLING = """
import sys
from latentvirt.cli import main
main(["image", "pull", "--arch", "x86_64", *sys.argv[1:]])
"""


def pulling(vendor: Vendor, store: ImageStore, folder: Path) -> subprocess.Popen[str]:
    """Pull in a process of its own."""
    environment = {
        **os.environ,
        "LATENTVIRT_IMAGES": str(store.root),
        "LATENTVIRT_CATALOGUE": str(write_catalogue(folder / "images.toml", vendor)),
    }
    return subprocess.Popen(
        [sys.executable, "-c", PULLING, "lab-1"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_download_that_was_killed_goes_on(vendor: Vendor, store: ImageStore, tmp_path: Path) -> None:
    """After kill -9 the next process fetches only what is missing, and the image is whole."""
    image = disk(4 * MIB)
    vendor.put_image(image)
    vendor.after = 3 * MIB
    first = pulling(vendor, store, tmp_path)
    until(lambda: [files[0].stat().st_size >= 2 * MIB for files in partial_files(store).values()] == [True])
    os.kill(first.pid, signal.SIGKILL)
    first.communicate(timeout=PATIENCE_S)
    assert store.entries() == []
    (part, _) = partial_files(store)["lab-1", "x86_64", STOCK]
    have = part.stat().st_size
    vendor.gate.set()
    second = pulling(vendor, store, tmp_path)
    said = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0, said
    assert content_of(store) == image
    assert vendor.asked(IMAGE) == [(None, 200), (f"bytes={have}-", 206)]
    assert "going on after" in said[1]


def test_what_is_just_being_got_is_not_removed(vendor: Vendor, store: ImageStore, tmp_path: Path) -> None:
    """Removing an image while it is downloaded is refused, and the download ends as if nobody had tried."""
    image = disk(4 * MIB)
    vendor.put_image(image)
    vendor.after = 3 * MIB
    getting = pulling(vendor, store, tmp_path)
    until(lambda: [files[0].stat().st_size >= 2 * MIB for files in partial_files(store).values()] == [True])
    tried = CliRunner().invoke(main, ["image", "remove", "lab-1"], env={"LATENTVIRT_IMAGES": str(store.root)})
    vendor.gate.set()
    said = getting.communicate(timeout=PATIENCE_S)
    assert (tried.exit_code, tried.stdout) == (1, "")
    assert "lab-1 x86_64 stock is just being got by another process. What to do: wait" in tried.stderr
    assert getting.returncode == 0, said
    assert content_of(store) == image


def test_two_processes_that_want_one_image_download_it_once(
    vendor: Vendor, store: ImageStore, tmp_path: Path
) -> None:
    """The second waits, says so, and uses what the first has published."""
    vendor.put_image(disk())
    vendor.after = MIB
    first = pulling(vendor, store, tmp_path)
    until(lambda: vendor.served.get(IMAGE, 0) >= MIB)
    second = pulling(vendor, store, tmp_path)
    assert second.stderr is not None
    assert "another process is getting lab-1" in second.stderr.readline()
    vendor.gate.set()
    told = [process.communicate(timeout=PATIENCE_S)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert "lab-1 x86_64: new" in told[0]
    assert "lab-1 x86_64: here already" in told[1]
    assert len(vendor.asked(IMAGE)) == 1
    assert content_of(store) == disk()


def test_who_waits_for_a_download_that_dies_takes_it_over(
    vendor: Vendor, store: ImageStore, tmp_path: Path
) -> None:
    """A process whose forerunner is killed goes on with what that had fetched."""
    vendor.put_image(disk(4 * MIB))
    vendor.after = 3 * MIB
    first = pulling(vendor, store, tmp_path)
    until(lambda: vendor.served.get(IMAGE, 0) >= 3 * MIB)
    second = pulling(vendor, store, tmp_path)
    assert second.stderr is not None
    second.stderr.readline()
    os.kill(first.pid, signal.SIGKILL)
    vendor.gate.set()
    first.communicate(timeout=PATIENCE_S)
    second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0
    assert content_of(store) == disk(4 * MIB)
    assert vendor.asked(IMAGE)[-1][1] == 206
