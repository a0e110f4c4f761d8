"""``run.json``: the versions that a run is made with, that it is under way, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from flowfactory.atomic_files import write_json_atomically
from flowfactory.untrusted_files import Refused, read_json

FACTS = "run.json"
UNDER_WAY, END, EARLY = "under_way", "end", "stopped_early"
"""Keys: the token of the lock under which the run began that has not ended; how the one ended that made the last metrics; why
that one is about to end before its last iteration, as finished."""
LARGEST = 2**20


def begin(path: Path, token: str) -> None:
    """Write down that a run is under way; how the one before ended stays until :func:`go_on`. OSError: it cannot be."""
    write_json_atomically(path, {**read_facts(path), UNDER_WAY: token})


def go_on(path: Path) -> None:
    """Forget how the run before ended, whose metrics are about to be added to or taken away. OSError: it cannot be written."""
    facts = read_facts(path)
    if {END, EARLY} & facts.keys():
        write_json_atomically(path, {key: value for key, value in facts.items() if key not in (END, EARLY)})


def add_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """Write ``facts`` to run.json, beside what is there. OSError: they cannot be."""
    write_json_atomically(path, {**read_facts(path), **facts})


def read_facts(path: Path) -> dict[str, Any]:
    """What is in run.json, nothing where that cannot be read."""
    try:
        found = read_json(path, LARGEST)
    except (OSError, Refused):
        return {}
    return found if isinstance(found, dict) else {}


def ending_sentence(facts: Mapping[str, Any]) -> str | None:
    """What a reader of the run directory should know first about how the run ended; None: nothing."""
    end = facts.get(END)
    if isinstance(end, dict) and end.get("how") == "finished" and end.get("sentence"):
        return f"The run finished: {str(end['sentence'])[:1000]}"
    if isinstance(end, dict) and end.get("how") in ("stopped", "failed"):
        return f"The run {'was stopped' if end['how'] == 'stopped' else 'failed'}: {str(end.get('sentence', ''))[:1000]}"
    if isinstance(facts.get(UNDER_WAY), str) and end is None:
        return "The run was under way when this page was made, or it was killed."
    return None


def is_under_way(path: Path, token: str) -> bool:
    """Whether the run that began under the lock with ``token`` has not ended, and no other has begun since."""
    return read_facts(path).get(UNDER_WAY) == token


def record_end(path: Path, how: str, sentence: str = "") -> None:
    """Write down that the run ended, ``finished``, ``stopped`` or ``failed`` as ``how`` says. OSError: it cannot be.

    One that did not finish, and did not :func:`go_on` either, leaves what is known of the one before.
    """
    facts = read_facts(path)
    facts.pop(UNDER_WAY, None)
    early = facts.pop(EARLY, None)
    if how == "finished" and isinstance(early, str):
        sentence = early
    time = datetime.now().astimezone().isoformat(" ", "seconds")
    if how == "finished" or not isinstance(facts.get(END), dict):
        facts[END] = {"how": how, "time": time, **({"sentence": sentence} if sentence else {})}
    write_json_atomically(path, facts)


def tell_progress(done: int, planned: float | None, between: str = " of ") -> str:
    """``3 of 20``; ``17`` alone where no more are planned, as of a run that is resumed with fewer than it has."""
    return f"{done}{between}{planned:g}" if planned and done <= planned else str(done)
