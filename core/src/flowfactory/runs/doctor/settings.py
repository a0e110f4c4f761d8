"""What a run's config says about how it learns, read as rules need it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from flowfactory.runs.doctor.table import Table

RATE = "training.optimizer.lr"


def learning_rate(table: Table) -> float | None:
    """The learning rate after the warm-up."""
    return table.number(RATE)


def scaled_rate(table: Table, factor: float) -> tuple[str, dict[str, Any]]:
    """The words that set the learning rate to ``factor`` times what it is, and the key with its value."""
    rate = learning_rate(table)
    if rate is None:
        return f"{'raise' if factor > 1 else 'lower'} {RATE}", {}
    new = float(f"{rate * factor:.2g}")
    return f"set {RATE} to {new:g} (it is {rate:g})", {RATE: new}


def hold_closer(table: Table) -> str:
    """What keeps the policy near the model that training started from, of what the algorithm has."""
    if isinstance(table.key("algorithm"), Mapping) and "kl" not in table.key("algorithm"):
        return f"lower {RATE}"
    place = "algorithm.kl.coefficient" if table.key("algorithm.kl.coefficient") is not None else "algorithm.kl"
    ways = [f"lower {place}.target" if isinstance(table.key(place), Mapping) else f"raise {place}"]
    if isinstance(table.key("algorithm.kl.gate"), Mapping):
        ways.append("raise algorithm.kl.gate.share")
    if isinstance(table.key("algorithm.kl.refresh"), Mapping):
        ways.append("take its reference anew less often (algorithm.kl.refresh)")
    return " or ".join(ways)


def clip_range(table: Table) -> float | None:
    """How far the ratio may move before its gradient is cut; of two bounds, below and above, the nearer."""
    value = table.key("algorithm.clip_range")
    bounds = value if isinstance(value, list | tuple) else [value]
    known = [float(bound) for bound in bounds if type(bound) in (int, float) and math.isfinite(bound) and bound > 0]
    return min(known, default=None)


def optimizer_steps(table: Table) -> int:
    """Of an iteration."""
    return table.count("training.updates", 1) * table.count("training.epochs", 1)


def guidance(table: Table) -> float:
    """What pictures are drawn with; 1 where the model is given it as a number, as one that has learned to follow it."""
    if table.fact("guidance") == "given":
        return 1.0
    return table.number("sampling.guidance") or 1.0


def is_decoupled(table: Table) -> bool:
    """Whether the algorithm learns from velocities at training timesteps and not from the steps that were drawn."""
    return table.key("algorithm.timesteps") is not None


def trained_guidance(table: Table) -> float:
    """The guidance of the velocity that is learned.

    An algorithm's own; where it is left out, off where velocities are regressed, else that of drawing. A run of a version
    without the key learned as it drew.
    """
    algorithm = table.key("algorithm")
    if not isinstance(algorithm, Mapping) or "guidance" not in algorithm:
        return guidance(table)
    own = table.number("algorithm.guidance")
    return own if own is not None else 1.0 if is_decoupled(table) else guidance(table)
