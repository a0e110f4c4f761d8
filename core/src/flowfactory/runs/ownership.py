"""One owner of a run directory, from a run's beginning to its end, however it ends; both stand in ``run.json``."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

from flowfactory.atomic_files import write_atomically
from flowfactory.errors import Interrupted
from flowfactory.runs.directory import RunDirectory, to_json
from flowfactory.runs.lock import RunLock, held
from flowfactory.types import Say
from flowfactory.untrusted_files import Refused, read_json

UNDER_WAY, END = "under_way", "end"
"""Keys of run.json: the lock under which the run began that has not ended, and how the last one ended."""
LARGEST = 2**20
REPORT_SECONDS = 20.0
"""For the report of a run that failed, after which its error is told without."""


@contextmanager
def own(directory: RunDirectory, say: Say) -> Iterator[RunLock]:
    """Within it nobody else runs there; a run that :func:`begin` began has its end recorded, and a report if it failed.

    UserError: somebody else runs there, or nothing can be written. A supervisor that owns the directory records a failure.
    """
    with held(directory.path, say) as lock:
        try:
            yield lock
        except BaseException as error:
            if lock.own and _is_under_way(directory, lock):
                _conclude(directory, error)
            raise
        if _is_under_way(directory, lock):
            _record_end(directory, "finished")


def begin(directory: RunDirectory, lock: RunLock) -> None:
    """Write down that a run is under way. OSError: it cannot be."""
    facts = read_facts(directory)
    facts.pop(END, None)
    write_atomically(directory.facts, to_json({**facts, UNDER_WAY: lock.token}))


def add_facts(directory: RunDirectory, facts: Mapping[str, Any]) -> None:
    """Write ``facts`` to run.json, beside what is there. OSError: they cannot be."""
    write_atomically(directory.facts, to_json({**read_facts(directory), **facts}))


def read_facts(directory: RunDirectory) -> dict[str, Any]:
    """What is in run.json, nothing where that cannot be read."""
    try:
        found = read_json(directory.facts, LARGEST)
    except (OSError, Refused):
        return {}
    return found if isinstance(found, dict) else {}


def ending_sentence(facts: Mapping[str, Any]) -> str | None:
    """What a reader of the run directory should know first about how the run ended; None: nothing."""
    end = facts.get(END)
    if isinstance(end, dict) and end.get("how") in ("stopped", "failed"):
        return f"The run {'was stopped' if end['how'] == 'stopped' else 'failed'}: {str(end.get('sentence', ''))[:1000]}"
    if isinstance(facts.get(UNDER_WAY), str) and end is None:
        return "The run was under way when this page was made, or it was killed."
    return None


def _is_under_way(directory: RunDirectory, lock: RunLock) -> bool:
    return read_facts(directory).get(UNDER_WAY) == lock.token


def _conclude(directory: RunDirectory, error: BaseException) -> None:
    """Leave behind how the run ended; whatever comes of that is less than ``error`` itself."""
    how = "stopped" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"
    sentence = next(iter(str(error).splitlines()), "") or type(error).__name__
    with suppress(Exception):
        _record_end(directory, how, sentence)
    # in a thread that is left behind where a disk hangs
    thread = threading.Thread(target=_write_report, args=(directory,), name="report", daemon=True)
    thread.start()
    thread.join(REPORT_SECONDS)


def _record_end(directory: RunDirectory, how: str, sentence: str = "") -> None:
    facts = read_facts(directory)
    facts.pop(UNDER_WAY, None)
    time = datetime.now().astimezone().isoformat(" ", "seconds")
    facts[END] = {"how": how, "time": time, **({"sentence": sentence} if sentence else {})}
    write_atomically(directory.facts, to_json(facts))


def _write_report(directory: RunDirectory) -> None:
    from flowfactory.runs.report import write_report

    with suppress(Exception):
        if directory.records():
            write_report(directory)
