"""A step in the build's page: how the VM's start goes, its console, and what ended it."""

from __future__ import annotations

import logging
from typing import Any

from buildbot.process.results import Results
from twisted.internet import defer

from latentvirt.master.waiting import at_most

logger = logging.getLogger(__name__)

WRITE_EVERY_S = 1.0
"""Lines are written so seldom: each write is some transactions of the master's database, and a worker that
attaches waits for its own in the same line."""

DATABASE_S = 5.0
"""How long whoever waits for the end of a step waits for a database that is slow: its disk may be."""

LONGEST_STATE = 200

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
        self._buildid = buildid
        self._began = int(master.reactor.seconds())
        self._stepid: int | None = None
        self._logs: dict[str, int] = {}
        self._unwritten: dict[str, list[str]] = {}
        self._state: str | None = None
        self._timer: Any = None
        self._finished = buildid is None

    def _queue(self, doing: Any) -> None:
        async def next_one(before: defer.Deferred[None]) -> None:
            await before
            try:
                await doing
            except Exception:
                # The page is for people; a build does not fail for it.
                logger.exception("could not write to the step %r", self._name)

        self._done = defer.ensureDeferred(next_one(self._done))

    def progress(self, line: str) -> None:
        """Add a line to the log of the start, and show it as the step's state."""
        self._state = line.splitlines()[0][:LONGEST_STATE]
        self._add("progress", _lines(_HEADER, [line]))

    def console(self, lines: list[str]) -> None:
        """Add lines to the console's log."""
        self._add("console", _lines(_OUTPUT, lines))

    def _add(self, log: str, text: str) -> None:
        if self._finished or not text:
            return
        self._unwritten.setdefault(log, []).append(text)
        if self._timer is None:
            self._timer = self._master.reactor.callLater(WRITE_EVERY_S, self._flush)

    def _flush(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        unwritten, self._unwritten = self._unwritten, {}
        state, self._state = self._state, None
        self._queue(self._write(unwritten, state))

    async def _write(self, unwritten: dict[str, list[str]], state: str | None) -> None:
        updates = self._master.data.updates
        if self._stepid is None:
            # Made no sooner than there is something to write: a quick start is over before that.
            self._stepid, _, _ = await updates.addStep(buildid=self._buildid, name=self._name)
            await updates.startStep(self._stepid, started_at=self._began, locks_acquired=True)
        for log, texts in unwritten.items():
            if log not in self._logs:
                self._logs[log] = await updates.addLog(self._stepid, log, "s")
            await updates.appendLog(self._logs[log], "".join(texts))
        if state is not None:
            await updates.setStepStateString(self._stepid, state)

    def finish(self, results: int, state: str) -> defer.Deferred[None]:
        """End the step; what comes later is dropped.

        Args:
            results: Buildbot's number.
            state: what the page shows beside the step's name; whole in the log of the start.

        Returns:
            A Deferred that fires when all is written.
        """
        if not self._finished:
            self.progress(state)
            self._finished = True
            self._flush()
            self._queue(self._end(results))
        return self._done

    async def finish_first(self, results: int, state: str) -> None:
        """End the step before anything else is done, unless the database takes too long: the rest is later.

        Args:
            results: as for `finish`.
            state: as for `finish`.
        """
        try:
            await at_most(self.finish(results, state), DATABASE_S, self._master.reactor)
        except defer.TimeoutError:
            logger.warning(
                "the database has not taken the end of the step %r of build %s within %g s; going on without",
                self._name,
                self._buildid,
                DATABASE_S,
            )

    async def _end(self, results: int) -> None:
        updates = self._master.data.updates
        for log in self._logs.values():
            await updates.finishLog(log)
        if self._stepid is not None:
            logger.debug("step %s ends with %s", self._name, Results[results])
            await updates.finishStep(self._stepid, results, False)


def _lines(prefix: str, lines: list[str]) -> str:
    return "".join(f"{prefix}{part}\n" for line in lines for part in line.split("\n"))
