"""A guest in a fake domain: writes to its console, asks who it is, takes its identity, powers itself off."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentvirt.testing.state import FakeDomain

CHANNEL = "org.latentvirt.worker.0"
CONSOLE = ""


class FakeGuest:
    """What runs in a fake domain; it begins when the domain is resumed.

    Subclass it for other behaviour; the ``on_`` methods run on the fake's event thread.

    Args:
        console: lines that it writes when it boots.
        says_ready: whether it asks who it is, as the guest helper does.
        powers_off: whether it obeys the power button.
        can: what it says that it understands.
        mute_after_thaw: whether it does not answer any more after it was saved and restored.
        ssh: public SSH host keys that it tells when it attaches.
    """

    def __init__(
        self,
        *,
        console: Sequence[str] = ("booting",),
        says_ready: bool = False,
        powers_off: bool = True,
        can: Sequence[str] = ("freeze", "rehearse"),
        mute_after_thaw: bool = False,
        ssh: Sequence[str] = (),
    ) -> None:
        self.console = tuple(console)
        self.says_ready = says_ready
        self.powers_off = powers_off
        self.can = tuple(can)
        self.mute_after_thaw = mute_after_thaw
        self.ssh = tuple(ssh)
        self.thaws = 0
        """How often it was restored."""
        self.identity: dict[str, Any] | None = None
        """What the host told it, once it has."""
        self.domain: FakeDomain | None = None
        self._heard = b""

    def on_boot(self) -> None:
        """Begin to run."""
        self.write_console("".join(f"{line}\r\n" for line in self.console).encode())
        if self.says_ready:
            self.say("ready", helper="fake", system="fake", **({"can": list(self.can)} if self.can else {}))

    def on_channel(self, data: bytes) -> None:
        """Hear the host."""
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if self.thaws and self.mute_after_thaw:
                continue
            asked = said.get("say")
            if asked == "identity":
                self.identity = said
                self.say("attaching", **({"ssh": list(self.ssh)} if self.ssh else {}))
            elif asked in self.can:
                self.say({"freeze": "frozen", "rehearse": "rehearsed"}[asked])
            else:
                self.say("error", why=f"this guest does not understand {asked!r}")

    def on_power_button(self) -> None:
        """Be asked to shut down."""
        if self.powers_off and self.domain is not None:
            self.domain.power_off()

    def write_console(self, data: bytes) -> None:
        """Write to the serial console."""
        if self.domain is not None:
            self.domain.port(CONSOLE).from_guest(data)

    def write_channel(self, data: bytes) -> None:
        """Write to the identity channel."""
        if self.domain is not None:
            self.domain.port(CHANNEL).from_guest(data)

    def say(self, what: str, **more: object) -> None:
        """Say something in the channel's protocol."""
        self.write_channel(json.dumps({"latentvirt": 1, "say": what, **more}).encode() + b"\n")
