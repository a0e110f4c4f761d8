"""What a started rank does for the process that started it: say how it ended, and end with it. Imports no torch."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

from flowfactory.atomic_files import write_atomically
from flowfactory.distributed.environment import RESTART_COUNT, in_group, read_environment, read_number
from flowfactory.distributed.outcome import to_outcome

OUTCOMES = "FLOWFACTORY_OUTCOMES"
"""Set for ranks that the supervisor started: the folder in which each says how it ended."""
PARENT = "FLOWFACTORY_PARENT"
"""Set with it: the process that started the rank, and without which it is not to live."""
THREADS = "OMP_NUM_THREADS"
DEFAULT_THREADS = "FLOWFACTORY_DEFAULT_THREADS"
"""Set for ranks whose number of threads is the supervisor's word and not the user's."""


def is_supervised() -> bool:
    """Whether this process is a rank that the supervisor started, whose parent speaks for it."""
    return OUTCOMES in os.environ and in_group()


def report_outcome(error: BaseException | None) -> None:
    """Say to the parent how this rank ended."""
    found = read_environment(os.environ)
    assert found is not None
    path = outcome_path(Path(os.environ[OUTCOMES]), read_number(os.environ, RESTART_COUNT, 0), found.rank)
    write_atomically(path, to_outcome(error, found.rank).as_json())


def outcome_path(folder: Path, attempt: int, rank: int) -> Path:
    """Where ``rank`` says how its ``attempt`` ended."""
    return folder / f"{attempt}-{rank}.json"


def die_with_parent() -> None:
    """Have this rank killed when the process that started it ends, in whatever way; on Linux alone."""
    parent = os.environ.get(PARENT)
    if parent is None or sys.platform != "linux":
        return
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it was already gone
        os.kill(os.getpid(), signal.SIGKILL)
