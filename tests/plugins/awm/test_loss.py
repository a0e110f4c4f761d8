"""AWM's loss and gradient against the paper's formulas, worked out by hand in float64. arXiv:2509.25050."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory import At, RunError, testing
from flowfactory.flow import Discrete, LogitNormal, NoisedBatch, Uniform, noised_batches
from flowfactory.flow.dynamics import FlowSDEConfig
from flowfactory.testing import ODE, Learning, NoisedByHand, Weights
from flowfactory_awm.awm import AWMConfig, times

START = (0.3, -0.2)
OLD = (0.5, -0.35)
NEW = (0.2, -0.05)
DECAY = 0.25
AVERAGE = (0.45, -0.3125)  # a quarter of START and three of OLD
ADVANTAGES = (1.2, -0.7, 0.4, -1.5, 0.9, -0.3, 2.0, -2.0)
TIMES = Uniform(count=3, low=0.1)
# what bounds and shrinks a step is left out, unless a test is of it
BARE = {"clip_range": 1e-4, "advantage_scale": 1.0, "kl": 0.0, "ema_kl": 0.0, "timesteps": Uniform()}
WEIGHTINGS = ("uniform", "t", "t2", "huber", "ghuber")


def learn(advantages: Sequence[float] = ADVANTAGES, bench: dict[str, Any] | None = None, **options: Any) -> Learning:
    """A run at START, whose samples the ODE drew there."""
    config = AWMConfig.model_validate(BARE | options)
    return testing.learning(config, advantages, START, **{"dynamics": ODE(), **(bench or {})})


def learn_at_new(advantages: Sequence[float] = ADVANTAGES, bench: dict[str, Any] | None = None, **options: Any) -> Learning:
    """A run at NEW, in an iteration that started from OLD; the average is AVERAGE and the reference START."""
    average = {"name": "constant", "decay": DECAY}
    run = learn(advantages, bench, **{"ema": average, "timesteps": TIMES, "clip_range": 0.03, **options})
    run.move_through(OLD, NEW)
    return run


class ByHand(NoisedByHand):
    """The rows of a noised batch: x = (1 - sigma) clean + sigma noise, so that noise - clean = (x - clean) / sigma."""

    def __init__(
        self,
        at: NoisedBatch,
        weighting: str = "ghuber",
        power: float = 0.25,
        clip_range: Any = 0.03,
        kl: float = 0.0,
        ema_kl: float = 0.0,
        advantage_scale: float = 1.0,
    ) -> None:
        super().__init__(at)
        self.advantages = advantage_scale * self.advantages
        self.target = (self.x - self.clean) / self.sigma
        self.weighting, self.power, self.kl, self.ema_kl = weighting, power, kl, ema_kl
        self.below, self.above = clip_range if isinstance(clip_range, tuple) else (clip_range, clip_range)

    def closeness(self, weights: Weights) -> Tensor:
        """[b]: minus the error."""
        return -self.error(weights)

    def log_density(self, weights: Weights) -> Tensor:
        """[b], up to a function of sigma."""
        error, sigma = self.error(weights), self.sigma[:, 0]
        return {
            "uniform": -error,
            "t": -sigma * error,
            "t2": -(sigma**2) * error,
            "huber": -sigma * (error + 1e-10) ** 0.5,
            "ghuber": -sigma / self.power * (error + 1e-10) ** self.power,
        }[self.weighting]

    def ratio(self, new: Weights, old: Weights) -> Tensor:
        return torch.exp(self.log_density(new) - self.log_density(old))

    def is_cut(self, ratio: Tensor) -> Tensor:
        """[b]: a good sample is pushed up until its ratio is 1 + c, a bad one down until it is 1 - c."""
        return torch.where(self.advantages > 0, ratio > 1 + self.above, ratio < 1 - self.below)

    def loss(self, new: Weights, old: Weights = OLD) -> Tensor:
        """[b]; differentiable where ``new`` is."""
        ratio = self.ratio(new, old)
        bound = torch.where(self.advantages > 0, 1 + self.above, 1 - self.below)
        surrogate = -self.advantages * torch.where(self.is_cut(ratio), bound, ratio)
        return surrogate + self.kl * self.distance(new, START) + self.ema_kl * self.distance(new, AVERAGE)

    def score(self, weights: Weights) -> Tensor:
        """[b, 2]: gradient of the log-density, which falls with the error."""
        error, sigma = self.error(weights), self.sigma[:, 0]
        by_error = {
            "uniform": -torch.ones_like(sigma),
            "t": -sigma,
            "t2": -(sigma**2),
            "huber": -sigma / (2 * (error + 1e-10) ** 0.5),
            "ghuber": -sigma * (error + 1e-10) ** (self.power - 1),
        }[self.weighting]
        return by_error[:, None] * self.error_gradient(weights)

    def gradient(self, new: Weights, old: Weights = OLD) -> Tensor:
        """[b, 2]: of the loss."""
        ratio = self.ratio(new, old)
        surrogate = torch.where(self.is_cut(ratio)[:, None], 0.0, -(self.advantages * ratio)[:, None] * self.score(new))
        pulls = self.kl * self.distance_gradient(new, START) + self.ema_kl * self.distance_gradient(new, AVERAGE)
        return surrogate + pulls


def check_by_hand(run: Learning, times: Any = TIMES, **options: Any) -> None:
    """Losses, metrics and the gradient of every row are those by hand."""
    hands = [ByHand(at, **options) for at in run.noised_batches(times)]
    for hand in hands:
        ratio = hand.ratio(NEW, OLD)
        apart = torch.stack([ratio - 1 - hand.above, ratio - 1 + hand.below]).abs().min()
        assert float(apart) > 1e-5, "too near to a bound to tell its sides"
        torch.testing.assert_close(testing.autograd_by_hand(hand.loss, NEW), hand.gradient(NEW), rtol=1e-9, atol=1e-12)
    expected = [(hand.loss(NEW), hand.gradient(NEW)) for hand in hands]
    for loss, hand in zip(testing.check_losses(run, expected, values=(1e-5, 2e-6), gradients=(1e-4, 1e-5)), hands, strict=True):
        ratio = hand.ratio(NEW, OLD)
        torch.testing.assert_close(loss.metrics["ratio/mean"].detach().double(), ratio, rtol=1e-5, atol=0)
        torch.testing.assert_close(loss.cuts["clip_fraction"].double(), hand.is_cut(ratio).double())
        deviation = loss.extremes["ratio/max_deviation"].detach().double()
        torch.testing.assert_close(deviation, (ratio - 1).abs(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("clip_range", [0.01, 1.0, (0.005, 0.02)], ids=["narrow", "wide", "pair"])
@pytest.mark.parametrize(("kl", "ema_kl"), [(0.0, 0.0), (0.5, 0.25)], ids=["free", "held"])
def test_loss_and_gradient_are_those_of_the_paper(weighting: str, clip_range: Any, kl: float, ema_kl: float) -> None:
    options = {"weighting": weighting, "clip_range": clip_range, "kl": kl, "ema_kl": ema_kl}
    run = learn_at_new(**options)
    assert len(run.losses()) == 3
    check_by_hand(run, **options)
    cut = torch.cat([loss.cuts["clip_fraction"] for loss in run.losses()]).mean()
    assert cut == 0 if clip_range == 1.0 else 0 < cut < 1


@pytest.mark.parametrize("power", [0.1, 0.5, 1.0])
def test_loss_and_gradient_are_those_of_the_paper_at_any_power(power: float) -> None:
    check_by_hand(learn_at_new(power=power), power=power)


def test_an_advantage_counts_as_much_as_its_scale_and_the_penalties_as_before() -> None:
    options = {"advantage_scale": 0.2, "kl": 0.5, "ema_kl": 0.25}
    check_by_hand(learn_at_new(**options), **options)


def test_by_default_an_update_is_that_of_the_published_recipe() -> None:
    config = AWMConfig()
    run = testing.learning(config, ADVANTAGES, START, dynamics=ODE())
    run.move_through(OLD, NEW)
    # after the first iteration the average is the weights that it ended with
    times = Discrete(count=3, initial=False)  # all but the first of four steps
    losses = run.losses()
    assert len(losses) == 3
    for loss, at in zip(losses, run.noised_batches(times), strict=True):
        hand = ByHand(at, clip_range=1.0, advantage_scale=0.2)
        value = hand.loss(NEW) + 1e-3 * hand.distance(NEW, START) + hand.distance(NEW, OLD)
        gradient = hand.gradient(NEW) + 1e-3 * hand.distance_gradient(NEW, START) + hand.distance_gradient(NEW, OLD)
        torch.testing.assert_close(loss.values.detach().double(), value, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(run.gradients(loss.values), gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("steps", "there"), [(1, 1), (2, 1), (4, 3), (6, 5), (7, 6), (14, 6)])
def test_default_times_are_six_steps_after_the_first_or_as_many_as_there_are(steps: int, there: int) -> None:
    run = learn()
    schedule = torch.linspace(1, 0, steps + 1)
    experience = replace(run.experience, sigmas=schedule)
    found = noised_batches(experience, times(AWMConfig(), experience))
    sigmas = torch.stack([at.step.sigma for at in found])  # [times, samples]
    assert sigmas.shape == (there, 8)
    chosen = schedule[:1] if steps == 1 else schedule[1:-1]
    for each in sigmas.T.tolist():
        assert len({*each}) == there
        assert {*each} <= {*chosen.tolist()}


@pytest.mark.parametrize(
    "times",
    [Discrete(count=3), LogitNormal(count=3, shift=3.0), Uniform(count=3, low=0.1, stratified=False)],
    ids=lambda times: times.name,
)
def test_loss_and_gradient_are_those_of_the_paper_at_any_training_times(times: Any) -> None:
    check_by_hand(learn_at_new(kl=0.5, timesteps=times), times, kl=0.5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_clip_cuts_on_the_side_that_the_advantage_pushes_to(weighting: str) -> None:
    sides = set()
    for flip in (1, -1):
        run = learn_at_new([flip * a for a in ADVANTAGES], clip_range=0.01, weighting=weighting)
        ratios = [ByHand(at, weighting).ratio(NEW, OLD) for at in run.noised_batches(TIMES)]
        sides |= testing.check_clip(run, ratios, 0.01)
    assert sides >= testing.BEYOND_THE_CLIP, "the samples do not show every side"


@pytest.mark.parametrize("weighting", ["huber", "ghuber"])
@pytest.mark.parametrize("size", [0.0, 1e-5])
def test_the_slope_of_a_root_stays_finite_where_the_error_vanishes(weighting: str, size: float) -> None:
    run = learn(timesteps=TIMES)
    run.move_to(0, 0)  # a velocity of zero, so that no rounding hides an error as small as this
    run.policy.iteration_finished(0)
    algorithm = AWMConfig.model_validate(BARE | {"weighting": weighting}).build("algorithm")
    for at in run.noised_batches(TIMES):
        near = replace(at, target=size * at.target)
        hand = ByHand(at, weighting)
        hand.target = near.target.double().flatten(1)
        gradient = run.gradient(algorithm.loss(near, run.policy).values)
        assert bool(gradient.any()) == (size > 0)
        torch.testing.assert_close(gradient, hand.gradient((0, 0), (0, 0)).sum(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_size", [8, 3])
def test_an_update_is_the_mean_over_all_samples_and_times_whatever_the_batches(batch_size: int) -> None:
    options = {"kl": 0.5, "ema_kl": 0.25}
    run = learn_at_new(bench={"batch_size": batch_size}, **options)
    hands = [ByHand(at, **options) for at in noised_batches(run.experience, TIMES)]  # of all samples at once
    update = run.update()
    expected = torch.cat([hand.gradient(NEW) for hand in hands]).mean(0)
    torch.testing.assert_close(update.gradient, expected, rtol=1e-4, atol=1e-6)
    loss = torch.cat([hand.loss(NEW) for hand in hands]).mean()
    assert update.metrics["loss"] == pytest.approx(float(loss), abs=1e-5)
    deviations = torch.cat([(hand.ratio(NEW, OLD) - 1).abs() for hand in hands])
    assert update.metrics["ratio/max_deviation"] == pytest.approx(float(deviations.max()), abs=1e-5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_where_an_iteration_starts_every_ratio_is_exactly_one(weighting: str) -> None:
    run = learn(weighting=weighting)
    for moved in (False, True):
        if moved:
            run.move_to(*NEW)
            assert any(bool((loss.metrics["ratio/mean"] != 1).any()) for loss in run.losses())
            run.policy.iteration_finished(0)
        for loss in testing.check_ratios_are_one(run):
            assert torch.equal(loss.values, -run.experience.advantages)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_first_gradient_is_the_policy_gradient_unhalved_by_the_tie_at_one(weighting: str) -> None:
    run = learn(weighting=weighting, timesteps=TIMES)
    for loss, at in zip(run.losses(), run.noised_batches(TIMES), strict=True):
        hand = ByHand(at, weighting)
        expected = -hand.advantages[:, None] * hand.score(START)
        torch.testing.assert_close(run.gradients(loss.values), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", [START, NEW], ids=["at-the-start", "after-updates"])
def test_an_advantage_of_zero_moves_nothing(weights: Weights) -> None:
    run = learn()
    run.move_to(*weights)
    testing.check_no_advantage_no_gradient(run)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_an_update_lowers_the_error_of_a_better_sample_and_raises_that_of_a_worse_one(weighting: str) -> None:
    run = learn(weighting=weighting, timesteps=TIMES)
    hands = [ByHand(at) for at in run.noised_batches(TIMES)]
    testing.check_descent_follows_advantages(run, [hand.closeness for hand in hands])


@pytest.mark.parametrize("name", ["kl", "ema_kl"])
def test_a_divergence_is_zero_where_it_starts_and_pulls_back(name: str) -> None:
    run = learn((0.0,) * 8, timesteps=TIMES, **{name: 1.0})
    assert all(set(loss.terms) == {name} for loss in run.losses())
    for loss, at in zip(testing.check_penalty(run, name, NEW), run.noised_batches(TIMES), strict=True):
        torch.testing.assert_close(loss.terms[name].detach().double(), ByHand(at).distance(NEW, START), rtol=1e-5, atol=1e-7)
        assert torch.equal(loss.values, loss.terms[name])


def test_the_reference_stays_what_training_started_from() -> None:
    testing.check_reference_stays(learn_at_new(kl=0.5, ema_kl=0.25), "kl", NEW)


def test_the_distance_to_the_average_shrinks_as_it_follows() -> None:
    run = learn_at_new(ema_kl=0.25)
    before = run.losses()
    run.policy.iteration_finished(1)
    for one, two in zip(before, run.losses(), strict=True):
        # three quarters of the way
        torch.testing.assert_close(two.terms["ema_kl"], one.terms["ema_kl"] * DECAY**2, rtol=1e-4, atol=1e-7)


def test_old_are_the_weights_that_the_iteration_started_from() -> None:
    testing.check_average(learn(), "old", {0: 0.0, 1: 0.0, 500: 0.0})


def test_left_to_itself_the_average_keeps_more_and_more_until_it_keeps_three_tenths() -> None:
    testing.check_average(learn(ema_kl=0.1), "ema", {0: 0.0, 15: 0.015, 300: 0.3, 100_000: 0.3})


def test_nothing_is_kept_for_a_divergence_of_weight_zero() -> None:
    run = learn_at_new()
    assert all(not loss.terms for loss in run.losses())
    for name in ("reference", "ema"):
        with pytest.raises(RunError, match=f"no weights are kept as '{name}'"):
            run.policy.compare(run.noised_batches(TIMES)[0].step, {name: At(name)})


def test_the_present_weights_draw() -> None:
    assert learn().experience.plan.weights is None


@pytest.mark.parametrize(("kl", "ema_kl", "most"), [(0.0, 0.0, 2), (0.5, 0.0, 3), (0.0, 0.5, 3), (0.5, 0.5, 4)])
def test_weights_that_are_the_same_share_a_forward(kl: float, ema_kl: float, most: int) -> None:
    average = {"name": "constant", "decay": DECAY}
    run = learn(bench={"batch_size": 3}, kl=kl, ema_kl=ema_kl, ema=average, timesteps=TIMES)
    losses = 3 * 3  # three times of three batches (3, 3 and 2 samples)
    testing.check_forwards(run, losses, 1)  # all weights are the same
    run.move_to(*OLD)
    testing.check_forwards(run, losses, 2)  # all kept weights are the same
    run.policy.iteration_finished(0)
    testing.check_forwards(run, losses, most - 1)  # the old ones are the present ones
    run.move_to(*NEW)
    testing.check_forwards(run, losses, most)


def test_two_times_share_a_forward_and_change_neither_loss_nor_gradient() -> None:
    def make(batch_size: int, together: int) -> Learning:
        bench = {"batch_size": batch_size, "timesteps_per_forward": together}
        run = learn_at_new(bench=bench, timesteps=Uniform(count=4, low=0.1), kl=0.5, ema_kl=0.25)
        assert sum(len(loss.values) for loss in run.losses()) == 8 * 4
        return run

    found = testing.check_same_updates_whatever_fits_a_forward(make, [(5, 1), (5, 2)])
    assert found == [4 * 2 * 4, 4 * 2 * 2], "four weights, two batches, the times"


def test_a_stochastic_solver_changes_what_is_drawn_and_nothing_else() -> None:
    drawn = [learn_at_new(bench={"dynamics": dynamics}) for dynamics in (ODE(), FlowSDEConfig().build("dynamics"))]
    assert not torch.equal(*(run.experience.latents for run in drawn))
    for run in drawn:
        check_by_hand(run)
