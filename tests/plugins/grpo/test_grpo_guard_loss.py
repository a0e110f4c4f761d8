"""GRPO-Guard's loss and gradient against the paper's formulas, worked out by hand in float64. arXiv:2510.22319."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from flowfactory import AlgorithmConfig, Conditions, Loss, Step, flow, testing
from flowfactory.flow.dynamics import CPSConfig, DanceSDEConfig, FlowSDEConfig
from flowfactory.testing import ClippedByHand, StepByHand, Weights
from flowfactory_grpo import grpo
from flowfactory_grpo import grpo_guard as guard
from flowfactory_grpo.grpo_guard import GRPOGuardConfig, normalized_log_ratio

OLD = (0.3, -0.2)
NEW = (0.5, -0.1)
ADVANTAGES = (1.2, -0.7, 0.4, -1.5, 0.9, -0.3, 2.0, -2.0)
CONFIGS: dict[str, Any] = {"flow-sde": FlowSDEConfig, "dance-sde": DanceSDEConfig, "cps": CPSConfig}
NARROW, PAIR = 2e-3, (1e-3, 4e-3)

every_dynamics = pytest.mark.parametrize("dynamics", list(CONFIGS))


@pytest.fixture
def algorithm() -> type[AlgorithmConfig]:
    return GRPOGuardConfig


def log_ratio(hand: StepByHand, weights: Weights) -> Tensor:
    """[B]: the mean over elements of (mean now - mean then)(drawn - mean then) / std."""
    return ((hand.mean(weights) - hand.mean(OLD)) * (hand.y - hand.mean(OLD)) / hand.std).mean(1)


def expect(hand: StepByHand, clip_range: Any, kl: float = 0.0) -> ClippedByHand:
    """One step at NEW; the KL is that of the velocities, which nothing weighs."""
    # of the log-ratio: the mean is the only thing that moves
    score = hand.by_weights(hand.slope * (hand.y - hand.mean(OLD)) / hand.std)
    part = testing.clip_by_hand(torch.exp(log_ratio(hand, NEW)), score, ADVANTAGES, clip_range)
    loss, gradient = part.loss / abs(hand.slope), part.gradient / abs(hand.slope)
    pull = hand.distance_gradient(NEW, OLD)
    return replace(part, loss=loss + kl * hand.distance(NEW, OLD), gradient=gradient + kl * pull)


@every_dynamics
@pytest.mark.parametrize("clip_range", [NARROW, 0.5, PAIR], ids=["narrow", "wide", "pair"])
@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_loss_and_gradient_are_those_of_the_paper(learn: Any, by_hand: Any, clip_range: Any, kl: float) -> None:
    run = learn(ADVANTAGES, clip_range=clip_range, kl=kl, kl_form="velocity")
    run.move_to(*NEW)
    assert len(run.experience.steps) == 3
    parts = [expect(by_hand(step), clip_range, kl) for step in run.experience.steps]
    testing.check_losses(run, [(p.loss, p.gradient) for p in parts], values=(1e-6, 2e-6), gradients=(1e-4, 5e-6))


@every_dynamics
@pytest.mark.parametrize("clip_range", [NARROW, PAIR], ids=["one bound", "two bounds"])
def test_the_clip_cuts_on_the_side_that_the_advantage_pushes_to(learn: Any, by_hand: Any, clip_range: Any) -> None:
    run = learn(ADVANTAGES, clip_range=clip_range)
    run.move_to(*NEW)
    parts = [expect(by_hand(step), clip_range) for step in run.experience.steps]
    assert testing.check_clip(run, [part.ratio for part in parts], clip_range) >= testing.BEYOND_THE_CLIP
    for loss, part in zip(run.losses(), parts, strict=True):
        assert torch.equal(loss.cuts["clip_fraction"], part.cut.float())
        torch.testing.assert_close(loss.metrics["ratio/mean"].detach().double(), part.ratio, rtol=0, atol=1e-6)
        deviation = loss.extremes["ratio/max_deviation"].detach().double()
        torch.testing.assert_close(deviation, (part.ratio - 1).abs(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dynamics", ["flow-sde", "dance-sde"])
def test_the_normalised_ratio_is_that_of_the_densities_less_its_bias_in_units_of_its_spread(learn: Any, by_hand: Any) -> None:
    run = learn(ADVANTAGES)
    run.move_to(*NEW)
    for loss, step in zip(run.losses(), run.experience.steps, strict=True):
        hand = by_hand(step)
        now: Any = torch.distributions.Normal(hand.mean(NEW), hand.std)
        then: Any = torch.distributions.Normal(hand.mean(OLD), hand.std)
        bias = (now.mean - then.mean).square().mean(1) / (2 * hand.std**2)
        expected = (now.log_prob(hand.y).mean(1) - then.log_prob(hand.y).mean(1) + bias) * hand.std
        found = loss.metrics["ratio/mean"].detach().double().log()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@every_dynamics
@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_at_the_weights_that_drew_every_ratio_is_exactly_one(learn: Any, by_hand: Any, kl: float) -> None:
    run = learn(ADVANTAGES, kl=kl)
    for loss, step in zip(testing.check_ratios_are_one(run), run.experience.steps, strict=True):
        weight = 1 / abs(by_hand(step).slope)
        torch.testing.assert_close(loss.values, -weight * run.experience.advantages, rtol=1e-6, atol=0)


@every_dynamics
def test_a_first_gradient_is_not_halved_by_the_tie_at_one(learn: Any, by_hand: Any) -> None:
    run = learn(ADVANTAGES)
    for loss, step in zip(run.losses(), run.experience.steps, strict=True):
        hand = by_hand(step)
        for sample, advantage in enumerate(ADVANTAGES):
            # the slope is negative and its size is divided away: more velocity is less of the next latents
            expected = advantage * hand.by_weights((hand.y - hand.mean(OLD)) / hand.std)[sample]
            torch.testing.assert_close(run.gradient(loss.values[sample]), expected, rtol=1e-4, atol=1e-6)


@every_dynamics
def test_a_descent_raises_the_normalised_ratio_of_a_better_sample_and_lowers_that_of_a_worse_one(
    learn: Any, by_hand: Any
) -> None:
    run = learn(ADVANTAGES)
    ratios = [partial(log_ratio, by_hand(step)) for step in run.experience.steps]
    testing.check_descent_follows_advantages(run, ratios)


def rows(dynamics: str, noise: Tensor) -> tuple[Step, Tensor]:
    """One joined step, each of whose rows has sigmas and latents of its own, and the same ``noise``; its velocity."""
    sigma = torch.tensor([1.0, 0.95, 0.8, 0.8, 0.5, 0.3, 0.1])
    then = torch.tensor([0.9, 0.8, 0.75, 0.3, 0.45, 0.05, 0.02])
    chosen = CONFIGS[dynamics](noise_level=0.6).build("dynamics")
    latents = torch.randn(7, 1, 4, 4, generator=flow.generator("latents"))
    velocity = torch.randn(7, 1, 4, 4, generator=flow.generator("velocity"))
    mean, std = chosen.transition(velocity, latents, flow.expand_sigma(sigma, latents), flow.expand_sigma(then, latents))
    step = Step(latents, sigma, Conditions(()), 1.0, chosen, then, mean + std * noise)
    log_prob = flow.evaluate(velocity, step).log_prob
    return replace(step, log_prob=log_prob, mean=mean), velocity


def by_velocity(step: Step, velocity: Tensor, surrogate: Any) -> Tensor:
    """[B, elements]: gradient of the loss with respect to the velocity, at an advantage of one."""
    asked = velocity.clone().requires_grad_()
    loss: Loss = surrogate(step, flow.evaluate(asked, step), torch.ones(len(velocity)), clip_range=1e-5)
    return torch.autograd.grad(loss.values.sum(), asked)[0].flatten(1)


@every_dynamics
def test_equal_noise_pulls_at_the_velocity_equally_at_every_step(dynamics: str) -> None:
    noise = torch.randn(1, 4, 4, generator=flow.generator("noise"))
    step, velocity = rows(dynamics, noise)
    found = by_velocity(step, velocity, guard.surrogate)
    # an element's own noise over their number, whatever the step: the std and the slope are gone
    expected = (noise.flatten() / 16).expand(7, 16)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-6)
    plain = by_velocity(step, velocity, grpo.surrogate).norm(dim=1)
    assert float(plain.max() / plain.min()) > 2, "these steps would not show it"


@every_dynamics
def test_a_ratio_is_as_far_from_one_for_equal_noise_and_an_equal_move_of_the_mean(dynamics: str) -> None:
    noise = torch.randn(1, 4, 4, generator=flow.generator("noise"))
    step, velocity = rows(dynamics, noise)
    now = flow.evaluate(velocity, step)
    assert now.mean is not None
    moved = replace(now, mean=now.mean + 0.02 * noise)
    loss = guard.surrogate(step, moved, torch.ones(7), clip_range=1e-5)
    expected = torch.exp(0.02 * noise.square().mean()).expand(7)
    torch.testing.assert_close(loss.metrics["ratio/mean"], expected, rtol=0, atol=2e-6)


@given(st.lists(st.floats(-3, 3), min_size=18, max_size=18), st.floats(0.05, 3), st.floats(0.05, 3))
def test_the_normalised_log_ratio_is_the_log_ratio_less_its_bias_in_units_of_the_step(
    values: list[float], one: float, two: float
) -> None:
    mean, old, x = torch.tensor(values, dtype=torch.float32).double().reshape(3, 2, 3)
    std = torch.tensor([[one], [two]], dtype=torch.float64)
    log_ratio = Normal(mean, std).log_prob(x) - Normal(old, std).log_prob(x)
    bias = -kl_divergence(Normal(old, std), Normal(mean, std))  # what the log-ratio is on average where old drew
    expected = (std * (log_ratio - bias)).mean(1)
    torch.testing.assert_close(normalized_log_ratio(mean, old, x, std), expected, rtol=1e-6, atol=1e-6)


def test_the_normalised_log_ratio_does_not_care_how_noisy_the_step_is() -> None:
    mean, old, noise = torch.tensor([[[1.0, 2.0]], [[0.5, -1.0]]]), torch.zeros(2, 1, 2), torch.tensor([[[0.5, -2.0]]])
    for std in (0.01, 1.0, 30.0):
        found = normalized_log_ratio(mean, old, old + std * noise, torch.full((2, 1, 1), std))
        assert found.tolist() == pytest.approx([(0.5 - 4) / 2, (0.25 + 2) / 2], rel=1e-5)
    assert normalized_log_ratio(old, old, old + noise, torch.ones(2, 1, 1)).tolist() == [0.0, 0.0]
