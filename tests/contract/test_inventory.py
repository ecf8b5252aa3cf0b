"""Contract: what a person has set up on a host."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from contract.backends import STORAGE, Backend, Fake
from latentvirt.errors import HostError, NotFound
from latentvirt.host import Host
from reactorthread import run


def test_networks_are_seen_and_started(backend: Backend, host: Host) -> None:
    """Networks are listed with whether they run; one that is not there, or runs already, is not started."""
    seen = {network.name: network for network in run(host.networks())}
    with pytest.raises(HostError):
        run(host.start_network("nowhere"))
    if "default" in seen:
        assert (seen["default"].active, seen["default"].dhcp) == (True, True)
        assert seen["default"].address == run(host.network_address("default"))
        with pytest.raises(HostError):
            run(host.start_network("default"))


def test_a_network_that_stands_still(fake: Fake, host: Host) -> None:
    """A network that does not run is seen as that, and runs once it was started."""
    fake.host.stopped_networks.add("default")
    assert not {network.name: network for network in run(host.networks())}["default"].active
    run(host.start_network("default"))
    assert {network.name: network for network in run(host.networks())}["default"].active


def test_pools_that_do_not_run_are_seen_and_started(
    backend: Backend, host: Host, able: Callable[..., None]
) -> None:
    """A pool that is defined and does not run is listed, unlike among the active ones, and can be started."""
    able(STORAGE)
    pool = backend.direct().storagePoolDefineXML(
        f"<pool type='dir'><name>mine</name><target><path>{backend.images}</path></target></pool>", 0
    )
    try:
        seen = {one.name: one for one in run(host.all_pools())}["mine"]
        assert (seen.path, seen.active) == (backend.images, False)
        assert "mine" not in run(host.pools())
        run(host.start_pool("mine"))
        assert {one.name: one for one in run(host.all_pools())}["mine"].active
        pool.destroy()
    finally:
        pool.undefine()
    with pytest.raises(NotFound):
        run(host.start_pool("mine"))


def test_a_libvirt_without_storage_has_no_pools(backend: Backend, host: Host) -> None:
    """Where there is no driver for storage, there are no pools to list, and that is no error."""
    if STORAGE not in backend.can and backend.uri.startswith("qemu:///embed"):
        assert run(host.all_pools()) == ()
        assert run(host.networks()) == ()


def test_a_folder_is_made_and_no_pool_stays(backend: Backend, host: Host, able: Callable[..., None]) -> None:
    """A folder, and those above it, can be made on the host; nothing else comes of it."""
    able(STORAGE)
    path = f"{backend.images}/not/there"
    before = run(host.all_pools())
    run(host.make_folder(path, pool="latentvirt-images-00000000-look"))
    assert backend.listing(path) == []
    assert run(host.all_pools()) == before


def test_whom_qemu_runs_as_is_known(backend: Backend, host: Host) -> None:
    """Where libvirt keeps QEMU in a user of its own, or in root, that user and group are told."""
    user = run(host.qemu_user())
    if isinstance(backend, Fake) or not backend.uri.startswith("qemu"):
        assert user is None
    else:
        assert user == (0, 0)
