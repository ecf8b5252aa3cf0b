"""Buildbot's own arguments of a latent worker: told from ours, with our defaults, and checked."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Collection, Mapping
from typing import Any

from buildbot.worker.base import AbstractWorker

from latentvirt.address import master_port
from latentvirt.errors import ConfigError
from latentvirt.master.arguments import OURS

DEFAULT_MISSING_TIMEOUT_S = 600
CHECK_INSTANCE_INTERVAL_S = 1
"""How often Buildbot asks us whether the VM still lives before it attaches; our answer costs nothing."""

TIMEOUTS = {"build_wait_timeout": True, "missing_timeout": False, "check_instance_interval": False}
"""Buildbot's arguments in seconds, and whether a negative number has a meaning there."""

LATENT_ARGUMENTS = ("build_wait_timeout", "check_instance_interval")


def check_numbers(buildbots: Mapping[str, Any], hold_on_failure_s: int) -> None:
    """Refuse what Buildbot would take for a number, and fail with at the first start, or never start.

    Args:
        buildbots: Buildbot's arguments, our defaults among them.
        hold_on_failure_s: seconds that the VM of a failed build is held; 0 for not at all.

    Raises:
        ConfigError: one is not a number, or is negative where that means nothing; or VMs that are to be held
            would go on to other builds.
    """
    for what, may_be_negative in TIMEOUTS.items():
        value = buildbots[what]
        if value is None:
            continue
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or (value < 0 and not may_be_negative):
            raise ConfigError(
                f"{what}={value!r} is not a number of seconds", remedy="write a number, without quotes"
            )
    builds = buildbots["max_builds"]
    # 0 is Buildbot's own other word for no limit.
    if builds is not None and (not isinstance(builds, int) or isinstance(builds, bool) or builds < 0):
        raise ConfigError(
            f"max_builds={builds!r} is not a number of builds", remedy="write 1 or more, or None for no limit"
        )
    if hold_on_failure_s and buildbots["build_wait_timeout"] != 0:
        raise ConfigError(
            f"hold_on_failure= keeps the VM of a failed build as it is, and build_wait_timeout="
            f"{buildbots['build_wait_timeout']} gives it to the next one",
            remedy="leave one of them out",
        )


def pb_port(master: Any, registration: Any) -> int:
    """Say on which port workers reach the master.

    Args:
        master: the Buildbot master.
        registration: of a worker there.

    Raises:
        ConfigError: there is none.
    """
    pb = master.config.protocols.get("pb")
    if pb is None:
        raise ConfigError(
            "guests attach by the 'pb' protocol, and c['protocols'] has none",
            remedy="add c['protocols'] = {'pb': {'port': 9989}}",
        )
    return master_port(pb["port"]) or int(registration.getPBPort())


def unknown_arguments(given: Collection[str]) -> dict[str, str]:
    """Find the keyword arguments that neither we nor Buildbot have, and describe each."""
    buildbots = set(inspect.signature(AbstractWorker.checkConfig).parameters) - {"self"}
    known = OURS | buildbots | set(LATENT_ARGUMENTS) | {"name", "password"}
    messages = {}
    for name in sorted(set(given) - known):
        close = difflib.get_close_matches(name, known, 1)
        messages[name] = f"there is no argument {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")
    return messages


def split_arguments(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part our arguments from Buildbot's, and set our defaults for those."""
    ours = {key: value for key, value in kwargs.items() if key in OURS}
    buildbots = {key: value for key, value in kwargs.items() if key not in OURS}
    buildbots.setdefault("build_wait_timeout", 0)
    # Without a limit Buildbot gives a worker's VM to every builder that has a build for it, at the same time.
    buildbots.setdefault("max_builds", 1)
    buildbots.setdefault("missing_timeout", DEFAULT_MISSING_TIMEOUT_S)
    buildbots.setdefault("check_instance_interval", CHECK_INSTANCE_INTERVAL_S)
    return ours, buildbots
