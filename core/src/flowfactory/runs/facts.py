"""``run.json``: the versions that a run is made with, that it is under way, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from flowfactory.atomic_files import write_atomically
from flowfactory.runs.directory import RunDirectory, to_json
from flowfactory.runs.lock import RunLock
from flowfactory.untrusted_files import Refused, read_json

UNDER_WAY, END = "under_way", "end"
"""Keys: the lock under which the run began that has not ended, and how the last one ended."""
LARGEST = 2**20


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


def is_under_way(directory: RunDirectory, lock: RunLock) -> bool:
    """Whether the run that began under ``lock`` has not ended."""
    return read_facts(directory).get(UNDER_WAY) == lock.token


def record_end(directory: RunDirectory, how: str, sentence: str = "") -> None:
    """Write down that the run ended, ``finished``, ``stopped`` or ``failed`` as ``how`` says. OSError: it cannot be."""
    facts = read_facts(directory)
    facts.pop(UNDER_WAY, None)
    time = datetime.now().astimezone().isoformat(" ", "seconds")
    facts[END] = {"how": how, "time": time, **({"sentence": sentence} if sentence else {})}
    write_atomically(directory.facts, to_json(facts))
