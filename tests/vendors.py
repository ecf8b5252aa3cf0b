"""A vendor of images, played by a server on loopback."""

from __future__ import annotations

import hashlib
import random
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import attrs

MIB = 1024 * 1024
PATIENCE_S = 60.0


def disk(size: int = 3 * MIB, seed: int = 1) -> bytes:
    """Make what passes for a qcow2 image."""
    head = (b"QFI\xfb" + struct.pack(">I", 3)).ljust(104, b"\0")
    return head + random.Random(seed).randbytes(size - len(head))


@attrs.define
class Served:
    """A file as it is served.

    Args:
        content: its bytes.
        etag: its tag; empty for none.
        modified: its date; empty for none.
    """

    content: bytes
    etag: str = ""
    modified: str = ""


@attrs.define(eq=False)
class Vendor:
    """What a vendor serves, and how badly.

    Args:
        url: of its root, without a slash at the end.
        files: by path.
        redirects: by path, to where.
        troubles: by path, what happens to one request after the other: a status, a pair of that and headers,
            ``("cut", bytes)``, ``("stall", bytes)``, or None for nothing.
        ranges: whether it sends parts of files.
        chunk: how many bytes it sends at a time.
        gate: what every chunk waits for.
        log: path, Range and status of each request.
        served: how many bytes of bodies were sent, by path.
    """

    url: str
    files: dict[str, Served] = attrs.field(factory=dict)
    redirects: dict[str, str] = attrs.field(factory=dict)
    troubles: dict[str, list[Any]] = attrs.field(factory=dict)
    ranges: bool = True
    chunk: int = 64 * 1024
    gate: threading.Event = attrs.field(factory=threading.Event)
    after: int = 0
    log: list[tuple[str, str | None, int]] = attrs.field(factory=list)
    served: dict[str, int] = attrs.field(factory=dict)

    def put(self, path: str, content: bytes | str, **known: str) -> None:
        """Publish a file."""
        data = content.encode() if isinstance(content, str) else content
        self.files[path] = Served(data, **known)

    def put_image(self, content: bytes, folder: str = "/images", name: str = "disk.qcow2") -> None:
        """Publish an image and the list of its checksum."""
        digest = hashlib.sha512(content).hexdigest()
        self.put(f"{folder}/{name}", content, etag=f'"{digest[:16]}"')
        self.put(f"{folder}/SHA512SUMS", f"{digest}  {name}\n")

    def asked(self, path: str) -> list[tuple[str | None, int]]:
        """List the requests for a path: Range and status."""
        return [(wanted, status) for one, wanted, status in self.log if one == path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    vendor: Vendor

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.vendor.log.append((self.path, self.headers.get("Range"), status))
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        vendor = self.vendor
        waiting = vendor.troubles.get(self.path, [])
        trouble = waiting.pop(0) if waiting else None
        if isinstance(trouble, int):
            trouble = (trouble, {})
        if trouble is not None and isinstance(trouble[0], int):
            self._answer(trouble[0], dict(trouble[1]))
        elif self.path in vendor.redirects:
            self._answer(302, {"Location": vendor.redirects[self.path]})
        elif self.path not in vendor.files:
            self._answer(404, {})
        else:
            self._send(vendor.files[self.path], trouble)

    def _send(self, file: Served, trouble: Any) -> None:
        vendor, data, status = self.vendor, file.content, 200
        headers = {}
        if file.etag:
            headers["ETag"] = file.etag
        if file.modified:
            headers["Last-Modified"] = file.modified
        wanted, condition = self.headers.get("Range"), self.headers.get("If-Range")
        if wanted and vendor.ranges and condition in (None, file.etag, file.modified):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            at, end = int(first), int(last or len(data) - 1) + 1
            if at >= len(data):
                self._answer(416, {"Content-Range": f"bytes */{len(data)}"})
                return
            headers["Content-Range"] = f"bytes {at}-{end - 1}/{len(data)}"
            data, status = data[at:end], 206
        kind, most = trouble or ("whole", len(data))
        self._answer(status, headers | {"Content-Length": str(len(data))})
        sent = 0
        while sent < min(most, len(data)):
            if vendor.after and sent >= vendor.after:
                vendor.gate.wait(PATIENCE_S)
            part = data[sent : min(sent + vendor.chunk, most)]
            self.wfile.write(part)
            sent += len(part)
            vendor.served[self.path] = vendor.served.get(self.path, 0) + len(part)
        if kind == "stall":
            vendor.gate.wait(PATIENCE_S)
        self.close_connection = kind != "whole"


@contextmanager
def vendor_running() -> Iterator[Vendor]:
    """Run a vendor on loopback."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that was killed is what some tests are about

    class Handler(_Handler):
        pass

    server = Server(("127.0.0.1", 0), Handler)
    vendor = Handler.vendor = Vendor(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield vendor
    finally:
        vendor.gate.set()
        server.shutdown()
        server.server_close()
        thread.join(PATIENCE_S)


def write_catalogue(path: Path, vendor: Vendor, **more: str) -> Path:
    """Write a catalogue with the image ``lab-1`` of a vendor, and more entries."""
    text = f"""
[images.lab-1]
os_type = "lab"
os_version = "1"
codenames = ["first"]
arch = ["x86_64", "aarch64"]
url = "{vendor.url}/images/disk.qcow2"
sums = "SHA512SUMS"
"""
    for name, lines in more.items():
        text += f"\n[images.{name}]\n{lines}\n"
    path.write_text(text)
    return path
