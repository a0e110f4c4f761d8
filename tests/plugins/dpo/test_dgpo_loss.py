"""DGPO's group weights, loss and gradient, worked out by hand in float64. arXiv:2510.08425, eq. 18."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory import Canvas, SamplingPlan
from flowfactory.flow.timesteps import LogitNormal, NoisedBatch, Uniform, noised_batches
from flowfactory.testing import ODE, Learning
from flowfactory_dpo.dgpo import DGPO, DGPOConfig

OLD = (0.3, -0.2)  # START of conftest.py
NEW = (0.36, -0.25)
LATER = (0.2, -0.1)
BETA = 60.0
ADVANTAGES = (1.2, -0.7, 0.4, -0.9, 1.3, -0.3, 0.5, -1.5, -0.4, -0.1, 0.7, -0.2)
# samples a forward and times a forward: the groups of 4 together, one by one, and spread over forwards
WHOLE = [(12, 1), (8, 2)]
SPREAD = [(3, 1), (1, 1), (3, 2)]

Weights = tuple[float, float]


def config(**options: Any) -> DGPOConfig:
    return DGPOConfig.model_validate({"beta": BETA, **options})


def weighed(advantages: Any, new: Tensor, reference: Tensor, group_size: int = 4) -> Tensor:
    """[b]: sigmoid of the mean over the group of A beta (e - e_ref); the rows of a group stand together."""
    terms = torch.as_tensor(advantages).double() * BETA * (new - reference)
    return torch.cat([torch.sigmoid(group.mean()).expand(group_size) for group in terms.split(group_size)])


def worked(hand: Any, new: Weights, reference: Weights, kl: float = 0.0, anchor: Weights = OLD) -> tuple[Tensor, ...]:
    """Losses [12], gradients [12, 2] and weights [12] of rows that are all twelve samples at one time."""
    advantages = torch.tensor(ADVANTAGES, dtype=torch.float64)
    weight = weighed(advantages, hand.error(new), hand.error(reference))
    divergence, pull = hand.divergence(new, anchor)
    loss = weight * advantages * hand.error(new) + kl * divergence
    return loss, (weight * advantages)[:, None] * hand.slope(new) + kl * pull, weight


def each(run: Learning) -> tuple[Tensor, Tensor]:
    """The values [b] of all losses of an update and the gradient of each [b, 2]."""
    values = torch.cat([loss.values for loss in run.losses()])
    return values.detach().double(), torch.stack([run.gradient(value) for value in values])


def all_worked(run: Learning, by_hand: Any, config: DGPOConfig, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """What :func:`each` should be, in some order."""
    one = replace(run.experience, timesteps_per_forward=1)
    parts = [worked(by_hand(at), *arguments, **options) for at in noised_batches(one, config.timesteps, shared=True)]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """Each sample and time once, in whatever order: the forwards decide that."""
    ours, theirs = (torch.cat([values[:, None], gradients], dim=1) for values, gradients in (found, expected))
    nearest = torch.cdist(theirs, ours).argmin(1)
    assert nearest.sort().values.tolist() == list(range(len(ours)))
    torch.testing.assert_close(found[0][nearest], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1][nearest], expected[1], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "times",
    [Uniform(), Uniform(shared=False), LogitNormal(count=3, mean=0.5)],
    ids=["shared", "own", "logit-normal"],
)
@pytest.mark.parametrize("kl", [0.0, 3.0])
def test_loss_and_gradient_are_those_of_the_paper(learning: Any, by_hand: Any, times: Any, kl: float) -> None:
    run = learning(config(timesteps=times, kl=kl), ADVANTAGES)
    run.move_to(*NEW)
    losses = run.losses()
    assert len(losses) == times.count
    for loss, at in zip(losses, noised_batches(run.experience, times, shared=True), strict=True):
        hand = by_hand(at)
        values, gradients, weight = worked(hand, NEW, OLD, kl)
        assert float((weight - 0.5).abs().max()) > 0.05, "too near to the start to tell a wrong weight"
        assert len(weight.unique()) == 3, "each group has its own weight"
        torch.testing.assert_close(loss.values.double(), values, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(loss.metrics["weight"].double(), weight, rtol=0, atol=1e-5)
        assert not loss.metrics["weight"].requires_grad
        for sample in range(12):
            torch.testing.assert_close(run.gradient(loss.values[sample]), gradients[sample], rtol=1e-4, atol=1e-5)
        assert set(loss.terms) == ({"kl"} if kl else set())
        if kl:
            torch.testing.assert_close(loss.terms["kl"].double(), hand.divergence(NEW, OLD)[0], rtol=1e-4, atol=1e-7)


def test_every_training_time_has_a_weight_of_its_own(learning: Any) -> None:
    apart = learning(config(), ADVANTAGES)
    together = learning(config(), ADVANTAGES, timesteps_per_forward=2)
    for run in (apart, together):
        run.move_to(*NEW)
    first, second = (loss.metrics["weight"] for loss in apart.losses())
    assert float((first - second).abs().min()) > 1e-3
    (both,) = together.losses()
    torch.testing.assert_close(both.metrics["weight"], torch.cat([first, second]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("batch_size", "timesteps_per_forward"), WHOLE + SPREAD)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_a_group_spread_over_forwards_learns_what_it_would_in_one(
    learning: Any, by_hand: Any, shared: bool, batch_size: int, timesteps_per_forward: int
) -> None:
    chosen = config(timesteps=Uniform(count=3, shared=shared), kl=3.0)
    run = learning(chosen, ADVANTAGES, batch_size, timesteps_per_forward)
    run.move_to(*NEW)
    assert_same(each(run), all_worked(run, by_hand, chosen, NEW, OLD, kl=3.0))


@pytest.mark.parametrize(("batch_size", "timesteps_per_forward"), [(5, 1), (4, 2), (3, 2), (1, 3)])
def test_a_forward_holds_no_more_than_the_config_allows(learning: Any, batch_size: int, timesteps_per_forward: int) -> None:
    run = learning(config(timesteps=Uniform(count=3)), ADVANTAGES, batch_size, timesteps_per_forward)
    run.move_to(*NEW)
    rows: list[int] = []
    run.policy.modules["transformer"].register_forward_hook(lambda _, inputs, velocity: rows.append(len(velocity)))
    losses = run.losses()
    assert max(rows) <= batch_size * timesteps_per_forward
    assert sum(len(loss.values) for loss in losses) == 3 * 12


@pytest.mark.parametrize("batch_size", [12, 3])
def test_while_the_reference_is_the_present_policy_every_weight_is_a_half(
    learning: Any, by_hand: Any, count: Any, batch_size: int
) -> None:
    chosen = config()
    run = learning(chosen, ADVANTAGES, batch_size)
    counted = count(run.policy)
    losses = run.losses()
    assert counted.forwards == len(losses)
    for loss in losses:
        assert torch.equal(loss.metrics["weight"], torch.full_like(loss.metrics["weight"], 0.5))
    expected = []
    for at in noised_batches(run.experience, chosen.timesteps, shared=True):
        hand, half = by_hand(at), torch.tensor(ADVANTAGES, dtype=torch.float64) / 2
        expected.append((half * hand.error(OLD), half[:, None] * hand.slope(OLD)))
    assert_same(each(run), (torch.cat([part[0] for part in expected]), torch.cat([part[1] for part in expected])))


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
    learning: Any, count: Any, options: dict[str, Any], moved: bool, whole: int, spread: int, batch_size: int
) -> None:
    run = learning(config(**options), ADVANTAGES, batch_size)
    if moved:
        run.move_to(*NEW)
        run.policy.iteration_finished(0)
        run.move_to(*LATER)
    counted = count(run.policy)
    losses = run.losses()
    assert len(losses) == (3 if batch_size == 4 else 6) * 2, "three groups, in one piece or in two, at two times"
    assert counted.forwards == (whole if batch_size == 4 else spread) * len(losses)
    assert counted.graphs == len(losses)


@pytest.mark.parametrize("shared", [None, True, False], ids=["left-out", "on", "off"])
def test_the_members_of_a_group_share_noise_and_times_unless_they_are_not_to(
    learning: Any, monkeypatch: pytest.MonkeyPatch, shared: bool | None
) -> None:
    seen: list[NoisedBatch] = []
    losses = DGPO.losses

    def watched(self: DGPO, at: NoisedBatch, policy: Any) -> Any:
        seen.append(at)
        return losses(self, at, policy)

    monkeypatch.setattr(DGPO, "losses", watched)
    learning(config(timesteps=Uniform(shared=shared)), ADVANTAGES).losses()
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
def test_advantages_of_zero_move_nothing(learning: Any, weights: Weights, batch_size: int) -> None:
    run = learning(config(), (0.0,) * 12, batch_size)
    run.move_to(*weights)
    values, gradients = each(run)
    assert not values.any()
    assert not gradients.any()


@pytest.mark.parametrize("sample", range(4))
def test_a_step_lowers_the_error_of_a_better_sample_and_raises_that_of_a_worse_one(
    learning: Any, by_hand: Any, sample: int
) -> None:
    run = learning(config(), ADVANTAGES)
    run.move_to(*NEW)
    for loss, at in zip(run.losses(), noised_batches(run.experience, Uniform(), shared=True), strict=True):
        p, q = (torch.tensor(NEW, dtype=torch.float64) - 1e-4 * run.gradient(loss.values[sample])).tolist()
        hand = by_hand(at)
        assert float((hand.error((p, q)) - hand.error(NEW))[sample]) * ADVANTAGES[sample] < 0


def test_a_group_whose_preference_is_learned_weighs_less(learning: Any, by_hand: Any) -> None:
    run = learning(config(), ADVANTAGES)
    (gradient,) = [run.gradient(loss.values[:4]) for loss in run.losses()[:1]]
    p, q = (torch.tensor(OLD, dtype=torch.float64) - 0.05 * gradient).tolist()
    run.move_to(p, q)
    assert run.losses()[0].metrics["weight"][0].item() < 0.5
    p, q = (torch.tensor(OLD, dtype=torch.float64) + 0.05 * gradient).tolist()
    run.move_to(p, q)
    assert run.losses()[0].metrics["weight"][0].item() > 0.5


@pytest.mark.parametrize("batch_size", [12, 3])
def test_a_frozen_reference_stays_what_training_started_from(learning: Any, by_hand: Any, batch_size: int) -> None:
    chosen = config(kl=3.0)
    run = learning(chosen, ADVANTAGES, batch_size)
    run.move_to(*NEW)
    run.policy.iteration_finished(0)
    run.move_to(*LATER)
    assert_same(each(run), all_worked(run, by_hand, chosen, LATER, OLD, kl=3.0))
    present = [weight.item() for weight in run.policy.parameters.values()]
    assert present == pytest.approx(LATER), "the reference's weights were left in place"


@pytest.mark.parametrize("batch_size", [12, 3])
def test_an_averaged_reference_follows_the_policy_and_the_kl_does_not(learning: Any, by_hand: Any, batch_size: int) -> None:
    average = {"name": "linear", "start": 0.75, "end": 0.25, "iterations": 2}
    chosen = config(kl=3.0, reference_ema=average)
    run = learning(chosen, ADVANTAGES, batch_size)
    run.move_to(*NEW)
    run.policy.iteration_finished(0)
    first = (0.75 * OLD[0] + 0.25 * NEW[0], 0.75 * OLD[1] + 0.25 * NEW[1])
    assert_same(each(run), all_worked(run, by_hand, chosen, NEW, first, kl=3.0))
    run.move_to(*LATER)
    run.policy.iteration_finished(1)
    second = (0.5 * first[0] + 0.5 * LATER[0], 0.5 * first[1] + 0.5 * LATER[1])
    run.move_to(*NEW)
    assert_same(each(run), all_worked(run, by_hand, chosen, NEW, second, kl=3.0, anchor=OLD))


@pytest.mark.parametrize("batch_size", [4, 3], ids=["whole", "spread"])
def test_a_guided_reference_is_evaluated_under_its_guidance_and_the_anchor_is_not(
    drawn: Any, settings: dict[str, Any], by_hand: Any, count: Any, batch_size: int
) -> None:
    settings["training"]["batch_size"] = batch_size
    run, experience = drawn({"name": "dgpo", "beta": BETA, "kl": 1.0, "reference_guidance": 2.5})
    assert experience.plan.guidance == 1
    assert experience.plan.teacher_guidance == 2.5
    assert experience.conditions.negative is not None
    experience = experience.rows(range(4))  # one group, so that the order of the rows is plain
    counted = count(run.policy)
    losses = list(run.assembly.hooks.update(experience, run.policy))
    pieces = 2 * (1 if batch_size == 4 else 2)
    assert len(losses) == pieces
    assert counted.forwards == (2 if batch_size == 4 else 3) * pieces, "the anchor is the present policy, the reference is not"
    found = torch.cat([loss.values for loss in losses]).split(4)
    for values, at in zip(found, noised_batches(experience, Uniform(), shared=True), strict=True):
        length = at.step.conditions.stack("length").double()
        error = by_hand(at, length).error(OLD)
        weight = weighed(experience.advantages, error, by_hand(at, 7 + 2.5 * (length - 7)).error(OLD))
        assert float((weight - 0.5).abs().max()) > 0.02
        torch.testing.assert_close(values.double(), weight * experience.advantages.double() * error, rtol=1e-4, atol=1e-5)
    assert all(not loss.terms["kl"].any() for loss in losses)


def test_without_guidance_of_its_own_the_reference_asks_for_no_negative_prompt(drawn: Any) -> None:
    run, experience = drawn({"name": "dgpo"})
    assert experience.plan.teacher_guidance == 1
    assert experience.conditions.negative is None
    for loss in run.assembly.hooks.update(experience, run.policy):
        assert torch.equal(loss.metrics["weight"], torch.full_like(loss.values, 0.5))


@pytest.mark.parametrize(("guidance", "wanted"), [(None, 2.0), (1.5, 2.0), (3.0, 3.0)])
def test_the_plan_carries_the_largest_guidance_asked_for(guidance: float | None, wanted: float) -> None:
    given = SamplingPlan(4, Canvas(4, 4), 1.0, ODE(), 0, 0, teacher_guidance=2.0)
    plan = config(reference_guidance=guidance).build("algorithm").plan(given)
    assert plan.teacher_guidance == wanted
    assert plan.guidance == 1
    assert plan.weights is None
    assert plan.recorded == frozenset()
