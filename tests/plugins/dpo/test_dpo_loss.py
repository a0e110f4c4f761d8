"""Online DPO's pairs, loss and gradient, worked out by hand in float64. Diffusion-DPO, arXiv:2311.12908, eq. 14."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory import Canvas, SamplingPlan
from flowfactory.flow.timesteps import Discrete, LogitNormal, NoisedBatch, Uniform, noised_batches
from flowfactory.testing import ODE, Learning
from flowfactory_dpo.dpo import DPO, DPOConfig

OLD = (0.3, -0.2)  # START of conftest.py
NEW = (0.36, -0.25)
LATER = (0.2, -0.1)
BETA = 20.0
ADVANTAGES = (1.2, -0.7, 0.4, -1.5, 0.9, -0.3, 2.0, -2.0, -0.4, 0.1, 0.2, 0.1)
BEST, WORST = [0, 6, 10], [3, 7, 8]

Weights = tuple[float, float]


def config(**options: Any) -> DPOConfig:
    return DPOConfig.model_validate({"beta": BETA, **options})


def both(run: Learning) -> tuple[Tensor, Tensor]:
    """The sum of all losses of an update, and its gradient [2]."""
    values = torch.cat([loss.values for loss in run.losses()])
    return values.detach().double().sum(), run.gradient(values)


def worked(hand: Any, new: Weights, old: Weights) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of the three pairs [3], gradients [3, 2] and margins [3] of rows that are all twelve samples at one time."""
    gap, slope = hand.error(new) - hand.error(old), hand.slope(new)
    margin = -BETA / 2 * (gap[BEST] - gap[WORST])
    loss = torch.log1p(torch.exp(-margin))
    wrong = 1 / (1 + torch.exp(margin))
    return loss, (wrong * BETA / 2)[:, None] * (slope[BEST] - slope[WORST]), margin


