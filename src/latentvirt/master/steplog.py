"""A step in the build's page: how the VM's start goes, its console, and what ended it."""

from __future__ import annotations

import logging
from typing import Any

from buildbot.process.results import Results
from twisted.internet import defer

logger = logging.getLogger(__name__)

FLUSH_S = 0.5
"""Console lines are written so seldom: each write is a transaction of the master's database."""

_OUTPUT, _HEADER = "o", "h"  # Buildbot's prefixes of the lines of a stdio log


class StepLog:
    """Write one step of a build; it lives from the start of a VM to its attachment or failure.

    What is written is put in line and done in the background, so that nobody waits for the database.

    Args:
        master: the Buildbot master.
        buildid: of the build; None writes nowhere: a worker may be started without a build.
        name: of the step.
    """

    def __init__(self, master: Any, buildid: int | None, name: str) -> None:
        self._master = master
        self._name = name
        self._done: defer.Deferred[None] = defer.succeed(None)
        self._stepid: int | None = None
        self._logs: dict[str, int] = {}
        self._buffer: list[str] = []
        self._flush: Any = None
        self._finished = buildid is None
        if buildid is not None:
            self._queue(self._begin(buildid))

    def _queue(self, doing: Any) -> None:
        async def next_one(before: defer.Deferred[None]) -> None:
            await before
            try:
                await doing
            except Exception:
                # The page is for people; a build does not fail for it.
                logger.exception("could not write to the step %r", self._name)

        self._done = defer.ensureDeferred(next_one(self._done))

    async def _begin(self, buildid: int) -> None:
        updates = self._master.data.updates
        self._stepid, _, _ = await updates.addStep(buildid=buildid, name=self._name)
        await updates.startStep(self._stepid, locks_acquired=True)

    async def _append(self, log: str, content: str) -> None:
        updates = self._master.data.updates
        if self._stepid is None:
            return
        if log not in self._logs:
            self._logs[log] = await updates.addLog(self._stepid, log, "s")
        await updates.appendLog(self._logs[log], content)

    def progress(self, line: str) -> None:
        """Add a line to the log of the start, and show it as the step's state."""
        if self._finished:
            return
        self._queue(self._append("progress", _lines(_HEADER, [line])))
        self._queue(self._state(line))

    async def _state(self, text: str) -> None:
        if self._stepid is not None:
            await self._master.data.updates.setStepStateString(self._stepid, text.splitlines()[0][:200])

    def console(self, lines: list[str]) -> None:
        """Add lines to the console's log."""
        if self._finished:
            return
        self._buffer.extend(lines)
        if self._flush is None:
            self._flush = self._master.reactor.callLater(FLUSH_S, self._flush_console)

    def _flush_console(self) -> None:
        if self._flush is not None and self._flush.active():
            self._flush.cancel()
        self._flush = None
        lines, self._buffer = self._buffer, []
        if lines:
            self._queue(self._append("console", _lines(_OUTPUT, lines)))

    def finish(self, results: int, state: str) -> defer.Deferred[None]:
        """End the step; what comes later is dropped.

        Args:
            results: Buildbot's number.
            state: what the page shows beside the step's name; whole in the log of the start.

        Returns:
            A Deferred that fires when all is written.
        """
        if not self._finished:
            self._flush_console()
            self.progress(state)
            self._finished = True
            self._queue(self._end(results))
        return self._done

    async def _end(self, results: int) -> None:
        updates = self._master.data.updates
        for log in self._logs.values():
            await updates.finishLog(log)
        if self._stepid is not None:
            logger.debug("step %s ends with %s", self._name, Results[results])
            await updates.finishStep(self._stepid, results, False)


def _lines(prefix: str, lines: list[str]) -> str:
    return "".join(f"{prefix}{part}\n" for line in lines for part in line.split("\n"))
