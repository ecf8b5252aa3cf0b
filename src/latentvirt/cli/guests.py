"""What is known of the guests of latentvirt's VMs: who they are, their SSH host keys, their addresses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs
from twisted.internet import defer

from latentvirt import domainxml
from latentvirt.cli.asking import Answer, ask, not_found
from latentvirt.cli.finding import refuse_several
from latentvirt.config import Connection
from latentvirt.errors import NotFound
from latentvirt.host import DomainUse, Driver, Host
from latentvirt.hostkeys import HostKey

LEASE = "lease"
"""Who is believed about addresses without asking back: the DHCP server, and not the guest."""


@attrs.frozen(kw_only=True)
class Guest:
    """The guest of one of latentvirt's VMs.

    Args:
        connection: its host.
        name: of its domain.
        uuid: of its domain.
        worker: the Buildbot worker that it is; None if it is none, or stands by for one.
        keys: its public SSH host keys.
        addresses: those that its host's DHCP server gave it.
        xml: its domain's live description.
    """

    connection: Connection
    name: str
    uuid: str
    worker: str | None
    keys: tuple[HostKey, ...]
    addresses: tuple[str, ...]
    xml: str

    def is_called(self, name: str) -> bool:
        """Tell whether it is known by a name: its domain's or its worker's."""
        return name in (self.name, self.worker)


async def look_at_guests(host: Host) -> list[Guest]:
    """See the guests of all of latentvirt's VMs on a host."""
    uses = [use for use in await host.usage() if use.ownership is not None]
    seen = await defer.gatherResults([defer.ensureDeferred(_look(host, use)) for use in uses])
    return [guest for guest in seen if guest is not None]


async def _look(host: Host, use: DomainUse) -> Guest | None:
    try:
        xml = await host.description(use.uuid)
        addresses = await host.addresses(use.uuid, LEASE)
    except NotFound:
        return None  # it has ended meanwhile
    mark = domainxml.guest_of(xml)
    return Guest(
        connection=host.connection,
        name=use.name,
        uuid=use.uuid,
        worker=mark.worker if mark else None,
        keys=mark.keys if mark else (),
        addresses=addresses,
        xml=xml,
    )


def guests_in(answers: Iterable[Answer[list[Guest]]]) -> list[Guest]:
    """Put what all hosts said into one list."""
    return [guest for answer in answers for guest in answer.found or []]


async def find_guest(connections: Sequence[Connection], name: str, driver: Driver | None) -> Guest:
    """Find one of latentvirt's VMs by its domain's name, or its worker's.

    Args:
        connections: the hosts that it may be on.
        name: of either.
        driver: opens connections; libvirt's own if None.

    Raises:
        NotFound: it is on none of those that answered.
        ConfigError: several have one.
    """
    answers = await ask(connections, look_at_guests, driver)
    found = [guest for guest in guests_in(answers) if guest.is_called(name)]
    if not found:
        raise not_found(f"VM of latentvirt's of the name {name!r}", answers, "latentvirt vm list")
    refuse_several(name, [(guest.name, guest.connection.uri) for guest in found])
    return found[0]
