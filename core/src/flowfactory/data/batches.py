"""Prompts to batches of groups: which prompts an iteration draws, and the noise key of each sample."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import torch
from torch import Tensor

from flowfactory.config.canvases import deal
from flowfactory.flow import generator
from flowfactory.types import NoiseKey, Prompt


@dataclass(frozen=True)
class Batch:
    """The samples to draw: a prompt and a noise key each, groups [B] int64; members of a group stand together."""

    prompts: tuple[Prompt, ...]
    keys: tuple[NoiseKey, ...]
    groups: Tensor

    def rows(self, index: Sequence[int]) -> Batch:
        """The samples ``index``."""
        return Batch(
            tuple(self.prompts[i] for i in index), tuple(self.keys[i] for i in index), self.groups[torch.tensor(list(index))]
        )

    @property
    def texts(self) -> tuple[str, ...]:
        """The text of each sample's prompt."""
        return tuple(prompt.text for prompt in self.prompts)


def split_whole_groups(batch: Batch, size: int) -> Iterator[range]:
    """The samples of ``batch`` in pieces of whole groups, as many as ``size`` samples allow and at least one."""
    groups = batch.groups.tolist()
    starts = [0, *(i for i in range(1, len(groups)) if groups[i] != groups[i - 1]), len(groups)]
    first = 0
    for i in range(1, len(starts)):
        if i == len(starts) - 1 or starts[i + 1] - starts[first] > size:
            yield range(starts[first], starts[i])
            first = i


def make_batch(prompts: Sequence[Prompt], group_size: int) -> Batch:
    """``group_size`` samples of each prompt. A prompt that comes twice gets further members, and so other noise."""
    seen: Counter[int] = Counter()
    keys = []
    for prompt in prompts:
        first = seen[prompt.index] * group_size
        seen[prompt.index] += 1
        keys += [NoiseKey(prompt.index, first + member) for member in range(group_size)]
    repeated = tuple(prompt for prompt in prompts for _ in range(group_size))
    return Batch(repeated, tuple(keys), torch.arange(len(prompts)).repeat_interleave(group_size))


def prompts_of_iteration(
    prompts: Sequence[Prompt], iteration: int, groups: int, seed: int, weights: Mapping[str, int] = MappingProxyType({})
) -> list[Prompt]:
    """The prompts of an iteration: every epoch is its own order of all, and nothing but the arguments decides it.

    Of sources with ``weights``, behind one another in that order, each has epochs of its own: the run's groups are dealt to
    them in turn, so that of each sum of the weights in a row every source has as many as it weighs; none where it is 0.
    """
    positions = range(iteration * groups, (iteration + 1) * groups)
    if not weights:
        return [prompts[_place(len(prompts), position, seed)] for position in positions]
    bounds, total = _bounds(prompts, list(weights)), sum(weights.values())
    dealt, result = deal(tuple(weights.items())), []
    for position in positions:
        name, turn = dealt[position % total]
        first, last = bounds[name]
        turn += position // total * weights[name]
        result.append(prompts[first + _place(last - first, turn, seed, name)])
    return result


def _bounds(prompts: Sequence[Prompt], names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Where the prompts of each source begin and end."""
    order = {name: place for place, name in enumerate(names)}

    def place(prompt: Prompt) -> int:
        return order[prompt.source]

    return {name: (bisect_left(prompts, n, key=place), bisect_right(prompts, n, key=place)) for name, n in order.items()}


def _place(count: int, position: int, seed: int, name: str = "") -> int:
    """Which of ``count`` prompts is drawn at a ``position`` of a run, counted from 0."""
    epoch, place = divmod(position, count)
    return _epoch_order(count, epoch, seed, name)[place]


@lru_cache(16)  # an iteration may end one epoch and begin the next, of each source
def _epoch_order(count: int, epoch: int, seed: int, name: str) -> list[int]:
    key = ("prompts", seed, epoch, name) if name else ("prompts", seed, epoch)
    return torch.randperm(count, generator=generator(*key)).tolist()
