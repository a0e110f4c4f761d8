"""Hints that libraries print of their own accord, between the lines of a run: of packages that would be faster, for one.

What a loaded checkpoint lacks, and whatever else is wrong, is found by looking, not by reading their warnings.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

VERBOSITY = {"transformers": "TRANSFORMERS_VERBOSITY", "diffusers": "DIFFUSERS_VERBOSITY"}
"""Libraries that read, as they are imported, how much they say."""
BARS = "HF_HUB_DISABLE_PROGRESS_BARS"
HINTING = ("bitsandbytes",)
"""Loggers that recommend a package on the first import."""


def quieten() -> None:
    """For as long as this process and those that it starts live, of what nobody has set otherwise; bars of loading, too."""
    os.environ.setdefault(BARS, "1")
    for variable in VERBOSITY.values():
        os.environ.setdefault(variable, "error")
    for name in HINTING:
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within it no hints, of libraries that nobody has told how much to say; afterwards all is as it was.

    For those who train from Python, whose process is their own: bars of loading stay.
    """
    unset = {name: variable for name, variable in VERBOSITY.items() if variable not in os.environ}
    levels = {name: logging.getLogger(name).level for name in (*unset, *HINTING)}
    os.environ |= dict.fromkeys(unset.values(), "error")
    for name in (*(name for name in unset if name in sys.modules), *HINTING):
        if logging.getLogger(name).level in (logging.NOTSET, logging.WARNING):
            logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, variable in unset.items():
            os.environ.pop(variable, None)
            if name in sys.modules:  # as they are when nobody says how much
                levels[name] = levels[name] or logging.WARNING
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
