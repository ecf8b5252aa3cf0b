"""Threads that are begun without anybody waiting until they run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import NamedTuple


class _Wanted(NamedTuple):
    name: str
    do: Callable[[], object]
    failed: Callable[[Exception], object]


class Beginner:
    """Begin daemon threads, on a thread of its own; it lives as long as the process.

    Python waits for a thread to run before it goes on. Where hundreds of others want to run as well that
    takes milliseconds each time, and the reactor has no time for it.
    """

    def __init__(self) -> None:
        self._wanted: SimpleQueue[_Wanted] = SimpleQueue()
        self._lock = threading.Lock()
        self._begun = False

    def begin(self, name: str, do: Callable[[], object], failed: Callable[[Exception], object]) -> None:
        """Begin a thread soon.

        Args:
            name: of the thread.
            do: what it does.
            failed: called, on any thread, if there can be no more threads.
        """
        with self._lock:
            if not self._begun:
                try:
                    threading.Thread(target=self._serve, name="latentvirt threads", daemon=True).start()
                except Exception as error:
                    failed(error)
                    return
                self._begun = True
        self._wanted.put(_Wanted(name, do, failed))

    def _serve(self) -> None:
        while True:
            wanted = self._wanted.get()
            try:
                threading.Thread(target=wanted.do, name=wanted.name, daemon=True).start()
            except Exception as error:  # there are too many, or there is no memory for one more
                wanted.failed(error)


begin = Beginner().begin
"""Begins a thread; everybody shares one beginner."""
