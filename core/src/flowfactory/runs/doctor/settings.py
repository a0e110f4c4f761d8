"""What a run's config says about how it learns, read as rules need it."""

from __future__ import annotations

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
    """The guidance of the velocity that is learned: that of drawing unless the algorithm has its own."""
    own = table.number("algorithm.guidance")
    return guidance(table) if own is None else own
