"""Durations, sizes and trends in words and signs."""

from __future__ import annotations

import math
from collections.abc import Sequence

BARS = "▁▂▃▄▅▆▇█"


def tell_duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 05 min``, ``2 d 4 h``: as exact as one wants to know."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"


def tell_gibibytes(count: float) -> str:
    """``0.9 GiB``."""
    return f"{count / 2**30:.1f} GiB"


def sparkline(values: Sequence[float], width: int) -> str:
    """The last ``width`` of ``values`` as blocks, the lowest of them at the bottom and the highest at the top."""
    shown = [value for value in values if math.isfinite(value)][-width:] if width > 0 else []
    if len(shown) < 2:
        return ""
    low, high = min(shown), max(shown)
    if not high > low:
        return BARS[3] * len(shown)
    return "".join(BARS[min(len(BARS) - 1, int((value - low) / (high - low) * len(BARS)))] for value in shown)
