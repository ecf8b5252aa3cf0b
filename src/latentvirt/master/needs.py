"""What a worker's builds need of hosts, rendered, and what its next one will probably need."""

from __future__ import annotations

from typing import Any

from latentvirt.errors import ConfigError, LatentvirtError
from latentvirt.master.arguments import RENDERED, Arguments
from latentvirt.master.placing import Need


class Needs:
    """Render builds' properties into needs; it lives as long as a worker's configuration.

    Args:
        worker: the worker's name.
        arguments: what a person wrote.
    """

    def __init__(self, worker: str, arguments: Arguments) -> None:
        self._worker = worker
        self.arguments = arguments
        self._asked: tuple[list[Any], str] | None = None
        self._last: Need | None = None

    async def of(self, build: Any) -> Need:
        """Say what a build needs; None stands for any build.

        Raises:
            ConfigError: a value that was rendered cannot be right.
            ImpossibleWish: there is no size that the build could be content with.
        """
        values: Any = self.arguments.rendered
        if build is None:
            return self.arguments.need(self._worker, values)
        rendered = [await self._rendered(build, *given) for given in zip(RENDERED, values, strict=True)]
        asked = rendered, str(build.getProperty("buildername", ""))
        if self._last is None or self._asked != asked:  # Buildbot asks once more when it starts the build
            self._last = self.arguments.need(self._worker, *asked)
            self._asked = asked
        return self._last

    async def _rendered(self, build: Any, what: str, value: Any) -> Any:
        try:
            return await build.render(value)
        except LatentvirtError:
            raise
        except Exception as error:
            raise ConfigError(
                f"worker {self._worker}: {what} could not be rendered for this build: {error!r}",
                remedy=f"look at the renderable that master.cfg gives for {what}",
            ) from error

    @property
    def foreseen(self) -> Need | None:
        """What the next build will probably need: the same as the last one; None if nobody can tell."""
        return self._last or self.arguments.static_need(self._worker)
