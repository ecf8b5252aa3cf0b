"""What the guest of a build is told by its seed: cloud-init's configuration, ours with the person's in it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentvirt.errors import ConfigError
from latentvirt.images.cloudconfig import merged, written
from latentvirt.images.nocloud import Seed
from latentvirt.showing import shown

BUILD_PORT = "org.latentvirt.build.0"
"""The virtio-serial port on which the guest says how far it is."""

GUEST_FILES = Path(__file__).resolve().parent / "guest"
GUEST_FOLDER = "/var/lib/latentvirt-build"

BUILD_UNIT = "build.service"
INSTANCE_DIGITS = 16

PLACES = {
    "helper": ("/usr/lib/latentvirt/latentvirt_guest.py", "0755"),
    "helper.service": ("/etc/systemd/system/latentvirt-guest.service", "0644"),
    "build": (f"{GUEST_FOLDER}/build", "0755"),
    BUILD_UNIT: ("/etc/systemd/system/latentvirt-build.service", "0644"),
}
"""Where each of our files goes in the guest, and its mode."""

KEEP_MARK = "@KEEP@"

OURS_ALONE = {
    "power_state": "the image is shut down when it is done; a restart before that breaks it off",
}
"""Keys that a person cannot say, and why."""


def recipe(
    *,
    instance: str,
    keep_on_failure: bool = False,
    user_data: Mapping[str, Any] | None = None,
    meta_data: Mapping[str, Any] | None = None,
) -> Seed:
    """Say what the guest of a build is told.

    Args:
        instance: an id that no other boot of that image has had.
        keep_on_failure: whether the guest goes on running when it fails, to be looked at.
        user_data: what the person adds.
        meta_data: likewise.

    Raises:
        ConfigError: the person's part does not fit ours.
    """
    user_data = user_data or {}
    for key, why in OURS_ALONE.items():
        if user_data.get(key) is not None:
            raise ConfigError(f"{key} cannot be in the user-data of a build: {why}", remedy="leave it out")
    _check_values(user_data)
    return Seed(
        meta_data=merged(
            {"instance-id": instance, "local-hostname": "latentvirt-build"}, meta_data or {}, "the meta-data"
        ),
        user_data=merged(_user_data(keep_on_failure), user_data, "the user-data"),
    )


def _check_values(user_data: Mapping[str, Any]) -> None:
    """Refuse what YAML took for something else than was meant: cloud-init would run no command then."""
    for key in ("bootcmd", "runcmd"):
        commands = user_data.get(key)
        for command in commands if isinstance(commands, list) else []:
            if not isinstance(command, str | list):
                raise ConfigError(
                    f"{key} in the user-data has {shown(command)}, which is no command",
                    remedy="put it in quotes, or write a list of words",
                )
    files = user_data.get("write_files")
    for file in files if isinstance(files, list) else []:
        content = file.get("content") if isinstance(file, dict) else None
        if content is not None and not isinstance(content, str | bytes):
            raise ConfigError(
                f"write_files in the user-data has the content {shown(content)}, which is no text",
                remedy="put it in quotes, or write it as a block, after a |",
            )


def serving(user_data: Mapping[str, Any]) -> Seed:
    """Say what a guest is told that starts from a stock image and is to be a worker itself.

    Args:
        user_data: what the person adds.

    Raises:
        ConfigError: the person's part does not fit ours.
    """
    _check_values(user_data)
    ours = {
        "ssh_genkeytypes": ["ed25519"],
        "locale": False,
        "write_files": [
            {"path": path, "permissions": mode, "content": _content(name, keep_on_failure=False)}
            for name, (path, mode) in PLACES.items()
            if name != BUILD_UNIT
        ],
        "runcmd": ["set -e", ["sh", f"{GUEST_FOLDER}/build", "equip"]],
    }
    told = merged(ours, user_data, "cloud_init")
    # When all that the person wants is there, too: from then on it may be given a build, or be frozen.
    told["runcmd"] = [*told["runcmd"], ["sh", f"{GUEST_FOLDER}/build", "serve"]]
    instance = hashlib.sha256(written(told)).hexdigest()[:INSTANCE_DIGITS]
    return Seed(
        # Each VM begins with an image in which cloud-init has never run, so this need not differ.
        meta_data={"instance-id": f"latentvirt-{instance}", "local-hostname": "latentvirt"},
        user_data=told,
    )


def _user_data(keep_on_failure: bool) -> dict[str, Any]:
    began = f"[ ! -e /dev/virtio-ports/{BUILD_PORT} ] || echo step cloud-init has begun"
    return {
        "bootcmd": [["sh", "-c", f"{began} >/dev/virtio-ports/{BUILD_PORT}"]],
        # The host keys of a build are not those of the VMs made from it, so the quickest will do.
        "ssh_genkeytypes": ["ed25519"],
        # Else cloud-init sets one that the image may not have, and that would be a failure.
        "locale": False,
        "write_files": [
            {"path": path, "permissions": mode, "content": _content(name, keep_on_failure)}
            for name, (path, mode) in PLACES.items()
        ],
        "runcmd": [
            ["systemctl", "daemon-reload"],
            # Also after a restart, which cloud-init makes where packages ask for one.
            ["systemctl", "enable", "latentvirt-build.service"],
            ["systemctl", "start", "--no-block", "latentvirt-build.service"],
            "set -e",
            ["sh", f"{GUEST_FOLDER}/build", "prepare"],
        ],
    }


def _content(name: str, keep_on_failure: bool) -> str:
    text = (GUEST_FILES / name).read_text(encoding="utf-8")
    return text.replace(KEEP_MARK, "keep" if keep_on_failure else "end")
