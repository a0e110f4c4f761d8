"""How scores are written for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def format_score(value: float, decimals: int = 4, sign: str = "") -> str:
    """``0.2500``: with ``decimals``, and as ``1e+300`` or ``2.5e-05`` where those would be all zeros or a million and more.

    ``sign`` is "+" where that of a positive one is written too.
    """
    plain = value == 0 or 10.0 ** (1 - decimals) <= abs(value) < 1e6
    return f"{value:{sign}.{decimals}f}" if plain else f"{value:{sign}.4g}"


def tell_evaluation(iteration: int, count: int, videos: bool, means: Mapping[str, float | None]) -> str:
    """The line of an evaluation after ``iteration``: of how many pictures, or ``videos``, and the mean by label of a reward."""
    told = ", ".join(f"{label} {format_score(mean)}" for label, mean in means.items() if mean is not None)
    drawn = tell_count(count, videos)
    return f"held-out score after iteration {iteration}, {drawn}: {told or 'no reward applies to them'}"


def tell_count(count: int, videos: bool) -> str:
    """``1 picture``, ``240 videos``."""
    return f"{count} {'video' if videos else 'picture'}{'' if count == 1 else 's'}"


def tell_change(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each held-out reward of a run that has ended: its mean in the first evaluation, and in the last."""
    evaluated = [record for record in records if any(key.startswith("eval/") for key in record)]
    if len(evaluated) < 2:
        return
    first, last = evaluated[0], evaluated[-1]
    for key in (key for key in last if key.startswith("eval/") and key.endswith("/mean") and key in first):
        before, after = format_score(first[key]), format_score(last[key])
        begun, ended = (f"after iteration {first['iteration']}", "at the end") if first["iteration"] else ("before", "after")
        yield f"held-out {key.split('/')[1]}: {before} {begun}, {after} {ended}"


def format_figure(value: float) -> str:
    """A figure of any kind with four digits that say something: ``0.4513``, ``1234``, ``2.5e-05``."""
    return f"{value:.4g}"
