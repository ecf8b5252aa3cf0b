"""The end of a worker's connection: waited for, but not for ever."""

from __future__ import annotations

from typing import Any

from buildbot.worker.latent import AbstractLatentWorker
from twisted.internet import defer
from twisted.python import log

from latentvirt.master.waiting import at_most

GOODBYE_S = 3.0
"""How long a connection may take to end; its guest is ended in any case."""


class GoodbyeInTime(AbstractLatentWorker):
    """The part of `LibVirtWorker` that lets go of connections.

    Buildbot waits for the news of a connection's end. One that ended while the worker was attaching has
    brought them already, and Buildbot, and the master's exit, would wait for good.
    """

    conn: Any

    @defer.inlineCallbacks
    def _disconnect(self, conn: Any) -> Any:
        ending = defer.maybeDeferred(super()._disconnect, conn)
        try:
            yield defer.ensureDeferred(at_most(ending, GOODBYE_S, self.master.reactor))
        except defer.TimeoutError:
            log.msg(f"latentvirt: {self.name}: its connection did not say that it ended; taken for ended")
            if self.conn is conn:
                self.conn = None
