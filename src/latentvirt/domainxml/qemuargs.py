"""Reading the QEMU arguments that a person put into the XML, for files that the guest could write to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from latentvirt.domainxml.parse import Element, line_of
from latentvirt.domainxml.problems import Problem

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
QEMU_COMMANDLINE = "qemu:commandline"
"""How ``allow_shared`` names the arguments."""

IMAGE_OPTIONS = ("hda", "hdb", "hdc", "hdd", "fda", "fdb", "sd", "mtdblock", "pflash")
"""Options that open the image they name for writing, and have no way to say otherwise."""

DRIVE_OPTIONS = ("drive", "blockdev")
FOLDER_OPTIONS = ("virtfs", "fsdev")
OPAQUE_OPTIONS = ("readconfig", "tpmdev")
"""A file of further options that cannot be read from here; a TPM, whose state nothing here looks after."""

OUTLIVING_DEVICES = ("vfio-", "usb-host", "usb-mtp", "vhost-user-", "ivshmem")
"""Beginnings of the names of devices that reach storage on the host without a drive."""

ON = ("on", "yes", "true", "y")


def argument_problems(root: Element) -> Iterator[Problem]:
    """List the arguments that let the guest write to something that outlives its start."""
    arguments = root.findall(f"{{{QEMU_NAMESPACE}}}commandline/{{{QEMU_NAMESPACE}}}arg")
    for position, argument in enumerate(arguments):
        text = argument.get("value", "")
        if not re.fullmatch(r"--?[A-Za-z][A-Za-z0-9-]*", text):
            continue
        value = arguments[position + 1].get("value", "") if position + 1 < len(arguments) else ""
        if writes(text.lstrip("-"), value):
            yield Problem(
                name=QEMU_COMMANDLINE,
                line=line_of(argument),
                what=f"the QEMU argument '{text} {value}' opens something for writing",
                remedies=("add readonly=on to the argument where it has that", "remove the argument"),
            )


def writes(option: str, value: str) -> bool:
    """Tell whether a QEMU option opens something that the guest can write to and that outlives it.

    Args:
        option: its name, without dashes.
        value: the argument after it.
    """
    if option in IMAGE_OPTIONS or option in OPAQUE_OPTIONS:
        return True
    settings = settings_of(value)
    read_only = any(settings.get(key) in ON for key in ("readonly", "read-only"))
    kind = settings.get("qom-type") or settings.get("driver") or settings.get("")
    if option in DRIVE_OPTIONS:
        return not (read_only or settings.get("snapshot") in ON)
    if option in FOLDER_OPTIONS:
        return not read_only
    if option == "object":
        return kind == "memory-backend-file" and settings.get("share") in ON and not read_only
    if option == "device":
        return not read_only and (kind or "").startswith(OUTLIVING_DEVICES)
    return False


def settings_of(value: str) -> dict[str, str]:
    """Read an option's value, ``kind,key=value,...`` or JSON; the kind is under the empty key.

    JSON's truth is told as ``on`` and ``off``, as in the other form.
    """
    if value.startswith("{"):
        try:
            read = json.loads(value)
        except ValueError:
            return {}
        return {
            str(key): {True: "on", False: "off"}[item] if isinstance(item, bool) else str(item)
            for key, item in read.items()
        }
    # In QEMU's syntax a doubled comma is a comma within a value.
    parts = value.replace(",,", "\0").split(",")
    settings = {}
    for number, part in enumerate(parts):
        key, equals, rest = part.partition("=")
        if equals:
            settings[key] = rest.replace("\0", ",")
        elif number == 0:
            settings[""] = part
        else:
            settings[part] = "on"
    return settings
