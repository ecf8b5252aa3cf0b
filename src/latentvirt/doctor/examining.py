"""A host examined: asked for everything, in an order in which nothing hangs and nobody is prompted."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from twisted.internet import threads

from latentvirt.abandoned import Estate, estates
from latentvirt.address import this_machine
from latentvirt.aliases import check_alias
from latentvirt.devices import USER_NETWORK
from latentvirt.doctor.finding import Finding, problem
from latentvirt.doctor.folders import (
    Someone,
    folder_findings,
    image_finding,
    pool_findings,
    room_finding,
)
from latentvirt.doctor.holds import hold_findings
from latentvirt.doctor.hypervisor import SELINUX, kvm_finding, security_finding, version_findings
from latentvirt.doctor.images import named_finding, varying_finding
from latentvirt.doctor.masters import (
    address_finding,
    call,
    clock_finding,
    estate_findings,
    guest_sees,
    helper_findings,
)
from latentvirt.doctor.networks import network_findings
from latentvirt.doctor.reaching import helper_finding, knock, ssh_finding, unreached
from latentvirt.doctor.shell import Shell, ask_shell
from latentvirt.doctor.sockets import socket_finding
from latentvirt.doctor.wanted import Wanted
from latentvirt.doctor.way import UNIX, Way, way_to
from latentvirt.domainxml import network_of
from latentvirt.errors import ConfigError, LatentvirtError, NotFound
from latentvirt.host import Host, NetworkView
from latentvirt.names import FileName, directory_owner
from latentvirt.roots import check_root_is_there
from latentvirt.storage import open_storage
from latentvirt.sweep import FROZEN

T = TypeVar("T")
Tell = Callable[[str], object]


async def examine(host: Host, wanted: Wanted, tell: Tell = lambda _: None) -> list[Finding]:
    """Find out what is wrong with a host, and what is as it should be.

    Nothing is changed there. What cannot be asked is left out, or said to be unknown.

    Args:
        host: the host; its connection is opened unless ssh would ask something.
        wanted: what is wanted of it.
        tell: called with what is asked next.
    """
    uri = wanted.uri
    try:
        check_alias(uri)
    except ConfigError as error:
        return [problem("alias-unknown", uri, error.what, error.remedy)]
    way = way_to(uri)
    try:
        check_root_is_there(way.uri)
    except ConfigError as error:
        return [problem("embed-failed", uri, error.what, error.remedy)]
    found: list[Finding] = []
    if way.is_ssh:
        tell("logging in by ssh")
        shell, ran = await _in_thread(ask_shell, way.ssh)
        found.append(ssh_finding(uri, way, ran, shell is not None))
        if shell is None:
            return found  # libvirt's own ssh would ask, or hang
        lacking = helper_finding(uri, way, shell.programs)
        if lacking is not None:
            return [*found, lacking]
    tell("connecting to libvirt")
    try:
        await host.open()
    except LatentvirtError as error:
        door = await _in_thread(knock, way.sockets) if way.transport == UNIX else None
        return [*found, unreached(uri, way, error, door)]
    return found + await _Examination(host, wanted, way, tell).findings()


async def _in_thread(do: Callable[..., T], *arguments: object) -> T:
    result: T = await threads.deferToThread(do, *arguments)
    return result


class _Examination:
    """One look at a host that answers."""

    def __init__(self, host: Host, wanted: Wanted, way: Way, tell: Tell) -> None:
        self.host = host
        self.wanted = wanted
        self.uri = wanted.uri
        self.way = way
        self.tell = tell
        self.found: list[Finding] = []
        self.arch: str | None = None
        self.selinux = False
        self.qemu: tuple[int, int] | None = None
        self.shell: Shell | None = None
        self.networks: tuple[NetworkView, ...] = ()
        self.wanted_networks = list(wanted.networks)
        self.estates: list[Estate] | None = None

    async def findings(self) -> list[Finding]:
        """Ask for everything; what one question comes to does not keep others from being asked."""
        for part, what in (
            (self._hypervisor, "asking what it can run"),
            (self._domains, "looking for domains"),
            (self._networks, "looking at networks"),
            (self._storage, "looking at image folders"),
            (self._named_images, "looking for images by name"),
            (self._masters, "looking for what masters left"),
            (self._addresses, "calling the master"),
        ):
            self.tell(what)
            try:
                await part()
            except LatentvirtError as error:
                self.found.append(
                    problem(
                        "unanswered",
                        self.uri,
                        f"while {what}: {error.what}",
                        error.remedy or f"see what it says by hand: virsh -c '{self.uri}' list",
                    )
                )
        return self.found

    async def _hypervisor(self) -> None:
        versions = await self.host.versions()
        self.found += version_findings(self.uri, versions)
        self._note(socket_finding(self.uri, self.way, versions.libvirt))
        capabilities = await self.host.capabilities()
        self.arch = capabilities.arch
        self.selinux = SELINUX in capabilities.security_models
        self.qemu = await self.host.qemu_user()
        self.shell = await self._ask_shell()
        self.found.append(
            kvm_finding(self.uri, capabilities, self.shell, self.qemu, self.wanted.kvm),
        )
        self._note(security_finding(self.uri, capabilities))
        if self.shell is not None and not self.way.is_here:
            self._note(clock_finding(self.uri, self.shell))

    async def _ask_shell(self) -> Shell | None:
        if not self.way.is_here and not self.way.is_ssh:
            return None  # there is no way to the host but libvirt's own
        before = self.way.ssh if self.way.is_ssh else []
        uid = None if self.qemu is None else self.qemu[0]
        shell, _ = await _in_thread(ask_shell, before, [*self.wanted.folders, *self.wanted.images], uid)
        return shell

    def _note(self, finding: Finding | None) -> None:
        if finding is not None:
            self.found.append(finding)

    async def _domains(self) -> None:
        for name in self.wanted.domains:
            try:
                use = network_of(await self.host.definition(name))
            except NotFound:
                self.found.append(
                    problem(
                        "domain-missing",
                        self.uri,
                        f"there is no domain {name} on the host, and its worker has nothing else to start",
                        f"see which there are: virsh -c '{self.uri}' list --all (qemu:///session and "
                        "qemu:///system have different ones); or give the worker a base_image",
                    )
                )
                continue
            if use.kind == "network" and use.name not in self.wanted_networks:
                self.wanted_networks.append(use.name)

    async def _networks(self) -> None:
        self.networks = await self.host.networks()
        is_embed = self.host.connection.is_embed
        self.found += network_findings(
            self.uri, self.networks, self.wanted_networks, is_embed=is_embed, shown=self.uri
        )

    async def _storage(self) -> None:
        self.found += pool_findings(
            self.uri,
            await self.host.all_pools(),
            self.wanted.folders,
            named=self.wanted.named,
            shown=self.uri,
        )
        self.estates = await self._estates()
        if self.shell is None:
            return
        someone = Someone.of(self.shell, self.qemu)
        seen = {path.path: path for path in self.shell.paths}
        for folder in self.wanted.folders:
            if folder not in seen:
                continue
            self.found += folder_findings(
                self.uri,
                seen[folder],
                someone,
                named=self.wanted.named,
                by_user=self.host.connection.is_embed or self.host.connection.is_session,
                selinux=self.selinux,
            )
            frozen = await self._frozen(folder)
            self._note(room_finding(self.uri, seen[folder], frozen, self.host.connection.frozen_bytes))
        for image in self.wanted.images:
            if image in seen:
                self._note(image_finding(self.uri, seen[image], someone, self.wanted.folders))

    async def _named_images(self) -> None:
        # One that is for other architectures only goes to other hosts.
        for wanted in self.wanted.named_images:
            if self.arch is not None and self.arch in (wanted.archs or {self.arch}):
                self.found.append(await _in_thread(named_finding, self.uri, wanted, self.arch, time.time()))
        self._note(varying_finding(self.uri, self.wanted.varying))

    async def _estates(self) -> list[Estate]:
        # What libvirt does not know: on embed, and once the host was booted.
        seen = () if self.shell is None else self.shell.paths
        owners = {owner for path in seen for owner in map(directory_owner, path.ours) if owner is not None}
        return await estates(self.host, sorted(owners), self.wanted.folders)

    async def _frozen(self, folder: str) -> int:
        """Add up what frozen images take in a folder, those of all masters."""
        total = 0
        for estate in self.estates or ():
            parsed = [(name, FileName.parse(name)) for name in estate.files.get(folder, ())]
            starts = {name.start for _, name in parsed if name is not None and name.kind == FROZEN}
            storage = open_storage(self.host, estate.owner, folder)
            for text, name in parsed:
                if name is not None and name.start in starts:
                    try:
                        total += await storage.size(text)
                    except NotFound:
                        pass  # its master has just removed it
        return total

    async def _masters(self) -> None:
        if self.estates is not None:
            now = time.time()
            self.found += estate_findings(self.uri, self.estates, now)
            self.found += hold_findings(self.uri, self.estates, now)
            self.found += helper_findings(self.uri, self.estates, self.wanted.helper)

    async def _addresses(self) -> None:
        is_here = self.host.connection.is_local
        known = {USER_NETWORK, *(network.name for network in self.networks if network.active)}
        for address in self.wanted.addresses:
            if is_here and address.given is None and address.network not in known:
                continue  # which address the host has there is not known, and why is told already
            told = guest_sees(
                address,
                is_here=is_here,
                networks=self.networks,
                fallback=this_machine,
            )
            calling = await _in_thread(call, told, address.port)
            self.found.append(address_finding(self.uri, address, calling))
