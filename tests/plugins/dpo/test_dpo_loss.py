"""Online DPO's pairs, loss and gradient, worked out by hand in float64. Diffusion-DPO, arXiv:2311.12908, eq. 14."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory import testing
from flowfactory.flow import Discrete, LogitNormal, Uniform
from flowfactory.testing import Learning, NoisedByHand, Weights
from flowfactory_dpo.dpo import DPO, DPOConfig

OLD = (0.3, -0.2)
NEW = (0.36, -0.25)
LATER = (0.2, -0.1)
BETA = 20.0
ADVANTAGES = (1.2, -0.7, 0.4, -1.5, 0.9, -0.3, 2.0, -2.0, -0.4, 0.1, 0.2, 0.1)
BEST, WORST = [0, 6, 10], [3, 7, 8]


def config(**options: Any) -> DPOConfig:
    return DPOConfig.model_validate({"beta": BETA, **options})


def by_hand(hand: NoisedByHand, new: Weights, old: Weights) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of the three pairs [3], gradients [3, 2] and margins [3] of rows that are all twelve samples at one time."""
    gap, slope = hand.error(new) - hand.error(old), hand.error_gradient(new)
    margin = -BETA / 2 * (gap[BEST] - gap[WORST])
    loss = torch.log1p(torch.exp(-margin))
    wrong = 1 / (1 + torch.exp(margin))
    return loss, (wrong * BETA / 2)[:, None] * (slope[BEST] - slope[WORST]), margin


def learn(config: DPOConfig, advantages: Sequence[float] = ADVANTAGES, *shape: int) -> Learning:
    """A run at OLD, whose samples the ODE drew there; ``shape`` is the samples, 12 if left out, and times of a forward."""
    return testing.learning(config, advantages, OLD, 4, testing.ODE(), *(shape or (12,)))


@pytest.mark.parametrize("times", [Uniform(), LogitNormal(count=3, mean=0.5), Discrete(count=4)], ids=lambda times: times.name)
def test_loss_and_gradient_are_those_of_the_paper(times: Any) -> None:
    run = learn(config(timesteps=times))
    run.move_to(*NEW)
    hands = [by_hand(NoisedByHand(at), NEW, OLD) for at in run.noised_batches(times, shared=True)]
    losses = testing.check_losses(run, [(values, gradients) for values, gradients, _ in hands], gradients=(1e-4, 1e-5))
    assert len(losses) == times.count
    for loss, (_, _, margin) in zip(losses, hands, strict=True):
        assert float(margin.abs().max()) > 0.1, "too near to the start to tell a wrong margin"
        torch.testing.assert_close(loss.metrics["margin"].double(), margin, rtol=1e-4, atol=1e-5)
        assert torch.equal(loss.metrics["preferred"], (margin > 0).float())


