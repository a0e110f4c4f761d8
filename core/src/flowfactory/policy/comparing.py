"""Evaluations of kept weights, made for many comparisons at once and held until each of them comes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import torch

from flowfactory.errors import RunError
from flowfactory.types import Evaluation, Step


class At(NamedTuple):
    """Where to evaluate beside the present weights: kept ``weights``, under ``guidance`` or the step's own."""

    weights: str
    guidance: float | None = None


Place = tuple[int, float]
"""A version of the weights, and the guidance."""
Comparison = tuple[Step, Mapping[str, At]]
"""What an algorithm asks of the policy at once: the present weights at the step, and kept ones there."""
Comparisons = Callable[[], Iterable[Comparison]]
"""All of an optimizer step, in order; each call goes through them anew."""


@dataclass
class Ahead:
    """What was evaluated ahead, one mapping a comparison, in order; it rests on ``device``, or where it was made."""

    device: torch.device | None = None
    held: deque[tuple[torch.Size, dict[Place, Evaluation]]] = field(default_factory=deque)
    bytes: int = 0
    """Of all that was held."""

    def hold(self, number: int, step: Step, found: Mapping[Place, Evaluation]) -> None:
        """Hold what was ``found`` for comparison ``number``, which is at ``step``."""
        if number == len(self.held):
            self.held.append((step.latents.shape, {}))
        shape, known = self.held[number]
        if shape != step.latents.shape:
            raise RunError(OTHERS)
        for place, evaluation in found.items():
            known[place] = to_device(evaluation.detach(), self.device)
            self.bytes += sum(tensor.nbytes for tensor in _tensors(evaluation))

    def take(self, step: Step) -> dict[Place, Evaluation]:
        """What is held for the next comparison, which is at ``step``, on its device."""
        if not self.held:
            return {}
        shape, found = self.held.popleft()
        if shape != step.latents.shape:
            raise RunError(OTHERS)
        return {place: to_device(evaluation, step.latents.device) for place, evaluation in found.items()}


OTHERS = (
    "the algorithm's comparisons are not those that its update makes; yield the same steps from both, in the same order, "
    "or leave comparisons out"
)


def to_device(evaluation: Evaluation, device: torch.device | None) -> Evaluation:
    """The evaluation on ``device``; as it is where none is given."""
    if device is None:
        return evaluation
    names = (each.name for each in fields(evaluation))
    tensors = {name: value.to(device) for name in names if (value := getattr(evaluation, name)) is not None}
    return replace(evaluation, **tensors)


def _tensors(evaluation: Evaluation) -> Iterator[torch.Tensor]:
    values = (getattr(evaluation, each.name) for each in fields(evaluation))
    return (value for value in values if value is not None)
