"""The XML that a start uses, compared whole with stored files; `pytest --regold` writes them anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from domainxml.support import (
    HERE,
    OWNERSHIP,
    UUID,
    capabilities,
    capabilities_text,
    overlay,
)
from latentvirt.capabilities import read_capabilities
from latentvirt.domainxml import Layer, generate, rewrite, with_auth
from latentvirt.sizes import Size

GOLDEN = HERE / "golden"

REWRITES: dict[str, dict[str, Any]] = {
    "predefined": {
        "overlays": [overlay("vda"), overlay("vdb", Layer("/var/lib/libvirt/images/cache.img", "raw"))],
    },
    "handwritten": {
        "overlays": [overlay("vda"), overlay("fda", Layer("/images/boot.fd", "raw"))],
        "name": "minion2",
        "uuid": UUID,
    },
    "uefi": {"overlays": [overlay("sda")], "vars_path": "/images/vars", "uuid": UUID},
    "tight": {"overlays": [overlay("vda")]},
}

AUTHS = {"predefined": ("minion1", 'a"<b>&', "master.example.org:9989")}


def compare(path: Path, text: str, request: pytest.FixtureRequest) -> None:
    """Compare a text with a golden file, or write the file."""
    if request.config.getoption("--regold"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", REWRITES)
def test_a_start_changes_only_what_is_its_own(name: str, request: pytest.FixtureRequest) -> None:
    """A person's XML comes out with a start's disks, mark and port, and otherwise as it was."""
    text = rewrite((GOLDEN / f"{name}.in.xml").read_text(), ownership=OWNERSHIP, **REWRITES[name])
    if name in AUTHS:
        text = with_auth(text, *AUTHS[name])
    compare(GOLDEN / f"{name}.out.xml", text, request)


def generated(name: str) -> str:
    """Generate the domain of a golden file."""
    host = capabilities(kvm=name == "generated-kvm")
    if name == "generated-aarch64":
        host = read_capabilities(
            None,
            capabilities_text("aarch64"),
            kvm_domain_capabilities_xml=None,
            host_cpu_features=frozenset(),
        )
    return generate(
        name="latentvirt-0123456789abcdef-slot0",
        uuid=UUID,
        capabilities=host,
        size=Size(memory="2 GiB", vcpus=2),
        network="user" if name == "generated-qemu" else "builds",
        virt_type="auto",
    )


@pytest.mark.parametrize("name", ["generated-qemu", "generated-kvm", "generated-aarch64"])
def test_a_generated_domain_suits_its_host(name: str, request: pytest.FixtureRequest) -> None:
    """A generated domain is the stored one for that kind of host."""
    compare(GOLDEN / f"{name}.out.xml", generated(name), request)
