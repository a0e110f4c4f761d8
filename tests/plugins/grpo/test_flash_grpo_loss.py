"""Flash-GRPO's loss and gradient against the paper's formulas, worked out by hand in float64. arXiv:2605.15980."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory import testing
from flowfactory.flow.dynamics import SDE, CPSConfig, DanceSDEConfig, FlowSDEConfig
from flowfactory.testing import Learning, StepByHand
from flowfactory.types import Transition
from flowfactory_grpo.flash_grpo import FlashGRPOConfig, rectification

OLD = (0.3, -0.2)
NEW = (0.5, -0.1)
ADVANTAGES = (1.2, -0.7, 0.4, -1.5, 0.9, -0.3, 2.0, -2.0, 0.5, 1.1, -0.2, -1.4)
GROUPS = tuple(range(first, first + 3) for first in range(0, 12, 3))
CONFIGS: dict[str, Any] = {"flow-sde": FlowSDEConfig, "dance-sde": DanceSDEConfig, "cps": CPSConfig}
LEVEL = 0.8

every_dynamics = pytest.mark.parametrize("dynamics", list(CONFIGS))


def learn(dynamics: str = "flow-sde", size: int = 1, shape: tuple[int, int] = (12, 1), **options: Any) -> Learning:
    """Four groups of three samples of 4 steps, ``size`` of the first three of which each group draws for itself."""
    chosen = CONFIGS[dynamics](noise_level=LEVEL, num_sde_steps=size).build("dynamics")
    return testing.learning(FlashGRPOConfig.model_validate(options), ADVANTAGES, OLD, 3, chosen, *shape)


def by_group(run: Learning, dynamics: str) -> list[list[StepByHand]]:
    """The recorded steps of each group, each of which is at one sigma for all of the group."""
    return [[testing.step_by_hand(step.rows(rows), dynamics, LEVEL) for step in run.experience.steps] for rows in GROUPS]


def size_of_gradient(hand: StepByHand) -> float:
    """|d log-density / d velocity| where the noise is one standard deviation."""
    return 2 * hand.steepness * hand.std * abs(hand.slope)


def expect(run: Learning, dynamics: str, clip_range: Any, rectify: bool = True, kl: float = 0.0) -> list[tuple[Tensor, Tensor]]:
    """Losses [12] and gradients [12, 2] of each recorded step at NEW."""
    hands = by_group(run, dynamics)
    sizes = [1 / size_of_gradient(hand) for steps in hands for hand in steps]
    mean = sum(sizes) / len(sizes)
    found = []
    for place in range(len(run.experience.steps)):
        values, gradients = [], []
        for rows, steps in zip(GROUPS, hands, strict=True):
            hand = steps[place]
            ratio = torch.exp(hand.log_density(NEW) - hand.log_density(OLD))
            part = testing.clip_by_hand(ratio, hand.score(NEW), ADVANTAGES[rows.start : rows.stop], clip_range)
            weight = 1 / size_of_gradient(hand) / mean if rectify else 1.0
            values.append(weight * part.loss + kl * hand.divergence(NEW, OLD))
            gradients.append(weight * part.gradient + kl * hand.divergence_gradient(NEW, OLD))
        found.append((torch.cat(values), torch.cat(gradients)))
    return found


@every_dynamics
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(("rectify", "kl"), [(True, 0.0), (True, 0.5), (False, 0.0)])
def test_loss_and_gradient_are_those_of_the_paper(dynamics: str, size: int, rectify: bool, kl: float) -> None:
    run = learn(dynamics, size, clip_range=0.5, rectify=rectify, kl=kl)
    assert len(run.experience.steps) == size
    run.move_to(*NEW)
    losses = testing.check_losses(run, expect(run, dynamics, 0.5, rectify, kl), (1e-5, 1e-5), (1e-4, 2e-5))
    if rectify:
        mean = torch.cat([loss.metrics["step_weight"] for loss in losses]).mean()
        torch.testing.assert_close(mean, torch.tensor(1.0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("clip_range", [2e-3, (1e-3, 5e-3)], ids=["one bound", "two bounds"])
def test_the_clip_cuts_gradients(clip_range: Any) -> None:
    run = learn(clip_range=clip_range)
    run.move_to(*NEW)
    losses = testing.check_losses(run, expect(run, "flow-sde", clip_range))
    assert 0 < torch.cat([loss.cuts["clip_fraction"] for loss in losses]).mean() < 1


@every_dynamics
@pytest.mark.parametrize("size", [1, 2])
def test_a_group_is_trained_at_the_steps_of_its_own_window_and_groups_at_others(dynamics: str, size: int) -> None:
    run = learn(dynamics, size)
    plan, sigmas = run.experience.plan, run.experience.sigmas
    windows = [plan.windows[prompt] for prompt in range(4)]
    assert all(len(window) == size and window <= {0, 1, 2} for window in windows)
    assert len(set(windows)) > 1
    assert plan.recorded == plan.stochastic == frozenset().union(*windows)
    for rows, window in zip(GROUPS, windows, strict=True):
        for place, number in enumerate(sorted(window)):
            step = run.experience.steps[place].rows(rows)
            assert torch.equal(step.sigma, sigmas[number].expand(3))
            assert step.next_sigma is not None
            assert torch.equal(step.next_sigma, sigmas[number + 1].expand(3))


@pytest.mark.parametrize("size", [1, 2])
def test_every_ratio_is_one_at_the_weights_that_drew(size: int) -> None:
    testing.check_ratios_are_one(learn(size=size))


def test_the_same_is_learned_whatever_fits_a_forward() -> None:
    def make(batch_size: int, together: int) -> Learning:
        run = learn(size=2, shape=(batch_size, together), clip_range=0.5)
        run.move_to(*NEW)
        return run

    assert testing.check_same_updates_whatever_fits_a_forward(make, [(12, 1), (5, 1), (5, 2)]) == [2, 6, 3]


def test_a_part_of_the_samples_has_the_weights_that_it_has_among_all() -> None:
    run = learn()
    weights = torch.cat([loss.metrics["step_weight"] for loss in run.losses()])
    for rows in GROUPS:
        alone = torch.cat([loss.metrics["step_weight"] for loss in run.rows(rows).losses()])
        torch.testing.assert_close(alone, weights[rows.start : rows.stop], rtol=0, atol=0)


class Published(SDE):
    """The noise of the authors' Wan pipeline: its spread runs with sigma from that of the last sigma to the second's."""

    def __init__(self, sigmas: Tensor) -> None:
        super().__init__(1.0, lambda *_: frozenset())
        self._most, self._least = sigmas[1], sigmas[-1]

    def transition(self, velocity: Tensor, latents: Tensor, sigma: Tensor, next_sigma: Tensor) -> Transition:
        spread, dt = self._least + (self._most - self._least) * sigma, next_sigma - sigma
        drift = spread.square() / (2 * sigma)
        mean = latents * (1 + drift * dt) + velocity * (1 + drift * (1 - sigma)) * dt
        return Transition(mean, spread * torch.sqrt(-dt))


def test_the_weights_are_those_that_the_authors_tell_for_wan() -> None:
    """Their table is for the first ten of 20 steps shifted by 3, of which the weights are relative to their mean."""
    u = 1 - torch.arange(21, dtype=torch.float64) / 20
    sigmas = 3 * u / (1 + 2 * u)
    table = torch.tensor([7.4770, 7.0414, 6.6112, 6.1867, 5.7682, 5.3559, 4.9502, 4.5513, 4.1596, 3.7754])
    found = rectification(Published(sigmas.float()), sigmas[:10], sigmas[1:11])
    torch.testing.assert_close(found / found.mean(), table / table.mean(), rtol=2e-3, atol=0)


def test_gradients_by_the_velocity_are_of_one_size_at_all_steps() -> None:
    """Of samples whose noise and advantage are one: the weight times the gradient is the same in all groups."""
    run = learn(clip_range=0.5)
    (step,) = run.experience.steps
    assert step.next_sigma is not None
    v = torch.zeros_like(step.latents, requires_grad=True)
    shape = (-1, 1, 1, 1)
    found = step.dynamics.transition(v, step.latents, step.sigma.reshape(shape), step.next_sigma.reshape(shape))
    density = step.dynamics.log_density((found.mean + found.std).detach(), found)
    (gradient,) = torch.autograd.grad(density.sum(), v)
    weighed = gradient.abs().flatten(1).sum(1) * rectification(step.dynamics, step.sigma, step.next_sigma)
    torch.testing.assert_close(weighed, torch.ones(12), rtol=1e-5, atol=0)
    assert len({round(float(size), 4) for size in gradient.abs().flatten(1).sum(1)}) > 1


def test_a_plan_of_more_prompts_leaves_the_windows_of_others_as_they_are() -> None:
    plan = learn().experience.plan
    again = FlashGRPOConfig().build("algorithm").plan(replace(plan.rows(range(3, 6)), windows={}))
    assert again.windows == {1: plan.windows[1]}
    other = FlashGRPOConfig().build("algorithm").plan(replace(plan, iteration=1, windows={}))
    seen = [FlashGRPOConfig().build("algorithm").plan(replace(plan, iteration=i)).windows[0] for i in range(12)]
    assert other.windows.keys() == plan.windows.keys()
    assert len(set(seen)) == 3, "each candidate comes up"


def test_advantages_of_zero_move_nothing() -> None:
    run = learn()
    run.move_to(*NEW)
    testing.check_no_advantage_no_gradient(run)
