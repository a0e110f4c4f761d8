"""The guidance of what is trained, beside the one of what is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flowfactory.config.component import AlgorithmConfig
from flowfactory.config.training_guidance import recorded_guidance_error
from flowfactory.errors import UserError
from flowfactory.training.plans import sampling_plan
from flowfactory.training.setup import Run
from flowfactory.types import Conditions, NoiseKey, SamplingPlan


def training_plan(run: Run, iteration: int, keys: Sequence[NoiseKey]) -> SamplingPlan:
    """The plan of an iteration, with the guidance of the velocity at training timesteps. UserError: see below.

    It is ``algorithm.guidance``; left out, it is that of drawing, or off for an algorithm that trains the velocity with the
    prompt alone, if the model has such a one. Recorded steps that are replayed as they were drawn refuse another.
    """
    plan, algorithm = sampling_plan(run.assembly, run.config, iteration, keys), run.config.algorithm
    if plan.recorded and algorithm.replays and (told := recorded_guidance_error(run.config)):
        raise UserError(told)
    chosen = algorithm.guidance
    if chosen is None and algorithm.conditional and run.sampler.guided:
        chosen = min(1.0, plan.guidance)
    return replace(plan, training_guidance=chosen)


def most_guidance(plan: SamplingPlan) -> float:
    """The largest guidance that anything in an iteration asks for, which conditions bring negative prompts for."""
    return max(plan.guidance, plan.teacher_guidance, plan.training_guidance or 0.0)


def drawn_and_learned(known: Conditions, plan: SamplingPlan, algorithm: AlgorithmConfig) -> tuple[Conditions, Conditions]:
    """The conditions that are drawn from, and those that are learned from."""
    learned = known
    if algorithm.guidance_gradient == "conditional" and known.negative is not None:
        learned = replace(known, negative=replace(known.negative, detached=True))
    # without a gradient the negative prompts have forwards of their own, and recorded steps are drawn as they are replayed
    return learned if plan.recorded else known, learned
