"""A base image made of a stock image: the disks, the boot, and the publishing of what came of it."""

from __future__ import annotations

import hashlib
import os
import re
import time
import uuid as uuids
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs

from latentvirt import domainxml
from latentvirt.building.boot import Boot, Listener
from latentvirt.building.disks import FORMAT, Disk, flatten, look_at, make_overlay
from latentvirt.building.recipe import BUILD_PORT, recipe
from latentvirt.building.report import Report
from latentvirt.building.workplace import RunningVM, Workplace, abandoned
from latentvirt.capabilities import HostCapabilities
from latentvirt.config import BYTES_PER_MIB, Connection
from latentvirt.errors import ConfigError, GuestFailed, HostError, HostUnreachable, ImageError
from latentvirt.host import Host
from latentvirt.images.nocloud import Seed, write_seed
from latentvirt.images.store import BUILT, STOCK, Entry, ImageStore, digest_of
from latentvirt.images.threads import in_thread
from latentvirt.names import Ownership, new_owner, new_start, slot_of_domain
from latentvirt.sizes import Size
from latentvirt.storage import what_blocks

T = TypeVar("T")

SYSTEM_DISK = "vda"
TAIL_LINES = 30
SUFFIXES = re.compile(r"\.(qcow2|img|raw)$")


@attrs.frozen(kw_only=True)
class Order:
    """What is to be built.

    Args:
        image: name of a stock image of the store, or the path of a file.
        name: of the image that comes of it.
        size: of the VM; its disk is at least as large as the image.
        timeout_s: seconds that the guest may take.
        network: name of a libvirt network, or ``user``.
        keep_on_failure: whether a VM that failed goes on running, with its files, to be looked at.
        user_data: what the person adds to cloud-init's configuration.
        meta_data: likewise.
    """

    image: str
    name: str
    size: Size
    timeout_s: float
    network: str = "user"
    keep_on_failure: bool = False
    user_data: Mapping[str, Any] = attrs.field(factory=dict)
    meta_data: Mapping[str, Any] = attrs.field(factory=dict)


def name_of_file(path: str) -> str:
    """Say what an image made of a file is called, unless somebody says otherwise."""
    return SUFFIXES.sub("", os.path.basename(path)).lower()


def check_order(order: Order, connection: Connection, store: ImageStore) -> None:
    """Check what can be wrong with an order before anything is done for it, and without libvirt.

    Args:
        order: what is to be built.
        connection: where to boot it.
        store: where the stock image is.

    Raises:
        ConfigError: it cannot be carried out as it is.
        ImageError: there is no such image.
    """
    if not connection.is_local:
        raise ConfigError(
            f"{connection.uri} is not surely this machine, and only here can the VM's disk be read "
            "afterwards",
            remedy="build on a libvirt of this machine: --connect qemu:///system, or qemu:///session",
        )
    Entry(order.name, "x", BUILT, FORMAT, "0" * 64, 0, 0, 0).check()
    if "/" in order.image:
        try:
            os.stat(order.image)
        except OSError as error:
            raise ImageError(
                f"the image {order.image} cannot be looked at: {error.strerror}",
                remedy="name an image that is there by its path, or one of the image store by its name",
            ) from error
    elif not any((entry.name, entry.kind) == (order.image, STOCK) for entry in store.entries()):
        raise _no_stock_image(order.image, str(store.root))


def _no_stock_image(name: str, where: str) -> ImageError:
    return ImageError(
        f"there is no stock image {name!r} in {where}",
        remedy=f"get it: latentvirt image pull {name}; or name a file by its path",
    )


async def build(order: Order, host: Host, store: ImageStore, listener: Listener) -> Entry:
    """Make a base image, and publish it as a built one.

    It may be cancelled at any time: nothing of it is left then.

    Args:
        order: what is to be built; one that `check_order` has let pass.
        host: where to boot it: this machine.
        store: where the stock image is, and the built one goes.
        listener: hears how it goes.

    Returns:
        The built image.

    Raises:
        ImageError: the stock image is not there, or is none to begin from.
        GuestFailed: cloud-init, or what it had to do, failed; nothing is published.
        HostError: the host failed.
    """
    listener.step(f"looking at {order.image}")
    await host.open()
    await _clear_up(host, store, listener)
    capabilities = await host.capabilities()
    base, source = _base(order, store, capabilities.arch)
    work = Workplace.make(store.scratch())
    one = _Build(order, host, store, listener, work, capabilities)
    try:
        entry = await one.run(base, source)
    except BaseException:
        if not one.kept:
            work.remove()
        raise
    work.remove()
    return entry


async def _clear_up(host: Host, store: ImageStore, listener: Listener) -> None:
    """Remove what builds left whose process was killed."""
    for work in abandoned(store.scratch()):
        vm = work.noted()
        if vm is not None and vm.uri != host.uri:
            listener.tell(
                f"a build that was killed has left {work.path}, and perhaps a VM on {vm.uri}; a build there, "
                f"with --connect '{vm.uri}', removes both"
            )
            continue
        if vm is not None:
            await host.destroy(vm.uuid, only=vm.ownership)
        work.remove()


def _base(order: Order, store: ImageStore, arch: str) -> tuple[Path, dict[str, Any]]:
    """Find the image to begin from, and what is known of it."""
    if "/" in order.image:
        path = Path(order.image).absolute()
        return path, {"path": str(path)}
    entry = store.find(order.image, arch, STOCK)
    if entry is None:
        raise _no_stock_image(order.image, f"{store.root} for {arch}")
    return store.path_of(entry), {"name": entry.name, "digest": entry.digest, "source": entry.source}


