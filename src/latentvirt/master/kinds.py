"""What VMs of each kind took on each host: the next one of its kind will probably take the same."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from latentvirt.planning import Plan
from latentvirt.spec import MachineSpec

REMEMBERED_PLANS = 1000
"""Of how many kinds of VM it is remembered what they take on each host."""


def like(spec: MachineSpec) -> MachineSpec:
    """Take out of a spec what makes no difference to its VM: a generated one is nobody's."""
    return attrs.evolve(spec, worker="") if spec.kind == "generated" else spec


class Kinds:
    """Remember plans; there is one of it per hub."""

    def __init__(self) -> None:
        self._plans: dict[MachineSpec, dict[str, Plan]] = {}

    def note(self, uri: str, spec: MachineSpec, planned: Plan) -> None:
        """Note what a VM took.

        Args:
            uri: of its host.
            spec: what it was to be.
            planned: what that came to.
        """
        self._plans.setdefault(like(spec), {})[uri] = planned
        while len(self._plans) > REMEMBERED_PLANS:
            del self._plans[next(iter(self._plans))]

    def plans(self, spec: MachineSpec) -> Mapping[str, Plan]:
        """Return, by URI of the host, what a VM of a spec's kind took there."""
        return self._plans.get(like(spec), {})
