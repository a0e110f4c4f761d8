"""The same rules while a run goes on: a warning each, once."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from flowfactory.runs.doctor.diagnosis import diagnose
from flowfactory.runs.doctor.names import HELD_OUT, READ
from flowfactory.runs.doctor.table import Table

WINDOW = 256
"""Iterations that are looked at, so that no run's length makes it slower."""
EVERY = 5
"""Iterations between looks, but for those that are evaluated."""


class Watch:
    """Looks at a run as it goes on, which may have ``records`` already. For the leading rank alone."""

    def __init__(self, config: Mapping[str, Any], facts: Mapping[str, Any], records: Iterable[Mapping[str, Any]] = ()) -> None:
        self._config, self._facts = config, facts
        self._records = deque((_figures(record) for record in records), maxlen=WINDOW)
        self._told: set[tuple[str, str]] = set()

    def add(self, record: Mapping[str, Any]) -> list[str]:
        """The sentences about what ``record``, that of the iteration just made, is evidence enough for; each once."""
        self._records.append(_figures(record))
        number = record["iteration"]
        if not number or (number % EVERY and not any(name.startswith(HELD_OUT) for name in record)):
            return []
        found = [finding for finding in diagnose(Table(list(self._records), self._config, self._facts)) if finding.solid]
        fresh = [finding for finding in found if (finding.rule, finding.about) not in self._told]
        self._told |= {(finding.rule, finding.about) for finding in fresh}
        return [finding.sentence for finding in fresh]


def _figures(record: Mapping[str, Any]) -> dict[str, Any]:
    """What rules read of it, as it would be read from the disk: what is no number is not there."""
    kept = {name: value for name, value in record.items() if name.startswith(READ) and math.isfinite(value)}
    return {"iteration": record["iteration"], **kept}
