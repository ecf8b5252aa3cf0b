"""The documentation: its examples run, and what it says of the program is so."""

from __future__ import annotations

import ast
import configparser
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import click
import pytest
from buildbot.worker.base import AbstractWorker
from click.testing import CliRunner

from latentvirt import Connection, Disk, Flavor, Image, Nic, Size, errors, names
from latentvirt.cli import main
from latentvirt.master.arguments import OURS, read_arguments
from latentvirt.master.buildbots import LATENT_ARGUMENTS, split_arguments
from latentvirt.requirements import AMOUNTS, CRITERIA, choose_flavor, read_requirements

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "latentvirt"
DOCS = ROOT / "docs"
EXAMPLES = DOCS / "examples"
CONFIGS = sorted(path.name for path in EXAMPLES.glob("*.cfg"))
GAP = "…"
"""How pages write what differs from message to message."""

CHECKCONFIG = "from buildbot.scripts.runner import run; run()"
BUILDBOTS = set(inspect.signature(AbstractWorker.checkConfig).parameters) - {"self"}


def page(name: str) -> str:
    """Read a page."""
    return (DOCS / name).read_text()


def section(text: str, title: str) -> str:
    """Cut a section out of a page, its subsections left out."""
    found = re.search(rf"^{re.escape(title)}\n-+\n(.*?)(?=^[^\n]+\n-{{3,}}\n|\Z)", text, re.M | re.S)
    assert found is not None, title
    return found[1]


def terms(text: str) -> dict[str, str]:
    """Read a definition list whose terms are literals; terms that share a definition are told apart."""
    found = {}
    for match in re.finditer(r"^(``.+``)\n((?:   .*\n|\n)*)", text, re.MULTILINE):
        for term in re.findall(r"``(.+?)``", match[1]):
            found[term] = match[2]
    return found


def rows(text: str) -> Iterator[list[str]]:
    """Read the rows of all list tables of a page, heads included."""
    row: list[str] = []
    for line in text.splitlines():
        if line.startswith("   * - "):
            if row:
                yield row
            row = [line[7:].strip()]
        elif line.startswith("     - ") and row:
            row.append(line[7:].strip())
        elif line.startswith("       ") and row:
            row[-1] += " " + line.strip()
        elif line and not line.startswith(" ") and row:
            yield row
            row = []
    if row:
        yield row


