"""Options of the soak: how long, and how often."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

OPTIONS = {
    "--iterations": (2000, "of the long run"),
    "--kills": (100, "of tiny runs"),
    "--rank-kills": (4, "of a rank or a launcher"),
    "--kill-seed": (1, "that chooses the instants of the kills"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    for name, (default, about) in OPTIONS.items():
        parser.addoption(name, type=int, default=default, help=f"{about}; {default} when left out")


@pytest.fixture
def option(pytestconfig: pytest.Config) -> Callable[[str], int]:
    """The value of an option; its default where this folder was not named on the command line."""
    return lambda name: int(pytestconfig.getoption(name, OPTIONS[name][0]))
