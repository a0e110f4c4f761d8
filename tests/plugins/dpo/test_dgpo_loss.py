"""DGPO's group weights, loss and gradient, worked out by hand in float64. arXiv:2510.08425, eq. 18."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory import testing
from flowfactory.flow import LogitNormal, Uniform, noised_batches
from flowfactory.testing import Learning, NoisedByHand, Weights
from flowfactory_dpo.dgpo import DGPO, DGPOConfig

OLD = (0.3, -0.2)
NEW = (0.36, -0.25)
LATER = (0.2, -0.1)
BETA = 60.0
ADVANTAGES = (1.2, -0.7, 0.4, -0.9, 1.3, -0.3, 0.5, -1.5, -0.4, -0.1, 0.7, -0.2)
# samples and times of a forward: the groups of 4 together, and spread over forwards
SHAPES = [(12, 1), (8, 2), (3, 1), (1, 1), (3, 2)]


def config(**options: Any) -> DGPOConfig:
    return DGPOConfig.model_validate({"beta": BETA, "clip_range": None, "timesteps": Uniform(), **options})


def group_weight(advantages: Any, new: Tensor, reference: Tensor, group_size: int = 4) -> Tensor:
    """[b]: sigmoid of the mean over the group of A beta (e - e_ref); the rows of a group stand together."""
    terms = torch.as_tensor(advantages).double() * BETA * (new - reference)
    return torch.cat([torch.sigmoid(group.mean()).expand(group_size) for group in terms.split(group_size)])


def by_hand(
    hand: NoisedByHand, new: Weights, reference: Weights, kl: float = 0.0, anchor: Weights = OLD
) -> tuple[Tensor, Tensor]:
    """Losses [12] and gradients [12, 2] of rows that are all twelve samples at one time."""
    weight = group_weight(hand.advantages, hand.error(new), hand.error(reference))
    loss = weight * hand.advantages * hand.error(new) + kl * hand.distance(new, anchor)
    gradient = (weight * hand.advantages)[:, None] * hand.error_gradient(new)
    return loss, gradient + kl * hand.distance_gradient(new, anchor)


def all_by_hand(run: Learning, config: DGPOConfig, *arguments: Any, **options: Any) -> list[tuple[Tensor, Tensor]]:
    """:func:`by_hand` of every sample at every time, in some order."""
    one = replace(run.experience, timesteps_per_forward=1)
    ats = noised_batches(one, config.timesteps, shared=True)
    return [by_hand(NoisedByHand(at), *arguments, **options) for at in ats]


def learn(config: DGPOConfig, advantages: Sequence[float] = ADVANTAGES, *shape: int) -> Learning:
    """A run at OLD, whose samples the ODE drew there; ``shape`` is the samples, 12 if left out, and times of a forward."""
    return testing.learning(config, advantages, OLD, 4, testing.ODE(), *(shape or (12,)))


@pytest.mark.parametrize(
    "times",
    [Uniform(), Uniform(shared=False), LogitNormal(count=3, mean=0.5)],
    ids=["shared", "own", "logit-normal"],
)
@pytest.mark.parametrize("kl", [0.0, 3.0])
def test_loss_and_gradient_are_those_of_the_paper(times: Any, kl: float) -> None:
    run = learn(config(timesteps=times, kl=kl))
    run.move_to(*NEW)
    hands = [NoisedByHand(at) for at in run.noised_batches(times, shared=True)]
    losses = testing.check_losses(run, [by_hand(hand, NEW, OLD, kl) for hand in hands], gradients=(1e-4, 1e-5))
    assert len(losses) == times.count
    for loss, hand in zip(losses, hands, strict=True):
        weight = group_weight(ADVANTAGES, hand.error(NEW), hand.error(OLD))
        assert float((weight - 0.5).abs().max()) > 0.05, "too near to the start to tell a wrong weight"
        assert len(weight.unique()) == 3, "each group has its own weight"
        torch.testing.assert_close(loss.metrics["weight"].double(), weight, rtol=0, atol=1e-5)
        assert not loss.metrics["weight"].requires_grad
        assert set(loss.terms) == ({"kl"} if kl else set())
        if kl:
            torch.testing.assert_close(loss.terms["kl"].double(), hand.distance(NEW, OLD), rtol=1e-4, atol=1e-7)


def test_every_training_time_has_a_weight_of_its_own() -> None:
    apart = learn(config())
    together = learn(config(), ADVANTAGES, 12, 2)
    for run in (apart, together):
        run.move_to(*NEW)
    first, second = (loss.metrics["weight"] for loss in apart.losses())
    assert float((first - second).abs().min()) > 1e-3
    (both,) = together.losses()
    torch.testing.assert_close(both.metrics["weight"], torch.cat([first, second]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("batch_size", "timesteps_per_forward"), SHAPES)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_a_group_spread_over_forwards_learns_what_it_would_in_one(
    shared: bool, batch_size: int, timesteps_per_forward: int
) -> None:
    chosen = config(timesteps=Uniform(count=3, shared=shared), kl=3.0)
    run = learn(chosen, ADVANTAGES, batch_size, timesteps_per_forward)
    run.move_to(*NEW)
    testing.check_losses_in_any_order(run, all_by_hand(run, chosen, NEW, OLD, kl=3.0))


@pytest.mark.parametrize(("batch_size", "timesteps_per_forward"), [(5, 1), (4, 2), (3, 2), (1, 3)])
def test_a_forward_holds_no_more_than_the_config_allows(batch_size: int, timesteps_per_forward: int) -> None:
    run = learn(config(timesteps=Uniform(count=3)), ADVANTAGES, batch_size, timesteps_per_forward)
    run.move_to(*NEW)
    testing.check_forwards_fit(run, 3 * 12)


@pytest.mark.parametrize(("batch_size", "pieces"), [(12, 1), (3, 6)], ids=["whole", "spread"])
def test_while_the_reference_is_the_present_policy_every_weight_is_a_half(batch_size: int, pieces: int) -> None:
    run = learn(config(), ADVANTAGES, batch_size)
    for loss in testing.check_forwards(run, 2 * pieces, 1):
        assert torch.equal(loss.metrics["weight"], torch.full_like(loss.metrics["weight"], 0.5))
    expected = []
    for at in noised_batches(run.experience, Uniform(), shared=True):
        hand, half = NoisedByHand(at), torch.tensor(ADVANTAGES, dtype=torch.float64) / 2
        expected.append((half * hand.error(OLD), half[:, None] * hand.error_gradient(OLD)))
    testing.check_losses_in_any_order(run, expected)


MOVING = {"name": "constant", "decay": 0.5}


@pytest.mark.parametrize(
    ("options", "moved", "whole", "spread"),
    [
        ({}, False, 1, 1),
        ({}, True, 2, 3),  # spread: the group's errors and the reference's first, then again with a graph
        ({"kl": 1.0}, False, 1, 1),
        ({"kl": 1.0}, True, 2, 3),  # the reference is the anchor too
        ({"kl": 1.0, "reference_ema": MOVING}, True, 3, 4),
    ],
)
@pytest.mark.parametrize("batch_size", [4, 3])
def test_forwards_are_as_few_as_the_weights_that_differ_allow(
    options: dict[str, Any], moved: bool, whole: int, spread: int, batch_size: int
) -> None:
    run = learn(config(**options), ADVANTAGES, batch_size)
    if moved:
        run.move_through(NEW, LATER)
    # three groups, in one piece or in two, at two times
    testing.check_forwards(run, *((3 * 2, whole) if batch_size == 4 else (6 * 2, spread)))


@pytest.mark.parametrize("shared", [None, True, False], ids=["left-out", "on", "off"])
def test_the_members_of_a_group_share_noise_and_times_unless_they_are_not_to(watch: Any, shared: bool | None) -> None:
    seen = watch(DGPO, "losses")
    learn(config(timesteps=Uniform(shared=shared))).losses()
    shared = shared is not False
    assert len(seen) == 2
    every: set[float] = set()
    for at in seen:
        noise = at.target + at.samples.latents
        sigma = at.step.sigma[:, None, None, None]
        torch.testing.assert_close(at.step.latents, (1 - sigma) * at.samples.latents + sigma * noise)
        for group in range(3):
            rows = slice(4 * group, 4 * group + 4)
            apart = float((noise[rows] - noise[rows][0]).abs().flatten(1).amax(1)[1:].min())
            assert (apart < 1e-6) if shared else (apart > 0.1)
            assert len(at.step.sigma[rows].unique()) == (1 if shared else 4)
            every |= set(at.step.sigma[rows].tolist())
    assert len(every) == 2 * 3 * (1 if shared else 4), "no two groups, and no two times, share a sigma"


@pytest.mark.parametrize("weights", [OLD, NEW], ids=["at-the-start", "after-updates"])
@pytest.mark.parametrize("batch_size", [12, 3])
def test_advantages_of_zero_move_nothing(weights: Weights, batch_size: int) -> None:
    run = learn(config(), (0.0,) * 12, batch_size)
    run.move_to(*weights)
    losses = run.losses()
    assert not any(loss.values.any() for loss in losses)
    assert not any(run.gradients(loss.values).any() for loss in losses)
    testing.check_no_advantage_no_gradient(run)


@pytest.mark.parametrize("sample", range(4))
def test_a_step_lowers_the_error_of_a_better_sample_and_raises_that_of_a_worse_one(sample: int) -> None:
    run = learn(config())
    run.move_to(*NEW)
    for loss, at in zip(run.losses(), run.noised_batches(Uniform(), shared=True), strict=True):
        p, q = (torch.tensor(NEW, dtype=torch.float64) - 1e-4 * run.gradient(loss.values[sample])).tolist()
        hand = NoisedByHand(at)
        assert float((hand.error((p, q)) - hand.error(NEW))[sample]) * ADVANTAGES[sample] < 0


def test_a_group_whose_preference_is_learned_weighs_less() -> None:
    run = learn(config())
    (gradient,) = [run.gradient(loss.values[:4]) for loss in run.losses()[:1]]
    p, q = (torch.tensor(OLD, dtype=torch.float64) - 0.05 * gradient).tolist()
    run.move_to(p, q)
    assert run.losses()[0].metrics["weight"][0].item() < 0.5
    p, q = (torch.tensor(OLD, dtype=torch.float64) + 0.05 * gradient).tolist()
    run.move_to(p, q)
    assert run.losses()[0].metrics["weight"][0].item() > 0.5


@pytest.mark.parametrize("batch_size", [12, 3])
def test_a_frozen_reference_stays_what_training_started_from(batch_size: int) -> None:
    chosen = config(kl=3.0)
    run = learn(chosen, ADVANTAGES, batch_size)
    run.move_through(NEW, LATER)
    testing.check_losses_in_any_order(run, all_by_hand(run, chosen, LATER, OLD, kl=3.0))
    assert run.weights() == pytest.approx(LATER), "the reference's weights were left in place"


@pytest.mark.parametrize("batch_size", [12, 3])
def test_an_averaged_reference_follows_the_policy_and_the_kl_does_not(batch_size: int) -> None:
    average = {"name": "linear", "start": 0.75, "end": 0.25, "iterations": 2}
    chosen = config(kl=3.0, reference_ema=average)
    run = learn(chosen, ADVANTAGES, batch_size)
    run.move_to(*NEW)
    run.policy.iteration_finished(0)
    first = testing.blend(0.75, OLD, NEW)
    testing.check_losses_in_any_order(run, all_by_hand(run, chosen, NEW, first, kl=3.0))
    run.move_to(*LATER)
    run.policy.iteration_finished(1)
    second = testing.blend(0.5, first, LATER)
    run.move_to(*NEW)
    testing.check_losses_in_any_order(run, all_by_hand(run, chosen, NEW, second, kl=3.0, anchor=OLD))


@pytest.mark.parametrize("batch_size", [4, 3], ids=["whole", "spread"])
def test_a_guided_reference_is_evaluated_under_its_guidance_and_the_anchor_is_not(tmp_path: Path, batch_size: int) -> None:
    algorithm = {"name": "dgpo", "beta": BETA, "kl": 1.0, "clip_range": None, "timesteps": "uniform", "reference_guidance": 2.5}
    drawn = testing.guided_learning(tmp_path, algorithm, batch_size=batch_size)
    assert drawn.experience.plan.guidance == 1
    assert drawn.experience.plan.teacher_guidance == 2.5
    assert drawn.experience.conditions.negative is not None
    run = drawn.rows(range(4))  # one group, so that the order of the rows is plain
    # the anchor is the present policy, the reference is not
    losses = testing.check_forwards(run, *((2, 2) if batch_size == 4 else (4, 3)))
    found = torch.cat([loss.values for loss in losses]).split(4)
    for values, at in zip(found, noised_batches(run.experience, Uniform(), shared=True), strict=True):
        length = at.step.conditions.stack("length").double()
        hand, guided = NoisedByHand(at, length), NoisedByHand(at, 7 + 2.5 * (length - 7))
        weight = group_weight(hand.advantages, hand.error(OLD), guided.error(OLD))
        assert float((weight - 0.5).abs().max()) > 0.02
        torch.testing.assert_close(values.double(), weight * hand.advantages * hand.error(OLD), rtol=1e-4, atol=1e-5)
    assert all(not loss.terms["kl"].any() for loss in losses)


def test_without_guidance_of_its_own_the_reference_asks_for_no_negative_prompt(tmp_path: Path) -> None:
    run = testing.guided_learning(tmp_path, {"name": "dgpo", "clip_range": None, "timesteps": "uniform"})
    assert run.experience.plan.teacher_guidance == 1
    assert run.experience.conditions.negative is None
    for loss in run.losses():
        assert torch.equal(loss.metrics["weight"], torch.full_like(loss.values, 0.5))


@pytest.mark.parametrize(("guidance", "wanted"), [(None, 2.0), (1.5, 2.0), (3.0, 3.0)])
def test_the_plan_carries_the_largest_guidance_asked_for(guidance: float | None, wanted: float) -> None:
    plan = testing.make_plan(config(reference_guidance=guidance), teacher_guidance=2.0)
    assert (plan.teacher_guidance, plan.guidance) == (wanted, 1)
    assert (plan.weights, plan.recorded) == (None, frozenset())


PLAIN = {"name": "dgpo", "clip_range": None, "timesteps": {"name": "uniform"}}


@pytest.mark.parametrize("batch_size", [4, 3], ids=["whole", "spread"])
def test_the_kl_is_to_the_anchor_under_guidance_of_its_own(tmp_path: Path, batch_size: int) -> None:
    drawn = testing.guided_learning(tmp_path, {**PLAIN, "kl": 0.5, "kl_guidance": 2.5}, OLD, batch_size)
    assert (drawn.experience.plan.guidance, drawn.experience.plan.teacher_guidance) == (1, 2.5)
    run = drawn.rows(range(4))  # one group, so that the order of the rows is plain
    # the reference of the preference is the present policy, the anchor is not
    losses = testing.check_forwards(run, 2 if batch_size == 4 else 4, 2)
    terms = torch.cat([loss.terms["kl"] for loss in losses]).split(4)
    for kl, at in zip(terms, noised_batches(run.experience, Uniform(), shared=True), strict=True):
        length = at.step.conditions.stack("length").double()
        hand, guided = NoisedByHand(at, length), NoisedByHand(at, 7 + 2.5 * (length - 7))
        distance = (hand.velocity(OLD) - guided.velocity(OLD)).square().mean(1)
        assert float(distance.min()) > 1e-5
        torch.testing.assert_close(kl.double(), distance, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("options", "wanted"), [({"kl": 1.0}, 3.0), ({}, 1.0)], ids=["kl", "without-kl"])
def test_the_plan_asks_for_the_guidance_of_a_kl_that_there_is(options: dict[str, Any], wanted: float) -> None:
    assert testing.make_plan(config(kl_guidance=3.0, **options)).teacher_guidance == wanted


@pytest.mark.parametrize("clip_range", [0.01, (0.002, 0.02)], ids=["one bound", "two bounds"])
def test_the_clip_cuts_gradients_past_the_ratio_to_the_slow_average(clip_range: Any) -> None:
    run = learn(config(clip_range=clip_range))
    run.move_to(*NEW)
    below, above = clip_range if isinstance(clip_range, tuple) else (clip_range, clip_range)
    expected, cuts = [], []
    for at in run.noised_batches(Uniform(), shared=True):
        hand = NoisedByHand(at)
        ratio = torch.exp(hand.error(OLD) - hand.error(NEW))  # the average has not moved
        cut = torch.where(hand.advantages > 0, ratio > 1 + above, ratio < 1 - below)
        loss, gradient = by_hand(hand, NEW, OLD)
        expected.append((loss, torch.where(cut[:, None], 0.0, gradient)))
        cuts.append(cut)
    testing.check_losses(run, expected, gradients=(1e-4, 1e-5))
    assert 0 < int(torch.cat(cuts).sum()) < 24


def clipped(at: Any, slow: Weights, kl: float, new: Any) -> Tensor:
    """[12]: the loss of all twelve samples at one time, differentiable by ``new``: neither the clip nor the weight is."""
    hand, start = NoisedByHand(at), torch.as_tensor(new, dtype=torch.float64).tolist()
    error, ratio = hand.error(new), torch.exp(hand.error(slow) - hand.error(start))
    cut = torch.where(hand.advantages > 0, ratio > 1.01, ratio < 0.99)
    weight = group_weight(hand.advantages, hand.error(start), hand.error(OLD))
    return weight * hand.advantages * torch.where(cut, error.detach(), error) + kl * hand.distance(new, OLD)


@pytest.mark.parametrize("batch_size", [12, 3], ids=["whole", "spread"])
def test_as_published_it_clips_against_an_average_that_follows_by_steps_and_holds_to_the_start(batch_size: int) -> None:
    published = DGPOConfig.model_validate({"beta": BETA, "kl": 0.02})
    assert (published.clip_range, published.timesteps.low) == (0.01, 0.5625)
    run = learn(published, ADVANTAGES, batch_size)
    run.move_to(*NEW)
    run.policy.step_finished(299)  # as much of itself as it is to keep after that many steps
    slow = testing.blend(0.299, OLD, NEW)
    assert run.weights("clip average") == pytest.approx(slow, rel=1e-6)
    run.move_to(*LATER)
    expected = [
        (clipped(at, slow, 0.02, LATER), testing.autograd_by_hand(lambda pair, at=at: clipped(at, slow, 0.02, pair), LATER))
        for at in noised_batches(run.experience, published.timesteps, shared=True)
    ]
    losses = testing.check_losses_in_any_order(run, expected)
    assert 0 < int(torch.cat([loss.cuts["clip_fraction"] for loss in losses]).sum()) < 24
