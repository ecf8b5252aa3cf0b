"""What `buildbot checkconfig` says to good and bad arguments, without a network and without libvirt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from masters import BUILDBOT

CONFIG = """
from buildbot.plugins import schedulers, util, worker
{imports}

c = BuildmasterConfig = {{'buildbotNetUsageData': None}}
c['protocols'] = {{'pb': {{'port': 9989}}}}
c['workers'] = [
    {worker}
]
c['builders'] = [util.BuilderConfig('b', workernames=['minion1'], factory=util.BuildFactory())]
c['schedulers'] = [schedulers.ForceScheduler('force', builderNames=['b'])]
"""

DIRECT = "from latentvirt import Connection, Flavor, Hosts, LibVirtWorker, Size"
PLUGINS = "LibVirtWorker, Connection = worker.latentvirt.LibVirtWorker, util.latentvirt.Connection"
IN_TREE = """
from latentvirt import LibVirtWorker
from buildbot.plugins import worker
worker = type('worker', (), {'LibVirtWorker': LibVirtWorker})
"""

SIMPLE = """LibVirtWorker('minion1', 'sekrit',
                             Connection("qemu:///session"),
                             '/home/buildbot/images/minion1',
                             '/home/buildbot/images/base_image')"""
REMOTE = """LibVirtWorker(
            'minion1', 'sekrit',
            Connection("qemu+ssh://buildbot@192.0.2.7:22/session"),
            '/home/buildbot/images/minion1')"""
WITH_XML = """LibVirtWorker('minion1', 'sekrit', Connection("qemu:///session"),
                 '/home/buildbot/images/minion1', '/home/buildbot/images/base_image', '''<domain type='kvm'>
  <name>minion1</name>
  <memory unit='MiB'>512</memory>
  <os><type>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/home/buildbot/images/minion1'/>
      <target dev='vda' bus='virtio'/>
    </disk>
  </devices>
</domain>''')"""
KEYWORDS = """worker.LibVirtWorker('minion1', 'sekrit', uri="qemu:///session",
                 hd_image='/home/buildbot/images/minion1', base_image='/home/buildbot/images/base_image',
                 xml=None, masterFQDN='master.example.org')"""

FIRST = "LibVirtWorker('minion1', 'sekrit', Connection('qemu:///session'), '/images/minion1', '/images/base'"


def checkconfig(folder: Path, imports: str, worker: str) -> subprocess.CompletedProcess[str]:
    """Let Buildbot check a master.cfg with one worker in it."""
    (folder / "master.cfg").write_text(CONFIG.format(imports=imports, worker=worker))
    return subprocess.run(
        [sys.executable, "-c", BUILDBOT, "checkconfig", "master.cfg"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("imports", "worker"),
    [
        pytest.param(DIRECT, SIMPLE, id="simple"),
        pytest.param(PLUGINS, SIMPLE, id="simple, as plugins"),
        pytest.param(DIRECT, REMOTE, id="remote, with the hook"),
        pytest.param(DIRECT, WITH_XML, id="xml"),
        pytest.param(IN_TREE, KEYWORDS, id="the in-tree worker's keywords"),
    ],
)
def test_documented_configurations_pass(tmp_path: Path, imports: str, worker: str) -> None:
    """The examples of Buildbot's documentation are good with nothing but the import changed."""
    result = checkconfig(tmp_path, imports, worker)
    assert (result.returncode, result.stdout.strip()) == (0, "Config file is good!"), result.stdout


