"""Which of the values that a person wrote depend on a build."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from buildbot.interfaces import IRenderable


def depends(value: Any) -> bool:
    """Tell whether a value, or a part of it, is known only for a build."""
    if isinstance(value, Mapping):
        return any(depends(part) for part in value.values())
    if isinstance(value, (list, tuple)):
        return any(depends(part) for part in value)
    return bool(IRenderable.providedBy(value)) and not isinstance(value, str)


def known_part(value: Any) -> Any:
    """Return what does not depend on a build: of a list, the values in it that do not."""
    if isinstance(value, (list, tuple)):
        return [one for one in value if not depends(one)]
    return () if depends(value) else value
