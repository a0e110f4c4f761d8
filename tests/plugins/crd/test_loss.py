"""CRD's centres, loss and gradient, worked out by hand in float64. Centred reward distillation, arXiv:2603.14128."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory import testing
from flowfactory.flow import Discrete, LogitNormal, Uniform, noised_batches
from flowfactory.testing import Learning, NoisedByHand, Weights
from flowfactory_crd.crd import CRDConfig

START = (0.3, -0.2)
NEW = (0.36, -0.25)
LATER = (0.2, -0.1)
# of the last two groups one has no bad sample and one no good one; 2.0 and -1.9 are past an advantage_max of 1.6
ADVANTAGES = (1.2, -0.7, 0.4, -1.9, 0.9, 0.0, 2.0, 0.0, -0.4, 0.0, 0.0, -1.1)
# samples and times of a forward: the groups of 4 together, and spread over forwards
SHAPES = [(12, 1), (8, 2), (3, 1), (1, 1), (3, 2)]
CENTRES = ["mean", "pools", "softmax"]


def config(**options: Any) -> CRDConfig:
    return CRDConfig.model_validate({"beta": 3.0, "advantage_max": 1.6, "temperature": 0.3, **options})


class ByHand(NoisedByHand):
    """Rows of noised batches, whose errors may be in units of their own."""

    def unit(self, weights: Weights, scaled: bool) -> Tensor:
        """[b]: the mean absolute error, which is not differentiated, or one."""
        apart = (self.velocity(weights) - self.target).abs().mean(1)
        return apart if scaled else torch.ones_like(apart)

    def scaled_error(self, weights: Weights, scaled: bool) -> Tensor:
        """[b]: mean (v - t)² / unit."""
        return self.error(weights) / self.unit(weights, scaled)

    def scaled_gradient(self, weights: Weights, scaled: bool) -> Tensor:
        """[b, 2]: of :meth:`scaled_error`."""
        return self.error_gradient(weights) / self.unit(weights, scaled)[:, None]


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


def distil(options: CRDConfig, implicit: Tensor, slope: Tensor, advantages: Any = ADVANTAGES) -> tuple[Tensor, Tensor]:
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


def by_hand(options: CRDConfig, hand: ByHand, new: Weights, old: Weights, reference: Weights = START) -> tuple[Tensor, Tensor]:
    """Losses [12] and gradients [12, 2] of rows that are all twelve samples at one time, the KL among them."""
    implicit = hand.scaled_error(old, options.scaled) - hand.scaled_error(new, options.scaled)
    values, gradients = distil(options, implicit, -hand.scaled_gradient(new, options.scaled))
    weight = kl_weight(options)
    gradients = gradients + weight[:, None] * hand.distance_gradient(new, reference)
    return values + weight * hand.distance(new, reference), gradients


def kl_weight(options: CRDConfig, advantages: Any = ADVANTAGES) -> Tensor:
    """kl (c + r (1 - c)) with c = min(1, 1e-4 / kl), or kl."""
    r = torch.tensor(optimal(advantages, options.advantage_max), dtype=torch.float64)
    if not options.kl or not options.kl_adaptive:
        return torch.full_like(r, options.kl)
    least = min(1.0, 1e-4 / options.kl)
    return options.kl * (least + r * (1 - least))


def learn(config: CRDConfig, advantages: Sequence[float] = ADVANTAGES, *shape: int) -> Learning:
    """A run at START, whose samples the ODE drew there; ``shape`` is the samples, 12 if left out, and times of a forward."""
    return testing.learning(config, advantages, START, 4, testing.ODE(), *(shape or (12,)))


def check_losses(run: Learning, options: CRDConfig, new: Weights, old: Weights) -> None:
    losses = [by_hand(options, ByHand(at), new, old) for at in run.noised_batches(options.timesteps)]
    assert len(testing.check_losses(run, losses)) == options.timesteps.count


def check_rows(run: Learning, options: CRDConfig, new: Weights, old: Weights) -> None:
    """Each sample and time once, in whatever order."""
    ats = noised_batches(replace(run.experience, timesteps_per_forward=1), options.timesteps)
    testing.check_losses_in_any_order(run, [by_hand(options, ByHand(at), new, old) for at in ats])


@pytest.mark.parametrize("scaled", [True, False], ids=["scaled", "plain"])
@pytest.mark.parametrize("form", ["mse", "bce"])
@pytest.mark.parametrize("centre", CENTRES)
def test_loss_and_gradient_are_those_of_the_paper(centre: str, form: str, scaled: bool) -> None:
    options = config(centre=centre, loss=form, scaled=scaled)
    run = learn(options)
    run.move_to(*NEW)
    check_losses(run, options, NEW, START)


@pytest.mark.parametrize(
    "times", [Uniform(shared=True), LogitNormal(count=3, mean=0.5), Discrete(count=4)], ids=lambda times: times.name
)
def test_loss_and_gradient_are_those_of_the_paper_at_any_times(times: Any) -> None:
    options = config(timesteps=times)
    run = learn(options)
    run.move_to(*NEW)
    check_losses(run, options, NEW, START)


@pytest.mark.parametrize("form", ["mse", "bce"])
def test_before_the_first_update_the_gradient_pulls_by_the_centred_reward_alone(form: str) -> None:
    options = config(loss=form)
    run = learn(options)
    r = optimal(ADVANTAGES, 1.6)
    for loss, at in zip(run.losses(), run.noised_batches(options.timesteps), strict=True):
        assert not loss.metrics["implicit_reward"].any()
        slope = -ByHand(at).scaled_gradient(START, scaled=True)
        for sample in range(12):
            first = sample - sample % 4
            centred = r[sample] - sum(r[first : first + 4]) / 4
            # at an implicit reward of zero the derivatives are -2 d and 1/2 - sigmoid(d)
            by_z = -2 * centred if form == "mse" else 0.5 - 1 / (1 + math.exp(-centred))
            expected = 1.6 * by_z * slope[sample]
            torch.testing.assert_close(run.gradient(loss.values[sample]), expected, rtol=1e-4, atol=1e-5)


def test_an_implicit_reward_is_the_old_error_less_the_new_in_units_of_each_ones_own() -> None:
    for scaled in (True, False):
        run = learn(config(scaled=scaled))
        run.move_to(*NEW)
        for loss, at in zip(run.losses(), run.noised_batches(Uniform()), strict=True):
            apart, before = (ByHand(at).velocity(weights) - at.target.double().flatten(1) for weights in (NEW, START))
            new = apart.square().mean(1) / (apart.abs().mean(1) if scaled else 1)
            old = before.square().mean(1) / (before.abs().mean(1) if scaled else 1)
            torch.testing.assert_close(loss.metrics["implicit_reward"].double(), -(new - old), rtol=1e-4, atol=1e-6)
            reward = torch.tensor(optimal(ADVANTAGES, 1.6))
            torch.testing.assert_close(loss.metrics["optimality"], reward, rtol=0, atol=1e-6)
            assert loss.metrics["optimality"].min() == 0
            assert loss.metrics["optimality"].max() == 1


def test_the_unit_of_an_error_is_no_smaller_than_1e_5() -> None:
    options = config()
    run = learn(options)
    at = run.noised_batches(options.timesteps)[0]
    clean = replace(at, target=torch.zeros_like(at.target))
    algorithm = options.build("algorithm")
    for apart, wanted in ((1e-6, 1e-12 / 1e-5), (1e-3, 1e-3), (0.0, 0.0)):
        error = algorithm.error(torch.full_like(at.target, apart), clean)
        torch.testing.assert_close(error, torch.full_like(error, wanted), rtol=1e-5, atol=0)


def test_a_group_without_good_or_without_bad_samples_is_centred_as_a_whole() -> None:
    options = config(centre="pools")
    run = learn(options)
    at = run.noised_batches(options.timesteps)[0]
    implicit = torch.arange(12.0).square()
    good, bad = options.build("algorithm").centres(at, implicit)
    # 0, 1, 4, 9 | 16, 25, 36, 49 | 64, 81, 100, 121; good are 0 and 2, 4 and 6, none; bad 1 and 3, none, 8 and 11
    assert good[0].tolist() == [2.0] * 4 + [26.0] * 4 + [91.5] * 4
    assert bad[0].tolist() == [5.0] * 4 + [31.5] * 4 + [92.5] * 4
    r = optimal(ADVANTAGES, 1.6)
    expected = [(r[0] + r[2]) / 2, (r[4] + r[6]) / 2, sum(r[8:]) / 4]
    assert good[1][::4].tolist() == pytest.approx(expected)


def test_a_hot_softmax_is_the_mean_and_a_cold_one_the_best_and_the_worst() -> None:
    run = learn(config())
    at = run.noised_batches(Uniform())[0]
    implicit = torch.arange(12.0)
    for own, _ in config(centre="softmax", temperature=1e4).build("algorithm").centres(at, implicit):
        torch.testing.assert_close(own[::4], torch.tensor([1.5, 5.5, 9.5]), rtol=0, atol=1e-3)
    up, down = config(centre="softmax", temperature=0.02).build("algorithm").centres(at, implicit)
    torch.testing.assert_close(up[0][::4], torch.tensor([0.0, 6.0, 9.5]), rtol=0, atol=1e-2)  # 9 and 10 are equally good
    torch.testing.assert_close(down[0][::4], torch.tensor([3.0, 6.0, 11.0]), rtol=0, atol=1e-2)  # 5 and 7 equally bad


def test_the_centres_have_no_gradient() -> None:
    for centre in CENTRES:
        options = config(centre=centre)
        run = learn(options)
        at = run.noised_batches(options.timesteps)[0]
        implicit = torch.zeros(12, requires_grad=True)
        for pair in options.build("algorithm").centres(at, implicit):
            assert not any(part.requires_grad for part in pair)


@pytest.mark.parametrize(("batch_size", "timesteps_per_forward"), SHAPES)
@pytest.mark.parametrize("moved", [False, True], ids=["at-the-start", "after-updates"])
def test_a_group_spread_over_forwards_learns_what_it_would_in_one(
    batch_size: int, timesteps_per_forward: int, moved: bool
) -> None:
    options = config(timesteps=Uniform(count=3), centre="softmax", kl=0.5)
    run = learn(options, ADVANTAGES, batch_size, timesteps_per_forward)
    if moved:
        run.move_to(*NEW)
    check_rows(run, options, NEW if moved else START, START)


@pytest.mark.parametrize("form", ["mse", "bce"])
@pytest.mark.parametrize("centre", CENTRES)
def test_a_spread_group_has_every_kind_of_centre(centre: str, form: str) -> None:
    options = config(centre=centre, loss=form, scaled=False)
    run = learn(options, ADVANTAGES, 3)
    run.move_to(*NEW)
    check_rows(run, options, NEW, START)


@pytest.mark.parametrize(("batch_size", "timesteps_per_forward"), [(5, 1), (4, 2), (3, 2), (1, 3)])
def test_a_forward_holds_no_more_than_the_config_allows(batch_size: int, timesteps_per_forward: int) -> None:
    run = learn(config(timesteps=Uniform(count=3)), ADVANTAGES, batch_size, timesteps_per_forward)
    run.move_to(*NEW)
    testing.check_forwards_fit(run, 3 * 12)


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
def test_forwards_are_as_few_as_the_weights_that_differ_allow(
    options: dict[str, Any], moved: bool, whole: int, spread: int
) -> None:
    for batch_size, pieces, each in ((4, 1, whole), (3, 2, spread)):
        run = learn(config(**options), ADVANTAGES, batch_size)
        if moved:
            run.move_through(NEW, LATER)
        testing.check_forwards(run, pieces * 3 * 2, each)  # of three groups at two times


@pytest.mark.parametrize("batch_size", [12, 3], ids=["whole", "spread"])
@pytest.mark.parametrize(("kl", "adaptive"), [(0.5, True), (0.5, False), (5e-5, True)], ids=["adaptive", "even", "least"])
def test_the_kl_is_weighed_by_the_reward(kl: float, adaptive: bool, batch_size: int) -> None:
    options = config(kl=kl, kl_adaptive=adaptive)
    run = learn(options, ADVANTAGES, batch_size)
    run.move_to(*NEW)
    weight = kl_weight(options)
    assert (len(weight.unique()) > 5) == (adaptive and kl > 1e-4), "up to 1e-4 nothing is left to adapt"
    assert float(weight.min()) == pytest.approx(1e-4 if adaptive and kl > 1e-4 else kl), "a sample with reward 0 keeps 1e-4"
    check_rows(run, options, NEW, START)


@pytest.mark.parametrize("kl", [0.5, 5e-5])
def test_a_sample_of_no_worth_keeps_a_kl_of_1e_4_or_all_of_a_smaller_one(kl: float) -> None:
    run, without = (learn(config(loss="bce", kl=weight)) for weight in (kl, 0.0))
    for each_run in (run, without):
        each_run.move_to(8.0, -4.0)  # so far that a weight as small as this one tells
    for loss, other, at in zip(run.losses(), without.losses(), run.noised_batches(Uniform()), strict=True):
        hand = ByHand(at)
        divergence = hand.distance((8.0, -4.0), START)
        found = (loss.values - other.values).detach().double() / divergence
        r = torch.tensor(optimal(ADVANTAGES, 1.6))
        expected = 1e-4 + r * (kl - 1e-4) if kl > 1e-4 else torch.full_like(r, kl)
        torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=2e-6)


def test_the_kl_has_a_gradient_that_pulls_back_to_the_reference() -> None:
    run = learn(config(kl=0.5), (0.0,) * 12)
    hands = [ByHand(at) for at in run.noised_batches(Uniform())]
    for loss, hand in zip(testing.check_penalty(run, "kl", NEW), hands, strict=True):
        torch.testing.assert_close(loss.terms["kl"].double(), hand.distance(NEW, START), rtol=1e-4, atol=1e-7)
        expected = hand.distance_gradient(NEW, START).sum(0)
        torch.testing.assert_close(run.gradient(loss.terms["kl"]), expected, rtol=1e-4, atol=1e-6)


def test_the_reference_stays_what_training_started_from() -> None:
    options = config(kl=0.5, old={"name": "constant", "decay": 0.0})
    run = learn(options)
    run.move_through(NEW, LATER)
    check_rows(run, options, LATER, NEW)
    assert run.weights() == pytest.approx(LATER), "kept weights were left in place"


@pytest.mark.parametrize("batch_size", [4, 3], ids=["whole", "spread"])
def test_a_guided_reference_is_evaluated_under_its_guidance(tmp_path: Path, batch_size: int) -> None:
    algorithm = {"name": "crd", "kl": 0.5, "kl_guidance": 2.5, "advantage_max": 1.6, "kl_adaptive": True}
    drawn = testing.guided_learning(tmp_path, algorithm, START, batch_size)
    assert drawn.experience.plan.guidance == 1
    assert drawn.experience.plan.teacher_guidance == 2.5
    assert drawn.experience.conditions.negative is not None
    assert drawn.experience.conditions.negative.stack("length").tolist() == [7.0] * 12
    run = drawn.rows(range(4))  # one group, so that the order of the rows is plain
    # the old policy is the present one, the reference is not
    losses = testing.check_forwards(run, 2 if batch_size == 4 else 4, 2)
    found = torch.cat([loss.values for loss in losses]).split(4)
    terms = torch.cat([loss.terms["kl"] for loss in losses]).split(4)
    advantages, options = run.experience.advantages.tolist(), config(kl=0.5, beta=1.0)
    still = torch.zeros(4, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.float64)
    for values, kl, at in zip(found, terms, noised_batches(run.experience, Uniform()), strict=True):
        length = at.step.conditions.stack("length").double()
        hand, guided = ByHand(at, length), ByHand(at, 7 + 2.5 * (length - 7))
        divergence = (hand.velocity(START) - guided.velocity(START)).square().mean(1)
        assert float(divergence.min()) > 1e-3
        torch.testing.assert_close(kl.double(), divergence, rtol=1e-4, atol=1e-6)
        expected = distil(options, *still, advantages)[0] + kl_weight(options, advantages) * divergence
        torch.testing.assert_close(values.double(), expected, rtol=1e-4, atol=1e-6)


def test_the_implicit_reward_is_measured_from_the_old_policy_as_it_moves() -> None:
    options = config(old={"name": "linear", "start": 0.75, "end": 0.25, "iterations": 2})
    run = learn(options)
    run.move_to(*NEW)
    check_losses(run, options, NEW, START)
    run.policy.iteration_finished(0)
    run.move_to(*LATER)
    old = testing.blend(0.75, START, NEW)
    check_losses(run, options, LATER, old)
    run.policy.iteration_finished(1)
    check_losses(run, options, LATER, testing.blend(0.5, old, LATER))


@pytest.mark.parametrize("form", ["mse", "bce"])
@pytest.mark.parametrize("batch_size", [12, 3], ids=["whole", "spread"])
def test_advantages_of_zero_move_nothing_while_the_old_policy_is_the_present_one(form: str, batch_size: int) -> None:
    for centre in ("mean", "pools"):
        run = learn(config(loss=form, centre=centre), (0.0,) * 12, batch_size)
        assert not any(run.gradient(loss.values).any() for loss in run.losses())
        run.move_to(*NEW)  # then it is pulled back, to an implicit reward that is the same in the group
        assert any(run.gradient(loss.values).any() for loss in run.losses())


@pytest.mark.parametrize("form", ["mse", "bce"])
@pytest.mark.parametrize("sample", range(4))
def test_a_step_raises_the_implicit_reward_of_a_better_sample_and_lowers_that_of_a_worse_one(form: str, sample: int) -> None:
    run = learn(config(loss=form))
    r = optimal(ADVANTAGES[:4], 1.6)
    for loss, at in zip(run.losses(), run.noised_batches(Uniform()), strict=True):
        p, q = (torch.tensor(START, dtype=torch.float64) - 1e-4 * run.gradient(loss.values[sample])).tolist()
        hand = ByHand(at)
        implicit = hand.scaled_error(START, scaled=True) - hand.scaled_error((p, q), scaled=True)
        assert float(implicit[sample]) * (r[sample] - sum(r) / 4) > 0


def test_a_fitted_policy_pulls_no_further() -> None:
    chosen = config(timesteps=Uniform(count=1), scaled=False, beta=1.0)
    run = testing.learning(chosen, (0.5, -0.5), START, 2, testing.ODE())
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
def test_no_temperature_of_softmax_is_too_low(temperature: float) -> None:
    options = {"centre": "softmax", "temperature": temperature, "advantage_max": 1.5}
    run = learn(CRDConfig.model_validate(options), (1.5, -1.5, 0.3, -0.2))
    assert all(bool(loss.values.isfinite().all()) for loss in run.losses())
