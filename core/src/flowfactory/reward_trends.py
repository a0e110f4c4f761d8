"""Which training rewards rose, as far as a run's figures tell. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ERRORS = 2.0
"""Standard errors of the difference by which a reward rose."""
LATEST = 20
"""Iterations that tell where a reward is going at the moment."""
TELLING = 6
"""Iterations of which fewer do not."""
TREND = 3.0
"""Standard errors of the difference beyond which it is said: it is asked after each iteration, and 2 would often be noise."""


def rising_rewards(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Iterator[tuple[str, tuple[float, float]]]:
    """The label of each of the metrics ``names``, ``reward/<label>/mean``, that rose, and its means at first and at last.

    One rose where the mean of the last quarter of the iterations is above that of the first by more than two standard errors.
    """
    for name in names:
        label = name.split("/")[1]
        values = [float(record[name]) for record in records if name in record]
        if len(values) < 2 or not any(f"advantage/{label}/share" in record for record in records):
            continue  # what is only watched is no reason to suspect
        count = quarter(len(values))
        first, last = _mean_and_variance(values[:count]), _mean_and_variance(values[-count:])
        if is_rise(first, last, count):
            yield label, (first[0], last[0])


def quarter(length: int) -> int:
    """How many iterations at either end of ``length`` are compared."""
    return max(1, length // 4)


def is_rise(first: tuple[float, float], last: tuple[float, float], count: float, errors: float = ERRORS) -> bool:
    """Whether the mean of ``count`` iterations rose from ``first`` to ``last``, each a mean and a variance."""
    return last[0] - first[0] > errors * math.sqrt((first[1] + last[1]) / count)


def direction(values: Sequence[float]) -> int:
    """1 where the latest ``values`` are rising, -1 where they are falling, 0 where neither can be told yet.

    The later half of the last 20 is compared with the earlier half; fewer than TELLING tell nothing.
    """
    latest = [value for value in values[-LATEST:] if math.isfinite(value)]
    count = len(latest) // 2
    if count < TELLING // 2:
        return 0
    earlier, later = _mean_and_variance(latest[:count]), _mean_and_variance(latest[-count:])
    free = count - 1  # the variance is that of the values themselves, which is too small for what they are drawn from
    return int(is_rise(earlier, later, free, TREND)) - int(is_rise(later, earlier, free, TREND))


def _mean_and_variance(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) ** 2 for value in values) / len(values)
