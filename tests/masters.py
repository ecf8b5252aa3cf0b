"""A real Buildbot master in a process of its own, for tests and the demonstration."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import attrs

START_S = 60
POLL_S = 0.2
EXIT_S = 30
REST_S = 20
STACKS_S = 1.0
STACKS_SIGNAL = signal.SIGUSR2
REST_TRIES = 5

SUCCESS, WARNINGS, FAILURE, SKIPPED, EXCEPTION, RETRY, CANCELLED = range(7)

CONFIG = """
import faulthandler

import sqlalchemy
from buildbot.plugins import *
from latentvirt import Connection, LibVirtWorker, Size


@sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, 'connect')
def write_without_waiting(connection, record):
    # This database is thrown away. Buildbot opens it anew for each question, and SQLite waits for the disk
    # five times each: where guests write as well, that is a minute before a master has exited.
    connection.execute('pragma synchronous = off')


# What it is at when it does not answer; it is still written when nothing else works.
stacks = open('stacks', 'w')
faulthandler.register({stacks_signal}, stacks)

c = BuildmasterConfig = {{}}
c['db'] = {{'db_url': 'sqlite:///state.sqlite'}}
c['buildbotNetUsageData'] = None
c['protocols'] = {{'pb': {{'port': 'tcp:{pb_port}:interface=127.0.0.1'}}}}
c['www'] = {{'port': 'tcp:{www_port}:interface=127.0.0.1', 'plugins': {{}}, 'theme': {{}}}}
c['title'] = 'latentvirt'
c['buildbotURL'] = 'http://127.0.0.1:{www_port}/'
c['workers'] = []
c['builders'] = []


def builder(name, workers, *commands, **more):
    factory = util.BuildFactory([
        steps.ShellCommand(command=command, haltOnFailure=True) for command in commands
    ])
    c['builders'].append(util.BuilderConfig(name, workernames=workers, factory=factory, **more))


{config}

c['schedulers'] = [
    schedulers.ForceScheduler(
        'force', builderNames=[b.name for b in c['builders']],
        properties=[util.AnyPropertyParameter('wish')],
        codebases=[util.CodebaseParameter('', hide=True)],
    )
]
"""

BUILDBOT = "from buildbot.scripts.runner import run; run()"
TWISTD = "from twisted.scripts.twistd import run; run()"

TAC = """
from twisted.application import service
from twisted.python.log import FileLogObserver, ILogObserver
from buildbot.master import BuildMaster

application = service.Application('buildmaster')
application.setComponent(ILogObserver, FileLogObserver(open('twistd.log', 'a', buffering=1)).emit)
master = BuildMaster({folder!r}, 'master.cfg')
master.setServiceParent(application)
"""


def free_port() -> int:
    """Find a TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@attrs.define
