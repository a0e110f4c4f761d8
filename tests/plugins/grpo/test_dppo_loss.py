"""Flow-DPPO's loss and gradient against the paper's formulas, worked out by hand in float64. arXiv:2606.11025."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from flowfactory import AlgorithmConfig, testing
from flowfactory.testing import StepByHand
from flowfactory_grpo.dppo import DPPOConfig

OLD = (0.3, -0.2)
NEW = (0.5, -0.1)
ADVANTAGES = (1.2, -0.7, 0.4, -1.5, 0.9, -0.3, 2.0, -2.0)
BETWEEN = {"flow-sde": 5e-3, "dance-sde": 1.05e-2, "cps": 8.5e-3}  # some steps at NEW are nearer to OLD, others further

every_dynamics = pytest.mark.parametrize("dynamics", list(BETWEEN))


@pytest.fixture
def algorithm() -> type[AlgorithmConfig]:
    return DPPOConfig


@dataclass(frozen=True)
class Expected:
    loss: Tensor
    gradient: Tensor
    ratio: Tensor
    divergence: Tensor
    masked: Tensor


def expect(hand: StepByHand, kl_bound: float, kl: float = 0.0) -> Expected:
    """One step at NEW; the KL to the reference is that of the velocities."""
    advantage = torch.tensor(ADVANTAGES, dtype=torch.float64)
    ratio = torch.exp(hand.log_density(NEW) - hand.log_density(OLD))
    divergence = hand.divergence(NEW, OLD)
    # a good sample's ratio is pushed up and a bad one's down, so that it is further out if it is there already
    masked = (divergence > kl_bound) & (advantage * (ratio - 1) > 0)
    loss = torch.where(masked, 0.0, -ratio * advantage)
    gradient = torch.where(masked[:, None], 0.0, -(ratio * advantage)[:, None] * hand.score(NEW))
    loss, gradient = loss + kl * hand.distance(NEW, OLD), gradient + kl * hand.distance_gradient(NEW, OLD)
    return Expected(loss, gradient, ratio, divergence, masked)


@every_dynamics
@pytest.mark.parametrize("bound", ["all-out", "some-out", "none-out"])
@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_loss_and_gradient_are_those_of_the_paper(learn: Any, by_hand: Any, dynamics: str, bound: str, kl: float) -> None:
    kl_bound = {"all-out": 1e-6, "some-out": BETWEEN[dynamics], "none-out": 1.0}[bound]
    run = learn(ADVANTAGES, kl_bound=kl_bound, kl=kl, kl_form="velocity")
    run.move_to(*NEW)
    assert len(run.experience.steps) == 3
    parts = [expect(by_hand(step), kl_bound, kl) for step in run.experience.steps]
    testing.check_losses(run, [(part.loss, part.gradient) for part in parts], values=(1e-5, 2e-6), gradients=(1e-4, 1e-5))
    share = float(torch.cat([part.divergence > kl_bound for part in parts]).double().mean())
    assert {"all-out": share == 1, "some-out": 0 < share < 1, "none-out": share == 0}[bound]


@every_dynamics
def test_a_step_is_masked_only_where_it_is_out_and_the_advantage_pushes_it_further(
    learn: Any, by_hand: Any, dynamics: str
) -> None:
    kl_bound = BETWEEN[dynamics]
    shown = set()
    for advantages in (ADVANTAGES, tuple(-advantage for advantage in ADVANTAGES)):
        run = learn(advantages, kl_bound=kl_bound)
        run.move_to(*NEW)
        for loss, step in zip(run.losses(), run.experience.steps, strict=True):
            expected = expect(by_hand(step), kl_bound)
            for sample, advantage in enumerate(advantages):
                ratio, divergence = float(expected.ratio[sample]), float(expected.divergence[sample])
                assert abs(ratio - 1) > 5e-6, "too near to one to tell its sides"
                assert abs(divergence / kl_bound - 1) > 1e-3, "too near to the bound to tell its sides"
                out, outwards = divergence > kl_bound, (ratio > 1) == (advantage > 0)
                still = not bool(run.gradient(loss.values[sample]).any())
                assert still == (out and outwards)
                assert float(loss.cuts["masked_fraction"][sample]) == still
                assert (float(loss.values[sample].detach()) == 0) == still
                shown.add((advantage > 0, ratio > 1, out))
    assert len(shown) == 8, "the samples do not show every case"


def normals(hand: StepByHand) -> tuple[Any, Any]:
    """The distributions of the step at NEW and at OLD."""
    return Normal(hand.mean(NEW), hand.std), Normal(hand.mean(OLD), hand.std)


@every_dynamics
def test_the_divergence_is_the_exact_kl_of_the_two_normals_whichever_way_it_is_taken(learn: Any, by_hand: Any) -> None:
    run = learn(ADVANTAGES)
    run.move_to(*NEW)
    for loss, step in zip(run.losses(), run.experience.steps, strict=True):
        now, then = normals(by_hand(step))
        for expected in (kl_divergence(now, then), kl_divergence(then, now)):
            for found in (loss.metrics["kl_old"], loss.extremes["kl_old/max"]):
                torch.testing.assert_close(found.double(), expected.mean(1), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("dynamics", ["flow-sde", "dance-sde"])
def test_the_ratio_is_that_of_the_normals_densities(learn: Any, by_hand: Any) -> None:
    run = learn(ADVANTAGES)
    run.move_to(*NEW)
    hands = [by_hand(step) for step in run.experience.steps]
    for loss, hand, (now, then) in zip(run.losses(), hands, map(normals, hands), strict=True):
        expected = torch.exp((now.log_prob(hand.y) - then.log_prob(hand.y)).mean(1))
        torch.testing.assert_close(loss.metrics["ratio/mean"].detach().double(), expected, rtol=0, atol=2e-6)
        deviation = loss.extremes["ratio/max_deviation"].detach().double()
        torch.testing.assert_close(deviation, (expected - 1).abs(), rtol=0, atol=2e-6)


@every_dynamics
@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_at_the_weights_that_drew_every_ratio_is_exactly_one_and_nothing_is_masked(learn: Any, kl: float) -> None:
    run = learn(ADVANTAGES, kl=kl)
    for loss in testing.check_ratios_are_one(run):
        assert torch.equal(loss.metrics["kl_old"], torch.zeros(8))
        assert torch.equal(loss.cuts["masked_fraction"], torch.zeros(8))
        assert torch.equal(loss.values, -run.experience.advantages)


@every_dynamics
def test_a_first_gradient_is_the_policy_gradient(learn: Any, by_hand: Any) -> None:
    run = learn(ADVANTAGES)
    for loss, step in zip(run.losses(), run.experience.steps, strict=True):
        expected = -torch.tensor(ADVANTAGES, dtype=torch.float64)[:, None] * by_hand(step).score(OLD)
        torch.testing.assert_close(run.gradients(loss.values), expected, rtol=1e-4, atol=2e-6)


@every_dynamics
def test_a_descent_raises_the_density_of_a_better_sample_and_lowers_that_of_a_worse_one(learn: Any, by_hand: Any) -> None:
    run = learn(ADVANTAGES)
    testing.check_descent_follows_advantages(run, [by_hand(step).log_density for step in run.experience.steps])


def test_a_step_out_of_the_region_is_still_led_back(learn: Any, by_hand: Any) -> None:
    run = learn(ADVANTAGES, kl_bound=1e-6)
    run.move_to(*NEW)
    led = 0
    for loss, step in zip(run.losses(), run.experience.steps, strict=True):
        hand = by_hand(step)
        ratio = torch.exp(hand.log_density(NEW) - hand.log_density(OLD))
        for sample, advantage in enumerate(ADVANTAGES):
            if (ratio[sample] > 1) == (advantage < 0):
                p, q = (torch.tensor(NEW, dtype=torch.float64) - 1e-4 * run.gradient(loss.values[sample])).tolist()
                back = (hand.log_density((p, q)) - hand.log_density(NEW))[sample]
                assert float(back) * advantage > 0
                led += 1
    assert led >= 6


def test_a_tight_bound_holds_the_weights_near_those_that_drew(learn: Any) -> None:
    distances = []
    for kl_bound in (1.0, 1e-6):
        run = learn(ADVANTAGES, kl_bound=kl_bound)
        run.update(lr=0.01, steps=30, max_grad_norm=1.0)
        distances.append(math.dist(run.weights(), OLD))
    free, held = distances
    assert held < 0.5 * free
