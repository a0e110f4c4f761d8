"""RAM and RVM against their published objectives, written out in float64, and against AWM. arXiv:2605.10759, 2608.23664."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory import AlgorithmConfig, At, RunError, testing
from flowfactory.flow import Discrete, LogitNormal, NoisedBatch, Uniform
from flowfactory.policy import REFERENCE
from flowfactory.testing import ODE, Learning, NoisedByHand, Weights
from flowfactory_awm.awm import AWMConfig
from flowfactory_awm.ram import RAMConfig
from flowfactory_awm.rvm import RVMConfig

START = (0.3, -0.2)
MIDDLE = (0.5, -0.35)
NEW = (0.2, -0.05)
QUARTER = {"name": "constant", "decay": 0.25}
AVERAGE = (0.45, -0.3125)  # a quarter of START and three of MIDDLE
ADVANTAGES = (1.2, -0.7, 0.4, -1.5, 0.9, -0.3, 2.0, -2.0)
TIMES = Uniform(count=3, low=0.1)

Objective = Callable[[NoisedByHand, Weights], Tensor]
"""``objective(rows, weights) -> [b]``, as published: with a target that is not differentiated."""


def learn(config: type[AlgorithmConfig], bench: dict[str, Any] | None = None, **options: Any) -> Learning:
    """A run at START, whose samples the ODE drew there."""
    chosen = config.model_validate({"timesteps": TIMES, **options})
    return testing.learning(chosen, ADVANTAGES, START, **{"dynamics": ODE(), **(bench or {})})


def learn_at_new(config: type[AlgorithmConfig], bench: dict[str, Any] | None = None, **options: Any) -> Learning:
    """A run at NEW, in an iteration that started from MIDDLE; the average of a quarter is AVERAGE, and the reference START."""
    run = learn(config, bench, **options)
    run.move_through(MIDDLE, NEW)
    return run


def ram(multiplier: float) -> Objective:
    """|v - sg(v_ref + eta A ((noise - x0) - v))|², arXiv:2605.10759, eq. 17."""

    def objective(rows: NoisedByHand, weights: Weights) -> Tensor:
        v, advantage = rows.velocity(weights), rows.advantages[:, None]
        target = rows.velocity(START) + multiplier * advantage * (rows.target - v)
        return (v - target.detach()).square().mean(1)

    return objective


def rvm(scale: float, kl: float, anchor: Weights) -> Objective:
    """|v - sg(v - A (v - (noise - x0)) - beta (v - v_anchor))|²: a step against the signed residual, and to the anchor."""

    def objective(rows: NoisedByHand, weights: Weights) -> Tensor:
        v, advantage = rows.velocity(weights), rows.advantages[:, None]
        step = scale * advantage * (v - rows.target) + kl * (v - rows.velocity(anchor))
        return (v - (v - step).detach()).square().mean(1)

    return objective


RUNS: dict[str, tuple[type[AlgorithmConfig], dict[str, Any], Objective]] = {
    "ram": (RAMConfig, {"reward_multiplier": 7.0}, ram(7.0)),
    "rvm": (RVMConfig, {"advantage_scale": 0.5}, rvm(0.5, 0.0, START)),
    "rvm-reference": (RVMConfig, {"advantage_scale": 0.5, "kl": 0.3}, rvm(0.5, 0.3, START)),
    "rvm-ema": (RVMConfig, {"kl": 0.3, "anchor": "ema", "ema": QUARTER}, rvm(0.1, 0.3, AVERAGE)),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(
    "times", [TIMES, Discrete(count=3), LogitNormal(count=3, shift=3.0)], ids=lambda times: str(times.name)
)
def test_the_gradient_is_that_of_the_published_objective(name: str, times: Any) -> None:
    """Also at a second update of an iteration, since neither has a ratio."""
    config, options, objective = RUNS[name]
    run = learn_at_new(config, timesteps=times, **options)
    for loss, at in zip(run.losses(), run.noised_batches(times), strict=True):
        hand = NoisedByHand(at)
        expected = testing.autograd_by_hand(lambda weights, hand=hand: objective(hand, weights), NEW)
        torch.testing.assert_close(run.gradients(loss.values), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", RUNS)
def test_loss_and_gradient_are_the_weighed_errors(name: str) -> None:
    config, options, _ = RUNS[name]
    run = learn_at_new(config, **options)
    scale = options.get("reward_multiplier", options.get("advantage_scale", 0.1))
    weight = 1.0 if name == "ram" else options.get("kl", 0.0)
    anchor = AVERAGE if name == "rvm-ema" else START
    expected = []
    for at in run.noised_batches(TIMES):
        hand = NoisedByHand(at)
        value = scale * hand.advantages * hand.error(NEW) + weight * hand.distance(NEW, anchor)
        gradient = (scale * hand.advantages)[:, None] * hand.error_gradient(NEW) + weight * hand.distance_gradient(NEW, anchor)
        expected.append((value, gradient))
    for loss, at in zip(testing.check_losses(run, expected), run.noised_batches(TIMES), strict=True):
        assert set(loss.terms) == ({"kl"} if weight else set())
        error = loss.metrics["matching_error"].detach().double()
        torch.testing.assert_close(error, NoisedByHand(at).error(NEW), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "options", "awm", "factor"),
    [
        (RAMConfig, {"reward_multiplier": 20.0}, {"kl": 1 / 20}, 20.0),
        (RVMConfig, {}, {}, 0.1),
        (RVMConfig, {"kl": 0.03}, {"kl": 0.3}, 0.1),
        (RVMConfig, {"kl": 0.03, "anchor": "ema", "ema": QUARTER}, {"ema_kl": 0.3, "ema": QUARTER}, 0.1),
    ],
    ids=["ram", "rvm", "rvm-reference", "rvm-ema"],
)
def test_the_first_update_of_an_iteration_is_awms_of_uniform_weighting(
    config: type[AlgorithmConfig], options: dict[str, Any], awm: dict[str, Any], factor: float
) -> None:
    runs = [
        learn(config, **options),
        learn(AWMConfig, **{"weighting": "uniform", "advantage_scale": 1.0, "kl": 0.0, "ema_kl": 0.0, **awm}),
    ]
    for run in runs:  # at the start of an iteration, away from the reference and from the average
        run.move_to(*MIDDLE)
        run.policy.iteration_finished(0)
    for ours, theirs in zip(*(run.losses() for run in runs), strict=True):
        one, two = runs[0].gradients(ours.values), runs[1].gradients(theirs.values)
        assert torch.equal(theirs.metrics["ratio/mean"], torch.ones_like(theirs.values))
        torch.testing.assert_close(one, factor * two, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["ram", "rvm"])
def test_an_update_lowers_the_error_of_a_better_sample_and_raises_that_of_a_worse_one(name: str) -> None:
    config, options, _ = RUNS[name]
    run = learn(config, **options)

    def closeness(at: NoisedBatch) -> Callable[[Weights], Tensor]:
        return lambda weights: -NoisedByHand(at).error(weights)

    testing.check_descent_follows_advantages(run, [closeness(at) for at in run.noised_batches(TIMES)])


def test_an_advantage_of_zero_moves_nothing() -> None:
    run = learn(RVMConfig)
    run.move_to(*NEW)
    testing.check_no_advantage_no_gradient(run)


@pytest.mark.parametrize("name", ["ram", "rvm-reference"])
def test_the_anchor_is_what_training_started_from_and_pulls_back(name: str) -> None:
    config, options, _ = RUNS[name]
    run = learn(config, **options).with_advantages([0.0] * 8)
    testing.check_penalty(run, "kl", NEW)
    testing.check_reference_stays(learn_at_new(config, **options), "kl", NEW)


def test_an_average_as_anchor_follows() -> None:
    testing.check_average(learn(RVMConfig, kl=0.3, anchor="ema", ema=QUARTER), "anchor", {0: 0.25, 1: 0.25})


@pytest.mark.parametrize(("name", "kept"), [("ram", True), ("rvm", False), ("rvm-reference", True)])
def test_no_other_weights_than_the_anchors_are_kept(name: str, kept: bool) -> None:
    config, options, _ = RUNS[name]
    run = learn(config, **options)
    step = run.noised_batches(TIMES)[0].step
    for weights in ("old", "ema", *(() if kept else (REFERENCE,))):
        with pytest.raises(RunError, match=f"no weights are kept as '{weights}'"):
            run.policy.compare(step, {"it": At(weights)})


@pytest.mark.parametrize(("name", "each"), [("ram", 2), ("rvm", 1), ("rvm-reference", 2)])
def test_a_loss_takes_one_forward_and_one_of_the_anchor(name: str, each: int) -> None:
    config, options, _ = RUNS[name]
    run = learn(config, {"batch_size": 3}, **options)
    testing.check_forwards(run, 3 * 3, 1)  # the anchor is the present weights
    run.move_through(MIDDLE, NEW)
    testing.check_forwards(run, 3 * 3, each)


def test_two_times_share_a_forward_and_change_neither_loss_nor_gradient() -> None:
    def make(batch_size: int, together: int) -> Learning:
        bench = {"batch_size": batch_size, "timesteps_per_forward": together}
        return learn_at_new(RAMConfig, bench, timesteps=Uniform(count=4, low=0.1))

    assert testing.check_same_updates_whatever_fits_a_forward(make, [(5, 1), (5, 2)]) == [2 * 2 * 4, 2 * 2 * 2]
