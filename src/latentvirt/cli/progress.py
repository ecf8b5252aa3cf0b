"""How long work goes, told on standard error: a bar on a terminal, a line now and then in a pipe."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import rich.progress
from rich.console import Console
from rich.text import Text

from latentvirt.cli.saying import say
from latentvirt.config import BYTES_PER_MIB
from latentvirt.showing import visible

SECONDS_PER_LINE = 10.0
"""In a pipe there is no more than one line of progress in so many seconds."""

PATIENCE_S = 2.0
"""How long something may take before a line in a pipe says what it is."""

SPINNER_WIDTH = 3
"""What the spinner and the room around it take of a line."""


@contextlib.contextmanager
def waiting(doing: str) -> Iterator[Callable[[str], None]]:
    """Show that something goes on as long as this is held: on a terminal at once, in a pipe if it takes long.

    Args:
        doing: what is done.

    Yields:
        What is called when something else is done.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(_in_one_line(doing, console.width)) as status:
            yield lambda other: status.update(_in_one_line(other, console.width))
    else:
        waits = _Waits(doing)
        try:
            yield waits.go_on_with
        finally:
            waits.end()


def _in_one_line(doing: str, width: int) -> Text:
    text = Text(visible(doing))
    text.truncate(width - SPINNER_WIDTH, overflow="ellipsis")
    return text


class _Waits:
    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._over = threading.Event()
        # What is waited for may hold up this thread.
        self._teller = threading.Thread(target=self._tell, daemon=True)
        self._teller.start()

    def go_on_with(self, other: str) -> None:
        self._doing = other

    def _tell(self) -> None:
        patience = PATIENCE_S
        while not self._over.wait(patience):
            say(self._doing, err=True)
            patience = SECONDS_PER_LINE

    def end(self) -> None:
        self._over.set()
        self._teller.join()


class Progress(Protocol):
    """Tells how one thing after the other goes."""

    def begin(self, what: str) -> None:
        """Begin with another thing."""

    def say(self, line: str) -> None:
        """Tell what happens."""

    def progress(self, done: int, length: int | None) -> None:
        """Tell how many bytes there are, of how many; None if nobody knows."""

    def end(self) -> None:
        """End what was begun last."""


class Several(Protocol):
    """Tells how several things go at the same time."""

    def another(self) -> Progress:
        """Make what tells of one more of them."""

    def say(self, line: str) -> None:
        """Tell what happens, in a line that says of which it is."""


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Tell how work goes, as long as this is held."""
    with several() as telling:
        yield telling.another()


@contextlib.contextmanager
def several() -> Iterator[Several]:
    """Tell how work goes of which several things are done at once, as long as this is held."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        yield _Pipe()
        return
    columns = (
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(bar_width=None),
        rich.progress.DownloadColumn(binary_units=True),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console, transient=True) as bar:
        yield _Terminal(bar)


class _Terminal:
    def __init__(self, bar: rich.progress.Progress) -> None:
        self._bar = bar

    def another(self) -> Progress:
        return _Bar(self._bar)

    def say(self, line: str) -> None:
        self._bar.console.print(visible(line), soft_wrap=True)


class _Pipe:
    def another(self) -> Progress:
        return _Lines()

    def say(self, line: str) -> None:
        say(line, err=True)


class _Bar:
    def __init__(self, bar: rich.progress.Progress) -> None:
        self._bar = bar
        self._task: rich.progress.TaskID | None = None
        self._shown = False

    def begin(self, what: str) -> None:
        self.end()
        self._task = self._bar.add_task(visible(what), total=None)
        self._shown = False

    def say(self, line: str) -> None:
        self._bar.console.print(visible(line), soft_wrap=True)

    def progress(self, done: int, length: int | None) -> None:
        if self._task is not None:
            # At once for the first time: what is soon over is to be seen, too.
            self._bar.update(self._task, completed=done, total=length, refresh=not self._shown)
            self._shown = True

    def end(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None


class _Lines:
    def __init__(self) -> None:
        self.begin("")

    def begin(self, what: str) -> None:
        self._what = what
        self._last = -math.inf  # the clock may count from when the machine was started

    def say(self, line: str) -> None:
        say(line if line.startswith("latentvirt:") else f"{self._what}: {line}", err=True)

    def progress(self, done: int, length: int | None) -> None:
        now = time.monotonic()
        if now - self._last >= SECONDS_PER_LINE:
            self._last = now
            of = "" if length is None else f" of {-(-length // BYTES_PER_MIB)}"
            say(f"{self._what}: {done // BYTES_PER_MIB}{of} MiB", err=True)

    def end(self) -> None:
        pass
