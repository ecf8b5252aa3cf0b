"""A libvirt host's verbs for memory: pausing VMs, saving and restoring them, and how much there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import libvirt

from latentvirt.host import domains
from latentvirt.host.codes import UNSUPPORTED
from latentvirt.host.usage import UsageVerbs
from latentvirt.host.views import Created, MemoryView, Versions
from latentvirt.names import Ownership

KIB_PER_MIB = 1024
BYTES_PER_MIB = 1024 * KIB_PER_MIB


class MemoryVerbs(UsageVerbs):
    """The part of `Host` that deals with memory."""

    async def pause(self, uuid: str) -> None:
        """Let a domain stand still, its memory kept."""
        await self._on_domain("pause the domain", uuid, lambda domain: domain.suspend())

    async def save(self, uuid: str, path: str, *, name: str = "") -> None:
        """Write a domain's memory to a file, and end the domain.

        A save that passes its deadline goes on all the same, as libvirt has no way back from it.

        Args:
            uuid: of the domain; restored, it will be paused.
            path: of a file on the host, which is written over.
            name: the domain's name, for messages.
        """
        flags = libvirt.VIR_DOMAIN_SAVE_PAUSED
        await self._on_domain(
            f"save the domain to {path}",
            uuid,
            lambda domain: domain.saveFlags(path, None, flags),
            deadline_s=self._deadlines.save,
            domain=name,
        )

    async def saved_xml(self, path: str) -> str:
        """Read the description, secrets included, of the domain that was saved to a file."""
        flags = libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE
        return await self._call(
            f"read the saved domain in {path}", lambda c: str(c.saveImageGetXMLDesc(path, flags))
        )

    async def restore(self, path: str, xml: str, *, name: str, ownership: Ownership | None = None) -> Created:
        """Restore a saved domain, paused where it was saved, and read back what came of it.

        Args:
            path: of the file that it was saved to; it stays as it is.
            xml: the domain's description; its name, UUID and devices must be those that were saved.
            name: the domain's name.
            ownership: as for `Host.create`.
        """

        def restore(connection: Any) -> tuple[Any, Created]:
            connection.restoreFlags(path, xml, libvirt.VIR_DOMAIN_SAVE_PAUSED)
            domain = connection.lookupByName(name)
            return domain, self._read_back(domain, ownership)

        return await self._keep(f"restore the domain from {path}", restore, self._deadlines.save, name)

    async def _keep(
        self, what: str, make: Callable[[Any], tuple[Any, Created]], deadline_s: float, name: str
    ) -> Created:
        """Make a domain, and keep what libvirt gave for it."""
        domain, created = await self._call(
            what, make, deadline_s=deadline_s, domain=name, late=lambda made: domains.destroy(made[0])
        )
        self._link.keep(created.uuid, domain)
        return created

    def _read_back(self, domain: Any, ownership: Ownership | None) -> Created:
        """Note whose a new domain is, and read what came of it; for the thread that made it."""
        self._mark(domain, ownership)
        try:
            return domains.read_back(domain)
        except BaseException:
            # Nobody knows its UUID yet, so nobody else will end it.
            domains.destroy(domain)
            raise

    async def versions(self) -> Versions:
        """Say which libvirt and which QEMU the host has now; asked once per connection."""
        await self._link.open()
        opens = self._link.opens
        if self._versions is None or self._versions[0] != opens:
            found = await self._call(
                "read the host's versions", lambda c: Versions(int(c.getLibVersion()), int(c.getVersion()))
            )
            self._versions = (opens, found)
        return self._versions[1]

    async def memory(self) -> MemoryView:
        """Say how much memory the host has, and how much of it new VMs can have now."""
        return await self._call("look at the host's memory", _memory)


def _memory(connection: Any) -> MemoryView:
    try:
        found = connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS, 0)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in UNSUPPORTED:
            raise
        return MemoryView(int(connection.getInfo()[1]), int(connection.getFreeMemory()) // BYTES_PER_MIB)
    # Linux gives up its caches when somebody needs the memory; what a tmpfs holds counts as cache as well.
    available = sum(found.get(part, 0) for part in ("free", "buffers", "cached"))
    return MemoryView(found["total"] // KIB_PER_MIB, available // KIB_PER_MIB)
