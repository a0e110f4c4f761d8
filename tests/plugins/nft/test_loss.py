"""DiffusionNFT's loss and gradient against the paper's formulas, worked out by hand in float64. arXiv:2509.16117."""

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
from flowfactory.policy import REFERENCE
from flowfactory.testing import ODE, Learning, NoisedByHand, Weights
from flowfactory_nft.nft import NFTConfig

START = (0.3, -0.2)
MIDDLE = (0.5, -0.35)
NEW = (0.2, -0.05)
QUARTER = {"name": "constant", "decay": 0.25}
OLD = (0.45, -0.3125)  # a quarter of START and three of MIDDLE
ADVANTAGES = (1.2, -0.7, 0.4, -1.5, 0.9, -0.3, 2.0, -2.0)
TIMES = Uniform(count=3, low=0.1)


def learn(
    advantages: Sequence[float] = ADVANTAGES, shape: tuple[int, int] = (8, 1), dynamics: Any = None, **options: Any
) -> Any:
    """A run at START, whose samples were drawn there; ``shape`` is the samples and the times of a forward."""
    config = NFTConfig.model_validate({"kl": 0.0, **options})
    return testing.learning(config, advantages, START, 4, dynamics or ODE(), *shape)


def learn_at_new(**options: Any) -> Learning:
    """A run whose present weights are NEW, whose old ones are OLD, and whose reference is START."""
    run: Learning = learn(**{"old": QUARTER, "timesteps": TIMES, **options})
    run.move_through(MIDDLE, NEW)
    return run


class ByHand(NoisedByHand):
    """The rows of a noised batch, and all formulas."""

    def __init__(self, at: NoisedBatch, beta: float = 1.0, advantage_max: float = 5.0, kl: float = 0.0) -> None:
        super().__init__(at)
        self.beta, self.maximum, self.kl = beta, advantage_max, kl
        share = self.advantages / advantage_max / 2 + 0.5
        self.r = torch.where(share > 1, 1.0, torch.where(share < 0, 0.0, share))

    def clean_error(self, velocity: Tensor) -> Tensor:
        """[b, n]: of the clean latents that the velocity implies."""
        return self.x - self.sigma * velocity - self.clean

    def closeness(self, weights: Weights) -> Tensor:
        """[b]: minus the mean squared error of the clean latents that the weights imply."""
        return -self.clean_error(self.velocity(weights)).square().mean(1)

    def pair(self, new: Weights, old: Weights) -> tuple[Tensor, Tensor]:
        """The errors of the positive and of the negative policy."""
        v, v_old = self.velocity(new), self.velocity(old)
        return (
            self.clean_error((1 - self.beta) * v_old + self.beta * v),
            self.clean_error((1 + self.beta) * v_old - self.beta * v),
        )

    def loss(self, new: Weights, old: Weights = OLD, reference: Weights = START) -> Tensor:
        """[b]; differentiable where ``new`` is, with the scales as constants."""
        good, bad = (error.square().mean(1) / scale(error) for error in self.pair(new, old))
        values = (self.r * good + (1 - self.r) * bad) / self.beta * self.maximum
        return values + self.kl * self.distance(new, reference)

    def gradient(self, new: Weights, old: Weights = OLD, reference: Weights = START) -> Tensor:
        """[b, 2]: de+/dv = -sigma beta and de-/dv = sigma beta, of which the loss divides beta away again."""
        good, bad = (error / scale(error)[:, None] for error in self.pair(new, old))
        r = self.r[:, None]
        by_velocity = 2 * self.maximum * self.sigma * ((1 - r) * bad - r * good)
        return self.by_weights(by_velocity) + self.kl * self.distance_gradient(new, reference)


def scale(error: Tensor) -> Tensor:
    """[b]: the mean absolute error that divides, at least 1e-5, not differentiated."""
    return error.detach().abs().mean(1).clamp(min=1e-5)


