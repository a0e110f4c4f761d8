"""The figures of a run directory for those who show them, as far as they are what a run writes."""

from __future__ import annotations

from typing import Any

from flowfactory.runs.directory import RunDirectory
from flowfactory.types import Say
from flowfactory.untrusted_files import Refused, parse_json, read_bytes

LARGEST_FILE = 512 * 2**20
LAST_ITERATION = 10_000_000
LARGEST = 1e100
"""No finite figure of a run is as large, and the square of a larger one may be no number."""


def read_figures(directory: RunDirectory, say: Say = lambda _: None) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, whose ``iteration`` is a whole number and all else a float; ``say`` hears of the rest."""
    path = directory.metrics
    try:
        content = read_bytes(path, LARGEST_FILE, within=directory.path)
    except FileNotFoundError:
        return []
    except (Refused, OSError) as error:
        say(f"warning: {path} {error if isinstance(error, Refused) else error.strerror}; left out")
        return []
    lines = [line for line in content.splitlines() if line.strip()]
    records, odd = [], 0
    for line in lines:
        record, whole = _parse_record(line)
        odd += not whole
        if record:
            records.append(record)
    if odd:
        say(f"warning: {path}: {odd} of its {len(lines)} lines hold what is no figure of a run; left out")
    return records


def _parse_record(line: bytes) -> tuple[dict[str, Any], bool]:
    """The figures of a line, and whether it holds nothing else; no figures where it is not of an iteration."""
    try:
        found = parse_json(line)
    except Refused:
        return {}, False
    if not isinstance(found, dict) or type(number := found.pop("iteration", None)) is not int:
        return {}, False
    if not 0 <= number <= LAST_ITERATION:
        return {}, False
    figures = {key: float(value) for key, value in found.items() if _is_figure(value)}
    return {"iteration": number, **figures}, len(figures) == len(found)


def _is_figure(value: Any) -> bool:
    """Whether it is a number, finite or not, as a run may have it."""
    return type(value) in (int, float) and (abs(value) < LARGEST or value in (INFINITY, -INFINITY) or value != value)


INFINITY = float("inf")
