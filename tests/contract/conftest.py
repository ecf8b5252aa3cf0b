"""One backend at a time, and a host on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

import reactorthread
from contract.backends import NAMES, REAL, Backend, Fake, open_backend
from latentvirt.config import Connection
from latentvirt.host import Deadlines, Host

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
def hasty() -> Deadlines:
    """Deadlines that a test has the patience for."""
    return Deadlines(open=0.3, call=0.3, create=0.3, storage=0.3)