class _Build:
    """One build, from its disks to what is published."""

    def __init__(
        self,
        order: Order,
        host: Host,
        store: ImageStore,
        listener: Listener,
        work: Workplace,
        capabilities: HostCapabilities,
    ) -> None:
        self._order, self._host, self._store = order, host, store
        self._listener, self._work, self._capabilities = listener, work, capabilities
        self._start = new_start()
        self._name = f"latentvirt-build-{order.name}-{self._start}"
        self._uuid = str(uuids.uuid4())
        self._ownership = Ownership(new_owner(), slot_of_domain(f"build-{order.name}"), self._start)
        self.kept = False

    async def run(self, base: Path, source: dict[str, Any]) -> Entry:
        seed = recipe(
            instance=f"latentvirt-build-{self._start}",
            keep_on_failure=self._order.keep_on_failure,
            user_data=self._order.user_data,
            meta_data=self._order.meta_data,
        )
        began = time.monotonic()
        base = self._held(base)
        disk = await self._apart(lambda given_up: look_at(base, given_up))
        await self._apart(lambda given_up: self._make_disks(base, disk, seed, given_up))
        report = await self._boot(base, self._xml(base, disk))
        self._listener.step("flattening the disk")
        await self._apart(lambda given_up: flatten(self._work.disk, self._work.image, given_up))
        self._listener.step("publishing")
        told = {
            "of": source.get("path") or source["name"],
            "built_from": source,
            "facts": report.facts,
            "user_data": hashlib.sha256(repr(self._order.user_data).encode()).hexdigest(),
            "seconds": round(time.monotonic() - began),
        }
        return await self._apart(lambda given_up: self._publish(told))

    async def _apart(self, do: Callable[[Any], T]) -> T:
        return await in_thread(self._host.reactor, do)

    def _held(self, base: Path) -> Path:
        """Give an image of the store one more name, so that a newer one does not take it away under us."""
        held = self._work.path / f"base{base.suffix}"
        if self._store.root not in base.parents:
            return base
        try:
            os.link(base, held)
        except OSError:
            return base  # a file system without such names
        return held

    def _make_disks(self, base: Path, disk: Disk, seed: Seed, given_up: Any) -> None:
        size = self._order.size.disk
        capacity = max(disk.capacity, 0 if size is None else size * BYTES_PER_MIB)
        write_seed(seed, self._work.seed)
        make_overlay(self._work.disk, base, disk, capacity, given_up)

    def _xml(self, base: Path, disk: Disk) -> str:
        plain = domainxml.generate(
            name=self._name,
            uuid=self._uuid,
            capabilities=self._capabilities,
            size=self._order.size,
            network=self._order.network,
            virt_type="auto",
        )
        layer = domainxml.Layer(str(base), disk.format)
        ours = domainxml.rewrite(
            plain,
            ownership=self._ownership,
            overlays=[domainxml.Overlay(SYSTEM_DISK, str(self._work.disk), (layer,))],
            vars_path=str(self._work.vars) if domainxml.uses_vars(plain) else None,
        )
        return domainxml.with_seed(ours, seed=str(self._work.seed), ports=[BUILD_PORT])

    async def _boot(self, base: Path, xml: str) -> Report:
        self._work.note(RunningVM(self._host.uri, self._uuid, self._ownership))
        with self._work.console.open("wb", buffering=0) as console:
            boot = Boot(self._host, self._listener, self._order.keep_on_failure, console.write)
            try:
                await boot.run(
                    xml,
                    uuid=self._uuid,
                    name=self._name,
                    ownership=self._ownership,
                    timeout_s=self._order.timeout_s,
                )
            except HostUnreachable:
                raise
            except HostError as error:
                await self._explain(error, base)
                raise
            except GuestFailed:
                self._tell_failure(boot)
                raise
        return boot.report

    async def _explain(self, error: HostError, base: Path) -> None:
        paths = [str(base), str(self._work.path)]
        blocked = await self._apart(lambda given_up: what_blocks(paths))
        if blocked is not None:
            raise ImageError(
                f"the VM could not be created, probably because {blocked}. libvirt said: {error.what}",
                host=self._host.uri,
                domain=self._name,
                remedy="let others read the image and pass its folders (chmod o+r, o+x), move it, or build "
                "as an ordinary user with --connect qemu:///session; LATENTVIRT_IMAGES names another store",
            ) from error

    def _tell_failure(self, boot: Boot) -> None:
        tail = boot.tail(TAIL_LINES)
        if tail:
            self._listener.tell("the last that it wrote:")
            for line in tail:
                self._listener.tell(f"  {line}")
        if self._order.keep_on_failure:
            self.kept = True
            self._work.keep()
            runs = (
                f"the VM {self._name} runs on; look with: virsh -c '{self._host.uri}' console {self._name}; "
                f"end it with: virsh -c '{self._host.uri}' destroy {self._name}"
                if boot.kept
                else "the VM has ended by itself"
            )
            self._listener.tell(f"kept for you: {runs}")
            self._listener.tell(f"its disk and console.log, yours to remove: {self._work.path}")

    def _publish(self, told: dict[str, Any]) -> Entry:
        path = self._work.image
        return self._store.publish(
            path,
            name=self._order.name,
            arch=self._capabilities.arch,
            kind=BUILT,
            format=FORMAT,
            source=told,
            digest=digest_of(path),
        )
