"""What is likely to keep a run from learning, of what the doctor looks for, as far as the config alone tells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from flowfactory.config.schema import reward_weight
from flowfactory.runs.doctor.finding import PAGE, Rule
from flowfactory.runs.doctor.flat import FEW_GROUPS, SMALL_GROUP, USUAL
from flowfactory.runs.doctor.supply import MANY_PASSES

if TYPE_CHECKING:
    from flowfactory.config.component import ComponentConfig
    from flowfactory.config.schema import RunConfig

LONG = 20
"""Iterations from which on it is no trial that learns nothing anyway."""


def doubts(config: RunConfig, prompts: int) -> Iterator[str]:
    """A sentence each, for a run that trains on so many ``prompts``."""
    if config.training.iterations < LONG:
        return
    for rule, sentence in _doubts(config, prompts):
        yield f"{sentence} ({PAGE}#{rule})"


def reward_doubts(config: RunConfig) -> Iterator[str]:
    """As :func:`doubts`, of what the rewards do not look at: users lose whole runs to it."""
    if config.training.iterations >= LONG:
        for rule, sentence in _narrow_rewards(config):
            yield f"{sentence} ({PAGE}#{rule})"


def _narrow_rewards(config: RunConfig) -> Iterator[tuple[Rule, str]]:
    if not config.algorithm.rewarded:
        return
    trained = {label: reward for label, reward in config.rewards.items() if reward_weight(reward)}
    if trained and all(reward.ignores_prompts() for reward in trained.values()):
        told = f"rewards: {' and '.join(trained)} {'ignores' if len(trained) == 1 else 'ignore'} the prompt"
        yield (
            "blind-to-prompts",
            f"{told}, so that nothing keeps pictures to it; add a reward that reads it, such as pickscore or ocr",
        )
    looked_at = [*config.rewards.values(), *(config.evaluation.rewards.values() if config.prompts.held_out else ())]
    if len(trained) == 1 and next(iter(trained.values())).learned and len({_name(reward) for reward in looked_at}) == 1:
        told = f"rewards: {next(iter(trained))} is a learned scorer, and nothing else looks at the pictures"
        yield "one-judge", f"{told}; add another reward with weight: 0, or under evaluation.rewards with held-out prompts"


def _name(reward: ComponentConfig) -> str:
    return str(getattr(reward, "name", type(reward).__name__))


def _doubts(config: RunConfig, prompts: int) -> Iterator[tuple[Rule, str]]:
    sampling, algorithm = config.sampling, config.algorithm
    yield from _narrow_rewards(config)
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
