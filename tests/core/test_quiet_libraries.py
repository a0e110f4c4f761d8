"""Hints of libraries: none within a run, and afterwards all as it was."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from flowfactory.quiet_libraries import quiet_libraries

IMPORTS = """
import contextlib, logging, os
from flowfactory.quiet_libraries import quiet_libraries
with (quiet_libraries() if {quiet} else contextlib.nullcontext()):
    import transformers
    transformers.CLIPImageProcessor
    logging.getLogger("transformers.generation").warning("of within")
transformers.logging.get_logger("transformers.generation").warning("of afterwards")
assert "TRANSFORMERS_VERBOSITY" not in os.environ
"""


@pytest.mark.parametrize("quiet", [True, False])
def test_what_is_imported_within_hints_nothing_and_speaks_afterwards(quiet: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_VERBOSITY")}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS.format(quiet=quiet)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert not done.returncode, done.stderr
    assert ("of within" in done.stderr) is not quiet
    assert "of afterwards" in done.stderr


def test_levels_that_somebody_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    logger = logging.getLogger("bitsandbytes")
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    with quiet_libraries():
        assert logger.level == logging.DEBUG
        assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
    assert logger.level == logging.DEBUG


def test_a_hint_is_not_told_within(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("bitsandbytes")
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    with quiet_libraries():
        assert not logger.isEnabledFor(logging.WARNING)
        assert logger.isEnabledFor(logging.ERROR)
    assert logger.level == logging.NOTSET
