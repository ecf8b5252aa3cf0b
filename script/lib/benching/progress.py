"""How far a benchmark is: a bar on a terminal, a line for each start where it is piped."""

from __future__ import annotations

import sys
from types import TracebackType

from rich import progress as bars
from rich.console import Console


class Progress:
    """Tell how far it is, for as long as the context lasts.

    Args:
        steps: how many there are to be.
    """

    def __init__(self, steps: int) -> None:
        console = Console(stderr=True)
        self._bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(),
            bars.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._live = console.is_terminal
        self._task = self._bar.add_task("", total=steps)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, what: str) -> None:
        """Tell what begins."""
        self._bar.update(self._task, description=what)

    def end(self, told: str = "") -> None:
        """Tell that it has ended.

        Args:
            told: what to keep in view of it.
        """
        self._bar.advance(self._task)
        if told:
            self.say(told)

    def say(self, text: str) -> None:
        """Tell something that is to be kept in view."""
        if self._live:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)
