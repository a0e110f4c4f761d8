"""Flow-DPPO's loss and gradient against the paper's formulas, worked out by hand in float64. arXiv:2606.11025."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from flowfactory import AlgorithmConfig, UserError
from flowfactory.config.loading import validate
from flowfactory.config.schema import TrainingConfig
from flowfactory.flow.dynamics import CPSConfig, DanceSDEConfig, FlowSDEConfig
from flowfactory.runs.train import train
from flowfactory.testing import check_algorithm
from flowfactory.training.learner import Learner
from flowfactory.training.metrics import UpdateMetrics
from flowfactory_grpo.dppo import DPPOConfig

OLD = (0.3, -0.2)  # START of conftest.py
NEW = (0.5, -0.1)
ADVANTAGES = (1.2, -0.7, 0.4, -1.5, 0.9, -0.3, 2.0, -2.0)
CONFIGS: dict[str, Any] = {"flow-sde": FlowSDEConfig, "dance-sde": DanceSDEConfig, "cps": CPSConfig}
BETWEEN = {"flow-sde": 5e-3, "dance-sde": 1.05e-2, "cps": 8.5e-3}  # some steps at NEW are nearer to OLD, others further

Weights = tuple[float, float]
every_dynamics = pytest.mark.parametrize("dynamics", list(CONFIGS))


@pytest.fixture
def algorithm() -> type[AlgorithmConfig]:
    return DPPOConfig


@dataclass(frozen=True)
class Worked:
    loss: Tensor
    gradient: Tensor
    ratio: Tensor
    divergence: Tensor
    masked: Tensor


def worked(hand: Any, kl_bound: float, kl: float = 0.0) -> Worked:
    """One step at NEW; the KL to the reference is that of the velocities."""
    advantage = torch.tensor(ADVANTAGES, dtype=torch.float64)
    ratio = torch.exp(hand.log_density(NEW) - hand.log_density(OLD))
    divergence, _ = hand.divergence("mean", NEW, OLD)
    # a good sample's ratio is pushed up and a bad one's down, so that it is further out if it is there already
    masked = (divergence > kl_bound) & (advantage * (ratio - 1) > 0)
    loss = torch.where(masked, 0.0, -ratio * advantage)
    gradient = torch.where(masked[:, None], 0.0, -(ratio * advantage)[:, None] * hand.score(NEW))
    pull, slope = hand.divergence("velocity", NEW, OLD)
    return Worked(loss + kl * pull, gradient + kl * slope, ratio, divergence, masked)


@every_dynamics
@pytest.mark.parametrize("bound", ["all-out", "some-out", "none-out"])
@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_loss_and_gradient_are_those_of_the_paper(learning: Any, by_hand: Any, dynamics: str, bound: str, kl: float) -> None:
    kl_bound = {"all-out": 1e-6, "some-out": BETWEEN[dynamics], "none-out": 1.0}[bound]
    run = learning(ADVANTAGES, kl_bound=kl_bound, kl=kl, kl_form="velocity")
    run.move_to(*NEW)
    losses = run.losses()
    assert len(losses) == len(run.experience.steps) == 3
    out = []
    for loss, step in zip(losses, run.experience.steps, strict=True):
        expected = worked(by_hand(step), kl_bound, kl)
        out.append(expected.divergence > kl_bound)
        torch.testing.assert_close(loss.values.double(), expected.loss, rtol=1e-5, atol=2e-6)
        for sample in range(8):
            gradient = run.gradient(loss.values[sample])
            torch.testing.assert_close(gradient, expected.gradient[sample], rtol=1e-4, atol=1e-5)
    share = float(torch.cat(out).double().mean())
    assert {"all-out": share == 1, "some-out": 0 < share < 1, "none-out": share == 0}[bound]


@every_dynamics
def test_a_step_is_masked_only_where_it_is_out_and_the_advantage_pushes_it_further(
    learning: Any, by_hand: Any, dynamics: str
) -> None:
    kl_bound = BETWEEN[dynamics]
    shown = set()
    for advantages in (ADVANTAGES, tuple(-advantage for advantage in ADVANTAGES)):
        run = learning(advantages, kl_bound=kl_bound)
        run.move_to(*NEW)
        for loss, step in zip(run.losses(), run.experience.steps, strict=True):
            expected = worked(by_hand(step), kl_bound)
            for sample, advantage in enumerate(advantages):
                ratio, divergence = float(expected.ratio[sample]), float(expected.divergence[sample])
                assert abs(ratio - 1) > 5e-6, "too near to one to tell its sides"
                assert abs(divergence / kl_bound - 1) > 1e-3, "too near to the bound to tell its sides"
                out, outwards = divergence > kl_bound, (ratio > 1) == (advantage > 0)
                still = not bool(run.gradient(loss.values[sample]).any())
                assert still == (out and outwards)
                assert float(loss.metrics["masked_fraction"][sample]) == still
                assert (float(loss.values[sample].detach()) == 0) == still
                shown.add((advantage > 0, ratio > 1, out))
    assert len(shown) == 8, "the samples do not show every case"


@every_dynamics
def test_the_divergence_is_the_exact_kl_of_the_two_normals_whichever_way_it_is_taken(learning: Any, by_hand: Any) -> None:
    run = learning(ADVANTAGES)
    run.move_to(*NEW)
    for loss, step in zip(run.losses(), run.experience.steps, strict=True):
        hand = by_hand(step)
        now: Any = Normal(hand.mean(NEW), hand.std)
        then: Any = Normal(hand.mean(OLD), hand.std)
        for expected in (kl_divergence(now, then), kl_divergence(then, now)):
            for found in (loss.metrics["kl_old"], loss.extremes["kl_old/max"]):
                torch.testing.assert_close(found.double(), expected.mean(1), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("dynamics", ["flow-sde", "dance-sde"])
def test_the_ratio_is_that_of_the_normals_densities(learning: Any, by_hand: Any) -> None:
    run = learning(ADVANTAGES)
    run.move_to(*NEW)
    for loss, step in zip(run.losses(), run.experience.steps, strict=True):
        hand = by_hand(step)
        now: Any = Normal(hand.mean(NEW), hand.std)
        then: Any = Normal(hand.mean(OLD), hand.std)
        expected = torch.exp((now.log_prob(hand.y) - then.log_prob(hand.y)).mean(1))
        torch.testing.assert_close(loss.metrics["ratio/mean"].detach().double(), expected, rtol=0, atol=2e-6)
        deviation = (expected - 1).abs()
        torch.testing.assert_close(loss.extremes["ratio/max_deviation"].detach().double(), deviation, rtol=0, atol=2e-6)


@every_dynamics
@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_at_the_weights_that_drew_every_ratio_is_exactly_one_and_nothing_is_masked(learning: Any, kl: float) -> None:
    run = learning(ADVANTAGES, kl=kl)
    for loss in run.losses():
        assert torch.equal(loss.metrics["ratio/mean"], torch.ones(8))
        assert torch.equal(loss.metrics["kl_old"], torch.zeros(8))
        assert torch.equal(loss.metrics["masked_fraction"], torch.zeros(8))
        assert torch.equal(loss.values, -run.experience.advantages)


@every_dynamics
def test_a_first_gradient_is_the_policy_gradient(learning: Any, by_hand: Any) -> None:
    run = learning(ADVANTAGES)
    for loss, step in zip(run.losses(), run.experience.steps, strict=True):
        score = by_hand(step).score(OLD)
        for sample, advantage in enumerate(ADVANTAGES):
            gradient = run.gradient(loss.values[sample])
            torch.testing.assert_close(gradient, -advantage * score[sample], rtol=1e-4, atol=2e-6)


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
def test_a_descent_raises_the_density_of_a_better_sample_and_lowers_that_of_a_worse_one(
    learning: Any, by_hand: Any, sign: float
) -> None:
    run = learning((sign,) * 8)
    for loss, step in zip(run.losses(), run.experience.steps, strict=True):
        hand = by_hand(step)
        for sample in range(8):
            p, q = (torch.tensor(OLD, dtype=torch.float64) - 1e-4 * run.gradient(loss.values[sample])).tolist()
            assert float((hand.log_density((p, q)) - hand.log_density(OLD))[sample]) * sign > 0


def test_a_step_out_of_the_region_is_still_led_back(learning: Any, by_hand: Any) -> None:
    run = learning(ADVANTAGES, kl_bound=1e-6)
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


def test_a_tight_bound_holds_the_weights_near_those_that_drew(learning: Any) -> None:
    distances = []
    for kl_bound in (1e9, 1e-6):
        run = learning(ADVANTAGES, kl_bound=kl_bound)
        learner = Learner(run.policy, TrainingConfig.model_validate({"optimizer": {"lr": 0.01}}))
        for _ in range(30):
            learner.step(run.hooks.update(run.experience, run.policy), UpdateMetrics())
        distances.append(math.dist([weight.item() for weight in run.policy.parameters.values()], OLD))
    free, held = distances
    assert held < 0.5 * free


@pytest.mark.parametrize("dynamics", ["ode", {"name": "ode"}, None], ids=["name", "mapping", "left-out"])
def test_deterministic_dynamics_are_refused_with_the_reason(settings: dict[str, Any], dynamics: Any) -> None:
    settings["algorithm"] = "dppo"
    settings["sampling"].pop("dynamics")
    if dynamics is not None:
        settings["sampling"]["dynamics"] = dynamics
    with pytest.raises(UserError, match=r"dppo .*log-density.*'ode'.*deterministic.*choose .*flow-sde"):
        validate(settings)


@pytest.mark.parametrize("dynamics", [*CONFIGS, "unstated"])
def test_all_that_is_stochastic_is_accepted(settings: dict[str, Any], dynamics: str) -> None:
    made = validate(settings | {"algorithm": "dppo", "sampling": settings["sampling"] | {"dynamics": dynamics}})
    assert isinstance(made.algorithm, DPPOConfig)


@pytest.mark.parametrize(("key", "value"), [("kl_bound", 0), ("kl_bound", -1e-6), ("kl", -1), ("clip_range", 1e-4)])
def test_an_option_that_makes_no_sense_is_refused(settings: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"algorithm.{key}"):
        validate(settings | {"algorithm": {"name": "dppo", key: value}})


@every_dynamics
def test_it_learns_what_the_reward_asks_for(dynamics: str) -> None:
    check_algorithm(DPPOConfig(kl=0.01), iterations=12, dynamics=CONFIGS[dynamics]().build("dynamics"))


def test_a_run_passes_preflight_and_is_masked_once_off_policy(settings: dict[str, Any]) -> None:
    settings["algorithm"] = {"name": "dppo", "kl": 0.1, "kl_bound": 1e-5}
    settings["training"] |= {"epochs": 3}
    said: list[str] = []
    records = train(validate(settings), say=said.append).records()[1:]
    assert any("a finite gradient reaches all 2 trainable tensors, kl too" in line for line in said)
    assert all(record["kl_old/max"] > 1e-5 for record in records)
    assert all(0 < record["masked_fraction"] < 1 for record in records)
