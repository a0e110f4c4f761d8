"""Prompt files to batches of groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flowfactory.errors import UserError
from flowfactory.flow import generator
from flowfactory.types import NoiseKey, Prompt


@dataclass(frozen=True)
class Batch:
    """The samples to draw: a prompt and a noise key each, groups [B] int64; members of a group stand together."""

    prompts: tuple[Prompt, ...]
    keys: tuple[NoiseKey, ...]
    groups: Tensor

    @property
    def texts(self) -> tuple[str, ...]:
        """The text of each sample's prompt."""
        return tuple(prompt.text for prompt in self.prompts)


def read(path: Path) -> tuple[Prompt, ...]:
    """A prompt a line; empty lines are passed over. UserError: no prompts, or not UTF-8 text."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() splits at U+2028 and others too
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts {path}: {error}") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise UserError(f"prompts {path}: there is no prompt in it; write one a line")
    return tuple(Prompt(text, index) for index, text in enumerate(texts))


def grouped(prompts: Sequence[Prompt], group_size: int) -> Batch:
    """``group_size`` samples of each prompt. A prompt that comes twice gets further members, and so other noise."""
    seen: Counter[int] = Counter()
    keys = []
    for prompt in prompts:
        first = seen[prompt.index] * group_size
        seen[prompt.index] += 1
        keys += [NoiseKey(prompt.index, first + member) for member in range(group_size)]
    repeated = tuple(prompt for prompt in prompts for _ in range(group_size))
    return Batch(repeated, tuple(keys), torch.arange(len(prompts)).repeat_interleave(group_size))


def chosen(prompts: Sequence[Prompt], iteration: int, groups: int, seed: int) -> list[Prompt]:
    """The prompts of an iteration: every epoch is its own order of all, and nothing but the arguments decides it."""
    result = []
    for position in range(iteration * groups, (iteration + 1) * groups):
        epoch, place = divmod(position, len(prompts))
        result.append(prompts[_order(len(prompts), epoch, seed)[place]])
    return result


def _order(count: int, epoch: int, seed: int) -> list[int]:
    return torch.randperm(count, generator=generator("prompts", seed, epoch)).tolist()
