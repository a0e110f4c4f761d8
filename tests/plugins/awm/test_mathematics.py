"""AWM's loss and gradient against the paper's formulas, worked out by hand in float64. arXiv:2509.25050."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory import RunError
from flowfactory.config.schema import TrainingConfig
from flowfactory.flow.dynamics import FlowSDEConfig
from flowfactory.flow.timesteps import Discrete, LogitNormal, NoisedBatch, Uniform, noised_batches
from flowfactory.policy.policy import At
from flowfactory.testing import Learning
from flowfactory.training.learner import Learner
from flowfactory.training.metrics import UpdateMetrics
from flowfactory_awm.awm import AWMConfig

START = (0.3, -0.2)  # of conftest.py
OLD = (0.5, -0.35)
NEW = (0.2, -0.05)
DECAY = 0.25
AVERAGE = (0.45, -0.3125)  # a quarter of START and three of OLD
ADVANTAGES = (1.2, -0.7, 0.4, -1.5, 0.9, -0.3, 2.0, -2.0)
TIMES = Uniform(count=3, low=0.1)
SMALL = 1e-10  # keeps the slope of a root finite where the error is zero
WEIGHTINGS = ("uniform", "t", "t2", "huber", "ghuber")

Weights = Any  # (p, q), or a tensor of the two


def displaced(learning: Any, advantages: tuple[float, ...] = ADVANTAGES, **options: Any) -> Learning:
    """A run at NEW, in an iteration that started from OLD; the average is AVERAGE and the reference START."""
    run: Learning = learning(
        advantages, **{"ema": {"name": "constant", "decay": DECAY}, "timesteps": TIMES, "clip_range": 0.03, **options}
    )
    run.move_to(*OLD)
    run.policy.iteration_finished(0)
    run.move_to(*NEW)
    return run


def placed(run: Learning, times: Discrete | Uniform | LogitNormal = TIMES) -> list[NoisedBatch]:
    return [at for batch in run.experience.micro_batches() for at in noised_batches(batch, times)]


class ByHand:
    """The rows of a place: noisy = (1 - sigma) x + sigma noise, so that noise - x = (noisy - x) / sigma; in float64."""

    def __init__(
        self,
        at: NoisedBatch,
        weighting: str = "ghuber",
        power: float = 0.25,
        clip_range: float = 0.03,
        kl: float = 0.0,
        ema_kl: float = 0.0,
    ) -> None:
        self.x, self.noisy = at.samples.latents.double().flatten(1), at.step.latents.double().flatten(1)
        self.sigma, self.advantage = at.step.sigma.double(), at.samples.advantages.double()
        self.target = (self.noisy - self.x) / self.sigma[:, None]
        self.weighting, self.power, self.clip_range, self.kl, self.ema_kl = weighting, power, clip_range, kl, ema_kl

    def velocity(self, weights: Weights) -> Tensor:
        return weights[0] * self.noisy + weights[1] * self.sigma[:, None]

    def error(self, weights: Weights) -> Tensor:
        """[b]: the matching error."""
        return (self.velocity(weights) - self.target).square().mean(1)

    def log_density(self, weights: Weights) -> Tensor:
        """[b], up to a function of sigma."""
        error, sigma = self.error(weights), self.sigma
        return {
            "uniform": -error,
            "t": -sigma * error,
            "t2": -(sigma**2) * error,
            "huber": -sigma * (error + 1e-10) ** 0.5,
            "ghuber": -sigma / self.power * (error + 1e-10) ** self.power,
        }[self.weighting]

    def ratio(self, new: Weights, old: Weights) -> Tensor:
        return torch.exp(self.log_density(new) - self.log_density(old))

    def cut(self, ratio: Tensor) -> Tensor:
        """[b]: a good sample is pushed up until its ratio is 1 + c, a bad one down until it is 1 - c."""
        return torch.where(self.advantage > 0, ratio > 1 + self.clip_range, ratio < 1 - self.clip_range)

    def distance(self, one: Weights, other: Weights) -> Tensor:
        return (self.velocity(one) - self.velocity(other)).square().mean(1)

    def loss(self, new: Weights, old: Weights = OLD) -> Tensor:
        """[b]; differentiable where ``new`` is."""
        ratio = self.ratio(new, old)
        bound = torch.where(self.advantage > 0, 1 + self.clip_range, 1 - self.clip_range)
        surrogate = -self.advantage * torch.where(self.cut(ratio), bound, ratio)
        return surrogate + self.kl * self.distance(new, START) + self.ema_kl * self.distance(new, AVERAGE)

    def by_weight(self, elements: Tensor) -> Tensor:
        """[b, 2]: the mean over elements of a derivative by the velocity, times dv/dp = noisy and dv/dq = sigma."""
        return torch.stack([(elements * self.noisy).mean(1), (elements * self.sigma[:, None]).mean(1)], dim=1)

    def score(self, weights: Weights) -> Tensor:
        """[b, 2]: gradient of the log-density, which falls with the error."""
        error, sigma = self.error(weights), self.sigma
        by_error = {
            "uniform": -torch.ones_like(sigma),
            "t": -sigma,
            "t2": -(sigma**2),
            "huber": -sigma / (2 * (error + 1e-10) ** 0.5),
            "ghuber": -sigma * (error + 1e-10) ** (self.power - 1),
        }[self.weighting]
        return by_error[:, None] * self.by_weight(2 * (self.velocity(weights) - self.target))

    def gradient(self, new: Weights, old: Weights = OLD) -> Tensor:
        """[b, 2]: of the loss."""
        ratio = self.ratio(new, old)
        surrogate = torch.where(self.cut(ratio)[:, None], 0.0, -(self.advantage * ratio)[:, None] * self.score(new))
        v = self.velocity(new)
        pulls = self.kl * (v - self.velocity(START)) + self.ema_kl * (v - self.velocity(AVERAGE))
        return surrogate + self.by_weight(2 * pulls)

    def autograd(self, new: Weights) -> Tensor:
        """[b, 2]: what float64 autograd makes of the loss."""
        weights = torch.tensor(new, dtype=torch.float64, requires_grad=True)
        rows = self.loss(weights)
        return torch.stack([torch.autograd.grad(row, weights, retain_graph=True)[0] for row in rows])


def assert_worked_out(run: Learning, ats: list[NoisedBatch], **options: Any) -> None:
    """Losses, metrics and the gradient of every row are those by hand."""
    losses = run.losses()
    assert len(losses) == len(ats)
    for loss, at in zip(losses, ats, strict=True):
        hand = ByHand(at, **options)
        ratio = hand.ratio(NEW, OLD)
        assert float(((ratio - 1).abs() - hand.clip_range).abs().min()) > 1e-5, "too near to the bound to tell its sides"
        torch.testing.assert_close(loss.values.double(), hand.loss(NEW), rtol=1e-5, atol=2e-6)
        expected = hand.gradient(NEW)
        torch.testing.assert_close(hand.autograd(NEW), expected, rtol=1e-9, atol=1e-12)
        found = torch.stack([run.gradient(value) for value in loss.values])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(loss.metrics["ratio/mean"].detach().double(), ratio, rtol=1e-5, atol=0)
        torch.testing.assert_close(loss.metrics["clip_fraction"].double(), hand.cut(ratio).double())
        deviation = loss.extremes["ratio/max_deviation"].detach().double()
        torch.testing.assert_close(deviation, (ratio - 1).abs(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("clip_range", [0.01, 10.0], ids=["narrow", "wide"])
@pytest.mark.parametrize(("kl", "ema_kl"), [(0.0, 0.0), (0.5, 0.25)], ids=["free", "held"])
def test_loss_and_gradient_are_those_of_the_paper(
    learning: Any, weighting: str, clip_range: float, kl: float, ema_kl: float
) -> None:
    options = {"weighting": weighting, "clip_range": clip_range, "kl": kl, "ema_kl": ema_kl}
    run = displaced(learning, **options)
    ats = placed(run)
    assert len(ats) == 3
    assert_worked_out(run, ats, **options)
    cut = torch.cat([loss.metrics["clip_fraction"] for loss in run.losses()]).mean()
    assert 0 < cut < 1 if clip_range == 0.01 else cut == 0


@pytest.mark.parametrize("power", [0.1, 0.5, 1.0])
def test_loss_and_gradient_are_those_of_the_paper_at_any_power(learning: Any, power: float) -> None:
    run = displaced(learning, power=power)
    assert_worked_out(run, placed(run), power=power)


@pytest.mark.parametrize(
    "times",
    [Discrete(count=3), LogitNormal(count=3, shift=3.0), Uniform(count=3, low=0.1, stratified=False)],
    ids=lambda times: times.name,
)
def test_loss_and_gradient_are_those_of_the_paper_at_any_training_times(learning: Any, times: Any) -> None:
    run = displaced(learning, kl=0.5, timesteps=times)
    assert_worked_out(run, placed(run, times), kl=0.5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_clip_cuts_on_the_side_that_the_advantage_pushes_to(learning: Any, weighting: str) -> None:
    clip_range = 0.01
    sides = set()
    for flip in (1, -1):
        run = displaced(learning, tuple(flip * a for a in ADVANTAGES), clip_range=clip_range, weighting=weighting)
        for loss, at in zip(run.losses(), placed(run), strict=True):
            ratios = ByHand(at, weighting).ratio(NEW, OLD).tolist()
            for value, ratio, advantage in zip(loss.values, ratios, at.samples.advantages.tolist(), strict=True):
                assert abs(abs(ratio - 1) - clip_range) > 1e-5, "too near to the bound to tell its sides"
                side = "above" if ratio > 1 + clip_range else "below" if ratio < 1 - clip_range else "within"
                still = not bool(run.gradient(value).any())
                assert still == ((advantage > 0 and side == "above") or (advantage < 0 and side == "below"))
                sides.add((advantage > 0, side))
    outside = {(good, side) for good in (True, False) for side in ("above", "below")}
    assert outside <= sides, "the samples do not show every side"


@pytest.mark.parametrize("weighting", ["huber", "ghuber"])
@pytest.mark.parametrize("size", [0.0, 1e-5])
def test_the_slope_of_a_root_stays_finite_where_the_error_vanishes(learning: Any, weighting: str, size: float) -> None:
    run = learning(ADVANTAGES, timesteps=TIMES)
    run.move_to(0, 0)  # a velocity of zero, so that no rounding hides an error as small as this
    run.policy.iteration_finished(0)
    algorithm = AWMConfig.model_validate({"weighting": weighting}).build("algorithm")
    for at in placed(run):
        near = replace(at, target=size * at.target)
        hand = ByHand(at, weighting)
        hand.target = near.target.double().flatten(1)
        gradient = run.gradient(algorithm.loss(near, run.policy).values)
        assert bool(gradient.any()) == (size > 0)
        torch.testing.assert_close(gradient, hand.gradient((0, 0), (0, 0)).sum(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_size", [8, 3])
def test_an_update_is_the_mean_over_all_samples_and_times_whatever_the_batches(learning: Any, batch_size: int) -> None:
    options = {"kl": 0.5, "ema_kl": 0.25}
    run = displaced(learning, batch_size=batch_size, **options)
    learner = Learner(run.policy, TrainingConfig.model_validate({"max_grad_norm": 1e9}))
    gathered = UpdateMetrics()
    learner.step(run.hooks.update(run.experience, run.policy), gathered)
    hands = [ByHand(at, **options) for at in noised_batches(run.experience, TIMES)]  # of all samples at once
    gradient = torch.stack([run.policy.parameters[f"transformer.{name}"].grad.double() for name in ("p", "q")])
    torch.testing.assert_close(gradient, torch.cat([hand.gradient(NEW) for hand in hands]).mean(0), rtol=1e-4, atol=1e-6)
    metrics = gathered.metrics()
    assert metrics["loss"] == pytest.approx(float(torch.cat([hand.loss(NEW) for hand in hands]).mean()), abs=1e-5)
    deviations = torch.cat([(hand.ratio(NEW, OLD) - 1).abs() for hand in hands])
    assert metrics["ratio/max_deviation"] == pytest.approx(float(deviations.max()), abs=1e-5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_where_an_iteration_starts_every_ratio_is_exactly_one(learning: Any, weighting: str) -> None:
    run = learning(ADVANTAGES, weighting=weighting)
    for moved in (False, True):
        if moved:
            run.move_to(*NEW)
            assert any(bool((loss.metrics["ratio/mean"] != 1).any()) for loss in run.losses())
            run.policy.iteration_finished(0)
        for loss in run.losses():
            assert torch.equal(loss.metrics["ratio/mean"], torch.ones(8))
            assert torch.equal(loss.extremes["ratio/max_deviation"], torch.zeros(8))
            assert torch.equal(loss.values, -run.experience.advantages)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_first_gradient_is_the_policy_gradient_unhalved_by_the_tie_at_one(learning: Any, weighting: str) -> None:
    run = learning(ADVANTAGES, weighting=weighting, timesteps=TIMES)
    for loss, at in zip(run.losses(), placed(run), strict=True):
        hand = ByHand(at, weighting)
        found = torch.stack([run.gradient(value) for value in loss.values])
        torch.testing.assert_close(found, -hand.advantage[:, None] * hand.score(START), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", [START, NEW], ids=["at-the-start", "after-updates"])
def test_an_advantage_of_zero_moves_nothing(learning: Any, weights: Weights) -> None:
    run = learning((0.0,) * 8)
    run.move_to(*weights)
    before = {name: weight.detach().clone() for name, weight in run.policy.parameters.items()}
    learner = Learner(run.policy, TrainingConfig.model_validate({"optimizer": {"lr": 1.0}}))
    assert learner.step(run.hooks.update(run.experience, run.policy), UpdateMetrics()) == 0
    assert all(torch.equal(weight, before[name]) for name, weight in run.policy.parameters.items())


def alone_with(run: Learning, sample: int, advantage: float) -> Learning:
    """The run with ``advantage`` for ``sample`` and zero for the others."""
    advantages = torch.zeros(len(run.experience))
    advantages[sample] = advantage
    return replace(run, experience=replace(run.experience, advantages=advantages))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_an_update_lowers_the_error_of_a_better_sample_and_raises_that_of_a_worse_one(learning: Any, weighting: str) -> None:
    run = learning(ADVANTAGES, weighting=weighting, timesteps=TIMES)
    for sample, sign in product(range(8), (1.0, -1.0)):
        alone = alone_with(run, sample, sign)
        for loss, at in zip(alone.losses(), placed(alone), strict=True):
            p, q = (torch.tensor(START, dtype=torch.float64) - 1e-4 * run.gradient(loss.values)).tolist()
            hand = ByHand(at)
            assert float((hand.error(START) - hand.error((p, q)))[sample]) * sign > 0


@pytest.mark.parametrize("name", ["kl", "ema_kl"])
def test_a_divergence_is_zero_where_it_starts_and_pulls_back(learning: Any, name: str) -> None:
    run = learning((0.0,) * 8, timesteps=TIMES, **{name: 1.0})
    for loss in run.losses():
        assert set(loss.terms) == {name}
        assert torch.equal(loss.terms[name], torch.zeros(8))
        assert not run.gradient(loss.terms[name]).any()
    run.move_to(*NEW)
    for loss, at in zip(run.losses(), placed(run), strict=True):
        torch.testing.assert_close(loss.terms[name].detach().double(), ByHand(at).distance(NEW, START), rtol=1e-5, atol=1e-7)
        back = torch.tensor(START) - torch.tensor(NEW)
        assert float(-run.gradient(loss.values) @ back.double()) > 0


def test_the_reference_stays_while_the_average_follows(learning: Any) -> None:
    run = displaced(learning, kl=0.5, ema_kl=0.25)
    before = run.losses()
    run.policy.iteration_finished(1)
    after = run.losses()
    for one, two in zip(before, after, strict=True):
        assert torch.equal(one.terms["kl"], two.terms["kl"])
        # three quarters of the way
        torch.testing.assert_close(two.terms["ema_kl"], one.terms["ema_kl"] * DECAY**2, rtol=1e-4, atol=1e-7)
    present = [weight.item() for weight in run.policy.parameters.values()]
    assert present == pytest.approx(NEW), "kept weights were left in place"


def kept(run: Learning, name: str) -> list[float]:
    with run.policy.using(name):
        return [weight.item() for weight in run.policy.parameters.values()]


def test_old_are_the_weights_that_the_iteration_started_from(learning: Any) -> None:
    run = learning(ADVANTAGES)
    run.move_to(*NEW)
    run.losses()
    assert kept(run, "old") == pytest.approx(START), "within an iteration they stand still"
    run.policy.iteration_finished(0)
    assert kept(run, "old") == pytest.approx(NEW)


def test_left_to_itself_the_average_is_over_a_growing_past(learning: Any) -> None:
    run = learning(ADVANTAGES, ema_kl=0.1)
    run.move_to(*OLD)
    run.policy.iteration_finished(0)
    assert kept(run, "ema") == pytest.approx(OLD)
    run.move_to(*NEW)
    run.policy.iteration_finished(15)
    decay = 1 - 1 / 8  # 16 to the power of three quarters is 8
    mixed = [decay * old + (1 - decay) * new for old, new in zip(OLD, NEW, strict=True)]
    assert kept(run, "ema") == pytest.approx(mixed)
    run.move_to(*START)
    run.policy.iteration_finished(100_000)
    assert kept(run, "ema") == pytest.approx([0.9 * m + 0.1 * start for m, start in zip(mixed, START, strict=True)])


def test_nothing_is_kept_for_a_divergence_of_weight_zero(learning: Any) -> None:
    run = displaced(learning)
    assert all(not loss.terms for loss in run.losses())
    for name in ("reference", "ema"):
        with pytest.raises(RunError, match=f"no weights are kept as '{name}'"):
            run.policy.compare(placed(run)[0].step, {name: At(name)})


def test_the_present_weights_draw(learning: Any) -> None:
    assert learning(ADVANTAGES).experience.plan.weights is None


@pytest.mark.parametrize(("kl", "ema_kl", "most"), [(0.0, 0.0, 2), (0.5, 0.0, 3), (0.0, 0.5, 3), (0.5, 0.5, 4)])
def test_weights_that_are_the_same_share_a_forward(learning: Any, count: Any, kl: float, ema_kl: float, most: int) -> None:
    average = {"name": "constant", "decay": DECAY}
    run = learning(ADVANTAGES, batch_size=3, kl=kl, ema_kl=ema_kl, ema=average, timesteps=TIMES)
    counted = count(run.policy)

    def forwards() -> float:
        before = counted.forwards
        losses = run.losses()
        assert len(losses) == 3 * 3, "three times of three batches (3, 3 and 2 samples)"
        return (counted.forwards - before) / len(losses)

    assert forwards() == 1, "all weights are the same"
    run.move_to(*OLD)
    assert forwards() == 2, "all kept weights are the same"
    run.policy.iteration_finished(0)
    assert forwards() == most - 1, "the old ones are the present ones"
    run.move_to(*NEW)
    assert forwards() == most


def test_two_times_share_a_forward_and_change_neither_loss_nor_gradient(learning: Any, count: Any) -> None:
    found, forwards = [], []
    for together in (1, 2):
        times = Uniform(count=4, low=0.1)
        run = displaced(learning, batch_size=5, timesteps_per_forward=together, timesteps=times, kl=0.5, ema_kl=0.25)
        counted = count(run.policy)
        values = torch.cat([loss.values for loss in run.losses()])
        assert len(values) == 8 * 4
        found.append((values.sum().detach(), run.gradient(values), values.detach().sort().values))
        forwards.append(counted.forwards)
    assert forwards == [4 * 2 * 4, 4 * 2 * 2], "four weights, two batches, the times"
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_a_stochastic_solver_changes_what_is_drawn_and_nothing_else(learning: Any) -> None:
    drawn = [displaced(learning, dynamics=dynamics) for dynamics in (None, FlowSDEConfig().build("dynamics"))]
    assert not torch.equal(*(run.experience.latents for run in drawn))
    for run in drawn:
        assert_worked_out(run, placed(run))
