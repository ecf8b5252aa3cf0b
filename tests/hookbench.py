"""An image folder, a configuration and a caller for tests of contrib/libvirt/qemu."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import attrs

HOOK = Path(__file__).parent.parent / "contrib" / "libvirt" / "qemu"
DEADLINE = 60.0


def domain_xml(*sources: Path, driver: str = "qcow2", inner: str = "") -> str:
    """Write as much of a domain as the hook looks at."""
    disks = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='{driver}'/>"
        f"<source file='{source}' index='1'/>{inner}<target dev='vda' bus='virtio'/></disk>"
        for source in sources
    )
    return f"<domain type='qemu' id='1'><name>build-vm</name><devices>{disks}</devices></domain>"


@attrs.define
class Bench:
    """An image folder with a base image in it, and a configured hook."""

    root: Path
    folder: Path
    base: Path
    clone: Path
    config: Path
    hook: Path = HOOK

    def write(self, text: str) -> None:
        """Replace the configuration."""
        self.config.write_text(textwrap.dedent(text))

    def run(
        self, *arguments: str, stdin: str | None = None, environ: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the hook as libvirt does."""
        return subprocess.run(
            [sys.executable, str(self.hook), *arguments],
            input=domain_xml(self.clone) if stdin is None else stdin,
            env={"PATH": os.environ["PATH"], "LATENTVIRT_HOOK_CONFIG": str(self.config), **(environ or {})},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )

    def prepare(self, domain: str = "build-vm", **options: str) -> subprocess.CompletedProcess[str]:
        """Say that a domain is about to start."""
        return self.run(domain, "prepare", "begin", "-", **options)  # type: ignore[arg-type]

    def release(self, domain: str = "build-vm") -> subprocess.CompletedProcess[str]:
        """Say that a domain has ended."""
        return self.run(domain, "release", "end", "-")

    def files(self) -> dict[str, str]:
        """Return all that is in the folder, as names and contents' digests."""
        return {
            str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.folder.rglob("*")
            if path.is_file()
        }


def make_bench(root: Path) -> Bench:
    """Make an image folder and a configuration for one domain, build-vm."""
    folder = root / "images"
    folder.mkdir()
    base = folder / "base.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", str(base), "8M")
    bench = Bench(root, folder, base, folder / "clone.qcow2", root / "hook.ini")
    bench.write(f"[DEFAULT]\nfolder = {folder}\n[build-vm]\nbase = base.qcow2\nclone = clone.qcow2\n")
    return bench


def qemu_img(*arguments: str) -> str:
    """Run qemu-img and return what it printed."""
    return subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, text=True).stdout


def info(path: Path) -> dict[str, object]:
    """Return what qemu-img says of an image."""
    result: dict[str, object] = json.loads(qemu_img("info", "--output=json", str(path)))
    return result


def refused(result: subprocess.CompletedProcess[str], *words: str) -> bool:
    """Whether the hook said no, with a message for a person that holds the words, and no traceback."""
    assert result.returncode == 1, result
    assert "Traceback" not in result.stderr
    assert "What to do: " in result.stderr
    for word in words:
        assert word in result.stderr
    return True


def fake_qemu_img(bench: Bench, script: str) -> dict[str, str]:
    """Put another qemu-img first in the path."""
    folder = bench.root / "bin"
    folder.mkdir()
    (folder / "qemu-img").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "qemu-img").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}
