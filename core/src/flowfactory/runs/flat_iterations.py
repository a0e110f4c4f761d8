"""Iterations in which no group's rewards differ, which teach nothing: the first is warned of, many in a row end a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flowfactory.config.schema import RunConfig, reward_weight
from flowfactory.types import Say


class FlatIterations:
    """Counts them, ``so_far`` of which were in a row when this process began."""

    def __init__(self, config: RunConfig, so_far: int, say: Say) -> None:
        self._patience, self._say = config.training.patience_flat, say
        self._labels = [label for label, reward in config.rewards.items() if reward_weight(reward)]
        self._count, self._warned = so_far, False
        self._rewarded = config.algorithm.rewarded

    def add(self, number: int, metrics: Mapping[str, float]) -> str | None:
        """Why the run is not to go on after iteration ``number``, if so."""
        if not self._rewarded or not is_flat(metrics):
            self._count, self._warned = 0, False
            return None
        self._count += 1
        near = ", ".join(_describe(self._labels, metrics))
        if not self._warned:
            self._warned = True
            then = "" if self._patience is None else f"; after {self._patience} such iterations in a row the run stops"
            told = f"rewards do not differ within any group ({near}), so nothing is learned from them{self._suspicion(number)}"
            self._say(f"warning: in iteration {number} {told}{then}")
        if self._patience is None or self._count < self._patience:
            return None
        return (
            f"rewards have not differed within any group for {self._count} iterations ({near}), so nothing is learned from "
            f"them{self._suspicion(number)}; look at the pictures and at the reward, or continue with --resume --set "
            "training.patience_flat=null"
        )

    def _suspicion(self, number: int) -> str:
        """What is likely by iteration ``number`` if they differed before."""
        last = number - self._count
        return f"; they differed up to iteration {last}: if pictures are worse now, lower training.optimizer.lr" if last else ""


def is_flat(metrics: Mapping[str, float]) -> bool:
    """Whether no reward supplies any advantage in an iteration."""
    return not any(name.startswith("advantage/") for name in metrics)


def count_flat(records: Sequence[Mapping[str, Any]]) -> int:
    """How many of the last iterations in ``records`` were flat, one after the other."""
    trained = [record for record in records if record["iteration"] > 0]
    return next((count for count, record in enumerate(reversed(trained)) if not is_flat(record)), len(trained))


def _describe(labels: Sequence[str], metrics: Mapping[str, float]) -> Iterator[str]:
    """Where each of ``labels``, the rewards that are learned from, stands in an iteration that is flat."""
    for label in labels:
        mean = metrics.get(f"reward/{label}/mean")
        if mean is None:
            yield f"{label!r} applies to none of its prompts"
        elif metrics[f"reward/{label}/flat"] < 1:
            yield f"what {label!r} differs by is cancelled by the others, or below advantages.min_range"
        else:
            yield f"all of {label!r} are near {mean:.4g}"
