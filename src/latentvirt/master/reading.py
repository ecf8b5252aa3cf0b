"""What a master.cfg says, read without a master: for commands that a person runs beside it."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from typing import Any

from buildbot.config.errors import ConfigErrors
from buildbot.config.master import FileLoader
from buildbot.warnings import ConfigWarning

from latentvirt.config import Connection, Image
from latentvirt.errors import REMEDY, ConfigError
from latentvirt.master.arguments import Arguments, read_arguments
from latentvirt.master.buildbots import split_arguments
from latentvirt.master.worker import LibVirtWorker


def hosts_in(path: str) -> list[Connection]:
    """List the hosts that a master.cfg's workers name, each once.

    The file is a program, and is run as ``buildbot checkconfig`` runs it.

    Args:
        path: of the file, or of the master's directory that it is in.

    Raises:
        ConfigError: it cannot be read, Buildbot refuses it, or no worker in it is latentvirt's.
    """
    workers, _ = workers_in(path)
    return list({one.uri: one for _, arguments in workers for one in arguments.hosts.connections}.values())


def images_in(path: str) -> list[Image]:
    """List the images that a master.cfg's workers bring to hosts, each once, but those that a build chooses.

    Args:
        path: as for `hosts_in`.

    Raises:
        ConfigError: as for `hosts_in`.
    """
    workers, _ = workers_in(path)
    named = (arguments.base_image for _, arguments in workers)
    return list(dict.fromkeys(image for image in named if isinstance(image, Image)))


def workers_in(path: str) -> tuple[list[tuple[str, Arguments]], dict[str, Any]]:
    """Read what a master.cfg says of its workers that are latentvirt's, and its ``protocols``.

    Args:
        path: as for `hosts_in`.

    Returns:
        Each worker's name and arguments; options by protocol.

    Raises:
        ConfigError: as for `hosts_in`.
    """
    file = os.path.join(path, "master.cfg") if os.path.isdir(path) else path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConfigWarning)  # the master itself tells them
            with contextlib.redirect_stdout(sys.stderr):  # what it prints is no answer of a command's
                config = FileLoader(
                    os.path.dirname(os.path.abspath(file)), os.path.basename(file)
                ).loadConfig()
    except (ConfigErrors, SystemExit) as error:
        if isinstance(error, SystemExit):
            what, remedy = f"it ends with exit({error.code!r})", ""
        else:
            told = [one.partition(REMEDY) for one in error.errors]
            what = "; ".join(one for one, _, _ in told)
            ways = {way for _, _, way in told if way}
            remedy = ways.pop() if len(ways) == 1 else ""
        raise ConfigError(
            f"{file} cannot be used: {what}",
            remedy=remedy or f"look at it with: buildbot checkconfig {file}",
        ) from error
    workers = [worker for worker in config.workers if isinstance(worker, LibVirtWorker)]
    if not workers:
        raise ConfigError(f"no worker in {file} is a LibVirtWorker of latentvirt")
    return [(worker.name, _arguments_of(worker)) for worker in workers], config.protocols


def _arguments_of(worker: LibVirtWorker) -> Arguments:
    given = worker.getConfigDict()
    ours, _ = split_arguments(given["kwargs"])
    password = given["args"][1]
    return read_arguments(password, **ours)
