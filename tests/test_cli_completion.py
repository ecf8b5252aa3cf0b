"""The shell completes the commands of `latentvirt`, as the docs say how to have it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs" / "reference" / "command.rst"
COMMAND = "from latentvirt.cli import main; main(prog_name='latentvirt')"


def latentvirt(**environment: str) -> str:
    """Call it, as a shell does."""
    told = subprocess.run(
        [sys.executable, "-c", COMMAND], env={**os.environ, **environment}, capture_output=True, text=True
    )
    return told.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_docs_say_what_makes_a_shell_complete(shell: str) -> None:
    """What the docs let a person put into a shell's configuration prints that shell's completion."""
    (variable, value) = re.findall(rf"(_\w+_COMPLETE)=({shell}_source) latentvirt", DOCS.read_text())[0]
    assert "latentvirt" in latentvirt(**{variable: value})


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("latentvirt ho", ["hosts"]),
        ("latentvirt vm re", ["release"]),
        ("latentvirt image pu", ["pull", "push"]),
    ],
)
def test_commands_are_completed(words: str, offered: list[str]) -> None:
    """Commands in modules of their own are offered, too."""
    told = latentvirt(
        _LATENTVIRT_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(len(words.split()) - 1)
    )
    assert told.split() == [f"plain,{name}" for name in offered]
