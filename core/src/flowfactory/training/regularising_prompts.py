"""The prompts whose records join an algorithm's loss."""

from __future__ import annotations

from collections.abc import Sequence

from flowfactory.config.schema import RunConfig
from flowfactory.data.batches import prompts_of_iteration
from flowfactory.types import Prompt


def with_targets(train: Sequence[Prompt]) -> list[Prompt]:
    """Those that bring a target."""
    return [prompt for prompt in train if prompt.target is not None]


def regularising_prompts(targets: Sequence[Prompt], config: RunConfig, iteration: int) -> list[Prompt]:
    """Those of :func:`with_targets` that join an iteration, as many as it has groups, and one at least for each optimizer step.

    Every epoch is its own order of all. Where every prompt has a target, they are those that the iteration draws.
    """
    return prompts_of_iteration(targets, iteration, regularising_count(config), config.seed)


def regularising_count(config: RunConfig) -> int:
    """How many records join an iteration; each has one training timestep."""
    return max(config.sampling.groups, config.training.updates) if config.training.regularise else 0
