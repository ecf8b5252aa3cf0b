"""The worker class of master.cfg: Buildbot's latent-worker interface on one side, a machine on the other."""

from __future__ import annotations

import zlib
from typing import Any

from buildbot import config
from buildbot.interfaces import LatentWorkerCannotSubstantiate, LatentWorkerFailedToSubstantiate
from buildbot.process.results import CANCELLED, EXCEPTION
from buildbot.util.latent import CompatibleLatentWorkerMixin
from buildbot.worker.latent import AbstractLatentWorker, States
from twisted.internet import defer
from twisted.python import log

from latentvirt.address import master_host, split_address, this_machine
from latentvirt.domainxml import NetworkUse
from latentvirt.errors import (
    BadXML,
    ConfigError,
    HostFull,
    HostUnreachable,
    LatentvirtError,
    NotFresh,
    StartCancelled,
)
from latentvirt.guest import Identity
from latentvirt.host.pace import Pace
from latentvirt.hostkeys import PrivateKey
from latentvirt.master.arguments import Arguments, read_arguments
from latentvirt.master.buildbots import check_numbers, pb_port, split_arguments, unknown_arguments
from latentvirt.master.checking import refuse_others_macs
from latentvirt.master.goodbye import GoodbyeInTime
from latentvirt.master.holding import HoldsOnFailure
from latentvirt.master.hub import Hub
from latentvirt.master.needs import Needs
from latentvirt.master.password import PasswordGate
from latentvirt.master.placing import Need
from latentvirt.master.record import HostRecord
from latentvirt.master.run import Run
from latentvirt.master.stablekeys import stable_key
from latentvirt.master.starting import Starting, called_off
from latentvirt.master.steplog import StepLog
from latentvirt.master.waiting import at_most, unless
from latentvirt.spec import MachineSpec

POSITIONAL = ("connection", "hd_image", "base_image", "xml")
"""The order of Buildbot's own documentation, after name and password."""

CANCEL_S = 2.0
"""How long a cancelled start may take to stop by itself before it is left to the background."""

STOP_FAST_S = 2.0
"""How long a stopping master waits for a VM to be gone; what is not done then, the next one's sweep does."""

PREPARATION = "start VM"