class Master:
    """Run one Buildbot master; `stop` or `kill` ends it.

    Args:
        folder: its base directory; made if need be.
        config: the part of master.cfg that adds workers and builders; `builder(name, workers, *commands)`
            is there for it.
        env: environment variables for the process, beyond this one's.
        user: numeric id of the user and group that it runs as; None for this one.
    """

    folder: Path
    config: str
    env: dict[str, str] = attrs.field(factory=dict)
    user: int | None = None
    pb_port: int = attrs.field(factory=free_port)
    www_port: int = attrs.field(factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def write(self, config: str | None = None) -> None:
        """Write master.cfg, with another config if one is given."""
        self.config = config or self.config
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.user is not None:
            os.chown(self.folder, self.user, self.user)
        text = CONFIG.format(
            pb_port=self.pb_port,
            www_port=self.www_port,
            stacks_signal=int(STACKS_SIGNAL),
            config=textwrap.dedent(self.config),
        )
        (self.folder / "master.cfg").write_text(text)
        (self.folder / "buildbot.tac").write_text(TAC.format(folder=str(self.folder)))

    def start(self) -> Master:
        """Start the master and wait until its web server answers."""
        self.write()
        if not (self.folder / "state.sqlite").exists():
            subprocess.run(
                [*self._as_user(), sys.executable, "-c", BUILDBOT, "upgrade-master", "-q", str(self.folder)],
                check=True,
                cwd=self.folder,
                env=self._environment(),
                stdout=subprocess.DEVNULL,
            )
        with open(self.folder / "output", "ab") as output:
            self.process = subprocess.Popen(
                # libvirt waits for its QEMUs to be reaped; where process 1 is slow at that, tini is not.
                [
                    *self._as_user(),
                    "tini",
                    "-s",
                    "--",
                    sys.executable,
                    "-c",
                    TWISTD,
                    "--nodaemon",
                    "--no_save",
                    "--python=buildbot.tac",
                ],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment(),
            )
        self.wait_for(self._answers, START_S, "the master to answer")
        return self

    def _as_user(self) -> list[str]:
        if self.user is None:
            return []
        return ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", "--"]

    def _environment(self) -> dict[str, str]:
        home = {} if self.user is None else {"HOME": str(self.folder)}
        return {**os.environ, **home, **self.env}

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the master ended:\n{self.log()[-4000:]}")
        try:
            return bool(self.rest("builders")["builders"])
        except (OSError, urllib.error.URLError):
            return False

    def wait_for(self, what: Any, seconds: float, description: str) -> Any:
        """Wait until a function returns something true, and return that."""
        deadline = time.monotonic() + seconds
        while True:
            result = what()
            if result:
                return result
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds} s for {description}\n{self.log()[-6000:]}")
            time.sleep(POLL_S)

    def stacks(self) -> str:
        """Return what each of its threads is at."""
        os.kill(self.pid, STACKS_SIGNAL)
        time.sleep(STACKS_S)
        return (self.folder / "stacks").read_text(errors="replace")

    def log(self) -> str:
        """Return what the master has logged."""
        path = self.folder / "twistd.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def rest(self, path: str) -> Any:
        """Ask the web server, as the page does."""
        for _ in range(REST_TRIES):
            try:
                with urllib.request.urlopen(self._api(path), timeout=REST_S) as answer:
                    return json.load(answer)
            except http.client.IncompleteRead as error:
                # Buildbot 4.3 writes answers from another thread than the reactor's, and at times loses one.
                lost = error
            except TimeoutError as error:
                raise TimeoutError(
                    f"no answer in {REST_S} s; the master's threads:\n{self.stacks()}"
                ) from error
        raise lost

    def _api(self, path: str) -> str:
        return f"http://127.0.0.1:{self.www_port}/api/v2/{path}"

    def post(self, path: str, method: str, **params: Any) -> Any:
        """Tell the web server, as the page's buttons do."""
        body = json.dumps({"jsonrpc": "2.0", "method": method, "id": 1, "params": params}).encode()
        request = urllib.request.Request(
            self._api(path),
            body,
            {"Content-Type": "application/json", "Origin": f"http://127.0.0.1:{self.www_port}"},
        )
        with urllib.request.urlopen(request, timeout=REST_S) as answer:
            return json.load(answer)["result"]

    def force(self, builder: str, **properties: str) -> int:
        """Ask for a build; returns the build request's number."""
        builders = {b["name"]: b["builderid"] for b in self.rest("builders")["builders"]}
        extra = {f"wish_{key}": value for key, value in properties.items()}
        if properties:
            ((name, value),) = properties.items()
            extra = {"wish_name": name, "wish_value": value, "wishname": name, "wishvalue": value}
        result = self.post("forceschedulers/force", "force", builderid=builders[builder], **extra)
        return int(next(iter(result[1].values())))

    def builds(self, request: int) -> list[dict[str, Any]]:
        """List the builds of a request, oldest first."""
        found = self.rest(f"buildrequests/{request}/builds")["builds"]
        return sorted(found, key=lambda build: build["buildid"])

    def finished(self, request: int, seconds: float = 180) -> dict[str, Any]:
        """Wait until a request is done, and return its last build."""

        def done() -> Any:
            asked = self.rest(f"buildrequests/{request}")["buildrequests"][0]
            return asked["complete"] and self.builds(request)[-1]

        build: dict[str, Any] = self.wait_for(done, seconds, f"request {request} to be done")
        return build

    def first_end(self, request: int, seconds: float = 180) -> dict[str, Any]:
        """Wait until a request's first build has ended, and return it."""

        def ended() -> Any:
            builds = self.builds(request)
            return builds and builds[0]["complete"] and builds[0]

        build: dict[str, Any] = self.wait_for(ended, seconds, f"a first build of request {request} to end")
        return build

    def steps(self, build: dict[str, Any]) -> list[dict[str, Any]]:
        """List a build's steps."""
        return list(self.rest(f"builds/{build['buildid']}/steps")["steps"])

    def text(self, build: dict[str, Any], step: str, log: str = "stdio") -> str:
        """Return a log's text, "" if the step has none of that name."""
        for found in self.steps(build):
            if found["name"] == step:
                for entry in self.rest(f"steps/{found['stepid']}/logs")["logs"]:
                    if entry["name"] == log:
                        (chunk,) = self.rest(f"logs/{entry['logid']}/contents")["logchunks"]
                        return "\n".join(line[1:] for line in chunk["content"].splitlines())
        return ""

    def stop_build(self, build: dict[str, Any]) -> None:
        """Cancel a build, as the page's button does."""
        self.post(f"builds/{build['buildid']}", "stop", reason="a person said so")

    def reconfigure(self, config: str) -> None:
        """Give the master another config while it runs."""
        assert self.process is not None
        before = self.log().count("configuration update complete")
        self.write(config)
        self.process.send_signal(signal.SIGHUP)
        self.wait_for(
            lambda: self.log().count("configuration update complete") > before, EXIT_S, "the reconfig"
        )

    def terminate(self, seconds: float = EXIT_S) -> float:
        """Ask the master to exit, and return how many seconds it took."""
        assert self.process is not None
        began = time.monotonic()
        self.process.terminate()
        self.process.wait(seconds)
        return time.monotonic() - began

    def kill(self) -> None:
        """Kill the master, as a power failure would."""
        os.kill(self.pid, signal.SIGKILL)
        assert self.process is not None
        self.process.wait()

    @property
    def pid(self) -> int:
        """The master's process id; `process` is that of its reaper."""
        assert self.process is not None
        reaper = self.process.pid
        return int(Path(f"/proc/{reaper}/task/{reaper}/children").read_text().split()[0])

    def close(self) -> None:
        """End the process, if it runs, by whatever it takes."""
        if self.process is not None and self.process.poll() is None:
            try:
                self.terminate()
            except subprocess.TimeoutExpired as error:
                stacks = self.stacks()
                self.kill()
                raise AssertionError(
                    f"the master did not exit:\n{self.log()[-4000:]}\nits threads:\n{stacks}"
                ) from error
