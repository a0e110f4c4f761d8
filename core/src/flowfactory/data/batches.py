"""Prompts to batches of groups: which prompts an iteration draws, and the noise key of each sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

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


def prompts_of_iteration(prompts: Sequence[Prompt], iteration: int, groups: int, seed: int) -> list[Prompt]:
    """The prompts of an iteration: every epoch is its own order of all, and nothing but the arguments decides it."""
    result = []
    for position in range(iteration * groups, (iteration + 1) * groups):
        epoch, place = divmod(position, len(prompts))
        result.append(prompts[_epoch_order(len(prompts), epoch, seed)[place]])
    return result


@lru_cache(2)  # an iteration may end one epoch and begin the next
def _epoch_order(count: int, epoch: int, seed: int) -> list[int]:
    return torch.randperm(count, generator=generator("prompts", seed, epoch)).tolist()
