"""A run directory as the doctor reads it: a stranger's as well, whose plugins are not executed, and one that is written to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flowfactory.config.text_files import decode
from flowfactory.config.yaml import parse_yaml
from flowfactory.errors import UserError
from flowfactory.runs import metrics_file
from flowfactory.runs.doctor.table import Table
from flowfactory.runs.facts import END, FACTS, UNDER_WAY, read_facts, tell_progress
from flowfactory.runs.lock import is_held
from flowfactory.untrusted_files import Refused, read_bytes

CONFIG, METRICS, LARGEST_CONFIG = "config.yaml", "metrics.jsonl", 2**19


def read_table(folder: Path, say: Callable[[str], None]) -> tuple[Table, str]:
    """What rules see of the run in ``folder``, and in a few words how far it is; ``say`` hears of what cannot be read.

    UserError: it is no run directory.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is no run directory: it has no {CONFIG}")
    facts = read_facts(folder / FACTS)
    records = metrics_file.read_records(folder / METRICS, say)
    table = Table(records, _read_config(folder, say), facts)
    done = table.trained[-1]["iteration"] if table.trained else 0
    iterations = table.number("training.iterations")
    return table, f"{tell_progress(done, iterations)} iterations, {_describe_end(folder, facts)}"


def _read_config(folder: Path, say: Callable[[str], None]) -> Mapping[str, Any]:
    path = folder / CONFIG
    try:
        found = parse_yaml(decode(read_bytes(path, LARGEST_CONFIG, within=folder), CONFIG), CONFIG)
    except (Refused, OSError, UserError) as error:
        told = error.strerror if isinstance(error, OSError) else next(iter(str(error).splitlines()), "")
        say(f"warning: {path} {told}; rules that need it are left out")
        return {}
    return found if isinstance(found, Mapping) else {}


def _describe_end(folder: Path, facts: Mapping[str, Any]) -> str:
    if isinstance(facts.get(UNDER_WAY), str):  # what is beside it then is how the run ended that this one continues
        lives = is_held(folder)
        return "under way, or killed" if lives is None else "under way" if lives else "killed"
    end = facts.get(END)
    if isinstance(end, Mapping) and end.get("how") in ("finished", "stopped", "failed"):
        sentence = str(end.get("sentence", ""))[:1000]
        return f"{end['how']}: {sentence}" if sentence else str(end["how"])
    return "not begun, or of unknown end"
