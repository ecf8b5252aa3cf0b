"""A fake of libvirt for tests: it refuses what libvirt refuses, with libvirt's own codes.

The contract suite in ``tests/contract`` runs the same tests on this fake and on real libvirt with QEMU, so
that what passes on the fake means something.

    fake = FakeLibvirt()
    fake.inspector.add_file("/images/base.qcow2")
    host = Host(Connection("qemu:///system"), reactor, driver=fake)
"""

from latentvirt.testing.connection import FakeLibvirt
from latentvirt.testing.files import FakeFile, FakePool, FakeSave
from latentvirt.testing.guest import FakeGuest
from latentvirt.testing.state import FakeDomain, FakeHostState
from latentvirt.testing.trouble import Hang, libvirt_error

__all__ = [
    "FakeDomain",
    "FakeFile",
    "FakeGuest",
    "FakeHostState",
    "FakeLibvirt",
    "FakePool",
    "FakeSave",
    "Hang",
    "libvirt_error",
]
