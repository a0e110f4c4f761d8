"""GRPO's loss and gradient against the paper's formulas, worked out by hand in float64. Flow-GRPO, arXiv:2505.05470."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory.config.schema import TrainingConfig
from flowfactory.policy.policy import REFERENCE, At
from flowfactory.training.learner import Learner
from flowfactory.training.metrics import UpdateMetrics

OLD = (0.3, -0.2)  # START of conftest.py
NEW = (0.36, -0.25)
ADVANTAGES = (1.2, -0.7, 0.4, -1.5, 0.9, -0.3, 2.0, -2.0)

DYNAMICS = ["flow-sde", "dance-sde", "cps"]

Weights = tuple[float, float]


@dataclass(frozen=True)
class Worked:
    loss: Tensor
    gradient: Tensor
    ratio: Tensor
    cut: Tensor


def worked(hand: Any, clip_range: float, kl: float, form: str) -> Worked:
    """Eq. 5 for one step: a good sample is pushed up until its ratio is 1 + c, a bad one down until it is 1 - c."""
    advantage = torch.tensor(ADVANTAGES, dtype=torch.float64)
    ratio = torch.exp(hand.log_density(NEW) - hand.log_density(OLD))
    good = advantage > 0
    cut = torch.where(good, ratio > 1 + clip_range, ratio < 1 - clip_range)
    bound = torch.where(good, 1 + clip_range, 1 - clip_range)
    loss = -advantage * torch.where(cut, bound, ratio)
    gradient = torch.where(cut[:, None], 0.0, -(advantage * ratio)[:, None] * hand.score(NEW))
    divergence, slope = hand.divergence(form, NEW, OLD)
    return Worked(loss + kl * divergence, gradient + kl * slope, ratio, cut)


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("clip_range", [1e-3, 0.3], ids=["narrow", "wide"])
@pytest.mark.parametrize(("kl", "form"), [(0.0, "mean"), (0.5, "mean"), (0.5, "velocity")])
def test_loss_and_gradient_are_those_of_the_paper(learning: Any, by_hand: Any, clip_range: float, kl: float, form: str) -> None:
    run = learning(ADVANTAGES, clip_range=clip_range, kl=kl, kl_form=form)
    run.move_to(*NEW)
    losses = run.losses()
    assert len(losses) == len(run.experience.steps) == 3
    for loss, step in zip(losses, run.experience.steps, strict=True):
        expected = worked(by_hand(step), clip_range, kl, form)
        torch.testing.assert_close(loss.values.double(), expected.loss, rtol=1e-5, atol=1e-5)
        for sample in range(8):
            gradient = run.gradient(loss.values[sample])
            torch.testing.assert_close(gradient, expected.gradient[sample], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_the_clip_cuts_on_the_side_that_the_advantage_pushes_to(learning: Any, by_hand: Any) -> None:
    clip_range = 1e-3
    run = learning(ADVANTAGES, clip_range=clip_range)
    run.move_to(*NEW)
    sides = set()
    for loss, step in zip(run.losses(), run.experience.steps, strict=True):
        expected = worked(by_hand(step), clip_range, 0.0, "mean")
        for sample, advantage in enumerate(ADVANTAGES):
            ratio = float(expected.ratio[sample])
            assert abs(abs(ratio - 1) - clip_range) > 1e-5, "too near to the bound to tell its sides"
            side = "above" if ratio > 1 + clip_range else "below" if ratio < 1 - clip_range else "within"
            still = not bool(run.gradient(loss.values[sample]).any())
            assert still == ((advantage > 0 and side == "above") or (advantage < 0 and side == "below"))
            sides.add((advantage > 0, side))
        assert torch.equal(loss.metrics["clip_fraction"], expected.cut.float())
        torch.testing.assert_close(loss.metrics["ratio/mean"].detach().double(), expected.ratio, rtol=0, atol=1e-5)
    outside = {(good, side) for good in (True, False) for side in ("above", "below")}
    assert outside <= sides, "the samples do not show every side"


@pytest.mark.parametrize("batch_size", [8, 3])
def test_an_update_is_the_mean_over_all_samples_and_steps_whatever_the_batches(
    learning: Any, by_hand: Any, batch_size: int
) -> None:
    run = learning(ADVANTAGES, batch_size=batch_size, clip_range=1e-3, kl=0.5)
    run.move_to(*NEW)
    learner = Learner(run.policy, TrainingConfig.model_validate({"max_grad_norm": 1e9}))
    gathered = UpdateMetrics()
    learner.step(run.hooks.update(run.experience, run.policy), gathered)
    parts = [worked(by_hand(step), 1e-3, 0.5, "mean") for step in run.experience.steps]
    gradient = [run.policy.parameters[f"transformer.{name}"].grad.double() for name in ("p", "q")]
    expected = torch.cat([part.gradient for part in parts]).mean(0)
    torch.testing.assert_close(torch.stack(gradient), expected, rtol=1e-3, atol=1e-6)
    metrics = gathered.metrics()
    assert metrics["loss"] == pytest.approx(float(torch.cat([part.loss for part in parts]).mean()), abs=1e-5)
    deviations = torch.cat([(part.ratio - 1).abs() for part in parts])
    assert metrics["ratio/max_deviation"] == pytest.approx(float(deviations.max()), abs=1e-5)


@pytest.mark.parametrize("dynamics", ["flow-sde", "dance-sde"])
def test_the_recorded_log_density_is_the_mean_of_the_elements_normal_log_density(learning: Any, by_hand: Any) -> None:
    run = learning(ADVANTAGES)
    for step in run.experience.steps:
        hand = by_hand(step)
        normal: Any = torch.distributions.Normal(hand.mean(OLD), hand.std)
        torch.testing.assert_close(step.log_prob.double(), normal.log_prob(hand.y).mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dynamics", ["cps"])
def test_the_recorded_log_density_of_cps_is_minus_the_mean_squared_error(learning: Any, by_hand: Any) -> None:
    run = learning(ADVANTAGES)
    for step in run.experience.steps:
        hand = by_hand(step)
        error = -(hand.y - hand.mean(OLD)).square().mean(1)
        torch.testing.assert_close(step.log_prob.double(), error, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_before_the_first_update_every_ratio_is_exactly_one(learning: Any, kl: float) -> None:
    run = learning(ADVANTAGES, kl=kl)
    for loss in run.losses():
        assert torch.equal(loss.metrics["ratio/mean"], torch.ones(8))
        assert torch.equal(loss.extremes["ratio/max_deviation"], torch.zeros(8))
        assert torch.equal(loss.values, -run.experience.advantages)


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_a_first_gradient_is_the_policy_gradient_unhalved_by_the_tie_at_one(learning: Any, by_hand: Any) -> None:
    run = learning(ADVANTAGES)
    for loss, step in zip(run.losses(), run.experience.steps, strict=True):
        score = by_hand(step).score(OLD)
        for sample, advantage in enumerate(ADVANTAGES):
            gradient = run.gradient(loss.values[sample])
            torch.testing.assert_close(gradient, -advantage * score[sample], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("weights", [OLD, NEW], ids=["at-the-start", "after-updates"])
def test_an_advantage_of_zero_moves_nothing(learning: Any, weights: Weights) -> None:
    run = learning((0.0,) * 8)
    run.move_to(*weights)
    before = {name: weight.detach().clone() for name, weight in run.policy.parameters.items()}
    learner = Learner(run.policy, TrainingConfig.model_validate({"optimizer": {"lr": 1.0}}))
    norm = learner.step(run.hooks.update(run.experience, run.policy), UpdateMetrics())
    assert norm == 0
    assert all(torch.equal(weight, before[name]) for name, weight in run.policy.parameters.items())


@pytest.mark.parametrize("good", range(8))
def test_an_update_raises_the_density_of_a_better_sample_and_lowers_that_of_a_worse_one(
    learning: Any, by_hand: Any, good: int
) -> None:
    for sign in (1.0, -1.0):
        advantages = [0.0] * 8
        advantages[good] = sign
        run = learning(advantages)
        for loss, step in zip(run.losses(), run.experience.steps, strict=True):
            p, q = (torch.tensor(OLD, dtype=torch.float64) - 1e-4 * run.gradient(loss.values)).tolist()
            hand = by_hand(step)
            change = float((hand.log_density((p, q)) - hand.log_density(OLD))[good])
            assert change * sign > 0


@pytest.mark.parametrize("form", ["mean", "velocity"])
def test_the_kl_is_zero_at_the_reference_and_pulls_back_to_it(learning: Any, form: str) -> None:
    run = learning((0.0,) * 8, kl=1.0, kl_form=form)
    for loss in run.losses():
        assert torch.equal(loss.terms["kl"], torch.zeros(8))
        assert not run.gradient(loss.terms["kl"]).any()
    run.move_to(*NEW)
    for loss in run.losses():
        assert bool((loss.terms["kl"] > 0).all())
        downhill = -run.gradient(loss.values)
        back = torch.tensor(OLD) - torch.tensor(NEW)
        assert float(downhill @ back.double()) > 0


def test_a_strong_kl_holds_the_weights_where_they_were(learning: Any) -> None:
    distances = []
    for kl in (0.0, 50.0):
        run = learning(ADVANTAGES, clip_range=1.0, kl=kl)
        learner = Learner(run.policy, TrainingConfig.model_validate({"optimizer": {"lr": 0.01}}))
        for _ in range(40):
            learner.step(run.hooks.update(run.experience, run.policy), UpdateMetrics())
        present = [weight.item() for weight in run.policy.parameters.values()]
        distances.append(math.dist(present, OLD))
    free, held = distances
    assert held < 0.2 * free


def test_the_reference_stays_what_training_started_from(learning: Any) -> None:
    run = learning(ADVANTAGES, kl=0.5)
    run.move_to(*NEW)
    first = [loss.terms["kl"].detach() for loss in run.losses()]
    run.losses()
    again = [loss.terms["kl"].detach() for loss in run.losses()]
    assert all(map(torch.equal, first, again))
    present = [weight.item() for weight in run.policy.parameters.values()]
    assert present == pytest.approx(NEW), "the reference's weights were left in place"


@pytest.mark.parametrize(("kl", "forwards"), [(0.0, 1), (0.5, 2)])
def test_a_step_and_batch_costs_one_forward_and_one_more_for_the_reference(
    learning: Any, count: Any, kl: float, forwards: int
) -> None:
    run = learning(ADVANTAGES, batch_size=3, kl=kl)
    run.move_to(*NEW)
    counted = count(run.policy)
    losses = run.losses()
    assert len(losses) == 3 * 3, "three steps of three batches (3, 3 and 2 samples)"
    assert counted.forwards == forwards * len(losses)


def test_no_reference_is_kept_without_a_kl(learning: Any) -> None:
    from flowfactory import RunError

    run = learning(ADVANTAGES)
    with pytest.raises(RunError, match="no weights are kept as 'reference'"):
        run.policy.compare(run.experience.steps[0], {"reference": At(REFERENCE)})