class LibVirtWorker(HoldsOnFailure, GoodbyeInTime, CompatibleLatentWorkerMixin, AbstractLatentWorker):
    """Give every build a libvirt VM that nobody has used before; lives as long as its name is configured.

    Args:
        name: the worker's name, and the domain's where it is predefined.
        password: what an image without the guest helper logs in with; a string, a Secret, or None.
        connection: a `Connection`, a URI, or several `Hosts`.
        hd_image: path on the host of the disk image that each build gets anew.
        base_image: path on the host of the read-only image that it gets, or an `Image` or its name.
        xml: the domain's XML, if it is not predefined.
        uri: as ``connection``.
        masterFQDN: where guests find the master, ``host`` or ``host:port``.
        size: of a generated domain: `Size`, or a mapping of its arguments.
        flavors: sizes of generated domains to choose from, instead of ``size``.
        requires: what a build asks for (``{'memory': '4 GiB', 'labels': {...}}``), or a renderable of that.
        network: of a generated domain: a libvirt network, ``user``, or a `Nic`.
        networks: network cards that any domain gets besides: a list of `Nic`.
        disks: disks that any domain gets besides, empty at each start: a list of `Disk`.
        virt_type: ``auto``, ``kvm`` or ``qemu``.
        identity: ``auto``, ``channel``, ``static`` or ``metadata``.
        allow_shared: what may outlive a start although the guest writes to it.
        base_format: the base image's format; None asks the host.
        start: ``auto``, ``boot`` or ``thaw`` (boot only to make the frozen image).
        standby: whether a VM is to stand by while the worker is idle.
        graceful_shutdown: True, or seconds that a guest gets to power itself off.
        ssh_host_key: ``reported`` (the guest's own), or ``stable``: one for all of the worker's VMs.
        hold_on_failure: for how long the VM of a failed build is kept (``'2h'``); None ends it as any other.
        cloud_init: makes workers of a stock image: True, or what is added to cloud-init's configuration.

    All arguments of Buildbot's latent workers are taken as well. ``build_wait_timeout`` is 0 and
    ``max_builds`` 1 unless given: one VM, one build.
    """

    def __init__(self, name: str, password: Any, *args: Any, **kwargs: Any) -> None:
        self._gate = PasswordGate()
        self._hub: Hub | None = None
        self._run: Run | None = None
        self._cancel: defer.Deferred[None] | None = None
        self._blameless = False
        self._needs: Needs | None = None
        self._host_key: PrivateKey | None = None
        self._began = 0.0
        if len(args) > len(POSITIONAL):
            config.error(
                f"LibVirtWorker {name!r}: {2 + len(args)} positional arguments were given; there are at most "
                f"{2 + len(POSITIONAL)}: name, password, {', '.join(POSITIONAL)}"
            )
        kwargs |= dict(zip(POSITIONAL, args, strict=False))
        for unknown, message in unknown_arguments(kwargs).items():
            config.error(f"LibVirtWorker {name!r}: {message}")
            del kwargs[unknown]  # else the base class raises, and that is shown with a traceback
        super().__init__(name, password, **kwargs)

    # The registered password is the gate, whatever the base class thinks it sets.

    @property
    def password(self) -> PasswordGate:
        """What Buildbot registers: one object, whose value changes with each start."""
        return self._gate

    @password.setter
    def password(self, value: Any) -> None:
        self._gate.static = value if isinstance(value, str) else None

    def checkConfig(self, name: str, password: Any, **kwargs: Any) -> None:
        """Report what is wrong in the arguments, for `buildbot checkconfig`; no network, no libvirt."""
        ours, buildbots = split_arguments(kwargs)
        super().checkConfig(name, password, **buildbots)
        try:
            arguments = read_arguments(password, **ours)
            check_numbers(buildbots, arguments.hold_on_failure_s)
            refuse_others_macs(name, arguments.macs)
        except LatentvirtError as error:
            argument = "xml: " if isinstance(error, (BadXML, NotFresh)) else ""
            config.error(f"LibVirtWorker {name!r}: {argument}{error}")

    @defer.inlineCallbacks
    def reconfigService(self, name: str, password: Any, **kwargs: Any) -> Any:
        """Take over new arguments; they hold from the next start on, a running build is not disturbed."""
        ours, buildbots = split_arguments(kwargs)
        self._take_over(read_arguments(password, **ours))
        self._hub = yield Hub.getService(self.master)
        yield super().reconfigService(name, password, **buildbots)
        if self.running:
            self._announce()

    def _take_over(self, arguments: Arguments) -> None:
        self._needs = Needs(self.name, arguments)

    @defer.inlineCallbacks
    def startService(self) -> Any:
        """Begin, and let the hub remove what earlier processes left on this worker's host."""
        yield super().startService()
        self._announce()

    def _announce(self) -> None:
        arguments, hub = self._parts()
        hub.standbys.hear_of(self)
        announced = defer.ensureDeferred(hub.expect(arguments.hosts, arguments.static_folder))
        announced.addErrback(lambda failure: log.err(failure, f"latentvirt: announcing {self.name}"))
        self._deferwaiter.add(announced)

    @property
    def _arguments(self) -> Arguments | None:
        return None if self._needs is None else self._needs.arguments

    def _parts(self) -> tuple[Arguments, Hub]:
        arguments, hub = self._arguments, self._hub
        if arguments is None or hub is None:
            raise ConfigError(f"worker {self.name} is not configured yet")
        return arguments, hub

    # Before a build

    def renderWorkerProps(self, build: Any) -> defer.Deferred[Need]:
        """Render a build's properties into what its VM needs."""
        return defer.ensureDeferred(self._need(build))

    async def _need(self, build: Any) -> Need:
        self._parts()
        assert self._needs is not None
        return await self._needs.of(build)

    # What its next build will need

    @property
    def wants_standby(self) -> bool:
        """Whether a VM is to stand by for it."""
        return self._arguments is not None and self._arguments.standby

    def foreseen(self) -> tuple[HostRecord, MachineSpec] | None:
        """Say where and what its next VM will probably be; None while it has one, or nobody can tell."""
        if self._run is not None or not self.running or self._hub is None or self._needs is None:
            return None
        need = self._needs.foreseen
        usable = [
            record
            for record in self._hub.know(self._needs.arguments.hosts)
            if not record.why_not(self.name, self.master.reactor.seconds())
        ]
        if need is None or not usable:
            return None
        # Always the same host, as long as hosts come and go, so that no standby is made in vain.
        return usable[zlib.crc32(self.name.encode()) % len(usable)], need.spec

    def readiness(self) -> int:
        """Say how soon it could begin: 2 with a standby, 1 with a frozen image, else 0."""
        arguments, hub = self._parts()
        need = self._needs.foreseen if self._needs is not None else None
        if need is None:
            return 0
        ready = hub.standbys.readiness(need.spec)
        return max(ready.get(record.host.uri, 0) for record in hub.know(arguments.hosts))

    @defer.inlineCallbacks
    def isCompatibleWithBuild(self, build: Any) -> Any:
        """Say whether a build may start here now; a yes holds a place on the host for a moment."""
        _, hub = self._parts()
        try:
            compatible = yield super().isCompatibleWithBuild(build)
            if not compatible or self._run is not None:
                return compatible
            need = yield self.renderWorkerProps(build)
        except LatentvirtError:
            # The start will say what is wrong, in the build's page; a VM that is there already is not for it.
            return self._run is None
        return hub.placing.impossible(need) is not None or hub.placing.reserve(need)

    # Start

    def start_instance(self, build: Any) -> defer.Deferred[bool]:
        """Start a fresh VM for a build; part of Buildbot's contract."""
        return defer.ensureDeferred(self._start_instance(build))

    async def _start_instance(self, build: Any) -> bool:
        steps = StepLog(self.master, getattr(build, "buildid", None), PREPARATION)
        # As long as the VM does not run, it is not the guest that takes its time.
        self._blameless = True
        cancel = self._cancel = defer.Deferred()
        self._began = self.master.reactor.seconds()
        try:
            await Pace.of(self.master.reactor).turn()
            start = defer.ensureDeferred(self._starting(build, steps, cancel).go())
            await unless(cancel, start, self._called_off, CANCEL_S, self.master.reactor)
        except LatentvirtError as error:
            self._blameless = error.fault != "guest"
            cancelled = isinstance(error, StartCancelled)
            await steps.finish_first(CANCELLED if cancelled else EXCEPTION, str(error))
            if error.retry:
                raise LatentWorkerFailedToSubstantiate(str(error)) from error
            raise LatentWorkerCannotSubstantiate(str(error)) from error
        except BaseException as error:
            # A fault of ours, by any name: the build's page must not be left without an end.
            await steps.finish_first(EXCEPTION, f"{type(error).__name__}: {error}")
            raise
        finally:
            self._cancel = None
        self._blameless = False
        return True

    def _called_off(self) -> StartCancelled:
        return called_off(self.master.reactor.seconds() - self._began, self.missing_timeout)

    def _starting(self, build: Any, steps: StepLog, cancel: defer.Deferred[None]) -> Starting:
        arguments, hub = self._parts()
        stable = arguments.ssh_host_key == "stable"
        self._host_key = stable_key(self.master.basedir, self.name) if stable else None

        def adopt(run: Run) -> None:
            self._run = run

        return Starting(
            worker=self,
            hub=hub,
            gate=self._gate,
            identify=self._identify,
            build=build,
            steps=steps,
            cancel=cancel,
            adopt=adopt,
            note_host=self._note_host,
            forget=self._forget,
        )

    def _identify(self, use: NetworkUse, network_address: str | None) -> Identity:
        arguments, _ = self._parts()
        if self._run is not None:
            self._run.claim.password_of = ""  # what the guest is told in its place is good but once
        given, port = split_address(arguments.master_fqdn)
        host = master_host(
            use,
            given=given,
            host_is_local=self._run is not None and self._run.record.connection.is_local,
            network_address=network_address,
            fallback=this_machine,
        )
        return Identity(
            name=self.name,
            password=self._gate.open_once(),
            master=f"{host}:{port or pb_port(self.master, self.registration)}",
            ssh_host_key=self._host_key,
        )

    def _note_host(self, record: HostRecord, error: LatentvirtError) -> None:
        if error.fault in ("host", "guest") and self._hub is not None:
            self._hub.health.came_to_nothing(record, error)
        if error.fault == "host" and self._hub is not None:
            # A host that answers may have its reasons against this worker's VM only.
            if isinstance(error, HostUnreachable):
                self._hub.failed(record, error)
            else:
                self._hub.health.refused(record, self.name, error)

    def _forget(self, run: Run) -> None:
        """Let go of a run; what is left of its machine is ended in the background."""
        if self._run is run:
            self._run = None
            self._gate.close()
        if self._hub is not None:
            self._hub.end_later(run.record, run.claim, run.machine)

    # After the start

    def check_instance(self) -> tuple[bool, str]:
        """Say whether the VM that is awaited still lives; part of Buildbot's contract."""
        if self._run is None or self._run.failure is None:
            return True, ""
        return False, str(self._run.failure)

    @defer.inlineCallbacks
    def attached(self, conn: Any) -> Any:
        """Take the guest's connection; its console is free for a person from now on."""
        yield super().attached(conn)
        run = self._run
        if run is not None and self.conn is conn:
            self._gate.close()
            yield defer.ensureDeferred(run.attached())
            _, hub = self._parts()
            hub.health.attached(run.record)
            hub.standbys.tend(run.record)

    def detached(self) -> Any:
        """Note that the connection is lost; part of Buildbot's contract."""
        if self._run is not None:
            self._run.detached()
        return super().detached()

    def stop_instance(self, fast: bool = False) -> defer.Deferred[bool]:
        """End the VM; part of Buildbot's contract. Without one there is nothing to do."""
        return defer.ensureDeferred(self._stop_instance(fast))

    async def _stop_instance(self, fast: bool) -> bool:
        await Pace.of(self.master.reactor).turn()
        self.resetWorkerPropsOnStop()
        run, self._run = self._run, None
        self._gate.close()
        if run is None or self._hub is None:
            return True
        arguments, hub = self._parts()
        if run.failure is not None:
            self._blameless = run.failure.fault != "guest"
            if isinstance(run.failure, HostFull):
                hub.tries.take_back(run.request)
            self._note_host(run.record, run.failure)
        await run.ended()
        if not fast and self.master.running:
            # The next start does not wait for it: it has a place of its own, or clears this one.
            hub.end_later(run.record, run.claim, run.machine, arguments.graceful_shutdown_s)
            return True
        stop = defer.ensureDeferred(run.machine.stop())
        try:
            hold = await at_most(stop, STOP_FAST_S, self.master.reactor)
        except (LatentvirtError, defer.TimeoutError) as error:
            log.msg(f"latentvirt: {self.name}: its VM is not gone yet: {error}; going on in the background")
            hub.end_later(run.record, run.claim, run.machine)
            return True
        hub.ended(run.record, run.claim, run.machine, hold)
        return True

    def insubstantiate(self, fast: bool = False, force_substantiation_build: Any = None) -> Any:
        """Call off a start that is under way first: Buildbot would wait for its end."""
        self._cancel_start()
        return super().insubstantiate(fast, force_substantiation_build)

    def _cancel_start(self) -> None:
        if self._cancel is not None and not self._cancel.called:
            self._cancel.callback(None)

    def stopService(self) -> Any:
        """Stop; a start that is under way is called off."""
        self._cancel_start()
        if self._hub is not None:
            self._hub.standbys.forget(self)
        return super().stopService()

    def putInQuarantine(self) -> None:
        """Leave a worker in use whose build failed for what is not its fault (a host's, the build's own)."""
        if self._blameless and self.state is not States.SUBSTANTIATED:
            return
        super().putInQuarantine()
