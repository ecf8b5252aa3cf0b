"""The password that Buildbot checks a worker's login against: one object, another value for each start."""

from __future__ import annotations

import secrets
from typing import Any

from buildbot.interfaces import IRenderable
from zope.interface import implementer

PASSWORD_BYTES = 24


@implementer(IRenderable)
class PasswordGate:
    """Accept the password of the start that is under way, and no other; it lives as long as its worker.

    Buildbot's PB manager renders the registered password at each login, so that one registered object serves
    all starts, and the port is never closed and opened again.
    """

    def __init__(self) -> None:
        self.static: str | None = None
        """The password that the person configured, None if there is none."""
        self._good: str | None = None

    def open_for_static(self) -> None:
        """Let a guest in that knows the configured password."""
        self._good = self.static

    def open_once(self) -> str:
        """Make a password that alone is good from now on, and return it."""
        self._good = secrets.token_urlsafe(PASSWORD_BYTES)
        return self._good

    def close(self) -> None:
        """Let nobody in."""
        self._good = None

    def getRenderingFor(self, _: Any) -> str:
        """Return what a login must match, for Buildbot; a random one where nobody is to get in."""
        return self._good or secrets.token_urlsafe(PASSWORD_BYTES)
