"""GRPO's loss and gradient against the paper's formulas, worked out by hand in float64. Flow-GRPO, arXiv:2505.05470."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from flowfactory import testing
from flowfactory.testing import ClippedByHand, StepByHand

OLD = (0.3, -0.2)
NEW = (0.36, -0.25)
ADVANTAGES = (1.2, -0.7, 0.4, -1.5, 0.9, -0.3, 2.0, -2.0)
every_dynamics = pytest.mark.parametrize("dynamics", ["flow-sde", "dance-sde", "cps"])


def expect(hand: StepByHand, clip_range: Any, kl: float = 0.0, form: str = "mean") -> ClippedByHand:
    """Eq. 5 for one step at NEW, and the divergence from OLD."""
    ratio = torch.exp(hand.log_density(NEW) - hand.log_density(OLD))
    part = testing.clip_by_hand(ratio, hand.score(NEW), ADVANTAGES, clip_range)
    if form == "velocity":
        divergence, pull = hand.distance(NEW, OLD), hand.distance_gradient(NEW, OLD)
    else:
        divergence, pull = hand.divergence(NEW, OLD), hand.divergence_gradient(NEW, OLD)
    return replace(part, loss=part.loss + kl * divergence, gradient=part.gradient + kl * pull)


@every_dynamics
@pytest.mark.parametrize("clip_range", [1e-3, 0.3, (5e-4, 3e-3)], ids=["narrow", "wide", "pair"])
@pytest.mark.parametrize(("kl", "form"), [(0.0, "mean"), (0.5, "mean"), (0.5, "velocity")])
def test_loss_and_gradient_are_those_of_the_paper(learn: Any, by_hand: Any, clip_range: Any, kl: float, form: str) -> None:
    run = learn(ADVANTAGES, clip_range=clip_range, kl=kl, kl_form=form)
    run.move_to(*NEW)
    assert len(run.experience.steps) == 3
    parts = [expect(by_hand(step), clip_range, kl, form) for step in run.experience.steps]
    losses = [(part.loss, part.gradient) for part in parts]
    testing.check_losses(run, losses, values=(1e-5, 1e-5), gradients=(1e-3, 2e-5))


@every_dynamics
@pytest.mark.parametrize("clip_range", [1e-3, (5e-4, 3e-3)], ids=["one bound", "two bounds"])
def test_the_clip_cuts_on_the_side_that_the_advantage_pushes_to(learn: Any, by_hand: Any, clip_range: Any) -> None:
    run = learn(ADVANTAGES, clip_range=clip_range)
    run.move_to(*NEW)
    parts = [expect(by_hand(step), clip_range) for step in run.experience.steps]
    assert testing.check_clip(run, [part.ratio for part in parts], clip_range) >= testing.BEYOND_THE_CLIP
    for loss, part in zip(run.losses(), parts, strict=True):
        assert torch.equal(loss.cuts["clip_fraction"], part.cut.float())
        torch.testing.assert_close(loss.metrics["ratio/mean"].detach().double(), part.ratio, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_size", [8, 3])
def test_an_update_is_the_mean_over_all_samples_and_steps_whatever_the_batches(
    learn: Any, by_hand: Any, batch_size: int
) -> None:
    run = learn(ADVANTAGES, batch_size, clip_range=1e-3, kl=0.5)
    run.move_to(*NEW)
    parts = [expect(by_hand(step), 1e-3, 0.5) for step in run.experience.steps]
    update = run.update()
    gradient = torch.cat([part.gradient for part in parts]).mean(0)
    torch.testing.assert_close(update.gradient, gradient, rtol=1e-3, atol=1e-6)
    assert update.metrics["loss"] == pytest.approx(float(torch.cat([part.loss for part in parts]).mean()), abs=1e-5)
    deviation = max(float((part.ratio - 1).abs().max()) for part in parts)
    assert update.metrics["ratio/max_deviation"] == pytest.approx(deviation, abs=1e-5)


@pytest.mark.parametrize("dynamics", ["flow-sde", "dance-sde"])
def test_the_recorded_log_density_is_the_mean_of_the_elements_normal_log_density(learn: Any, by_hand: Any) -> None:
    for step in learn(ADVANTAGES).experience.steps:
        hand = by_hand(step)
        normal: Any = torch.distributions.Normal(hand.mean(OLD), hand.std)
        torch.testing.assert_close(step.log_prob.double(), normal.log_prob(hand.y).mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dynamics", ["cps"])
def test_the_recorded_log_density_of_cps_is_minus_the_mean_squared_error(learn: Any, by_hand: Any) -> None:
    for step in learn(ADVANTAGES).experience.steps:
        hand = by_hand(step)
        error = -(hand.y - hand.mean(OLD)).square().mean(1)
        torch.testing.assert_close(step.log_prob.double(), error, rtol=1e-5, atol=1e-6)


@every_dynamics
@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_before_the_first_update_every_ratio_is_exactly_one(learn: Any, kl: float) -> None:
    run = learn(ADVANTAGES, kl=kl)
    for loss in testing.check_ratios_are_one(run):
        assert torch.equal(loss.values, -run.experience.advantages)


@every_dynamics
def test_a_first_gradient_is_the_policy_gradient_unhalved_by_the_tie_at_one(learn: Any, by_hand: Any) -> None:
    run = learn(ADVANTAGES)
    advantages = torch.tensor(ADVANTAGES, dtype=torch.float64)
    losses = [(-advantages, -advantages[:, None] * by_hand(step).score(OLD)) for step in run.experience.steps]
    testing.check_losses(run, losses, values=(0, 1e-6), gradients=(1e-3, 1e-5))


def test_an_update_raises_the_density_of_a_better_sample_and_lowers_that_of_a_worse_one(learn: Any, by_hand: Any) -> None:
    run = learn(ADVANTAGES)
    testing.check_descent_follows_advantages(run, [by_hand(step).log_density for step in run.experience.steps])


def test_a_strong_kl_holds_the_weights_where_they_were(learn: Any) -> None:
    distances = []
    for kl in (0.0, 50.0):
        run = learn(ADVANTAGES, clip_range=1.0, kl=kl)
        run.update(lr=0.01, steps=40, max_grad_norm=1.0)
        distances.append(math.dist(run.weights(), OLD))
    free, held = distances
    assert held < 0.2 * free
