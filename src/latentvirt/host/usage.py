"""A libvirt host's verbs for what is in use: how large it is, and what every domain there takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import libvirt

from latentvirt.host import domains
from latentvirt.host.caller import Caller
from latentvirt.host.codes import UNSUPPORTED
from latentvirt.host.views import Change, DomainUse, Node
from latentvirt.names import Ownership

KIB_PER_MIB = 1024


class UsageVerbs(Caller):
    """The part of `Host` that tells how much room there is."""

    async def node(self) -> Node:
        """Say how large the host is."""
        return await self._call("look at the host's size", _node)

    async def usage(self) -> tuple[DomainUse, ...]:
        """List what each domain that runs, or is paused, takes of the host, in the order they were started.

        One call, and one more for each domain that was not seen before: whose it is.
        """
        before = set(self._marks)
        found = await self._call(
            "see what is in use",
            lambda connection: tuple(sorted(_uses(connection, self._marks), key=lambda use: use.number)),
            deadline_s=self._deadlines.create,
        )
        self._seen(before, found)
        return found

    def _seen(self, before: set[tuple[str, int]], found: tuple[DomainUse, ...]) -> None:
        """Keep whose the domains are that run, and forget those that ran before and do not any more."""
        # A domain's mark does not change while it runs. What is created meanwhile is added by its thread.
        seen = {(use.uuid, use.number): use.ownership for use in found}
        for ended in before - seen.keys():
            self._marks.pop(ended, None)
        self._marks.update(seen)

    def _mark(self, domain: Any, ownership: Ownership | None) -> None:
        """Note whose a domain is that was just created; for the thread that did."""
        if ownership is not None:
            self._marks[str(domain.UUIDString()), int(domain.ID())] = ownership

    def hear_of_domains(self, tell: Callable[[str, Change], object]) -> None:
        """Hear of every domain that starts or ends on the host, whoever's it is.

        Args:
            tell: called on the reactor's thread with the domain's UUID, and what happened; with an empty UUID
                when the connection broke, since from then on nothing is heard.
        """
        self._link.on_change = tell


def _node(connection: Any) -> Node:
    info = connection.getInfo()
    return Node(memory=int(info[1]), cpus=int(info[2]))


def _uses(connection: Any, known: dict[tuple[str, int], Ownership | None]) -> Iterable[DomainUse]:
    for domain, memory_kib, vcpus in _sizes(connection):
        uuid, number = str(domain.UUIDString()), int(domain.ID())
        if number < 0:
            continue  # it ended meanwhile
        try:
            mark = known[uuid, number]
        except KeyError:
            mark = domains.ownership(domain)
        yield DomainUse(
            uuid=uuid,
            name=str(domain.name()),
            number=number,
            memory=-(-memory_kib // KIB_PER_MIB),
            vcpus=vcpus,
            ownership=mark,
        )


def _sizes(connection: Any) -> Iterable[tuple[Any, int, int]]:
    """Yield the active domains with their KiB of memory and their processors."""
    wanted = libvirt.VIR_DOMAIN_STATS_BALLOON | libvirt.VIR_DOMAIN_STATS_VCPU
    try:
        found = connection.getAllDomainStats(wanted, libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in UNSUPPORTED:
            raise
        active = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        found = [(domain, {}) for domain in active]
    for domain, stats in found:
        try:
            memory_kib, vcpus = stats["balloon.maximum"], stats["vcpu.maximum"]
        except KeyError:  # not every driver has both
            memory_kib, vcpus = _size(domain)
        yield domain, int(memory_kib), int(vcpus)


def _size(domain: Any) -> tuple[int, int]:
    try:
        _, memory_kib, _, vcpus, _ = domain.info()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return 0, 0  # it has ended since it was listed
        raise
    return memory_kib, vcpus
