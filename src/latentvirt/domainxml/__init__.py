"""Text to text: a domain's XML checked, generated, made into one start's, and read back."""

from __future__ import annotations

from latentvirt.domainxml.adding import with_devices
from latentvirt.domainxml.check import check
from latentvirt.domainxml.disks import DiskSource, WritableDisk, writable_disks
from latentvirt.domainxml.freezing import essence, files_read, hindrance
from latentvirt.domainxml.freshness import freshness_problems, has_emulated_tpm, uses_vars
from latentvirt.domainxml.generate import generate
from latentvirt.domainxml.guestmark import GuestMark, guest_mark, guest_of
from latentvirt.domainxml.holding import hold_of_mark, mark_of_hold
from latentvirt.domainxml.ownership import ownership_of, ownership_of_mark, with_auth
from latentvirt.domainxml.parse import (
    MAX_BYTES,
    NetworkUse,
    console_of,
    domain_name,
    domain_uuid,
    memory_of,
    network_of,
    parse,
    vcpus_of,
)
from latentvirt.domainxml.patterns import rewrite_for_start
from latentvirt.domainxml.problems import Problem, refuse
from latentvirt.domainxml.prove import prove
from latentvirt.domainxml.reaching import Forward, can_be_reached, forward_to, has_screen
from latentvirt.domainxml.rewrite import Layer, Overlay, OwnCards, files_of_disks, rewrite
from latentvirt.domainxml.seeding import with_seed

__all__ = [
    "MAX_BYTES",
    "DiskSource",
    "Forward",
    "GuestMark",
    "Layer",
    "NetworkUse",
    "Overlay",
    "OwnCards",
    "Problem",
    "WritableDisk",
    "can_be_reached",
    "check",
    "console_of",
    "domain_name",
    "domain_uuid",
    "essence",
    "files_of_disks",
    "files_read",
    "forward_to",
    "freshness_problems",
    "generate",
    "guest_mark",
    "guest_of",
    "has_emulated_tpm",
    "has_screen",
    "hindrance",
    "hold_of_mark",
    "mark_of_hold",
    "memory_of",
    "network_of",
    "ownership_of",
    "ownership_of_mark",
    "parse",
    "prove",
    "refuse",
    "rewrite",
    "rewrite_for_start",
    "uses_vars",
    "vcpus_of",
    "with_auth",
    "with_devices",
    "with_seed",
    "writable_disks",
]
