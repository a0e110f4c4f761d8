"""What an iteration draws, and what an evaluation draws: all that decides it, randomness included."""

from __future__ import annotations

from collections.abc import Sequence

from flowfactory.config.canvases import drawn_from
from flowfactory.config.schema import RunConfig
from flowfactory.config.shortcuts import records_steps
from flowfactory.errors import UserError
from flowfactory.flow.noise import generator
from flowfactory.training.assembly import Assembly
from flowfactory.types import DTYPES, HELD_OUT, NoiseKey, SamplingPlan

SAMPLING, EVALUATION = "sampling", "evaluation"
"""The names under which the EMA that draws, and the one that is evaluated, are kept."""


def sampling_plan(assembly: Assembly, config: RunConfig, iteration: int, keys: Sequence[NoiseKey]) -> SamplingPlan:
    """The iteration's plan: a function of the config and the iteration alone, then the algorithm's say.

    UserError: steps are recorded to be replayed, and are to be drawn otherwise than they are learned from.
    """
    sampling = config.sampling
    dynamics = assembly.dynamics
    plan = SamplingPlan(
        steps=sampling.steps,
        canvas=drawn_from(config, iteration).canvas,
        guidance=sampling.guidance,
        dynamics=dynamics,
        seed=config.seed,
        iteration=iteration,
        keys=tuple(keys),
        stochastic=dynamics.window(sampling.steps, iteration, generator("window", config.seed, iteration)),
        weights=SAMPLING if sampling.ema else None,
        storage=DTYPES[sampling.keep_as],
        cache_threshold=None if sampling.feature_cache is None else sampling.feature_cache.threshold,
        weights_as=sampling.weights_as,
        starts=shared_starts(keys, sampling.group_size) if sampling.shared_noise != "none" else (),
        shares_prefix=sampling.shared_noise == "prefix",
    )
    plan = assembly.hooks.plan(iteration, plan)
    if plan.recorded and config.algorithm.replays and (told := records_steps(config)):
        raise UserError(told)
    return plan


def shared_starts(keys: Sequence[NoiseKey], group_size: int) -> tuple[NoiseKey, ...]:
    """For each of ``keys`` that of the first member of its group, which is one of the groups that a prompt has."""
    return tuple(NoiseKey(key.prompt, key.member - key.member % group_size) for key in keys)


def evaluation_plan(assembly: Assembly, config: RunConfig, keys: Sequence[NoiseKey]) -> SamplingPlan:
    """The plan of held-out prompts: steps without noise, and at their start each its own, which no iteration changes."""
    chosen, sampling = config.evaluation, config.sampling
    return SamplingPlan(
        steps=chosen.steps or sampling.steps,
        canvas=chosen.canvas(sampling),
        guidance=sampling.guidance if chosen.guidance is None else chosen.guidance,
        dynamics=assembly.evaluation_dynamics,
        seed=config.seed,
        iteration=HELD_OUT,
        keys=tuple(keys),
        weights=EVALUATION if chosen.ema else None,
    )
