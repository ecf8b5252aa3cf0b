"""What every command says when it is refused, broken off, or cannot say anything any more."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import click

from latentvirt.cli.saying import say
from latentvirt.errors import LatentvirtError

EXIT_REFUSED = 1
"""What was asked for was refused, or failed; a wrong command line exits with 2, which is click's own."""

EXIT_INTERRUPTED = 130
"""It was broken off; the same as of a program that SIGINT ended in a shell."""

STANDARD = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
"""The standard streams in the order of their numbers, from 0 on, and what they are open for."""


@contextmanager
def refusals_told() -> Iterator[None]:
    """Say in a sentence on standard error why a command does not go on, instead of a traceback.

    Raises:
        SystemExit: it does not.
    """
    try:
        yield
    except LatentvirtError as error:
        say(f"latentvirt: {error}", err=True)
        sys.exit(EXIT_REFUSED)
    except (KeyboardInterrupt, click.Abort):
        click.echo("\nlatentvirt: broken off", err=True)  # the terminal has written ^C
        sys.exit(EXIT_INTERRUPTED)
    except OSError as error:
        why = None if error.errno == errno.EPIPE else _trouble_of_output()
        if why is None:
            raise
        sys.stdout = io.StringIO()  # or Python would try once more to write the rest when it ends
        click.echo(
            f"latentvirt: standard output cannot be written: {why}. What to do: make room there; what was "
            "asked for may have been done all the same",
            err=True,
        )
        sys.exit(EXIT_REFUSED)


@contextmanager
def broken_off_alike() -> Iterator[None]:
    """Let SIGTERM break off what is done meanwhile as Ctrl-C does."""
    with signals_given_back() as are_ours:
        if are_ours:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        yield


@contextmanager
def signals_given_back() -> Iterator[bool]:
    """Let SIGINT and SIGTERM mean afterwards what they did before: Twisted's reactor keeps them for itself.

    Yields:
        Whether they can be changed: only the main thread has them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield False  # where a program has signals is its own affair
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield True
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _trouble_of_output() -> str | None:
    """Tell why standard output cannot be written; None if it can."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError as error:
        return error.strerror
    return None


def open_what_is_closed() -> None:
    """Let a standard stream that a shell has closed (``>&-``) be one into which anything goes."""
    # Whatever is opened first would else take its number, and get what others write there.
    while (number := os.open(os.devnull, os.O_RDWR)) < len(STANDARD):
        os.set_inheritable(number, True)
    os.close(number)
    for number, (stream, mode) in enumerate(STANDARD):
        if getattr(sys, stream) is None:
            setattr(sys, stream, os.fdopen(number, mode, closefd=False))


def write_whatever_can_be() -> None:
    """Let characters that standard output's encoding has not be written as escapes of them."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
