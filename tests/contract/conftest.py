"""One backend at a time, and a host on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

import reactorthread
from contract.backends import NAMES, OWNER, REAL, Backend, Fake, InMemory, open_backend
from latentvirt.config import Connection
from latentvirt.host import Deadlines, Host
from latentvirt.storage import Storage, open_storage
from reactorthread import run

ONLY = os.environ.get("LATENTVIRT_CONTRACT")
"""Names the one backend of this process; ``embed`` needs a process of its own (see test_embed.py)."""

_HERE = [ONLY] if ONLY else [name for name in NAMES if name != "embed"]


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=[pytest.mark.libvirt] if name in REAL else []) for name in _HERE],
)
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """The libvirt that the contract is held to."""
    with open_backend(request.param, tmp_path_factory.mktemp(request.param)) as opened:
        yield opened


@pytest.fixture
def fake(backend: Backend) -> Fake:
    """Our own fake, for what no other libvirt can be asked to do; name it before fixtures that take long."""
    if not isinstance(backend, Fake):
        pytest.skip("only the fake can be asked to")
    return backend


@pytest.fixture
def able(backend: Backend) -> Callable[..., None]:
    """Leave out a test that a backend has no means for; what it answers instead has a test of its own."""

    def need(*abilities: str) -> None:
        for ability in abilities:
            if ability not in backend.can:
                pytest.skip(f"this libvirt has no {ability}")

    return need


@pytest.fixture
def host(backend: Backend) -> Iterator[Host]:
    """A host on that libvirt; what a test leaves running is ended."""
    opened = Host(Connection(backend.uri), reactorthread.start(), driver=backend.driver)
    yield opened

    async def clear() -> None:
        for domain in await opened.domains():
            if domain.active and domain.name != "test":
                await opened.destroy(domain.uuid)
        await opened.close()

    reactorthread.run(clear())
    if isinstance(backend, Fake):
        backend.host.settle()


@pytest.fixture
def storage(backend: Backend, host: Host) -> Iterator[Storage]:
    """Our storage in an image folder with a base image; its files are gone afterwards."""
    if isinstance(backend, InMemory):
        pytest.skip("this libvirt has no directories")
    backend.add_image("base.qcow2")
    opened = open_storage(host, OWNER, backend.images)
    run(opened.prepare())
    yield opened

    async def clear() -> None:
        await opened.prepare()
        for name in await opened.names():
            await opened.delete(name)
        await opened.remove()

    run(clear())
    assert backend.listing(opened.directory) is None


@pytest.fixture
def hasty() -> Deadlines:
    """Deadlines that a test has the patience for."""
    return Deadlines(open=0.3, call=0.3, create=0.3, storage=0.3, save=0.3)