def test_before_the_first_update_every_loss_is_log_two_and_its_gradient_a_quarter_of_beta() -> None:
    run = learn(config())
    for loss, at in zip(run.losses(), run.noised_batches(Uniform(), shared=True), strict=True):
        torch.testing.assert_close(loss.values, torch.full((3,), math.log(2)), rtol=0, atol=1e-6)
        slope = NoisedByHand(at).error_gradient(OLD)
        for pair in range(3):
            expected = BETA / 4 * (slope[BEST[pair]] - slope[WORST[pair]])
            torch.testing.assert_close(run.gradient(loss.values[pair]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("batch_size", "timesteps_per_forward"), [(12, 1), (12, 3), (4, 2), (2, 1)])
def test_the_best_and_the_worst_of_a_group_meet_under_one_noise_at_one_time(
    watch: Any, batch_size: int, timesteps_per_forward: int
) -> None:
    run = learn(config(timesteps={"name": "uniform", "count": 3}), ADVANTAGES, batch_size, timesteps_per_forward)
    seen = watch(DPO, "loss")
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


def test_a_group_without_spread_contributes_nothing() -> None:
    advantages = (*ADVANTAGES[:4], 0.0, 0.0, 0.0, 0.0, *ADVANTAGES[8:])
    run = learn(config(), advantages)
    whole = learn(config())
    for weights in (OLD, NEW):
        run.move_to(*weights)
        whole.move_to(*weights)
        for loss, other in zip(run.losses(), whole.losses(), strict=True):
            assert loss.values[1].item() == 0
            assert not run.gradient(loss.values[1]).any()
            assert torch.equal(loss.values[[0, 2]], other.values[[0, 2]])
            assert other.values[1].item() > 0


@pytest.mark.parametrize("weights", [OLD, NEW], ids=["at-the-start", "after-updates"])
def test_a_step_lowers_the_winners_error_against_the_losers(weights: Weights) -> None:
    run = learn(config())
    run.move_to(*weights)
    for loss, at in zip(run.losses(), run.noised_batches(Uniform(), shared=True), strict=True):
        hand = NoisedByHand(at)
        for pair in range(3):
            p, q = (torch.tensor(weights, dtype=torch.float64) - 1e-4 * run.gradient(loss.values[pair])).tolist()
            change = hand.error((p, q)) - hand.error(weights)
            assert float(change[BEST[pair]] - change[WORST[pair]]) < 0


@pytest.mark.parametrize(("batch_size", "timesteps_per_forward"), [(12, 1), (12, 2), (5, 3), (4, 2), (3, 1), (1, 2)])
def test_neither_batch_size_nor_times_per_forward_changes_the_total(batch_size: int, timesteps_per_forward: int) -> None:
    times = Uniform(count=3)
    run = learn(config(timesteps=times), ADVANTAGES, batch_size, timesteps_per_forward)
    run.move_to(*NEW)
    values = torch.cat([loss.values for loss in run.losses()])
    parts = [by_hand(NoisedByHand(at), NEW, OLD) for at in learn(config()).noised_batches(times, shared=True)]
    assert len(parts) == 3
    total, gradient = values.detach().double().sum(), run.gradient(values)
    torch.testing.assert_close(total, sum(values.sum() for values, _, _ in parts), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, sum(slope.sum(0) for _, slope, _ in parts), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("batch_size", "timesteps_per_forward"), [(12, 1), (5, 1), (4, 2), (2, 3)])
def test_a_forward_holds_no_more_than_the_config_allows(watch: Any, batch_size: int, timesteps_per_forward: int) -> None:
    seen = watch(DPO, "loss")
    learn(config(timesteps={"name": "uniform", "count": 3}), ADVANTAGES, batch_size, timesteps_per_forward).losses()
    assert all(len(at) <= batch_size * timesteps_per_forward for at in seen)
    assert sum(len(at) for at in seen) == 2 * 3 * 3, "two arms, three groups, three times"


@pytest.mark.parametrize(("weights", "forwards"), [(OLD, 1), (NEW, 2)], ids=["at-the-start", "after-updates"])
def test_a_forward_of_the_reference_is_saved_while_it_is_the_present_policy(weights: Weights, forwards: int) -> None:
    run = learn(config(), ADVANTAGES, 4)
    if weights != OLD:
        run.move_to(*weights)
    testing.check_forwards(run, 2 * 2, forwards)  # pairs two and one, at two times


def check_reference(run: Learning, new: Weights, reference: Weights) -> None:
    for loss, at in zip(run.losses(), run.noised_batches(Uniform(), shared=True), strict=True):
        torch.testing.assert_close(loss.values.double(), by_hand(NoisedByHand(at), new, reference)[0], rtol=1e-5, atol=1e-5)


def test_a_frozen_reference_stays_what_training_started_from() -> None:
    run = learn(config())
    run.move_through(NEW, LATER)
    check_reference(run, LATER, OLD)
    assert run.weights() == pytest.approx(LATER), "the reference's weights were left in place"


def test_an_averaged_reference_follows_the_policy() -> None:
    average = {"name": "linear", "start": 0.75, "end": 0.25, "iterations": 2}
    run = learn(config(reference_ema=average))
    run.move_to(*NEW)
    check_reference(run, NEW, OLD)
    run.policy.iteration_finished(0)
    first = testing.blend(0.75, OLD, NEW)
    check_reference(run, NEW, first)
    run.move_to(*LATER)
    run.policy.iteration_finished(1)
    run.move_to(*NEW)
    check_reference(run, NEW, testing.blend(0.5, first, LATER))


def test_an_average_that_copies_the_policy_costs_no_forward() -> None:
    run = learn(config(reference_ema={"name": "constant", "decay": 0.0}))
    run.move_to(*NEW)
    run.policy.iteration_finished(0)
    losses = testing.check_forwards(run, 2, 1)
    torch.testing.assert_close(losses[0].values, torch.full((3,), math.log(2)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("moved", [False, True], ids=["at-the-start", "after-updates"])
def test_a_guided_reference_is_evaluated_under_its_guidance(tmp_path: Path, moved: bool) -> None:
    drawn = testing.guided_learning(tmp_path, {"name": "dpo", "beta": BETA, "reference_guidance": 2.5})
    assert drawn.experience.plan.guidance == 1
    assert drawn.experience.plan.teacher_guidance == 2.5
    assert drawn.experience.conditions.negative is not None
    assert drawn.experience.conditions.negative.stack("length").tolist() == [7.0] * 12
    new = NEW if moved else OLD
    drawn.move_to(*new)
    run = drawn.rows(range(4))  # one group, so that the order of the rows is plain
    losses = testing.check_forwards(run, 2, 2)  # two times; the reference is never the present policy
    best, worst = int(run.experience.advantages.argmax()), int(run.experience.advantages.argmin())
    for loss, at in zip(losses, run.noised_batches(Uniform(), shared=True), strict=True):
        length = at.step.conditions.stack("length").double()
        error = NoisedByHand(at, length).error(new)
        gap = error - NoisedByHand(at, 7 + 2.5 * (length - 7)).error(OLD)
        margin = -BETA / 2 * (gap[best] - gap[worst])
        assert float(margin.abs()) > 0.01
        torch.testing.assert_close(loss.values.double(), torch.log1p(torch.exp(-margin))[None], rtol=1e-4, atol=1e-5)


def test_without_guidance_of_its_own_the_reference_asks_for_no_negative_prompt(tmp_path: Path) -> None:
    run = testing.guided_learning(tmp_path, {"name": "dpo"})
    assert run.experience.plan.teacher_guidance == 1
    assert run.experience.conditions.negative is None
    for loss in run.losses():
        torch.testing.assert_close(loss.values, torch.full_like(loss.values, math.log(2)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("guidance", "wanted"), [(None, 2.0), (1.5, 2.0), (3.0, 3.0)])
def test_the_plan_carries_the_largest_guidance_asked_for(guidance: float | None, wanted: float) -> None:
    plan = testing.make_plan(config(reference_guidance=guidance), teacher_guidance=2.0)
    assert (plan.teacher_guidance, plan.guidance) == (wanted, 1)
    assert (plan.weights, plan.recorded) == (None, frozenset())
