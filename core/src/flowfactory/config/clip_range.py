"""How far a ratio may move before its gradient is cut: one bound for both sides, or one for each."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Bound = Annotated[float, Field(gt=0, le=1)]

ClipRange = Bound | tuple[Bound, Bound]
"""``x``, or ``[below, above]``: the ratio is bounded to 1 - below … 1 + above."""


def bounds(clip_range: float | tuple[float, float]) -> tuple[float, float]:
    """(below, above) of ``clip_range``; a single number is both."""
    return clip_range if isinstance(clip_range, tuple) else (clip_range, clip_range)
