"""How many calls at a time the fake serves, when a test limits it as libvirtd is limited."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from latentvirt.testing import FakeLibvirt

PATIENCE_S = 60.0


def until(so: Callable[[], bool]) -> None:
    """Wait until something is so."""
    last = time.monotonic() + PATIENCE_S
    while not so():
        assert time.monotonic() < last, "it has not become so"
        time.sleep(0.001)


def begin(call: Callable[[], Any]) -> threading.Thread:
    """Begin a call on a thread of its own."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def end(threads: list[threading.Thread]) -> None:
    """Wait until calls have come back."""
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_a_connection_is_served_so_many_calls_at_a_time() -> None:
    """A client that makes more calls waits with them, whatever another connection may still do."""
    fake = FakeLibvirt()
    trouble = fake.inspector.trouble
    busy, other = fake.open("qemu:///system"), fake.open("qemu:///system")
    trouble.calls_of_connection = 2
    hang = trouble.hang("getLibVersion")
    threads = [begin(busy.getLibVersion) for _ in range(5)]
    until(lambda: busy.served.waiting == 3)
    assert other.getVersion()
    hang.release()
    end(threads)
    assert (busy.served.most_busy, busy.served.waiting) == (2, 0)


def test_a_host_is_first_come_first_served() -> None:
    """Calls of all connections stand in one line, and each is served in its turn."""
    fake = FakeLibvirt()
    trouble = fake.inspector.trouble
    trouble.calls_of_host = 1
    hang = trouble.hang("getLibVersion")
    threads = [begin(fake.open("qemu:///system").getLibVersion)]
    assert hang.entered.acquire(timeout=PATIENCE_S)
    served: list[int] = []

    def call(number: int) -> None:
        with trouble.served:
            served.append(number)

    for number in range(4):
        threads.append(begin(partial(call, number)))
        until(partial(_wait, trouble.served, number + 1))
    assert served == []
    hang.release()
    end(threads)
    assert served == [0, 1, 2, 3]
    assert trouble.served.most_busy == 1


def _wait(places: Any, count: int) -> bool:
    return bool(places.waiting == count)


def test_without_a_limit_nobody_waits() -> None:
    """Tests that ask for no limit get none."""
    fake = FakeLibvirt()
    trouble = fake.inspector.trouble
    connection = fake.open("qemu:///system")
    hang = trouble.hang("getLibVersion")
    threads = [begin(connection.getLibVersion) for _ in range(30)]
    for _ in threads:
        assert hang.entered.acquire(timeout=PATIENCE_S)
    hang.release()
    end(threads)
