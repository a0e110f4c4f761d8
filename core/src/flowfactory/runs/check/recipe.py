"""What is likely to keep a run from learning, of what the doctor looks for, as far as the config alone tells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from flowfactory.runs.doctor.finding import PAGE, Rule
from flowfactory.runs.doctor.flat import FEW_GROUPS, SMALL_GROUP, USUAL
from flowfactory.runs.doctor.supply import MANY_PASSES

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig

LONG = 20
"""Iterations from which on it is no trial that learns nothing anyway."""


def doubts(config: RunConfig, prompts: int) -> Iterator[str]:
    """A sentence each, for a run that trains on so many ``prompts``."""
    if config.training.iterations < LONG:
        return
    for rule, sentence in _doubts(config, prompts):
        yield f"{sentence} ({PAGE}#{rule})"


def _doubts(config: RunConfig, prompts: int) -> Iterator[tuple[Rule, str]]:
    sampling, algorithm = config.sampling, config.algorithm
    drawn = algorithm.learns_from == "samples"
    if drawn and sampling.groups < FEW_GROUPS:
        told = f"sampling.groups {sampling.groups}: so few prompts hardly agree on a direction"
        yield "few-groups", f"{told}; {USUAL} or more are usual"
    if algorithm.rewarded and sampling.group_size <= SMALL_GROUP:
        told = f"sampling.group_size {sampling.group_size}: a picture is compared with {sampling.group_size - 1} others alone"
        yield "small-groups", f"{told}; 8 or more are usual"
    decoupled = getattr(algorithm, "timesteps", None) is not None
    if decoupled and (algorithm.guidance or 1) > 1 and config.model.takes_negatives():
        told = f"algorithm.guidance {algorithm.guidance:g}: the guided velocity is learned as if it were the model's own"
        yield "guided-velocity", f"{told}; leave it out"
    passes = config.training.iterations * sampling.groups / prompts if prompts else 0
    if passes >= MANY_PASSES and not config.prompts.held_out:
        told = f"prompts.train: the {prompts} prompts are gone through {passes:.0f} times, and nothing is held out"
        yield "prompts-used-up", f"{told}; give more prompts, or some in prompts.heldout"
