"""GRPO-Guard's loss and gradient against the paper's formulas, worked out by hand in float64. arXiv:2510.22319."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory import AlgorithmConfig, Conditions, Loss, Step, UserError, flow
from flowfactory.config.loading import validate
from flowfactory.config.schema import TrainingConfig
from flowfactory.flow.dynamics import CPSConfig, DanceSDEConfig, FlowSDEConfig
from flowfactory.runs.train import train
from flowfactory.testing import check_algorithm
from flowfactory.training.learner import Learner
from flowfactory.training.metrics import UpdateMetrics
from flowfactory_grpo import grpo
from flowfactory_grpo import grpo_guard as guard
from flowfactory_grpo.grpo_guard import GRPOGuardConfig

OLD = (0.3, -0.2)  # START of conftest.py
NEW = (0.5, -0.1)
ADVANTAGES = (1.2, -0.7, 0.4, -1.5, 0.9, -0.3, 2.0, -2.0)
CONFIGS: dict[str, Any] = {"flow-sde": FlowSDEConfig, "dance-sde": DanceSDEConfig, "cps": CPSConfig}
NARROW = 2e-3

Weights = tuple[float, float]
every_dynamics = pytest.mark.parametrize("dynamics", list(CONFIGS))


@pytest.fixture
def algorithm() -> type[AlgorithmConfig]:
    return GRPOGuardConfig


def log_ratio(hand: Any, weights: Weights) -> Any:
    """[B]: the mean over elements of (mean now - mean then)(drawn - mean then) / std."""
    return ((hand.mean(weights) - hand.mean(OLD)) * (hand.y - hand.mean(OLD)) / hand.std).mean(1)


@dataclass(frozen=True)
class Worked:
    loss: Tensor
    gradient: Tensor
    ratio: Tensor
    cut: Tensor


def worked(hand: Any, clip_range: float, kl: float = 0.0) -> Worked:
    """One step at NEW; the KL is that of the velocities, which nothing weighs."""
    advantage = torch.tensor(ADVANTAGES, dtype=torch.float64)
    ratio = torch.exp(log_ratio(hand, NEW))
    good = advantage > 0
    cut = torch.where(good, ratio > 1 + clip_range, ratio < 1 - clip_range)
    bound = torch.where(good, 1 + clip_range, 1 - clip_range)
    loss = -advantage * torch.where(cut, bound, ratio) / abs(hand.slope)
    # of the log-ratio: the mean is the only thing that moves
    gradient = hand.by_weight(hand.slope * (hand.y - hand.mean(OLD)) / hand.std)
    gradient = torch.where(cut[:, None], 0.0, -(advantage * ratio)[:, None] * gradient / abs(hand.slope))
    divergence, slope = hand.divergence("velocity", NEW, OLD)
    return Worked(loss + kl * divergence, gradient + kl * slope, ratio, cut)


@every_dynamics
@pytest.mark.parametrize("clip_range", [NARROW, 0.5], ids=["narrow", "wide"])
@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_loss_and_gradient_are_those_of_the_paper(learning: Any, by_hand: Any, clip_range: float, kl: float) -> None:
    run = learning(ADVANTAGES, clip_range=clip_range, kl=kl, kl_form="velocity")
    run.move_to(*NEW)
    losses = run.losses()
    assert len(losses) == len(run.experience.steps) == 3
    for loss, step in zip(losses, run.experience.steps, strict=True):
        expected = worked(by_hand(step), clip_range, kl)
        torch.testing.assert_close(loss.values.double(), expected.loss, rtol=1e-6, atol=2e-6)
        for sample in range(8):
            gradient = run.gradient(loss.values[sample])
            torch.testing.assert_close(gradient, expected.gradient[sample], rtol=1e-4, atol=5e-6)


@every_dynamics
def test_the_clip_cuts_on_the_side_that_the_advantage_pushes_to(learning: Any, by_hand: Any) -> None:
    run = learning(ADVANTAGES, clip_range=NARROW)
    run.move_to(*NEW)
    sides = set()
    for loss, step in zip(run.losses(), run.experience.steps, strict=True):
        expected = worked(by_hand(step), NARROW)
        for sample, advantage in enumerate(ADVANTAGES):
            ratio = float(expected.ratio[sample])
            assert abs(abs(ratio - 1) - NARROW) > 1e-5, "too near to the bound to tell its sides"
            side = "above" if ratio > 1 + NARROW else "below" if ratio < 1 - NARROW else "within"
            still = not bool(run.gradient(loss.values[sample]).any())
            assert still == ((advantage > 0 and side == "above") or (advantage < 0 and side == "below"))
            sides.add((advantage > 0, side))
        assert torch.equal(loss.metrics["clip_fraction"], expected.cut.float())
        torch.testing.assert_close(loss.metrics["ratio/mean"].detach().double(), expected.ratio, rtol=0, atol=1e-6)
        deviation = (expected.ratio - 1).abs()
        torch.testing.assert_close(loss.extremes["ratio/max_deviation"].detach().double(), deviation, rtol=0, atol=1e-6)
    outside = {(good, side) for good in (True, False) for side in ("above", "below")}
    assert outside <= sides, "the samples do not show every side"


@pytest.mark.parametrize("dynamics", ["flow-sde", "dance-sde"])
def test_the_normalised_ratio_is_that_of_the_densities_less_its_bias_in_units_of_its_spread(
    learning: Any, by_hand: Any
) -> None:
    run = learning(ADVANTAGES)
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
def test_at_the_weights_that_drew_every_ratio_is_exactly_one(learning: Any, by_hand: Any, kl: float) -> None:
    run = learning(ADVANTAGES, kl=kl)
    for loss, step in zip(run.losses(), run.experience.steps, strict=True):
        assert torch.equal(loss.metrics["ratio/mean"], torch.ones(8))
        assert torch.equal(loss.extremes["ratio/max_deviation"], torch.zeros(8))
        weight = 1 / abs(by_hand(step).slope)
        torch.testing.assert_close(loss.values, -weight * run.experience.advantages, rtol=1e-6, atol=0)


@every_dynamics
def test_a_first_gradient_is_not_halved_by_the_tie_at_one(learning: Any, by_hand: Any) -> None:
    run = learning(ADVANTAGES)
    for loss, step in zip(run.losses(), run.experience.steps, strict=True):
        hand = by_hand(step)
        for sample, advantage in enumerate(ADVANTAGES):
            # the slope is negative and its size is divided away: more velocity is less of the next latents
            expected = advantage * hand.by_weight((hand.y - hand.mean(OLD)) / hand.std)[sample]
            torch.testing.assert_close(run.gradient(loss.values[sample]), expected, rtol=1e-4, atol=1e-6)


@every_dynamics
@pytest.mark.parametrize("weights", [OLD, NEW], ids=["at-the-start", "after-updates"])
def test_an_advantage_of_zero_moves_nothing(learning: Any, weights: Weights) -> None:
    run = learning((0.0,) * 8)
    run.move_to(*weights)
    before = {name: weight.detach().clone() for name, weight in run.policy.parameters.items()}
    learner = Learner(run.policy, TrainingConfig.model_validate({"optimizer": {"lr": 1.0}}))
    assert learner.step(run.hooks.update(run.experience, run.policy), UpdateMetrics()) == 0
    assert all(torch.equal(weight, before[name]) for name, weight in run.policy.parameters.items())


@every_dynamics
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["better", "worse"])
def test_a_descent_raises_the_normalised_ratio_of_a_better_sample_and_lowers_that_of_a_worse_one(
    learning: Any, by_hand: Any, sign: float
) -> None:
    run = learning((sign,) * 8)
    for loss, step in zip(run.losses(), run.experience.steps, strict=True):
        for sample in range(8):
            p, q = (torch.tensor(OLD, dtype=torch.float64) - 1e-4 * run.gradient(loss.values[sample])).tolist()
            assert float(log_ratio(by_hand(step), (p, q))[sample]) * sign > 0


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


@pytest.mark.parametrize("dynamics", ["ode", {"name": "ode"}, None], ids=["name", "mapping", "left-out"])
def test_deterministic_dynamics_are_refused_with_the_reason(settings: dict[str, Any], dynamics: Any) -> None:
    settings["algorithm"] = "grpo-guard"
    settings["sampling"].pop("dynamics")
    if dynamics is not None:
        settings["sampling"]["dynamics"] = dynamics
    with pytest.raises(UserError, match=r"grpo-guard .*log-density.*'ode'.*deterministic.*choose .*flow-sde"):
        validate(settings)


def test_dynamics_whose_mean_may_bend_are_refused_with_the_reason(settings: dict[str, Any]) -> None:
    settings["sampling"]["dynamics"] = "unstated"  # of unstated.py
    validate(settings | {"algorithm": "grpo"})
    with pytest.raises(UserError, match=r"grpo-guard .*linear.*does not say so: choose flow-sde, dance-sde or cps"):
        validate(settings | {"algorithm": "grpo-guard"})


@every_dynamics
def test_every_dynamics_of_core_is_accepted(settings: dict[str, Any], dynamics: str) -> None:
    made = validate(settings | {"algorithm": "grpo-guard", "sampling": settings["sampling"] | {"dynamics": dynamics}})
    assert isinstance(made.algorithm, GRPOGuardConfig)


@pytest.mark.parametrize(("key", "value"), [("clip_range", 0), ("kl", -1), ("kl_bound", 1e-6)])
def test_an_option_that_makes_no_sense_is_refused(settings: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"algorithm.{key}"):
        validate(settings | {"algorithm": {"name": "grpo-guard", key: value}})


@every_dynamics
def test_it_learns_what_the_reward_asks_for(dynamics: str) -> None:
    check_algorithm(GRPOGuardConfig(kl=0.01), iterations=12, dynamics=CONFIGS[dynamics]().build("dynamics"))


def test_a_run_passes_preflight_and_is_clipped_once_off_policy(settings: dict[str, Any]) -> None:
    settings["algorithm"] = {"name": "grpo-guard", "kl": 0.1, "clip_range": 1e-4}
    settings["training"] |= {"epochs": 3}
    said: list[str] = []
    records = train(validate(settings), say=said.append).records()[1:]
    assert any("a finite gradient reaches all 2 trainable tensors, kl too" in line for line in said)
    assert all(record["ratio/max_deviation"] > 1e-4 for record in records)
    assert all(0 < record["clip_fraction"] < 1 for record in records)
