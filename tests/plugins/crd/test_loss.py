"""CRD's centres, loss and gradient, worked out by hand in float64. Centred reward distillation, arXiv:2603.14128."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory import Canvas, RunInfo, SamplingPlan, flow, testing
from flowfactory.config.ema import Constant, Linear, PiecewiseLinear
from flowfactory.flow.timesteps import Discrete, LogitNormal, NoisedBatch, Uniform, noised_batches
from flowfactory.testing import ODE, Learning
from flowfactory_crd.crd import OLD, CRDConfig

START = (0.3, -0.2)  # of conftest.py
NEW = (0.36, -0.25)
LATER = (0.2, -0.1)
# of the last two groups one has no bad sample and one no good one; 2.0 and -1.9 are past an advantage_max of 1.6
ADVANTAGES = (1.2, -0.7, 0.4, -1.9, 0.9, 0.0, 2.0, 0.0, -0.4, 0.0, 0.0, -1.1)
# samples a forward and times a forward: the groups of 4 together, one by one, and spread over forwards
WHOLE = [(12, 1), (8, 2)]
SPREAD = [(3, 1), (1, 1), (3, 2)]
CENTRES = ["mean", "pools", "softmax"]

Weights = tuple[float, float]


def config(**options: Any) -> CRDConfig:
    return CRDConfig.model_validate({"beta": 3.0, "advantage_max": 1.6, "temperature": 0.3, **options})


class ByHand:
    """Rows of places in float64, with the flow p x + q sigma; ``lengths`` [b] multiply sigma where guidance is minded."""

    def __init__(self, at: NoisedBatch, lengths: Tensor | float = 1.0) -> None:
        self.x, self.target = at.step.latents.double().flatten(1), at.target.double().flatten(1)
        self.sigma = (at.step.sigma.double() * lengths)[:, None]

    def velocity(self, weights: Weights) -> Tensor:
        return weights[0] * self.x + weights[1] * self.sigma

    def by_weight(self, elements: Tensor) -> Tensor:
        """[b, 2]: the mean over elements of a derivative by the velocity, times dv/dp = x and dv/dq = sigma."""
        return torch.stack([(elements * self.x).mean(1), (elements * self.sigma).mean(1)], dim=1)

    def error(self, weights: Weights, scaled: bool) -> tuple[Tensor, Tensor]:
        """mean (v - t)² / w [b] and its gradient [b, 2], w the mean absolute error without a gradient, or one."""
        apart = self.velocity(weights) - self.target
        unit = apart.abs().mean(1) if scaled else torch.ones(len(apart), dtype=torch.float64)
        return apart.square().mean(1) / unit, self.by_weight(2 * apart) / unit[:, None]


def optimal(advantages: Any, maximum: float) -> list[float]:
    return [min(1.0, max(0.0, a / (2 * maximum) + 0.5)) for a in advantages]


def shares(centre: str, r: list[float], temperature: float) -> list[list[float]]:
    """What each of the members of one group counts in its centre, for each direction."""
    if centre == "mean":
        return [[1 / len(r)] * len(r)]
    if centre == "pools":
        pools = [[i for i, x in enumerate(r) if x > 0.5], [i for i, x in enumerate(r) if x < 0.5]]
        pools = [pool or [*range(len(r))] for pool in pools]
        return [[(i in pool) / len(pool) for i in range(len(r))] for pool in pools]
    directions = [[math.exp(sign * x / temperature) for x in r] for sign in (1, -1)]
    return [[weight / sum(weights) for weight in weights] for weights in directions]


def worked(
    options: CRDConfig,
    implicit: Tensor,
    slope: Tensor,
    advantages: Any = ADVANTAGES,
) -> tuple[Tensor, Tensor]:
    """Losses [b] and gradients [b, 2] without the KL, of implicit rewards [b] with gradient ``slope`` [b, 2], groups of 4."""
    beta, maximum = options.beta, options.advantage_max
    values, gradients = torch.zeros(len(implicit), dtype=torch.float64), torch.zeros_like(slope)
    r = optimal(advantages, maximum)
    for first in range(0, len(r), 4):
        group = range(first, first + 4)
        directions = shares(options.centre, [r[i] for i in group], options.temperature)
        for share in directions:
            own = sum(w * float(implicit[i]) for w, i in zip(share, group, strict=True))
            reward = sum(w * r[i] for w, i in zip(share, group, strict=True))
            for i in group:
                z, d = beta * (float(implicit[i]) - own), r[i] - reward
                if options.loss == "mse":
                    value, by_z = (z - d) ** 2, 2 * (z - d)
                else:
                    wanted = 1 / (1 + math.exp(-d))
                    value = wanted * math.log1p(math.exp(-z)) + (1 - wanted) * math.log1p(math.exp(z))
                    by_z = 1 / (1 + math.exp(-z)) - wanted
                values[i] += value * maximum / beta / len(directions)
                gradients[i] += by_z * beta * slope[i] * maximum / beta / len(directions)
    return values, gradients


def at_weights(
    options: CRDConfig, hand: ByHand, new: Weights, old: Weights, reference: Weights = START
) -> tuple[Tensor, Tensor]:
    """Losses [12] and gradients [12, 2] of rows that are all twelve samples at one time, the KL among them."""
    (error, slope), (before, _) = hand.error(new, options.scaled), hand.error(old, options.scaled)
    values, gradients = worked(options, before - error, -slope)
    weight = kl_weight(options)
    apart = hand.velocity(new) - hand.velocity(reference)
    return values + weight * apart.square().mean(1), gradients + weight[:, None] * hand.by_weight(2 * apart)


def kl_weight(options: CRDConfig, advantages: Any = ADVANTAGES) -> Tensor:
    """kl (c + r (1 - c)) with c = min(1, 1e-4 / kl), or kl."""
    r = torch.tensor(optimal(advantages, options.advantage_max), dtype=torch.float64)
    if not options.kl or not options.kl_adaptive:
        return torch.full_like(r, options.kl)
    least = min(1.0, 1e-4 / options.kl)
    return options.kl * (least + r * (1 - least))


def each(run: Learning) -> tuple[Tensor, Tensor]:
    """The values [b] of all losses of an update and the gradient of each [b, 2]."""
    values = torch.cat([loss.values for loss in run.losses()])
    return values.detach().double(), torch.stack([run.gradient(value) for value in values])


def all_worked(run: Learning, options: CRDConfig, *arguments: Any) -> tuple[Tensor, Tensor]:
    """What :func:`each` should be, in some order."""
    one = replace(run.experience, timesteps_per_forward=1)
    parts = [at_weights(options, ByHand(at), *arguments) for at in noised_batches(one, options.timesteps)]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """Each sample and time once, in whatever order: the forwards decide that."""
    ours, theirs = (torch.cat([values[:, None], gradients], dim=1) for values, gradients in (found, expected))
    nearest = torch.cdist(theirs, ours).argmin(1)
    assert nearest.sort().values.tolist() == list(range(len(ours)))
    torch.testing.assert_close(found[0][nearest], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1][nearest], expected[1], rtol=1e-4, atol=2e-5)


def assert_losses(run: Learning, options: CRDConfig, new: Weights, old: Weights) -> None:
    losses = run.losses()
    assert len(losses) == options.timesteps.count
    for loss, at in zip(losses, noised_batches(run.experience, options.timesteps), strict=True):
        values, gradients = at_weights(options, ByHand(at), new, old)
        torch.testing.assert_close(loss.values.double(), values, rtol=1e-5, atol=1e-5)
        for sample in range(12):
            torch.testing.assert_close(run.gradient(loss.values[sample]), gradients[sample], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("scaled", [True, False], ids=["scaled", "plain"])
@pytest.mark.parametrize("form", ["mse", "bce"])
@pytest.mark.parametrize("centre", CENTRES)
def test_loss_and_gradient_are_those_of_the_paper(learning: Any, centre: str, form: str, scaled: bool) -> None:
    options = config(centre=centre, loss=form, scaled=scaled)
    run = learning(options, ADVANTAGES)
    run.move_to(*NEW)
    assert_losses(run, options, NEW, START)


@pytest.mark.parametrize(
    "times", [Uniform(shared=True), LogitNormal(count=3, mean=0.5), Discrete(count=4)], ids=lambda times: times.name
)
def test_loss_and_gradient_are_those_of_the_paper_at_any_times(learning: Any, times: Any) -> None:
    options = config(timesteps=times)
    run = learning(options, ADVANTAGES)
    run.move_to(*NEW)
    assert_losses(run, options, NEW, START)


@pytest.mark.parametrize("form", ["mse", "bce"])
def test_before_the_first_update_the_gradient_pulls_by_the_centred_reward_alone(learning: Any, form: str) -> None:
    options = config(loss=form)
    run = learning(options, ADVANTAGES)
    r = optimal(ADVANTAGES, 1.6)
    for loss, at in zip(run.losses(), noised_batches(run.experience, options.timesteps), strict=True):
        assert not loss.metrics["implicit_reward"].any()
        slope = -ByHand(at).error(START, scaled=True)[1]
        for sample in range(12):
            first = sample - sample % 4
            centred = r[sample] - sum(r[first : first + 4]) / 4
            # at an implicit reward of zero the derivatives are -2 d and 1/2 - sigmoid(d)
            by_z = -2 * centred if form == "mse" else 0.5 - 1 / (1 + math.exp(-centred))
            expected = 1.6 * by_z * slope[sample]
            torch.testing.assert_close(run.gradient(loss.values[sample]), expected, rtol=1e-4, atol=1e-5)


def test_an_implicit_reward_is_the_old_error_less_the_new_in_units_of_each_ones_own(learning: Any) -> None:
    for scaled in (True, False):
        run = learning(config(scaled=scaled), ADVANTAGES)
        run.move_to(*NEW)
        for loss, at in zip(run.losses(), noised_batches(run.experience, Uniform()), strict=True):
            apart, before = (ByHand(at).velocity(weights) - at.target.double().flatten(1) for weights in (NEW, START))
            new = apart.square().mean(1) / (apart.abs().mean(1) if scaled else 1)
            old = before.square().mean(1) / (before.abs().mean(1) if scaled else 1)
            torch.testing.assert_close(loss.metrics["implicit_reward"].double(), -(new - old), rtol=1e-4, atol=1e-6)
            reward = torch.tensor(optimal(ADVANTAGES, 1.6))
            torch.testing.assert_close(loss.metrics["optimality"], reward, rtol=0, atol=1e-6)
            assert loss.metrics["optimality"].min() == 0
            assert loss.metrics["optimality"].max() == 1


def test_the_unit_of_an_error_is_no_smaller_than_1e_5(learning: Any) -> None:
    options = config()
    run = learning(options, ADVANTAGES)
    at = next(noised_batches(run.experience, options.timesteps))
    clean = replace(at, target=torch.zeros_like(at.target))
    algorithm = options.build("algorithm")
    for apart, wanted in ((1e-6, 1e-12 / 1e-5), (1e-3, 1e-3), (0.0, 0.0)):
        error = algorithm.error(torch.full_like(at.target, apart), clean)
        torch.testing.assert_close(error, torch.full_like(error, wanted), rtol=1e-5, atol=0)


def test_a_group_without_good_or_without_bad_samples_is_centred_as_a_whole(learning: Any) -> None:
    options = config(centre="pools")
    run = learning(options, ADVANTAGES)
    at = next(noised_batches(run.experience, options.timesteps))
    implicit = torch.arange(12.0).square()
    good, bad = options.build("algorithm").centres(at, implicit)
    # 0, 1, 4, 9 | 16, 25, 36, 49 | 64, 81, 100, 121; good are 0 and 2, 4 and 6, none; bad 1 and 3, none, 8 and 11
    assert good[0].tolist() == [2.0] * 4 + [26.0] * 4 + [91.5] * 4
    assert bad[0].tolist() == [5.0] * 4 + [31.5] * 4 + [92.5] * 4
    r = optimal(ADVANTAGES, 1.6)
    expected = [(r[0] + r[2]) / 2, (r[4] + r[6]) / 2, sum(r[8:]) / 4]
    assert good[1][::4].tolist() == pytest.approx(expected)


def test_a_hot_softmax_is_the_mean_and_a_cold_one_the_best_and_the_worst(learning: Any) -> None:
    run = learning(config(), ADVANTAGES)
    at = next(noised_batches(run.experience, Uniform()))
    implicit = torch.arange(12.0)
    for own, _ in config(centre="softmax", temperature=1e4).build("algorithm").centres(at, implicit):
        torch.testing.assert_close(own[::4], torch.tensor([1.5, 5.5, 9.5]), rtol=0, atol=1e-3)
    up, down = config(centre="softmax", temperature=0.02).build("algorithm").centres(at, implicit)
    torch.testing.assert_close(up[0][::4], torch.tensor([0.0, 6.0, 9.5]), rtol=0, atol=1e-2)  # 9 and 10 are equally good
    torch.testing.assert_close(down[0][::4], torch.tensor([3.0, 6.0, 11.0]), rtol=0, atol=1e-2)  # 5 and 7 equally bad


def test_the_centres_have_no_gradient(learning: Any) -> None:
    for centre in CENTRES:
        options = config(centre=centre)
        run = learning(options, ADVANTAGES)
        at = next(noised_batches(run.experience, options.timesteps))
        implicit = torch.zeros(12, requires_grad=True)
        for pair in options.build("algorithm").centres(at, implicit):
            assert not any(part.requires_grad for part in pair)


@pytest.mark.parametrize(("batch_size", "timesteps_per_forward"), WHOLE + SPREAD)
@pytest.mark.parametrize("moved", [False, True], ids=["at-the-start", "after-updates"])
def test_a_group_spread_over_forwards_learns_what_it_would_in_one(
    learning: Any, batch_size: int, timesteps_per_forward: int, moved: bool
) -> None:
    options = config(timesteps=Uniform(count=3), centre="softmax", kl=0.5)
    run = learning(options, ADVANTAGES, batch_size, timesteps_per_forward)
    if moved:
        run.move_to(*NEW)
    assert_same(each(run), all_worked(run, options, NEW if moved else START, START))


@pytest.mark.parametrize("form", ["mse", "bce"])
@pytest.mark.parametrize("centre", CENTRES)
def test_a_spread_group_has_every_kind_of_centre(learning: Any, centre: str, form: str) -> None:
    options = config(centre=centre, loss=form, scaled=False)
    run = learning(options, ADVANTAGES, 3)
    run.move_to(*NEW)
    assert_same(each(run), all_worked(run, options, NEW, START))


@pytest.mark.parametrize(("batch_size", "timesteps_per_forward"), [(5, 1), (4, 2), (3, 2), (1, 3)])
def test_a_forward_holds_no_more_than_the_config_allows(learning: Any, batch_size: int, timesteps_per_forward: int) -> None:
    run = learning(config(timesteps=Uniform(count=3)), ADVANTAGES, batch_size, timesteps_per_forward)
    run.move_to(*NEW)
    rows: list[int] = []
    run.policy.modules["transformer"].register_forward_hook(lambda _, inputs, velocity: rows.append(len(velocity)))
    losses = run.losses()
    assert max(rows) <= batch_size * timesteps_per_forward
    assert sum(len(loss.values) for loss in losses) == 3 * 12


STILL = {"name": "constant", "decay": 1.0}


@pytest.mark.parametrize(
    ("options", "moved", "whole", "spread"),
    [
        ({}, False, 1, 1),
        ({}, True, 2, 3),  # spread: the group's errors and the old ones first, then again with a graph
        ({"kl": 0.5}, False, 1, 1),
        ({"kl": 0.5}, True, 3, 4),
        ({"kl": 0.5, "old": STILL}, True, 2, 3),  # the old policy is the reference too
        ({"kl": 0.5, "kl_guidance": 2.0}, False, 2, 2),
        ({"kl": 0.5, "kl_guidance": 2.0}, True, 3, 4),
        ({"kl_guidance": 2.0}, True, 2, 3),
    ],
)
@pytest.mark.parametrize("batch_size", [4, 3], ids=["whole", "spread"])
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


@pytest.mark.parametrize("batch_size", [12, 3], ids=["whole", "spread"])
@pytest.mark.parametrize(("kl", "adaptive"), [(0.5, True), (0.5, False), (5e-5, True)], ids=["adaptive", "even", "least"])
def test_the_kl_is_weighed_by_the_reward(learning: Any, kl: float, adaptive: bool, batch_size: int) -> None:
    options = config(kl=kl, kl_adaptive=adaptive)
    run = learning(options, ADVANTAGES, batch_size)
    run.move_to(*NEW)
    weight = kl_weight(options)
    assert (len(weight.unique()) > 5) == (adaptive and kl > 1e-4), "up to 1e-4 nothing is left to adapt"
    assert float(weight.min()) == pytest.approx(1e-4 if adaptive and kl > 1e-4 else kl), "a sample with reward 0 keeps 1e-4"
    assert_same(each(run), all_worked(run, options, NEW, START))


@pytest.mark.parametrize("kl", [0.5, 5e-5])
def test_a_sample_of_no_worth_keeps_a_kl_of_1e_4_or_all_of_a_smaller_one(learning: Any, kl: float) -> None:
    run, without = (learning(config(loss="bce", kl=weight), ADVANTAGES) for weight in (kl, 0.0))
    for each_run in (run, without):
        each_run.move_to(8.0, -4.0)  # so far that a weight as small as this one tells
    for loss, other, at in zip(run.losses(), without.losses(), noised_batches(run.experience, Uniform()), strict=True):
        hand = ByHand(at)
        divergence = (hand.velocity((8.0, -4.0)) - hand.velocity(START)).square().mean(1)
        found = (loss.values - other.values).detach().double() / divergence
        r = torch.tensor(optimal(ADVANTAGES, 1.6))
        expected = 1e-4 + r * (kl - 1e-4) if kl > 1e-4 else torch.full_like(r, kl)
        torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=2e-6)


def test_the_kl_has_a_gradient_that_pulls_back_to_the_reference(learning: Any) -> None:
    run = learning(config(kl=0.5), (0.0,) * 12)
    for loss in run.losses():
        assert not loss.terms["kl"].any()
        assert not run.gradient(loss.terms["kl"]).any()
    run.move_to(*NEW)
    back = torch.tensor(START, dtype=torch.float64) - torch.tensor(NEW, dtype=torch.float64)
    for loss, at in zip(run.losses(), noised_batches(run.experience, Uniform()), strict=True):
        hand = ByHand(at)
        apart = hand.velocity(NEW) - hand.velocity(START)
        torch.testing.assert_close(loss.terms["kl"].double(), apart.square().mean(1), rtol=1e-4, atol=1e-7)
        gradient = run.gradient(loss.terms["kl"])
        torch.testing.assert_close(gradient, hand.by_weight(2 * apart).sum(0), rtol=1e-4, atol=1e-6)
        assert float(-gradient @ back) > 0


def test_the_reference_stays_what_training_started_from(learning: Any) -> None:
    options = config(kl=0.5, old=Constant(decay=0.0))
    run = learning(options, ADVANTAGES)
    run.move_to(*NEW)
    run.policy.iteration_finished(0)
    run.move_to(*LATER)
    assert_same(each(run), all_worked(run, options, LATER, NEW, START))
    present = [weight.item() for weight in run.policy.parameters.values()]
    assert present == pytest.approx(LATER), "kept weights were left in place"


@pytest.mark.parametrize("batch_size", [4, 3], ids=["whole", "spread"])
def test_a_guided_reference_is_evaluated_under_its_guidance(
    drawn: Any, settings: dict[str, Any], count: Any, batch_size: int
) -> None:
    settings["training"]["batch_size"] = batch_size
    run, experience = drawn({"kl": 0.5, "kl_guidance": 2.5, "advantage_max": 1.6, "kl_adaptive": True})
    assert experience.plan.guidance == 1
    assert experience.plan.teacher_guidance == 2.5
    assert experience.conditions.negative is not None
    assert experience.conditions.negative.stack("length").tolist() == [7.0] * 12
    experience = experience.rows(range(4))  # one group, so that the order of the rows is plain
    counted = count(run.policy)
    losses = list(run.assembly.hooks.update(experience, run.policy))
    assert len(losses) == 2 * (1 if batch_size == 4 else 2)
    assert counted.forwards == 2 * len(losses), "the old policy is the present one, the reference is not"
    options = config(kl=0.5, beta=1.0)
    found = torch.cat([loss.values for loss in losses]).split(4)
    terms = torch.cat([loss.terms["kl"] for loss in losses]).split(4)
    for values, kl, at in zip(found, terms, noised_batches(experience, Uniform()), strict=True):
        length = at.step.conditions.stack("length").double()
        hand, guided = ByHand(at, length), ByHand(at, 7 + 2.5 * (length - 7))
        divergence = (hand.velocity(START) - guided.velocity(START)).square().mean(1)
        assert float(divergence.min()) > 1e-3
        torch.testing.assert_close(kl.double(), divergence, rtol=1e-4, atol=1e-6)
        still = torch.zeros(4, dtype=torch.float64)
        distilled, _ = worked(options, still, torch.zeros(4, 2, dtype=torch.float64), experience.advantages.tolist())
        expected = distilled + kl_weight(options, experience.advantages.tolist()) * divergence
        torch.testing.assert_close(values.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{"kl": 0.5}, {"kl_guidance": 2.5}], ids=["without-guidance", "without-weight"])
def test_a_kl_that_needs_no_negative_prompt_asks_for_none(drawn: Any, options: dict[str, Any]) -> None:
    _, experience = drawn(options)
    assert experience.plan.teacher_guidance == 1
    assert experience.conditions.negative is None


@pytest.mark.parametrize(
    ("options", "wanted"), [({}, 2.0), ({"kl": 1.0, "kl_guidance": 1.5}, 2.0), ({"kl": 1.0, "kl_guidance": 3.0}, 3.0)]
)
def test_the_plan_carries_the_largest_guidance_asked_for(options: dict[str, Any], wanted: float) -> None:
    given = SamplingPlan(4, Canvas(4, 4), 1.0, ODE(), 0, 0, teacher_guidance=2.0)
    plan = config(**options).build("algorithm").plan(given)
    assert plan.teacher_guidance == wanted
    assert plan.guidance == 1
    assert plan.recorded == frozenset()


def blended(decay: float, own: Weights, present: Weights) -> Weights:
    return decay * own[0] + (1 - decay) * present[0], decay * own[1] + (1 - decay) * present[1]


def kept(run: Learning, name: str | None) -> list[float]:
    with run.policy.using(name):
        return [weight.item() for weight in run.policy.parameters.values()]


def test_the_two_snapshots_follow_schedules_of_their_own(learning: Any) -> None:
    options = config(old=Linear(start=0.75, end=0.25, iterations=2), sampling=PiecewiseLinear(points=((0, 0.4), (1, 0.9))))
    run = learning(options, ADVANTAGES)
    sampling = run.experience.plan.weights
    assert sampling not in (None, OLD)
    run.move_to(*NEW)
    assert_losses(run, options, NEW, START)
    run.policy.iteration_finished(0)
    old, draws = blended(0.75, START, NEW), blended(0.4, START, NEW)
    assert kept(run, OLD) == pytest.approx(old)
    assert kept(run, sampling) == pytest.approx(draws)
    run.move_to(*LATER)
    assert_losses(run, options, LATER, old)
    run.policy.iteration_finished(1)
    old, draws = blended(0.5, old, LATER), blended(0.9, draws, LATER)
    assert kept(run, OLD) == pytest.approx(old)
    assert kept(run, sampling) == pytest.approx(draws)
    assert_losses(run, options, LATER, old)


@pytest.mark.parametrize(
    ("iteration", "old", "sampling"),
    # straight lines from (0, 0.25) to (150, 0.999), and from (75, 0) to (208, 0.999)
    [(0, 0.25, 0.0), (75, 0.6245, 0.0), (150, 0.999, 0.5633458646616541), (208, 0.999, 0.999), (900, 0.999, 0.999)],
)
def test_the_schedules_that_are_left_out(learning: Any, iteration: int, old: float, sampling: float) -> None:
    run = learning(CRDConfig(), ADVANTAGES)
    run.move_to(*NEW)
    run.policy.iteration_finished(iteration)
    assert kept(run, OLD) == pytest.approx(blended(old, START, NEW))
    assert kept(run, run.experience.plan.weights) == pytest.approx(blended(sampling, START, NEW))


def test_the_sampling_snapshot_draws(learning: Any, tmp_path: Path) -> None:
    options = config(sampling=Constant(decay=0.5))
    made = testing.bench(
        testing.TwoParameterConfig(p=START[0], q=START[1]),
        tmp_path / "more",
        dynamics=ODE(),
        others={"algorithm": options.build("algorithm")},
    )
    made.hooks.run_started(RunInfo(tmp_path, None, 1), made.policy)
    with torch.no_grad():
        for weight, value in zip(made.policy.parameters.values(), NEW, strict=True):
            weight.fill_(value)
    made.policy.mark_changed()
    made.policy.iteration_finished(0)
    plan = made.hooks.plan(1, replace(made.plan, iteration=1))
    p, q = blended(0.5, START, NEW)
    x = flow.noise(plan, (1, 4, 4)).double()
    for sigma in (1.0, 0.75, 0.5, 0.25):
        x = x - (p * x + q * sigma) / 4
    drawn = made.sampler.draw(made.conditions, plan, 3).latents
    torch.testing.assert_close(drawn.double(), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["mse", "bce"])
@pytest.mark.parametrize("batch_size", [12, 3], ids=["whole", "spread"])
def test_advantages_of_zero_move_nothing_while_the_old_policy_is_the_present_one(
    learning: Any, form: str, batch_size: int
) -> None:
    for centre in ("mean", "pools"):
        run = learning(config(loss=form, centre=centre), (0.0,) * 12, batch_size)
        assert not any(run.gradient(loss.values).any() for loss in run.losses())
        run.move_to(*NEW)  # then it is pulled back, to an implicit reward that is the same in the group
        assert any(run.gradient(loss.values).any() for loss in run.losses())


@pytest.mark.parametrize("form", ["mse", "bce"])
@pytest.mark.parametrize("sample", range(4))
def test_a_step_raises_the_implicit_reward_of_a_better_sample_and_lowers_that_of_a_worse_one(
    learning: Any, form: str, sample: int
) -> None:
    run = learning(config(loss=form), ADVANTAGES)
    r = optimal(ADVANTAGES[:4], 1.6)
    for loss, at in zip(run.losses(), noised_batches(run.experience, Uniform()), strict=True):
        p, q = (torch.tensor(START, dtype=torch.float64) - 1e-4 * run.gradient(loss.values[sample])).tolist()
        hand = ByHand(at)
        implicit = hand.error(START, scaled=True)[0] - hand.error((p, q), scaled=True)[0]
        assert float(implicit[sample]) * (r[sample] - sum(r) / 4) > 0


def test_a_fitted_policy_pulls_no_further(learning: Any) -> None:
    run = learning(config(timesteps=Uniform(count=1), scaled=False, beta=1.0), (0.5, -0.5), group_size=2)
    weights = torch.tensor(START, dtype=torch.float64)
    first = sum(float(loss.values.detach().sum()) for loss in run.losses())
    for _ in range(150):
        (loss,) = run.losses()
        weights = weights - 0.1 * run.gradient(loss.values)
        run.move_to(*weights.tolist())
    (loss,) = run.losses()
    implicit = loss.metrics["implicit_reward"].detach()
    # r = 0.5 / 3.2 + 1/2 and its mirror; two weights fit the one difference of two samples
    assert float(implicit[0] - implicit[1]) == pytest.approx(0.5 / 1.6, abs=1e-3)
    assert loss.values.detach().sum() < 1e-3 * first


@pytest.mark.parametrize("temperature", [0.5, 0.01, 1e-4])
def test_no_temperature_of_softmax_is_too_low(learning: Any, temperature: float) -> None:
    options = {"centre": "softmax", "temperature": temperature, "advantage_max": 1.5}
    run = learning(CRDConfig.model_validate(options), (1.5, -1.5, 0.3, -0.2))
    assert all(bool(loss.values.isfinite().all()) for loss in run.losses())
