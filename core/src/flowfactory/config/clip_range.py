"""How far a ratio may move before its gradient is cut: one bound for both sides, or one for each."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

Bound = Annotated[float, Field(gt=0, le=1)]


def _kind(value: Any) -> str:
    return "pair" if isinstance(value, (list, tuple)) else "number"


# by kind, so that what is wrong with a number is told of the number alone
ClipRange = Annotated[Annotated[Bound, Tag("number")] | Annotated[tuple[Bound, Bound], Tag("pair")], Discriminator(_kind)]
"""``x``, or ``[below, above]``: the ratio is bounded to 1 - below … 1 + above."""


def bounds(clip_range: float | tuple[float, float]) -> tuple[float, float]:
    """(below, above) of ``clip_range``; a single number is both."""
    return clip_range if isinstance(clip_range, tuple) else (clip_range, clip_range)
