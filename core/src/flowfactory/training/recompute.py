"""The log-densities of recorded steps once more, as training computes them, so that the first ratio is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from flowfactory.config.schema import RunConfig
from flowfactory.errors import RunError
from flowfactory.experience import Experience
from flowfactory.policy.policy import Policy
from flowfactory.training.rollouts import Rollouts
from flowfactory.training.update import micro_batch_units, optimizer_steps
from flowfactory.types import Step


def recompute_log_prob(
    rollouts: Rollouts, policy: Policy, config: RunConfig, told: Callable[[int], None] = lambda _: None
) -> Rollouts:
    """The rollouts whose recorded steps have the log-density, and the mean if they have one, that training computes.

    By the weights that drew them, in the micro-batches of the iteration's first epoch: one forward each. A joint work of the
    ranks. RunError: a recorded step has no log-density. ``told`` hears how many more samples this rank has done.
    """
    experience = rollouts.experience
    plan, sampled = experience.plan, [step.log_prob for step in experience.steps if step.log_prob is not None]
    fresh = [log_prob.clone() for log_prob in sampled]
    if len(fresh) < len(experience.steps):
        raise RunError("training.recompute_log_prob: a recorded step has no log-density; choose stochastic dynamics")
    with policy.using(plan.weights), policy.dropping_graphs():
        for rows, _ in optimizer_steps(experience, config, plan.iteration, epoch=0):
            for shown, _ in rollouts.rounds(*micro_batch_units(rows, experience, config.algorithm)):
                again = replay_steps(rollouts.redistribute(shown), policy)
                pairs = [
                    pair
                    for log_prob, kept, step in zip(fresh, experience.steps, again, strict=True)
                    for pair in ((log_prob, step.log_prob), (kept.mean, step.mean))
                ]
                rollouts.write_back(pairs, shown)
                told(len(shown[rollouts.ranks.workers.rank]))
    apart = [float((torch.exp(now - then) - 1).abs().max()) for now, then in zip(fresh, sampled, strict=True)]
    steps = tuple(replace(step, log_prob=log_prob) for step, log_prob in zip(experience.steps, fresh, strict=True))
    deviation = max(rollouts.ranks.gather(max(apart, default=0.0)))
    return replace(rollouts, experience=replace(experience, steps=steps), sampling_deviation=deviation)


def replay_steps(piece: Experience, policy: Policy) -> tuple[Step, ...]:
    """The recorded steps with the log-density, and the mean if they have one, that ``policy`` gives them now.

    In the very forwards that an algorithm trains on which goes over ``piece.replay()``.
    """
    batches = [_replay_batch(batch, policy) for batch in piece.micro_batches()]
    return tuple(Step.concatenate(same, piece.conditions) for same in zip(*batches, strict=True))


def _replay_batch(batch: Experience, policy: Policy) -> list[Step]:
    """As :func:`replay_steps`, for what fits one forward."""
    log_probs, means = list[Tensor](), list[Tensor]()
    for _, joined in batch.replay():
        found = policy.evaluate(joined)
        assert found.log_prob is not None
        assert found.mean is not None
        log_probs.append(found.log_prob)
        means.append(found.mean)
    count = len(batch.steps)
    again = zip(batch.steps, torch.cat(log_probs).chunk(count), torch.cat(means).chunk(count), strict=True)
    return [replace(step, log_prob=log_prob, mean=None if step.mean is None else mean) for step, log_prob, mean in again]
