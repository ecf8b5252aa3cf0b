"""The contract on `qemu:///embed`, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from contract.conftest import ONLY
from sandbox import Sandbox

pytestmark = pytest.mark.libvirt

HERE = Path(__file__).parent


@pytest.mark.skipif(ONLY is not None, reason="this is that process")
def test_the_contract_holds_for_embed(tmp_path: Path) -> None:
    """QEMU's driver inside the master's own process keeps the contract, too.

    A process that has opened it can open no other QEMU driver of its own, and its QEMUs need a process 1 that
    reaps them.
    """
    with Sandbox(tmp_path / "sandbox") as sandbox:
        pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(
            sandbox.inside([*pytest_, f"--basetemp={tmp_path}/t", str(HERE)]),
            env={**os.environ, "LATENTVIRT_CONTRACT": "embed"},
            cwd=HERE.parent.parent,
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
