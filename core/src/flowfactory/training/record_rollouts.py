"""An iteration's records, in the form of samples that were drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from flowfactory.data.batches import make_batch
from flowfactory.distributed.partition import split_with_padding
from flowfactory.experience import Experience
from flowfactory.training.guidance import drawn_and_learned, most_guidance, training_plan
from flowfactory.training.prompts import RECORDS
from flowfactory.training.records import Kind
from flowfactory.training.rollouts import Rollouts
from flowfactory.training.setup import Run
from flowfactory.types import NoiseKey, Prompt, SamplingPlan


def collect_records(run: Run, iteration: int, prompts: Sequence[Prompt], kind: Kind) -> Rollouts:
    """The records of ``prompts`` as an iteration's samples: each a group of its own, or of a chosen and a rejected one.

    Nothing is drawn, so that there are no recorded steps and no rewards. Targets have an advantage of 1, rejected records of
    -1. Noise and times of a record are those of a sample of its prompt. A joint work of the ranks.
    """
    config, ranks, keys = run.config, run.ranks, RECORDS[kind]
    batch = make_batch(prompts, len(keys))
    plan = _record_plan(run, iteration, batch.keys)
    known = run.sampler.conditions(batch.prompts, most_guidance(plan), plan.canvas)
    _, learned = drawn_and_learned(known, plan, config.algorithm)
    held = split_with_padding(range(len(batch.keys)), ranks.workers.count)
    assert run.records is not None
    found = [run.records.as_prompt(prompt, keys[row % len(keys)]) for row, prompt in enumerate(batch.prompts)]
    latents = run.records.latents(found, held[ranks.workers.rank], plan.canvas)
    advantages = torch.tensor([1.0, -1.0][: len(keys)] * len(prompts))
    experience = Experience(
        latents=latents,
        steps=(),
        conditions=learned,
        plan=plan,
        rewards={},
        advantages=advantages.to(latents.device),
        groups=batch.groups,
        sigmas=run.sampler.schedule(plan.steps, plan.canvas),
        batch_size=config.training.batch_size,
        timesteps_per_forward=config.training.timesteps_per_forward,
        device=run.policy.device,
    )
    return Rollouts(experience, ranks, held)


def _record_plan(run: Run, iteration: int, keys: Sequence[NoiseKey]) -> SamplingPlan:
    """That of records, whose guidance is the one of the velocity that is trained: nothing is drawn under another.

    Beside an algorithm that draws it is off, where the model has such a velocity: what a record is the target of.
    """
    plan = training_plan(run, iteration, keys)
    guidance = plan.guidance if plan.training_guidance is None else plan.training_guidance
    if run.config.algorithm.learns_from == "samples" and run.sampler.guided:
        guidance = min(1.0, guidance)
    return replace(plan, guidance=guidance, training_guidance=None)