def buildbot(tmp_path: Path, config: str) -> subprocess.CompletedProcess[str]:
    """Run `buildbot checkconfig` on an example, where it finds a folder for its secrets."""
    (tmp_path / "secrets").mkdir(mode=0o700)
    return subprocess.run(
        [sys.executable, "-c", CHECKCONFIG, "checkconfig", str(EXAMPLES / config)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )


# Examples


@pytest.mark.parametrize("config", CONFIGS)
def test_every_example_is_a_master_cfg_that_buildbot_accepts(tmp_path: Path, config: str) -> None:
    """A person who copies an example has a configuration that `buildbot checkconfig` finds good."""
    if config == "plugin-names.cfg" and not list(
        importlib.metadata.entry_points(group="buildbot.worker", name="latentvirt.LibVirtWorker")
    ):
        pytest.skip("latentvirt is not installed here, so that Buildbot does not know its plugin names")
    done = buildbot(tmp_path, config)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_example_is_forgotten() -> None:
    """Every file among the examples is shown by a page, or read by the transcript."""
    shown = set()
    for path in DOCS.rglob("*.rst"):
        for found in re.findall(r"literalinclude:: (\S+)", path.read_text()):
            shown.add((path.parent / found).resolve())
    words = set((EXAMPLES / "latentvirt-xml.txt").read_text().split())
    forgotten = {path for path in EXAMPLES.iterdir() if path not in shown and path.name not in words}
    assert forgotten == set()


def test_the_readme_shows_the_first_example() -> None:
    """README's master.cfg is the one that is tested."""
    shown = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown == [(EXAMPLES / "first.cfg").read_text()]


def test_the_transcript_is_what_the_command_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """`latentvirt xml` answers as the documentation shows."""
    monkeypatch.chdir(EXAMPLES)
    transcript = (EXAMPLES / "latentvirt-xml.txt").read_text()
    commands = re.findall(r"^\$ latentvirt (.*)$", transcript, re.MULTILINE)
    said = ""
    for command in commands:
        result = CliRunner().invoke(main, shlex.split(command))
        said += f"$ latentvirt {command}\n{result.stdout}{result.stderr}"
    assert len(commands) > 1
    assert said == transcript


# Reference


def test_every_argument_of_the_worker_is_documented_and_no_other() -> None:
    """The reference names each argument that LibVirtWorker takes, Buildbot's own included."""
    documented = terms(section(page("reference/arguments.rst"), "LibVirtWorker"))
    assert set(documented) == OURS | BUILDBOTS | set(LATENT_ARGUMENTS)


@pytest.mark.parametrize("argument", sorted(OURS))
def test_an_arguments_default_is_as_documented(argument: str) -> None:
    """What happens without an argument is what the reference says."""
    documented = terms(section(page("reference/arguments.rst"), "LibVirtWorker"))[argument]
    found = re.search(r"Default: ``(.+?)``", documented)
    assert found is not None
    assert ast.literal_eval(found[1]) == inspect.signature(read_arguments).parameters[argument].default


def test_what_we_set_of_buildbots_arguments_is_as_documented() -> None:
    """The reference says which of Buildbot's own arguments have other defaults here."""
    documented = terms(section(page("reference/arguments.rst"), "LibVirtWorker"))
    _, set_by_us = split_arguments({})
    told = {
        name: ast.literal_eval(found[1])
        for name in BUILDBOTS | set(LATENT_ARGUMENTS)
        if (found := re.search(r"Default: ``(.+?)``", documented[name]))
    }
    assert told == set_by_us


@pytest.mark.parametrize("value", [Connection, Disk, Flavor, Image, Nic, Size])
def test_every_argument_of_a_value_is_documented(value: type[attrs.AttrsInstance]) -> None:
    """The reference names each argument of the values that a person writes."""
    documented = terms(section(page("reference/arguments.rst"), value.__name__))
    assert set(documented) == {field.name for field in attrs.fields(value)}


def test_every_error_is_documented_with_what_comes_of_it() -> None:
    """The table of errors says of each whether the build is retried, and whose fault it was."""
    known = {
        f"``{name}``": ["yes" if kind.retry else "no", kind.fault]
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.LatentvirtError)
    }
    del known["``LatentvirtError``"]
    told = {row[0]: row[1:3] for row in rows(page("reference/errors.rst")) if row[0].startswith("``")}
    assert told == known


def constants() -> Iterator[tuple[str, str, float]]:
    """Read all numbers of the program that have a name: where, which, how much."""
    for path in SOURCE.rglob("*.py"):
        module = ast.parse(path.read_text())
        classes = [node for node in module.body if isinstance(node, ast.ClassDef)]
        for where, body in ((path.stem, module.body), *((node.name, node.body) for node in classes)):
            for node in body:
                target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
                value = getattr(getattr(node, "value", None), "value", None)
                if isinstance(target, ast.Name) and isinstance(value, (int, float)):
                    yield where, target.id, value


def test_the_numbers_are_the_programs() -> None:
    """Deadlines, timers and limits are those of the table."""
    table = rows(page("reference/numbers.rst"))
    told = {row[0].strip("`"): {float(row[1])} for row in table if row[0] != "constant"}
    assert len(told) > 20
    real: dict[str, set[float]] = {}
    for where, name, value in constants():
        for key in (name, f"{where}.{name}"):
            real.setdefault(key, set()).add(value)
    assert {key: real.get(key) for key in told} == told


def commands_of(group: click.Group) -> Iterator[click.Command]:
    """List a group's commands, those of its groups included."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands_of(command)
        elif command is not None:
            yield command


def test_the_commands_options_are_documented_and_no_others() -> None:
    """The reference names each option of each command."""
    options = {
        option
        for command in commands_of(main)
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--")
    }
    documented = " ".join(terms(page("reference/command.rst")))
    assert set(re.findall(r"--[a-z-]+", documented)) == options


def test_the_names_of_the_reference_are_read_as_ours() -> None:
    """The example of a file's name is one that the sweep would know."""
    examples = re.findall(r"^   (slot\S+)$", page("reference/names.rst"), re.MULTILINE)
    assert [str(names.FileName.parse(example)) for example in examples] == examples != []
    by_hand = re.search(r"^   (lease\S+)  (slot\S+)$", page("explanation/ownership.rst"), re.MULTILINE)
    assert by_hand is not None
    assert names.Lease.parse(by_hand[1]) is not None
    assert names.FileName.parse(by_hand[2]) is not None
    assert names.slot_of_domain("minion1") in page("reference/names.rst")


