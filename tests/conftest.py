"""What every test may use."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings

# No test depends on how quick a machine is.
settings.register_profile("untimed", parent=settings(), deadline=None)
settings.load_profile("untimed")

# What a shell runs in the background ignores Ctrl-C, and so would all that the tests start, for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the switch that writes golden files anew."""
    parser.addoption(
        "--regold", action="store_true", help="write the golden files anew instead of comparing with them"
    )
