"""One owner of a run directory, from a run's beginning to its end, however it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from flowfactory.errors import Interrupted
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.facts import is_under_way, record_end
from flowfactory.runs.lock import RunLock, held
from flowfactory.runs.metrics_file import read_lines
from flowfactory.runs.report.page import write_report
from flowfactory.types import Say

REPORT_SECONDS = 20.0
"""For the report of a run that failed, after which its error is told without."""


@contextmanager
def own(directory: RunDirectory, say: Say) -> Iterator[RunLock]:
    """Within it nobody else runs there; a run that :func:`facts.begin` began has its end recorded, and a report if it failed.

    UserError: somebody else runs there, or nothing can be written. A supervisor that owns the directory records a failure.
    """
    with held(directory.path, say) as lock:
        try:
            yield lock
        except BaseException as error:
            if lock.own and is_under_way(directory.facts, lock.token) and not lock.lost():
                _conclude(directory, error)
            raise
        if is_under_way(directory.facts, lock.token):
            try:
                record_end(directory.facts, "finished")
            except OSError as error:  # all that counts is saved
                say(f"warning: {directory.facts} cannot be written ({error.strerror}); that the run has finished is not in it")


def _conclude(directory: RunDirectory, error: BaseException) -> None:
    """Leave behind how the run ended; whatever comes of that is less than ``error`` itself."""
    how = "stopped" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"
    sentence = next(iter(str(error).splitlines()), "") or type(error).__name__
    with suppress(Exception):
        record_end(directory.facts, how, sentence)
    # in a thread that is left behind where a disk hangs
    thread = threading.Thread(target=_write_report, args=(directory,), name="report", daemon=True)
    thread.start()
    thread.join(REPORT_SECONDS)


def _write_report(directory: RunDirectory) -> None:
    with suppress(Exception):
        if any(line.record for line in read_lines(directory.metrics)):
            write_report(directory.path)
