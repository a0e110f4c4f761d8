"""V-GRPO's loss and gradient against the paper's formulas, worked out by hand in float64. arXiv:2604.23380."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory import At, RunError, testing
from flowfactory.flow import Discrete, LogitNormal, NoisedBatch, Uniform, noised_batches
from flowfactory.flow.dynamics import FlowSDEConfig
from flowfactory.policy import REFERENCE
from flowfactory.testing import ODE, Learning, NoisedByHand, Weights
from flowfactory_nft.vgrpo import VGRPOConfig

START = (0.3, -0.2)
OLD = (0.5, -0.35)
NEW = (0.2, -0.05)
ADVANTAGES = (1.2, -0.7, 0.4, -1.5, 0.9, -0.3, 2.0, -2.0)
TIMES = Uniform(count=4, low=0.1)


def learn(advantages: Sequence[float] = ADVANTAGES, shape: tuple[int, int] = (8, 4), **options: Any) -> Learning:
    """A run at START, whose samples the ODE drew there; ``shape`` is the samples and the times of a forward."""
    dynamics = options.pop("dynamics", ODE())
    config = VGRPOConfig.model_validate({"timesteps": TIMES, **options})
    return testing.learning(config, advantages, START, 4, dynamics, *shape)


def learn_at_new(advantages: Sequence[float] = ADVANTAGES, shape: tuple[int, int] = (8, 4), **options: Any) -> Learning:
    """A run at NEW, in an iteration that started from OLD; the reference is START."""
    run = learn(advantages, shape, **options)
    run.move_through(OLD, NEW)
    return run


def batches(run: Learning, times: Any = TIMES) -> list[NoisedBatch]:
    """What the members of a group share noise and times of, one after the other."""
    return list(noised_batches(run.experience, times, shared=True))


class ByHand(NoisedByHand):
    """All times of all samples, time by time, and all formulas."""

    def __init__(self, pieces: Sequence[NoisedBatch], clip_range: Any = 0.2, most: float = 3.0, **weights: float) -> None:
        rows = [NoisedByHand(at) for at in pieces]
        for name in ("x", "sigma", "clean", "target", "advantages"):
            setattr(self, name, torch.cat([getattr(row, name) for row in rows]))
        self.times = int(torch.cat([at.time for at in pieces]).max()) + 1
        self.below, self.above = clip_range if isinstance(clip_range, tuple) else (clip_range, clip_range)
        self.kl, self.old_kl = weights.get("kl", 0.0), weights.get("old_kl", 0.0)
        e = torch.exp(2 * self.advantages / most)
        self.soft = most * (e - 1) / (e + 1)

    def estimate_error(self, weights: Weights) -> Tensor:
        """[b, n]: of the clean latents that the velocity implies."""
        return self.x - self.sigma * self.velocity(weights) - self.clean

    def scaled(self, weights: Weights) -> Tensor:
        """[b]: the squared error in units of its own mean absolute error, which is a constant."""
        error = self.estimate_error(weights)
        return error.square().mean(1) / error.detach().abs().mean(1)

    def scaled_gradient(self, weights: Weights) -> Tensor:
        """[b, 2]: of :meth:`scaled`."""
        error = self.estimate_error(weights)
        return self.by_weights(-2 * self.sigma * error / error.abs().mean(1, keepdim=True))

    def ratio(self, new: Weights, old: Weights = OLD) -> Tensor:
        """[samples]: exp of the mean over times by how much the error has fallen."""
        return torch.exp((self.scaled(old) - self.scaled(new)).reshape(self.times, -1).mean(0))

    def is_cut(self, ratio: Tensor) -> Tensor:
        """[samples]."""
        good = self.advantages[: len(ratio)] > 0
        return torch.where(good, ratio > 1 + self.above, ratio < 1 - self.below)

    def objective(self, new: Weights, old: Weights = OLD) -> Tensor:
        """[samples]: what the paper minimises, with the means over times inside the ratio and inside the divergences."""
        ratio = self.ratio(new, old)
        good, soft = self.advantages[: len(ratio)] > 0, self.soft[: len(ratio)]
        bound = torch.where(good, 1 + self.above, 1 - self.below)
        pulls = self.kl * self.distance(new, START) + self.old_kl * self.moved(new, old)
        return -soft * torch.where(self.is_cut(ratio), bound, ratio) + pulls.reshape(self.times, -1).mean(0)

    def moved(self, new: Weights, old: Weights) -> Tensor:
        """[b]: mean squared difference of the clean latents."""
        return (self.sigma * (self.velocity(new) - self.velocity(old))).square().mean(1)

    def gradient(self, new: Weights, old: Weights = OLD) -> Tensor:
        """[samples, 2]: of the objective."""
        ratio = self.ratio(new, old)
        kept = torch.where(self.is_cut(ratio), 0.0, self.soft[: len(ratio)] * ratio)
        moved = self.by_weights(2 * self.sigma**2 * (self.velocity(new) - self.velocity(old)))
        pulls = self.kl * self.distance_gradient(new, START) + self.old_kl * moved
        by_time = kept.repeat(self.times)[:, None] * self.scaled_gradient(new) + pulls
        return by_time.reshape(self.times, -1, 2).mean(0)

    def closeness(self, weights: Weights) -> Tensor:
        """[samples]: minus the mean over times of the error, each in units of what it is at START."""
        at_start = self.estimate_error(START).abs().mean(1)
        return -(self.estimate_error(weights).square().mean(1) / at_start).reshape(self.times, -1).mean(0)


def check_by_hand(run: Learning, times: Any = TIMES, **options: Any) -> None:
    """The means over times of losses and gradients of each sample are those by hand, and so are its metrics."""
    hand = ByHand(batches(run, times), **options)
    ratio, losses = hand.ratio(NEW), run.losses()
    torch.testing.assert_close(testing.autograd_by_hand(hand.objective, NEW), hand.gradient(NEW), rtol=1e-9, atol=1e-12)
    values = torch.cat([loss.values for loss in losses])
    found = values.reshape(hand.times, -1).mean(0)
    torch.testing.assert_close(found.detach().double(), hand.objective(NEW), rtol=1e-5, atol=2e-6)
    gradients = run.gradients(values).reshape(hand.times, -1, 2).mean(0)
    torch.testing.assert_close(gradients, hand.gradient(NEW), rtol=1e-4, atol=1e-5)
    ratios = torch.cat([loss.metrics["ratio/mean"] for loss in losses]).detach().double()
    torch.testing.assert_close(ratios, ratio.repeat(hand.times), rtol=1e-5, atol=0)
    cut = torch.cat([loss.cuts["clip_fraction"] for loss in losses]).double()
    torch.testing.assert_close(cut, hand.is_cut(ratio).double().repeat(hand.times))


@pytest.mark.parametrize("together", [4, 3, 1], ids=["one-forward", "two-forwards", "four-forwards"])
@pytest.mark.parametrize("clip_range", [0.02, 0.5, (0.01, 0.03)], ids=["narrow", "wide", "pair"])
@pytest.mark.parametrize(("kl", "old_kl"), [(0.0, 0.0), (0.5, 0.25)], ids=["free", "held"])
def test_loss_and_gradient_are_those_of_the_paper(together: int, clip_range: Any, kl: float, old_kl: float) -> None:
    options = {"clip_range": clip_range, "kl": kl, "old_kl": old_kl}
    run = learn_at_new(shape=(8, together), **options)
    check_by_hand(run, **options)
    cut = torch.cat([loss.cuts["clip_fraction"] for loss in run.losses()]).mean()
    assert cut == 0 if clip_range == 0.5 else 0 < cut < 1


@pytest.mark.parametrize(
    "times", [Discrete(count=3), LogitNormal(count=3, shift=3.0), Uniform(count=2, low=0.1)], ids=lambda times: str(times.name)
)
def test_loss_and_gradient_are_those_of_the_paper_at_any_training_times(times: Any) -> None:
    check_by_hand(learn_at_new(timesteps=times, kl=0.5), times, kl=0.5)


def test_large_advantages_are_bounded_softly() -> None:
    advantages = [9.0, -9.0, 3.0, -3.0, 1.0, -1.0, 0.1, -0.1]
    run = learn(advantages, advantage_max=2.0)
    expected = 2 * torch.tanh(torch.tensor(advantages) / 2)
    for loss in testing.check_ratios_are_one(run):
        torch.testing.assert_close(loss.values, -expected.repeat(len(loss.values) // 8))
    check_by_hand(learn_at_new(advantages, advantage_max=2.0), most=2.0)


@pytest.mark.parametrize("together", [4, 1])
def test_where_an_iteration_starts_every_ratio_is_exactly_one(together: int) -> None:
    run = learn(shape=(8, together))
    for moved in (False, True):
        if moved:
            run.move_to(*NEW)
            assert any(bool((loss.metrics["ratio/mean"] != 1).any()) for loss in run.losses())
            run.policy.iteration_finished(0)
        testing.check_ratios_are_one(run)
    testing.check_average(learn(), "old", {0: 0.0, 1: 0.0, 500: 0.0})


def test_the_members_of_a_group_share_noise_and_times_and_groups_do_not() -> None:
    run = learn()
    step, groups = batches(run)[0].step, run.experience.groups
    noises = (step.latents - (1 - step.sigma.reshape(-1, 1, 1, 1)) * run.experience.latents.repeat(4, 1, 1, 1))[:8]
    for group in groups.unique():
        own = step.sigma[:8][groups == group]
        assert torch.equal(own, own[:1].expand_as(own))
        torch.testing.assert_close(noises[groups == group], noises[groups == group][:1].expand(4, -1, -1, -1))
    assert len(step.sigma[:8].unique()) == len(groups.unique()) == 2
    found = [loss.extremes["ratio/max_deviation"] for loss in learn_at_new().losses()]
    assert torch.isfinite(torch.cat(found)).all()
    strata = batches(run)[0].step.sigma[::8].sort().values
    assert torch.equal(((strata - 0.1) / 0.9 * 4).floor(), torch.arange(4.0)), "one time of each quarter"


def test_the_same_is_learned_whatever_fits_a_forward() -> None:
    def make(batch_size: int, together: int) -> Learning:
        return learn_at_new(shape=(batch_size, together), kl=0.5)

    shapes = [(8, 4), (5, 4), (8, 2), (3, 1), (5, 3)]
    found = testing.check_same_updates_whatever_fits_a_forward(make, shapes)
    # three weights; where the times of a sample take several forwards, the present one is looked at first
    assert found == [3 * 1, 3 * 2, 4 * 2, 4 * 3 * 4, 4 * 2 * 2]


@pytest.mark.parametrize("weights", [START, NEW], ids=["at-the-start", "after-updates"])
def test_an_advantage_of_zero_moves_nothing(weights: Weights) -> None:
    run = learn()
    run.move_to(*weights)
    testing.check_no_advantage_no_gradient(run)


def test_an_update_lowers_the_error_of_a_better_sample_and_raises_that_of_a_worse_one() -> None:
    run = learn()
    testing.check_descent_follows_advantages(run, [ByHand(batches(run)).closeness])


def test_the_kl_is_zero_at_the_reference_and_pulls_back_to_it() -> None:
    run = learn((0.0,) * 8, kl=1.0)
    hand = ByHand(batches(run))
    for loss in testing.check_penalty(run, "kl", NEW):
        torch.testing.assert_close(loss.terms["kl"].detach().double(), hand.distance(NEW, START), rtol=1e-5, atol=1e-7)
    testing.check_reference_stays(learn_at_new(kl=0.5), "kl", NEW)


def test_without_a_kl_there_is_no_term_and_no_reference() -> None:
    run = learn_at_new()
    assert all(not loss.terms for loss in run.losses())
    with pytest.raises(RunError, match="no weights are kept as 'reference'"):
        run.policy.compare(batches(run)[0].step, {"reference": At(REFERENCE)})


def test_the_present_weights_draw_and_a_stochastic_solver_changes_nothing_else() -> None:
    assert learn().experience.plan.weights is None
    check_by_hand(learn_at_new(dynamics=FlowSDEConfig().build("dynamics")))
