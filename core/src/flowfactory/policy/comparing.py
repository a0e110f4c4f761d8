"""Evaluations of kept weights, made for many comparisons at once and held until each of them comes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

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
class Held:
    """What was found for one comparison, and what tells the step that it was found at from others."""

    shape: torch.Size
    fingerprint: Tensor
    found: dict[Place, Evaluation] = field(default_factory=dict)


@dataclass
class Ahead:
    """What was evaluated ahead, in the order of the comparisons; it rests on ``device``, or where it was made.

    RunError: comparisons come at other steps, or more of them, or fewer. Other shapes and numbers of them are told at once;
    what the steps hold is told by :meth:`check`, so that a device is waited for once in an optimizer step.
    """

    device: torch.device | None = None
    held: deque[Held] = field(default_factory=deque)
    bytes: int = 0
    """Of all that was held."""
    same: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Fingerprints that have to be the same."""

    def hold(self, number: int, step: Step, found: Mapping[Place, Evaluation]) -> None:
        """Hold what was ``found`` for comparison ``number``, which is at ``step``."""
        if number == len(self.held):
            self.held.append(Held(step.latents.shape, _fingerprint(step)))
        else:
            self._expect(self.held[number], step)
        for place, evaluation in found.items():
            self.held[number].found[place] = to_device(evaluation.detach(), self.device)
            self.bytes += sum(tensor.nbytes for tensor in _tensors(evaluation))

    def take(self, step: Step) -> dict[Place, Evaluation]:
        """What is held for the next comparison, which is at ``step``, on its device; nothing where nothing ever was."""
        if not self.held:
            if self.same:
                raise RunError(OTHERS)
            return {}
        held = self.held.popleft()
        self._expect(held, step)
        return {place: to_device(evaluation, step.latents.device) for place, evaluation in held.found.items()}

    def check(self) -> None:
        """RunError: something was not taken, or was found or taken at another step than it was held for."""
        if self.held or (self.same and not torch.equal(*map(torch.cat, zip(*self.same, strict=True)))):
            raise RunError(OTHERS)

    def _expect(self, held: Held, step: Step) -> None:
        fingerprint = _fingerprint(step)
        if (held.shape, held.fingerprint.shape) != (step.latents.shape, fingerprint.shape):
            raise RunError(OTHERS)
        self.same.append((held.fingerprint, fingerprint.to(held.fingerprint.device)))


def _fingerprint(step: Step) -> Tensor:
    """[n] of int64, on the device of the latents: sums of the bits of what decides an evaluation."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    known = [tensor for tensor in (step.latents, step.sigma, step.next_latents, step.next_sigma) if tensor is not None]
    bits = [tensor.detach().contiguous().view(integers[tensor.element_size()]) for tensor in known]
    sums = [own.flatten(1).sum(1) if own.dim() > 1 else own.long() for own in bits]
    return torch.cat([own.to(step.latents.device) for own in sums])


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


def _tensors(evaluation: Evaluation) -> Iterator[Tensor]:
    values = (getattr(evaluation, each.name) for each in fields(evaluation))
    return (value for value in values if value is not None)
