"""Several numbers of one answer, and the one that is made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

WAYS = ("mean", "min", "product-root")


def check_combination(how: Any, names: Sequence[str]) -> None:
    """ValueError: ``how`` is no way to make one number of those of ``names``; see :func:`combine`."""
    if isinstance(how, str):
        if how not in WAYS:
            raise ValueError(f"{how!r} is none of {', '.join(WAYS)}")
        return
    if set(how) <= set(WAYS):
        if len(how) != 1:
            raise ValueError(f"{how} names several ways; nest one in another, such as {{min: [a, {{mean: [b, c]}}]}}")
        parts = next(iter(how.values()))
        if not isinstance(parts, list) or not parts:
            raise ValueError(f"{how}: give a list of names, or of further combinations")
        for part in parts:
            if isinstance(part, Mapping):
                check_combination(part, names)
            else:
                _check_name(part, names)
        return
    for name, weight in how.items():
        _check_name(name, names)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"{name}: its weight is {weight!r}; give a number")
    if not sum(how.values()):
        raise ValueError(f"{how}: the weights add up to 0")


def _check_name(name: Any, names: Sequence[str]) -> None:
    if name not in names:
        raise ValueError(f"{name!r} is none of what the patterns name, {', '.join(names)}")


def combine(values: Mapping[str, float], how: Any) -> float:
    """One number of ``values``: their ``mean``, ``min`` or ``product-root``, the n-th root of the product of n.

    ``how`` may also be a mapping from names to weights, for the weighted mean of those, or from one of the three ways to a
    list of names and of further such mappings.
    """
    if isinstance(how, str):
        return _join(how, list(values.values()))
    if set(how) <= set(WAYS):
        ((way, parts),) = how.items()
        return _join(way, [combine(values, part) if isinstance(part, Mapping) else values[part] for part in parts])
    shares: Mapping[str, float] = how
    return sum(weight * values[name] for name, weight in shares.items()) / sum(shares.values())


def _join(way: str, values: Sequence[float]) -> float:
    if way == "min":
        return min(values)
    if way == "mean":
        return sum(values) / len(values)
    return math.prod(max(value, 0.0) for value in values) ** (1 / len(values))