def check_by_hand(run: Learning, times: Any = TIMES, **options: Any) -> None:
    """Losses, metrics and the gradient of every row are those by hand, for NEW with OLD and START."""
    hands = [ByHand(at, **options) for at in run.noised_batches(times)]
    for hand in hands:
        torch.testing.assert_close(testing.autograd_by_hand(hand.loss, NEW), hand.gradient(NEW), rtol=1e-9, atol=1e-12)
    expected = [(hand.loss(NEW), hand.gradient(NEW)) for hand in hands]
    for loss, hand in zip(testing.check_losses(run, expected, values=(1e-5, 1e-6), gradients=(1e-4, 1e-5)), hands, strict=True):
        torch.testing.assert_close(loss.metrics["optimality"].double(), hand.r, rtol=0, atol=1e-6)
        distance = loss.metrics["old_distance"].detach().double()
        torch.testing.assert_close(distance, hand.distance(NEW, OLD), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("beta", [0.5, 1.0])
@pytest.mark.parametrize("advantage_max", [5.0, 1.5], ids=["within", "clamped"])
@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_loss_and_gradient_are_those_of_the_paper(beta: float, advantage_max: float, kl: float) -> None:
    options = {"beta": beta, "advantage_max": advantage_max, "kl": kl}
    run = learn_at_new(**options)
    check_by_hand(run, **options)
    assert len(run.losses()) == 3
    r = torch.cat([loss.metrics["optimality"] for loss in run.losses()])
    assert (float(r.min()), float(r.max())) == ((0, 1) if advantage_max == 1.5 else (pytest.approx(0.3), pytest.approx(0.7)))


@pytest.mark.parametrize(
    "times", [Discrete(count=3), LogitNormal(count=3, shift=3.0), Uniform(count=3, stratified=False)], ids=lambda t: t.name
)
def test_loss_and_gradient_are_those_of_the_paper_at_any_training_times(times: Any) -> None:
    check_by_hand(learn_at_new(kl=0.5, timesteps=times), times, kl=0.5)


@pytest.mark.parametrize("batch_size", [8, 3])
def test_an_update_is_the_mean_over_all_samples_and_times_whatever_the_batches(batch_size: int) -> None:
    run = learn_at_new(shape=(batch_size, 1), kl=0.5)
    hands = [ByHand(at, kl=0.5) for at in noised_batches(run.experience, TIMES)]  # of all samples at once
    update = run.update()
    expected = torch.cat([hand.gradient(NEW) for hand in hands]).mean(0)
    torch.testing.assert_close(update.gradient, expected, rtol=1e-4, atol=1e-6)
    assert update.metrics["loss"] == pytest.approx(float(torch.cat([hand.loss(NEW) for hand in hands]).mean()), rel=1e-5)


def test_an_error_near_zero_is_divided_by_a_hundred_thousandth_and_not_by_itself() -> None:
    times = Uniform(count=3, low=1e-7, high=5e-6)
    run = learn_at_new(timesteps=times)
    # with clean latents of zero, noisy ones as small as these are exact in float32
    run = replace(run, experience=replace(run.experience, latents=torch.zeros_like(run.experience.latents)))
    for loss, at in zip(run.losses(), run.noised_batches(times), strict=True):
        hand = ByHand(at)
        assert all(float(error.abs().mean(1).max()) < 1e-5 for error in hand.pair(NEW, OLD))
        torch.testing.assert_close(loss.values.double(), hand.loss(NEW), rtol=1e-4, atol=0)
        torch.testing.assert_close(run.gradient(loss.values), hand.gradient(NEW).sum(0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_an_advantage_of_zero_moves_nothing_from_the_old_policy(beta: float) -> None:
    run = learn((0.0,) * 8, beta=beta)
    for loss in run.losses():
        assert torch.equal(loss.metrics["optimality"], torch.full((8,), 0.5))
        # at 1 the two policies are the same bit for bit; else they are so up to rounding
        assert float(run.gradients(loss.values).abs().max()) <= (0 if beta == 1 else 1e-5)


def test_an_advantage_beyond_the_maximum_counts_as_the_maximum() -> None:
    found, signs = [], torch.tensor(ADVANTAGES).sign()
    for size in (5.0, 9.0):
        losses = learn_at_new(advantage_max=5.0).with_advantages((size * signs).tolist()).losses()
        found.append(torch.cat([loss.values for loss in losses]))
        assert all(torch.equal(loss.metrics["optimality"], (signs > 0).float()) for loss in losses)
    assert torch.equal(*found)


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_an_update_lowers_the_error_of_a_better_sample_and_raises_that_of_a_worse_one(beta: float) -> None:
    run = learn(beta=beta, timesteps=TIMES)
    hands = [ByHand(at) for at in run.noised_batches(TIMES)]
    testing.check_descent_follows_advantages(run, [hand.closeness for hand in hands])


def test_the_kl_is_zero_at_the_reference_and_pulls_back_to_it() -> None:
    run = learn((0.0,) * 8, kl=1.0, timesteps=TIMES)
    for loss, at in zip(testing.check_penalty(run, "kl", NEW), run.noised_batches(TIMES), strict=True):
        torch.testing.assert_close(loss.terms["kl"].detach().double(), ByHand(at).distance(NEW, START), rtol=1e-5, atol=1e-7)


def test_the_reference_stays_what_training_started_from() -> None:
    testing.check_reference_stays(learn_at_new(kl=0.5), "kl", NEW)


def test_without_a_kl_there_is_no_term_and_no_reference() -> None:
    run = learn_at_new()
    assert all(not loss.terms for loss in run.losses())
    with pytest.raises(RunError, match="no weights are kept as 'reference'"):
        run.policy.compare(run.noised_batches(TIMES)[0].step, {"reference": At(REFERENCE)})


def test_the_old_policy_draws() -> None:
    assert learn().experience.plan.weights == "old"


def test_the_old_policy_is_an_average_that_moves_after_each_iteration() -> None:
    testing.check_average(learn(old=QUARTER), "old", {0: 0.25, 1: 0.25})


def test_left_to_itself_the_old_policy_copies_first_and_keeps_a_thousandth_more_each_iteration() -> None:
    testing.check_average(learn(), "old", {0: 0.0, 200: 0.2, 9000: 0.5})  # never more than a half


@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_weights_that_are_the_same_share_a_forward(kl: float) -> None:
    run = learn(shape=(3, 1), kl=kl, old=QUARTER, timesteps=TIMES)
    losses = 3 * 3  # three times of three batches (3, 3 and 2 samples)
    testing.check_forwards(run, losses, 1)  # present, old and reference are the same
    run.move_to(*MIDDLE)
    testing.check_forwards(run, losses, 2)  # old and reference are the same
    run.policy.iteration_finished(0)
    run.move_to(*NEW)
    testing.check_forwards(run, losses, 3 if kl else 2)


def test_two_times_share_a_forward_and_change_neither_loss_nor_gradient() -> None:
    def make(*shape: int) -> Learning:
        run = learn_at_new(shape=shape, timesteps=Uniform(count=4, low=0.1), kl=0.5)
        assert sum(len(loss.values) for loss in run.losses()) == 8 * 4
        return run

    found = testing.check_same_updates_whatever_fits_a_forward(make, [(5, 1), (5, 2)])
    assert found == [3 * 2 * 4, 3 * 2 * 2], "three weights, two batches, the times"


def test_a_stochastic_solver_changes_what_is_drawn_and_nothing_else() -> None:
    ode, sde = (learn_at_new(dynamics=dynamics) for dynamics in (None, FlowSDEConfig().build("dynamics")))
    assert not torch.equal(ode.experience.latents, sde.experience.latents)
    check_by_hand(ode)
    check_by_hand(sde)
