"""The contract of an algorithm."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch

from flowfactory.config.component import AlgorithmConfig
from flowfactory.config.schema import TrainingConfig
from flowfactory.errors import RunError, UserError
from flowfactory.experience import Experience
from flowfactory.hooks.building import build
from flowfactory.hooks.calls import Hooks
from flowfactory.policy.comparing import At
from flowfactory.policy.policy import Policy
from flowfactory.rl.advantages import normalize
from flowfactory.testing.model_bench import Bench, bench
from flowfactory.testing.two_parameter import TwoParameterConfig
from flowfactory.training.learner import Learner
from flowfactory.training.metrics import UpdateMetrics
from flowfactory.training.sampler import to_samples
from flowfactory.types import Dynamics, Evaluation, RunInfo, SamplingPlan, Step

GUIDANCE = 2.5
"""Which no bench draws under."""


def check_algorithm(
    config: AlgorithmConfig, iterations: int = 30, lr: float = 0.02, dynamics: Dynamics | None = None
) -> list[float]:
    """The mean reward of each iteration on a two-parameter flow, after the algorithm has kept its contract.

    Losses are [b], finite and differentiable; they reach every weight; the experience is left as it was; and ``iterations``
    iterations with a reward for bright pictures raise the reward. Where it names its comparisons they are those of its update.
    Where it brings its own times, what it trains there is under the guidance that ``algorithm.guidance`` says.
    """
    try:
        history = _learn(config, iterations, lr, dynamics)
    except (RunError, UserError) as error:
        raise AssertionError(str(error)) from error
    early, late = sum(history[:5]) / 5, sum(history[-5:]) / 5
    assert late > early, f"{iterations} iterations took the mean reward from {early:.4f} to {late:.4f}; it should rise"
    return history


def _learn(config: AlgorithmConfig, iterations: int, lr: float, dynamics: Dynamics | None) -> list[float]:
    others = {"algorithm": build(config, "algorithm")}
    with tempfile.TemporaryDirectory() as name:
        made = bench(TwoParameterConfig(), Path(name), group_size=32, dynamics=dynamics, others=others)
    hooks = made.hooks
    hooks.run_started(RunInfo(Path(), None, iterations), made.policy)
    training = TrainingConfig.model_validate({"optimizer": {"lr": lr}})
    learner = Learner(made.policy, training)
    history = []
    for iteration in range(iterations):
        plan = hooks.plan(iteration, replace(made.plan, iteration=iteration))
        experience, reward = _bright(made, plan)
        history.append(reward)
        if iteration == 0:
            _check_losses(hooks, experience, made.policy)
            _check_guidance(hooks, experience, made.policy)
        if iteration == 1:  # the weights have moved away from those that are kept
            _check_comparisons(hooks, experience, made.policy)
        learner.step(hooks.update(experience, made.policy), UpdateMetrics())
        made.policy.iteration_finished(iteration)
    return history


def _bright(made: Bench, plan: SamplingPlan) -> tuple[Experience, float]:
    drawn = made.sampler.draw(made.conditions, plan, 64)
    rewards = {"bright": to_samples(drawn.media, made.batch).media.flatten(1).mean(1)}
    experience = Experience(
        latents=drawn.latents,
        steps=drawn.steps,
        conditions=made.conditions,
        plan=plan,
        rewards=rewards,
        advantages=normalize(rewards["bright"], made.batch.groups).float(),
        groups=made.batch.groups,
        sigmas=drawn.sigmas,
        batch_size=16,
    )
    return experience, float(rewards["bright"].mean())


def _check_losses(hooks: Hooks, experience: Experience, policy: Policy) -> None:
    before = [
        experience.latents.clone(),
        experience.advantages.clone(),
        *(step.latents.clone() for step in experience.steps),
    ]
    parameters = policy.parameters
    count = 0
    for loss in hooks.update(experience, policy):
        count += 1
        assert bool(loss.values.isfinite().all()), "a loss is not finite"
        assert loss.values.requires_grad, "a loss has no gradient"
        gradients = torch.autograd.grad(loss.values.sum(), list(parameters.values()), retain_graph=True, allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            assert gradient is not None, f"{name} gets no gradient"
        for name, term in loss.terms.items():
            assert term.requires_grad, f"the term {name!r} has no gradient"
    assert count, "update yielded no loss"
    after = [experience.latents, experience.advantages, *(step.latents for step in experience.steps)]
    assert all(map(torch.equal, before, after)), "update changed the experience it was given"


def _check_guidance(hooks: Hooks, experience: Experience, policy: Policy) -> None:
    if hooks.plan(0, replace(experience.plan, recorded=frozenset())).recorded:
        return  # it replays steps, as they were drawn
    seen, evaluate = set[float](), policy.evaluate

    def noted(step: Step) -> Evaluation:
        seen.update([step.guidance] if torch.is_grad_enabled() else [])
        return evaluate(step)

    told = replace(experience, steps=(), plan=replace(experience.plan, training_guidance=GUIDANCE))
    with patch.object(policy, "evaluate", noted):
        for _ in hooks.update(told, policy):
            pass
    assert seen <= {GUIDANCE}, (
        f"update trains under guidance {sorted(seen)} where the plan's training_guidance is {GUIDANCE:g}; make its steps by "
        "flow.noised_batches, or give them that guidance"
    )


def _check_comparisons(hooks: Hooks, experience: Experience, policy: Policy) -> None:
    if not hooks.names_comparisons:
        return
    made, compare = 0, policy.compare

    def counted(step: Step, kept: Mapping[str, At]) -> tuple[Evaluation, dict[str, Evaluation]]:
        nonlocal made
        made += bool(kept)
        return compare(step, kept)

    with patch.object(policy, "compare", counted):
        alone = [loss.values.detach() for loss in hooks.update(experience, policy)]
    named = sum(bool(kept) for _, kept in hooks.comparisons(experience))
    assert named == made, f"comparisons names {named}, and update makes {made}; yield one for each call of policy.compare"
    with policy.comparing(lambda: hooks.comparisons(experience)):
        ahead = [loss.values.detach() for loss in hooks.update(experience, policy)]
    assert len(alone) == len(ahead)
    assert all(map(torch.equal, alone, ahead)), "comparisons names other steps than update compares"
