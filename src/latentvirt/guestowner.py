"""The machine that a guest is brought up for, as far as its tiers know it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from latentvirt import domainxml
from latentvirt.errors import LatentvirtError
from latentvirt.guest import Identity
from latentvirt.host import DomainNews
from latentvirt.listening import Listener

Identify = Callable[[domainxml.NetworkUse, str | None], Identity]


def nobody(use: domainxml.NetworkUse, address: str | None) -> Identity:
    """Be asked who a guest is that nobody has asked for yet."""
    raise LatentvirtError("a VM that no build has yet asked who it is")


class Owner(Protocol):
    """The machine that a guest is brought up for."""

    listener: Listener
    identify: Identify
    secrets: tuple[str, ...]
    worker: str

    @property
    def holding(self) -> bool:
        """Whether the guest is to wait, paused, instead of being told who it is."""
        ...

    def held(self) -> None:
        """The guest waits, paused."""
        ...

    def in_background(self, doing: Coroutine[Any, Any, None]) -> None:
        """Do something that takes longer than the start; its failure is the machine's."""
        ...

    def news(self, news: DomainNews) -> None:
        """Something became of the domain."""
        ...

    def useless(self, why: str) -> None:
        """The guest is of no more use."""
        ...

    def fail(self, what: str) -> None:
        """The machine is of no more use."""
        ...
