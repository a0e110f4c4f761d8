"""By what name a service knows a run, so that a resumed run goes on there: it is kept in ``run.json``."""

from __future__ import annotations

import re
import secrets

from flowfactory.runs.facts import FACTS, add_facts, read_facts
from flowfactory.types import RunInfo

TRACKERS = "trackers"
"""The key of run.json: {service: what it calls the run}."""
_SOUND = re.compile(r"[A-Za-z0-9_.-]{1,128}")


def recall(run: RunInfo, service: str) -> str | None:
    """What ``service`` calls the run; None where it does not know it yet."""
    found = read_facts(run.directory / FACTS).get(TRACKERS)
    name = found.get(service) if isinstance(found, dict) else None
    return name if isinstance(name, str) and _SOUND.fullmatch(name) else None


def remember(run: RunInfo, service: str, name: str) -> None:
    """Keep what ``service`` calls the run. OSError: it cannot be written."""
    path = run.directory / FACTS
    found = read_facts(path).get(TRACKERS)
    add_facts(path, {TRACKERS: {**(found if isinstance(found, dict) else {}), service: name}})


def identify(run: RunInfo, service: str, prefix: str = "") -> str:
    """What ``service`` calls the run: what it did before, or ``prefix`` with letters of chance. OSError: as above."""
    known = recall(run, service)
    if known is None:
        known = prefix + secrets.token_hex(4)
        remember(run, service, known)
    return known
