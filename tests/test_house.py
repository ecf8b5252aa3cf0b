"""The walls of the house: who may import whom, and what every file and every test keeps to."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "src" / "latentvirt"
MOST_LINES = 400

# From the roof down; whoever stands on a floor may import from the floors below it and from its own.
FLOORS = (
    {"testing"},
    {"cli"},
    {"master"},
    {"doctor"},
    {"line"},
    {"machine"},
    {"tiers"},
    {"freezing", "guestowner", "rehearsing"},
    {"livedomain"},
    {"preparing", "listening"},
    {"frozen"},
    {"planning"},
    {"abandoned", "describing", "sweep"},
    {"building"},
    {"images"},
    {"sparing", "storage"},
    {"host"},
    {"domainxml", "guest", "console", "address"},
    {"claim", "undertaking"},
    {"capabilities", "names", "placement", "spec", "requirements"},
    {"aliases", "devices", "hosts"},
    {"config", "sizes"},
    {"hold", "labels"},
    {"amounts", "durations", "imagefiles", "roots"},
    {"errors", "flights", "hostkeys", "picture", "showing", "_version"},
)
FRONT_DOOR = "latentvirt"
"""The package's own __init__.py, which shows people what they import."""


def sources() -> list[Path]:
    """List the files of the house."""
    return sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    """Name the part of the house that a file is in."""
    first = file.relative_to(PACKAGE).parts[0]
    return FRONT_DOOR if first == "__init__.py" else first.removesuffix(".py")


def imports_of(file: Path) -> Iterator[str]:
    """Name all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            # `from latentvirt import domainxml` imports a room, too.
            names = [node.module or ""]
            if node.module == "latentvirt":
                names = [f"latentvirt.{alias.name}" for alias in node.names]
            yield from names


def rooms_imported(file: Path) -> set[str]:
    """Name the other rooms that a file needs."""
    found = {name.split(".")[1] for name in imports_of(file) if name.startswith("latentvirt.")}
    return found - {room_of(file)}


def packages_imported(file: Path) -> set[str]:
    """Name the packages that a file needs, ours included."""
    return {name.partition(".")[0] for name in imports_of(file)}


def floor_of(room: str) -> int:
    """Count the floors above a room."""
    found = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    assert len(found) == 1, f"{room} has no floor yet: give it one in FLOORS, and in docs/architecture.rst"
    return found[0]


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_only_downward(file: Path) -> None:
    """Who reads a file needs to know the floors below it, and never one above."""
    room = room_of(file)
    if room == FRONT_DOOR:
        return
    upward = {other for other in rooms_imported(file) if floor_of(other) < floor_of(room)}
    assert upward == set()


def test_rooms_of_one_floor_do_not_need_each_other_in_circles() -> None:
    """Two rooms on the same floor may lean on one another one way only."""
    needs: dict[str, set[str]] = {}
    for file in sources():
        needs.setdefault(room_of(file), set()).update(rooms_imported(file))
    circles = {
        (one, other)
        for one in needs
        for other in needs[one]
        if other in needs and one in needs[other] and one < other
    }
    assert circles == set()


def test_only_the_masters_folder_knows_buildbot() -> None:
    """The command line and the library work where Buildbot is not installed."""
    who = {room_of(file) for file in sources() if "buildbot" in packages_imported(file)}
    assert who == {"master"}


def test_only_the_host_knows_libvirt() -> None:
    """All that libvirt does wrong is dealt with in one room; the fake host stands in for it."""
    who = {room_of(file) for file in sources() if "libvirt" in packages_imported(file)}
    assert who == {"host", "testing"}


def test_nothing_rests_on_the_command_line_or_on_the_fake_host() -> None:
    """Neither is needed by a master."""
    who = {str(file.relative_to(PACKAGE)) for file in sources() if rooms_imported(file) & {"cli", "testing"}}
    assert who == set()


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_can_be_read_in_one_sitting(file: Path) -> None:
    """No file has more lines than a person keeps in mind."""
    assert len(file.read_text().splitlines()) <= MOST_LINES


def test_every_test_says_what_a_user_would_notice() -> None:
    """Each test has a sentence about behaviour, so that a failure can be understood without its code."""
    silent = [
        f"{file.relative_to(TESTS)}:{node.lineno} {node.name}"
        for file in sorted(TESTS.rglob("test_*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert silent == []