# Pages about the program


def literals() -> Iterator[str]:
    """Read all texts of the program, with a gap for each value that is put into one."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values)


def test_every_message_of_the_trouble_page_is_one_of_the_programs() -> None:
    """A message that a person looks up is written as the program writes it."""
    said = list(literals())
    messages = terms(section(page("howto/trouble.rst"), "Messages"))
    assert len(messages) > 10
    unknown = [message for message in messages if not any(message.rstrip(GAP) in text for text in said)]
    assert unknown == []


def test_every_requirement_is_documented_and_no_other() -> None:
    """The page about requirements names each criterion that a build can have."""
    assert set(terms(section(page("howto/requirements.rst"), "What can be asked for"))) == set(CRITERIA)


def test_what_a_requirement_means_is_as_documented() -> None:
    """Each way to write an amount is read as what the page says that it means."""
    table = [row for row in rows(page("howto/requirements.rst")) if row[0].startswith("``")]
    assert len(table) > 5
    for written, means in table:
        given, meaning = ast.literal_eval(written.strip("`")), means.strip("`")
        for what in {*AMOUNTS} - {"vcpus"}:
            assert read_requirements({what: given}) == read_requirements({what: meaning}), written


def test_the_refusal_on_the_page_about_requirements_is_the_programs() -> None:
    """A wish that cannot be had is refused as the page shows."""
    text = page("howto/requirements.rst")
    flavors = [eval(call, {"Flavor": Flavor}) for call in re.findall(r"Flavor\([^)]*disk=[^)]*\)", text)]
    found = re.search(r"``({.*})`` comes to:\n\n((?:   .*\n)+)", text)
    assert found is not None
    with pytest.raises(errors.ImpossibleWish) as caught:
        choose_flavor(read_requirements(ast.literal_eval(found[1])), flavors)
    assert " ".join(found[2].split()) == caught.value.what


def test_every_name_that_allow_shared_knows_is_documented() -> None:
    """The page about shared things has each name that a refusal can tell a person to use."""
    freshness = importlib.import_module("latentvirt.domainxml.freshness")
    arguments = importlib.import_module("latentvirt.domainxml.qemuargs")
    known = [
        *(getattr(freshness, key) for key in ("NVRAM", "TPM", "NVDIMM", "SHMEM", "PSTORE", "HOSTDEV")),
        freshness.UNNAMED_FOLDER,
        arguments.QEMU_COMMANDLINE,
    ]
    assert [name for name in known if f"``{name}``" not in page("howto/shared.rst")] == []


def test_every_module_has_its_place_in_the_house() -> None:
    """The page about the architecture names each module of the package."""
    text = page("architecture.rst")
    missing = [
        path
        for path in SOURCE.rglob("*.py")
        if path.parent.name not in ("testing", "cli")
        and not path.name.startswith("_")
        and path.name not in text
        and f"``{path.stem}``" not in text
    ]
    assert missing == []


def test_every_dependency_is_explained() -> None:
    """The page about dependencies has a sentence for each that comes with the package, or with its extra."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    required = config["options"]["install_requires"].strip().splitlines()
    required += config["options.extras_require"]["images"].strip().splitlines()
    explained = {row[0] for row in rows(page("dependencies.rst"))} - {"package"}
    assert explained == {line.split()[0] for line in required}


# Tools


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    """Sphinx finds no broken link, no bad markup and no page that nobody can reach."""
    if importlib.util.find_spec("sphinx") is None:
        pytest.skip("Sphinx is not installed here: pip install latentvirt[docs]")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "LibVirtWorker" in (tmp_path / "reference" / "api.html").read_text()


def test_the_news_can_be_put_together(tmp_path: Path) -> None:
    """Each news fragment becomes an entry in the news."""
    if importlib.util.find_spec("towncrier") is None:
        pytest.skip("towncrier is not installed here: pip install latentvirt[docs]")
    done = subprocess.run(
        [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "0", "--date", "2000-01-01"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    fragments = [path for path in (ROOT / "newsfragments").glob("*.md") if path.name[0].isdigit()]
    assert done.stdout.count("\n- ") == len(fragments) > 0