@pytest.mark.parametrize(
    ("worker", "words"),
    [
        pytest.param(
            FIRST + ", '<domain>\\n  <name>x</nome>\\n</domain>')",
            ["xml: line 2", "malformed", "name"],
            id="malformed XML",
        ),
        pytest.param(
            "LibVirtWorker('minion1', 'sekrit', Connection('qemu:///session'), base_imag='/images/base')",
            ["no argument 'base_imag'", "did you mean 'base_image'"],
            id="no such argument",
        ),
        pytest.param(
            "LibVirtWorker('minion1', 'sekrit', Connection('qemu:///session'), '/images/minion1', '')",
            ["base_image is empty", "leave it out"],
            id="empty base image",
        ),
        pytest.param(
            FIRST + ", start='boot', standby=True)",
            ["standby=True", "start='boot' forbids"],
            id="standby that may not thaw",
        ),
        pytest.param(
            FIRST + ", identity='static', start='thaw')",
            ["start='thaw'", "identity='static' forbids", "leave start= or identity= out"],
            id="a thaw of a guest that knows who it is",
        ),
        pytest.param(
            "LibVirtWorker('minion1', None, Connection('qemu:///session'), standby=True)",
            ["standby=True", "without a base_image", "give base_image="],
            id="standby of what is not ours to freeze",
        ),
        pytest.param(
            "LibVirtWorker('minion1', 'sekrit', Connection('qemu//session'), '/images/minion1')",
            ["connection URI 'qemu//session' cannot be read", "'qemu:///session'"],
            id="unreadable URI",
        ),
        pytest.param(
            "LibVirtWorker('minion1', 'sekrit', uri='qemu//session', hd_image='/images/minion1')",
            ["connection URI 'qemu//session' cannot be read", "'qemu:///session'"],
            id="unreadable URI, as a keyword",
        ),
        pytest.param(
            FIRST + ", uri='qemu:///system')",
            ["both connection and uri", "leave one of them out"],
            id="both connection and uri",
        ),
        pytest.param(
            FIRST + """, xml="<domain type='kvm'><name>x</name>\\n<devices/></domain>")""",
            ["xml: line 1", "no disk", "base_image '/images/base'", "add a <disk>"],
            id="XML without a disk",
        ),
        pytest.param(
            "LibVirtWorker('minion1', 12345, Connection('qemu:///session'), '/images/minion1')",
            ["password is not a string", "util.Secret"],
            id="password not a string",
        ),
        pytest.param(
            "LibVirtWorker('minion1', 'sekrit', '/images/minion1', '/images/base', uri='qemu:///system')",
            ["not the path '/images/minion1'", "hd_image=", "base_image="],
            id="the order of Buildbot 4",
        ),
        pytest.param(
            "LibVirtWorker('minion1', 'sekrit', [Connection('qemu:///session')], '/images/minion1')",
            ["the connection is a list", "Hosts("],
            id="list of hosts",
        ),
        pytest.param(
            "LibVirtWorker('minion1', 'sekrit', Connection('qemu+shh://host/system'), '/images/minion1')",
            ["no transport 'shh'", "'qemu+ssh://user@host/system'"],
            id="no such transport",
        ),
        pytest.param(
            FIRST + ", xml='/etc/libvirt/qemu/minion1.xml')",
            ["xml='/etc/libvirt/qemu/minion1.xml' is a path", "open("],
            id="path of XML",
        ),
        pytest.param(
            "LibVirtWorker('minion1', '', Connection('qemu:///session'), '/images/minion1')",
            ["password is empty", "None for one-time passwords"],
            id="empty password",
        ),
        pytest.param(
            FIRST + ", start=util.Property('start'))",
            ["start cannot depend on a build's properties", "hd_image, base_image"],
            id="renderable where there can be none",
        ),
        pytest.param(
            FIRST + ", masterFQDN=lambda: {}['fqdn'])",
            ["the function that is masterFQDN failed: KeyError('fqdn')", "'host:port'"],
            id="function that fails",
        ),
        pytest.param(
            FIRST + ", size=Size(memory='2 GB of ram'))",
            ["memory='2 GB of ram' is not an amount", "'4 GiB'"],
            id="size that is none",
        ),
        pytest.param(
            FIRST + ", flavors=[Flavor('small', vcpus=0)])",
            ["vcpus=0 is not a number of processors"],
            id="flavor without processors",
        ),
        pytest.param(
            FIRST + ", flavors=[Flavor('small', labels='fast')])",
            ["labels='fast' is not a mapping"],
            id="labels without names",
        ),
        pytest.param(
            FIRST + ", size=Size(), requires={'memroy': '1 GiB'})",
            ["memroy"],
            id="requirement of nobody knows what",
        ),
        pytest.param(
            FIRST + ", size=Size(), requires={'memory': '64 GiB'})",
            ["memory", "64 GiB"],
            id="requirement beyond the size",
        ),
        pytest.param(
            FIRST + ", base_format='banana')",
            ["base_format='banana' is no format", "qcow2"],
            id="no such format",
        ),
        pytest.param(
            FIRST + ", masterFQDN='master:port')",
            ["masterFQDN='master:port' is not where", "'buildmaster.example.org:9989'"],
            id="address of no master",
        ),
        pytest.param(
            FIRST + ", graceful_shutdown=float('inf'))",
            ["graceful_shutdown=inf is neither", "write a number"],
            id="endless shutdown",
        ),
        pytest.param(
            "LibVirtWorker('minion1', None, Hosts('qemu+ssh://a/system', Connection('qemu+ssh://b/system', "
            "slots='8')), base_image='/images/base')",
            ["Connection('qemu+ssh://b/system'): slots='8' is not", "write 1 or more"],
            id="one of several hosts",
        ),
        pytest.param(
            "LibVirtWorker('minion1', None, Hosts(Connection('qemu+ssh://a/system', memory='48 GiB'), "
            "Connection('qemu+ssh://b/system', memory='96 GiB')), base_image='/images/base', "
            "flavors=[Flavor('large', memory='128 GiB'), Flavor('huge', memory='256 GiB')], "
            "requires=util.Property('requires'))",
            ["qemu+ssh://b/system, memory is at most 96 GiB, not 128 GiB", "ask for less"],
            id="flavors for none of which any host is large enough",
        ),
        pytest.param(
            "LibVirtWorker('minion1', None, Connection('qemu:///system', vcpus=4), "
            "base_image='/images/base', size=Size(vcpus=8), requires=util.Property('requires'))",
            ["vcpus is at most 4, not 8"],
            id="a size that is too large for the only host",
        ),
        pytest.param(
            FIRST + ", size={'memory': '2 GiB', 'vpus': util.Property('v')})",
            ["size has no 'vpus'"],
            id="no such part of a size, of which another depends on the build",
        ),
        pytest.param(
            FIRST + ", size=Size(), requires={'memroy': util.Property('m')})",
            ["there is no requirement 'memroy'", "did you mean 'memory'?"],
            id="no such requirement, which depends on the build",
        ),
        pytest.param(
            FIRST + ", size=Size(memory=4))",
            ["memory=4 is 4 MiB", "as in '4 GiB'"],
            id="a plain number that was meant as GiB",
        ),
        pytest.param(
            "LibVirtWorker('minion1', None, Connection('qemu+ssh://a/system', labels={'region': 'lab-1'}), "
            "base_image=util.Property('image'), requires={'labels': {'region': 'lab-2'}})",
            ["on the nearest, qemu+ssh://a/system, region is 'lab-1', not 'lab-2'"],
            id="labels that no host has",
        ),
        pytest.param(
            "LibVirtWorker('minion1', None, Connection('qemu+ssh://a/system', "
            "labels={'a': 'b', 'cpu': ['avx2', 'amx']}), base_image='/images/base')",
            ["labels has 'cpu': ['avx2', 'amx']; a host has one value of each label"],
            id="a host with two values of a label",
        ),
        pytest.param(
            "LibVirtWorker('minion1', None, Connection('qemu+ssh://a/system', labels=('gpu',)), "
            "base_image='/images/base')",
            ["labels=('gpu',) are not labels", "{'region': 'lab-1'}"],
            id="labels without values",
        ),
        pytest.param(
            FIRST + ", start='fast')",
            ["start='fast' is none of auto, boot, thaw", "What to do"],
            id="no such way to start",
        ),
        pytest.param(
            FIRST + ", max_builds=-3)",
            ["max_builds=-3 is not a number of builds", "None for no limit"],
            id="less than no builds",
        ),
        pytest.param(
            FIRST + ", build_wait_timeout=float('inf'))",
            ["build_wait_timeout=inf is not a number of seconds"],
            id="endless waiting",
        ),
    ],
)
def test_bad_arguments_are_explained(tmp_path: Path, worker: str, words: list[str]) -> None:
    """A wrong argument fails the check with the worker, the argument and the way out, and no traceback."""
    result = checkconfig(tmp_path, DIRECT, worker)
    said = result.stdout + result.stderr
    assert result.returncode != 0
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if "minion1" in line]
    assert [word for word in ("LibVirtWorker 'minion1'", *words) if word not in line] == []
    assert "12345" not in said  # a password, even one of the wrong type