@pytest.mark.parametrize("times", [Uniform(), LogitNormal(count=3, mean=0.5), Discrete(count=4)], ids=lambda times: times.name)
def test_loss_and_gradient_are_those_of_the_paper(learning: Any, by_hand: Any, times: Any) -> None:
    run = learning(config(timesteps=times), ADVANTAGES)
    run.move_to(*NEW)
    losses = run.losses()
    assert len(losses) == times.count
    for loss, at in zip(losses, noised_batches(run.experience, times, shared=True), strict=True):
        values, gradients, margin = worked(by_hand(at), NEW, OLD)
        assert float(margin.abs().max()) > 0.1, "too near to the start to tell a wrong margin"
        torch.testing.assert_close(loss.values.double(), values, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(loss.metrics["margin"].double(), margin, rtol=1e-4, atol=1e-5)
        assert torch.equal(loss.metrics["preferred"], (margin > 0).float())
        for pair in range(3):
            torch.testing.assert_close(run.gradient(loss.values[pair]), gradients[pair], rtol=1e-4, atol=1e-5)


def test_before_the_first_update_every_loss_is_log_two_and_its_gradient_a_quarter_of_beta(learning: Any, by_hand: Any) -> None:
    run = learning(config(), ADVANTAGES)
    for loss, at in zip(run.losses(), noised_batches(run.experience, Uniform(), shared=True), strict=True):
        torch.testing.assert_close(loss.values, torch.full((3,), math.log(2)), rtol=0, atol=1e-6)
        slope = by_hand(at).slope(OLD)
        for pair in range(3):
            expected = BETA / 4 * (slope[BEST[pair]] - slope[WORST[pair]])
            torch.testing.assert_close(run.gradient(loss.values[pair]), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[NoisedBatch]:
    """The places that losses are asked for at."""
    asked: list[NoisedBatch] = []
    loss = DPO.loss

    def watched(self: DPO, at: NoisedBatch, policy: Any) -> Any:
        asked.append(at)
        return loss(self, at, policy)

    monkeypatch.setattr(DPO, "loss", watched)
    return asked


@pytest.mark.parametrize(("batch_size", "timesteps_per_forward"), [(12, 1), (12, 3), (4, 2), (2, 1)])
def test_the_best_and_the_worst_of_a_group_meet_under_one_noise_at_one_time(
    learning: Any, seen: list[NoisedBatch], batch_size: int, timesteps_per_forward: int
) -> None:
    run = learning(config(timesteps={"name": "uniform", "count": 3}), ADVANTAGES, batch_size, timesteps_per_forward)
    run.losses()
    met: dict[tuple[int, int], list[tuple[int, Tensor, float]]] = {}
    for at in seen:
        clean = at.samples.latents
        noise, sigma = at.target + clean, at.step.sigma[:, None, None, None]
        torch.testing.assert_close(at.step.latents, (1 - sigma) * clean + sigma * noise)
        for i in range(len(at)):
            row = run.experience.plan.keys.index(at.samples.plan.keys[i])
            assert torch.equal(clean[i], run.experience.latents[row])
            assert at.samples.advantages[i] == run.experience.advantages[row]
            # the prompt of group 0 has one letter, that of group 1 two
            assert at.step.conditions.entries[i]["length"] == 1 + row // 4
            met.setdefault((row // 4, int(at.time[i])), []).append((row, noise[i], float(at.step.sigma[i])))
    assert set(met) == {(group, time) for group in range(3) for time in range(3)}
    for (group, _), arms in met.items():
        (best, noise, sigma), (worst, other_noise, other_sigma) = arms
        assert (best, worst) == (BEST[group], WORST[group])
        torch.testing.assert_close(noise, other_noise, rtol=0, atol=1e-6)
        assert sigma == other_sigma
    assert len({sigma for arms in met.values() for _, _, sigma in arms}) == 9, "no two pairs or times share a sigma"


def test_a_group_without_spread_contributes_nothing(learning: Any) -> None:
    advantages = (*ADVANTAGES[:4], 0.0, 0.0, 0.0, 0.0, *ADVANTAGES[8:])
    run = learning(config(), advantages)
    whole = learning(config(), ADVANTAGES)
    for weights in (OLD, NEW):
        run.move_to(*weights)
        whole.move_to(*weights)
        for loss, other in zip(run.losses(), whole.losses(), strict=True):
            assert loss.values[1].item() == 0
            assert not run.gradient(loss.values[1]).any()
            assert torch.equal(loss.values[[0, 2]], other.values[[0, 2]])
            assert other.values[1].item() > 0


@pytest.mark.parametrize("weights", [OLD, NEW], ids=["at-the-start", "after-updates"])
def test_a_step_lowers_the_winners_error_against_the_losers(learning: Any, by_hand: Any, weights: Weights) -> None:
    run = learning(config(), ADVANTAGES)
    run.move_to(*weights)
    for loss, at in zip(run.losses(), noised_batches(run.experience, Uniform(), shared=True), strict=True):
        hand = by_hand(at)
        for pair in range(3):
            p, q = (torch.tensor(weights, dtype=torch.float64) - 1e-4 * run.gradient(loss.values[pair])).tolist()
            change = hand.error((p, q)) - hand.error(weights)
            assert float(change[BEST[pair]] - change[WORST[pair]]) < 0


@pytest.mark.parametrize(("batch_size", "timesteps_per_forward"), [(12, 1), (12, 2), (5, 3), (4, 2), (3, 1), (1, 2)])
def test_neither_batch_size_nor_times_per_forward_changes_the_total(
    learning: Any, by_hand: Any, batch_size: int, timesteps_per_forward: int
) -> None:
    times = Uniform(count=3)
    run = learning(config(timesteps=times), ADVANTAGES, batch_size, timesteps_per_forward)
    run.move_to(*NEW)
    total, gradient = both(run)
    one = learning(config(timesteps=times), ADVANTAGES)
    parts = [worked(by_hand(at), NEW, OLD) for at in noised_batches(one.experience, times, shared=True)]
    assert len(parts) == 3
    torch.testing.assert_close(total, sum(values.sum() for values, _, _ in parts), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, sum(slope.sum(0) for _, slope, _ in parts), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("batch_size", "timesteps_per_forward"), [(12, 1), (5, 1), (4, 2), (2, 3)])
def test_a_forward_holds_no_more_than_the_config_allows(
    learning: Any, seen: list[NoisedBatch], batch_size: int, timesteps_per_forward: int
) -> None:
    learning(config(timesteps={"name": "uniform", "count": 3}), ADVANTAGES, batch_size, timesteps_per_forward).losses()
    assert all(len(at) <= batch_size * timesteps_per_forward for at in seen)
    assert sum(len(at) for at in seen) == 2 * 3 * 3, "two arms, three groups, three times"


@pytest.mark.parametrize(("weights", "forwards"), [(OLD, 1), (NEW, 2)], ids=["at-the-start", "after-updates"])
def test_a_forward_of_the_reference_is_saved_while_it_is_the_present_policy(
    learning: Any, count: Any, weights: Weights, forwards: int
) -> None:
    run = learning(config(), ADVANTAGES, 4)
    if weights != OLD:
        run.move_to(*weights)
    counted = count(run.policy)
    losses = run.losses()
    assert len(losses) == 2 * 2, "pairs two and one, at two times"
    assert counted.forwards == forwards * len(losses)
    assert counted.graphs == len(losses)


def assert_reference(run: Learning, by_hand: Any, new: Weights, reference: Weights) -> None:
    for loss, at in zip(run.losses(), noised_batches(run.experience, Uniform(), shared=True), strict=True):
        torch.testing.assert_close(loss.values.double(), worked(by_hand(at), new, reference)[0], rtol=1e-5, atol=1e-5)


def test_a_frozen_reference_stays_what_training_started_from(learning: Any, by_hand: Any) -> None:
    run = learning(config(), ADVANTAGES)
    run.move_to(*NEW)
    run.policy.iteration_finished(0)
    run.move_to(*LATER)
    assert_reference(run, by_hand, LATER, OLD)
    present = [weight.item() for weight in run.policy.parameters.values()]
    assert present == pytest.approx(LATER), "the reference's weights were left in place"


def test_an_averaged_reference_follows_the_policy(learning: Any, by_hand: Any) -> None:
    average = {"name": "linear", "start": 0.75, "end": 0.25, "iterations": 2}
    run = learning(config(reference_ema=average), ADVANTAGES)
    run.move_to(*NEW)
    assert_reference(run, by_hand, NEW, OLD)
    run.policy.iteration_finished(0)
    first = (0.75 * OLD[0] + 0.25 * NEW[0], 0.75 * OLD[1] + 0.25 * NEW[1])
    assert_reference(run, by_hand, NEW, first)
    run.move_to(*LATER)
    run.policy.iteration_finished(1)
    second = (0.5 * first[0] + 0.5 * LATER[0], 0.5 * first[1] + 0.5 * LATER[1])
    run.move_to(*NEW)
    assert_reference(run, by_hand, NEW, second)


def test_an_average_that_copies_the_policy_costs_no_forward(learning: Any, count: Any) -> None:
    run = learning(config(reference_ema={"name": "constant", "decay": 0.0}), ADVANTAGES)
    run.move_to(*NEW)
    run.policy.iteration_finished(0)
    counted = count(run.policy)
    losses = run.losses()
    assert counted.forwards == len(losses) == 2
    torch.testing.assert_close(losses[0].values, torch.full((3,), math.log(2)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("moved", [False, True], ids=["at-the-start", "after-updates"])
def test_a_guided_reference_is_evaluated_under_its_guidance(drawn: Any, by_hand: Any, count: Any, moved: bool) -> None:
    run, experience = drawn({"name": "dpo", "beta": BETA, "reference_guidance": 2.5})
    assert experience.plan.guidance == 1
    assert experience.plan.teacher_guidance == 2.5
    assert experience.conditions.negative is not None
    assert experience.conditions.negative.stack("length").tolist() == [7.0] * 12
    new = OLD
    if moved:
        new = NEW
        with torch.no_grad():
            for weight, value in zip(run.policy.parameters.values(), NEW, strict=True):
                weight.fill_(value)
        run.policy.mark_changed()
    experience = experience.rows(range(4))  # one group, so that the order of the rows is plain
    counted = count(run.policy)
    losses = list(run.assembly.hooks.update(experience, run.policy))
    assert counted.forwards == 2 * len(losses) == 4, "two times; the reference is never the present policy"
    best, worst = int(experience.advantages.argmax()), int(experience.advantages.argmin())
    for loss, at in zip(losses, noised_batches(experience, Uniform(), shared=True), strict=True):
        length = at.step.conditions.stack("length").double()
        error = by_hand(at, length).error(new)
        gap = error - by_hand(at, 7 + 2.5 * (length - 7)).error(OLD)
        margin = -BETA / 2 * (gap[best] - gap[worst])
        assert float(margin.abs()) > 0.01
        torch.testing.assert_close(loss.values.double(), torch.log1p(torch.exp(-margin))[None], rtol=1e-4, atol=1e-5)


def test_without_guidance_of_its_own_the_reference_asks_for_no_negative_prompt(drawn: Any) -> None:
    run, experience = drawn({"name": "dpo"})
    assert experience.plan.teacher_guidance == 1
    assert experience.conditions.negative is None
    for loss in run.assembly.hooks.update(experience, run.policy):
        torch.testing.assert_close(loss.values, torch.full_like(loss.values, math.log(2)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("guidance", "wanted"), [(None, 2.0), (1.5, 2.0), (3.0, 3.0)])
def test_the_plan_carries_the_largest_guidance_asked_for(guidance: float | None, wanted: float) -> None:
    given = SamplingPlan(4, Canvas(4, 4), 1.0, ODE(), 0, 0, teacher_guidance=2.0)
    plan = config(reference_guidance=guidance).build("algorithm").plan(given)
    assert plan.teacher_guidance == wanted
    assert plan.guidance == 1
    assert plan.weights is None
    assert plan.recorded == frozenset()
