"""What can go wrong, whose fault it was, and whether another try can help.

Every error says which host and domain it concerns, what was tried, and what the person can do.
"""

from __future__ import annotations

import copy
from typing import ClassVar, Literal, TypeVar

REMEDY = " What to do: "
"""Stands between what went wrong and the way out."""

E = TypeVar("E", bound="LatentvirtError")
Fault = Literal["config", "build", "host", "guest"]


class LatentvirtError(Exception):
    """Say what failed, where, and the way out.

    Args:
        what: one sentence: what was tried and what came of it.
        remedy: what the person can do; empty if there is nothing.
        host: URI of the libvirt host concerned.
        domain: name of the domain concerned.
    """

    retry: ClassVar[bool] = False
    """Whether the same build may succeed when it is tried again."""

    fault: ClassVar[Fault] = "host"
    """Whose fault it was; only a guest's puts the worker into Buildbot's quarantine."""

    def __init__(self, what: str, *, remedy: str = "", host: str = "", domain: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy
        self.host = host
        self.domain = domain

    def placed(self: E, *, host: str, domain: str) -> E:
        """Return the same, with host and domain where it names none; others may have been told this one.

        Args:
            host: URI of the host.
            domain: name of the domain.
        """
        told = copy.copy(self)
        told.host, told.domain = self.host or host, self.domain or domain
        told.__cause__ = self.__cause__
        return told.with_traceback(self.__traceback__)

    def about(self: E, whom: str) -> E:
        """Return the same, saying first whom it concerns.

        Args:
            whom: one of several, as the person wrote it.
        """
        told = copy.copy(self)
        told.what = f"{whom}: {self.what}"
        return told

    def __str__(self) -> str:
        where = ", ".join(
            f"{label} {value}" for label, value in (("host", self.host), ("domain", self.domain)) if value
        )
        text = f"[{where}] {self.what}" if where else self.what
        if not self.remedy:
            return text
        stop = "" if text.endswith((".", "!", "?")) else "."
        return f"{text}{stop}{REMEDY}{self.remedy}"


class ConfigError(LatentvirtError):
    """An argument in master.cfg, or a value rendered from it, cannot be right."""

    fault = "config"


class BadXML(ConfigError):
    """The person's XML is malformed or lacks something that the other arguments need.

    Args:
        line: line in the XML that the message speaks of, counted from 1; 0 if none.
    """

    def __init__(
        self, what: str, *, line: int = 0, remedy: str = "", host: str = "", domain: str = ""
    ) -> None:
        super().__init__(f"line {line}: {what}" if line else what, remedy=remedy, host=host, domain=domain)
        self.line = line


class NotFresh(ConfigError):
    """A start would write to something that outlives it, and nobody has allowed that."""


class TooManyTries(LatentvirtError):
    """This build was tried as often as a build is tried."""

    fault = "build"


class HostFull(LatentvirtError):
    """There is no room for a VM on the host now; it waits, or goes elsewhere."""

    retry = True
    fault = "build"


class ImpossibleWish(LatentvirtError):
    """A build asks for a VM that cannot be had here, whatever room there is."""

    fault = "build"


class HostError(LatentvirtError):
    """The host said no, or its answer made no sense.

    Args:
        code: libvirt's error number (``VIR_ERR_...``), 0 if it was none of libvirt's.
    """

    retry = True

    def __init__(
        self, what: str, *, code: int = 0, remedy: str = "", host: str = "", domain: str = ""
    ) -> None:
        super().__init__(what, remedy=remedy, host=host, domain=domain)
        self.code = code


class HostUnreachable(HostError):
    """The host cannot be reached, or the connection to it broke."""


class HostTimeout(HostUnreachable):
    """The host did not answer within the call's deadline."""


class NotFound(HostError):
    """The host does not have what was asked for (domain, pool, volume, network)."""


class NoFolder(NotFound):
    """The host does not have the folder in which a directory of ours is to be made."""


class AlreadyExists(HostError):
    """The host has something of that name already."""


class Refused(HostError):
    """The host understood what was asked for and will never do it."""

    retry = False
    fault = "config"


class ImageError(LatentvirtError):
    """An image is missing, unreadable for the hypervisor, or not of the format that was said."""

    fault = "config"


class ForeignDomain(LatentvirtError):
    """A domain of the name that a start needs exists and is not ours; it was left alone."""

    fault = "config"


class NotProven(LatentvirtError):
    """The domain that libvirt made differs from the one that was asked for; it was not resumed."""

    fault = "config"


class GuestFailed(LatentvirtError):
    """The guest ended, crashed or hung before its build was done."""

    retry = True
    fault = "guest"


class BadFrozenImage(HostError):
    """A frozen image is not what it was, or the host cannot go on from it; it is discarded."""


class CannotThaw(LatentvirtError):
    """Only thawing was asked for, and such a VM cannot be frozen."""

    fault = "config"


class StartCancelled(LatentvirtError):
    """The start was called off."""

    retry = True
    fault = "build"
