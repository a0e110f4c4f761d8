"""DiffusionNFT's loss and gradient against the paper's formulas, worked out by hand in float64. arXiv:2509.16117."""

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
from flowfactory.policy.policy import REFERENCE, At
from flowfactory.testing import Learning
from flowfactory.training.learner import Learner
from flowfactory.training.metrics import UpdateMetrics

START = (0.3, -0.2)  # of conftest.py
MIDDLE = (0.5, -0.35)
NEW = (0.2, -0.05)
DECAY = 0.25
OLD = (0.45, -0.3125)  # a quarter of START and three of MIDDLE
ADVANTAGES = (1.2, -0.7, 0.4, -1.5, 0.9, -0.3, 2.0, -2.0)
TIMES = Uniform(count=3, low=0.1)

Weights = Any  # (p, q), or a tensor of the two


def displaced(learning: Any, **options: Any) -> Learning:
    """A run whose present weights are NEW, whose old ones are OLD, and whose reference is START."""
    run: Learning = learning(ADVANTAGES, **{"old": {"name": "constant", "decay": DECAY}, "timesteps": TIMES, **options})
    run.move_to(*MIDDLE)
    run.policy.iteration_finished(0)
    run.move_to(*NEW)
    return run


def placed(run: Learning, times: Discrete | Uniform | LogitNormal = TIMES) -> list[NoisedBatch]:
    return [at for batch in run.experience.micro_batches() for at in noised_batches(batch, times)]


class ByHand:
    """The rows of a place: clean x, noisy = (1 - sigma) x + sigma noise, and all formulas in float64."""

    def __init__(self, at: NoisedBatch, beta: float = 1.0, advantage_max: float = 5.0, kl: float = 0.0) -> None:
        self.x, self.noisy = at.samples.latents.double().flatten(1), at.step.latents.double().flatten(1)
        self.sigma = at.step.sigma.double()[:, None]
        self.beta, self.maximum, self.kl = beta, advantage_max, kl
        share = at.samples.advantages.double() / advantage_max / 2 + 0.5
        self.r = torch.where(share > 1, 1.0, torch.where(share < 0, 0.0, share))

    def velocity(self, weights: Weights) -> Tensor:
        return weights[0] * self.noisy + weights[1] * self.sigma

    def error(self, velocity: Tensor) -> Tensor:
        """[b, n]: of the clean latents that the velocity implies."""
        return self.noisy - self.sigma * velocity - self.x

    def pair(self, new: Weights, old: Weights) -> tuple[Tensor, Tensor]:
        """The errors of the positive and of the negative policy."""
        v, v_old = self.velocity(new), self.velocity(old)
        return (
            self.error((1 - self.beta) * v_old + self.beta * v),
            self.error((1 + self.beta) * v_old - self.beta * v),
        )

    def loss(self, new: Weights, old: Weights, reference: Weights) -> Tensor:
        """[b]; differentiable where ``new`` is, with the scales as constants."""
        good, bad = (error.square().mean(1) / scale(error) for error in self.pair(new, old))
        values = (self.r * good + (1 - self.r) * bad) / self.beta * self.maximum
        return values + self.kl * (self.velocity(new) - self.velocity(reference)).square().mean(1)

    def gradient(self, new: Weights, old: Weights, reference: Weights) -> Tensor:
        """[b, 2]: de+/dv = -sigma beta and de-/dv = sigma beta, of which the loss divides beta away again."""
        good, bad = (error / scale(error)[:, None] for error in self.pair(new, old))
        r = self.r[:, None]
        by_velocity = 2 * self.maximum * self.sigma * ((1 - r) * bad - r * good)
        by_velocity = by_velocity + 2 * self.kl * (self.velocity(new) - self.velocity(reference))
        return torch.stack([(by_velocity * self.noisy).mean(1), (by_velocity * self.sigma).mean(1)], dim=1)

    def autograd(self, new: Weights, old: Weights, reference: Weights) -> Tensor:
        """[b, 2]: what float64 autograd makes of the loss."""
        weights = torch.tensor(new, dtype=torch.float64, requires_grad=True)
        rows = self.loss(weights, old, reference)
        return torch.stack([torch.autograd.grad(row, weights, retain_graph=True)[0] for row in rows])


def scale(error: Tensor) -> Tensor:
    """[b]: the mean absolute error that divides, at least 1e-5, not differentiated."""
    return error.detach().abs().mean(1).clamp(min=1e-5)


def assert_worked_out(run: Learning, ats: list[NoisedBatch], **options: Any) -> None:
    """Losses, metrics and the gradient of every row are those by hand, for NEW with OLD and START."""
    losses = run.losses()
    assert len(losses) == len(ats)
    for loss, at in zip(losses, ats, strict=True):
        hand = ByHand(at, **options)
        torch.testing.assert_close(loss.values.double(), hand.loss(NEW, OLD, START), rtol=1e-5, atol=1e-6)
        expected = hand.gradient(NEW, OLD, START)
        torch.testing.assert_close(hand.autograd(NEW, OLD, START), expected, rtol=1e-9, atol=1e-12)
        found = torch.stack([run.gradient(value) for value in loss.values])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(loss.metrics["optimality"].double(), hand.r, rtol=0, atol=1e-6)
        apart = (hand.velocity(NEW) - hand.velocity(OLD)).square().mean(1)
        torch.testing.assert_close(loss.metrics["old_distance"].detach().double(), apart, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("beta", [0.5, 1.0])
@pytest.mark.parametrize("advantage_max", [5.0, 1.5], ids=["within", "clamped"])
@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_loss_and_gradient_are_those_of_the_paper(learning: Any, beta: float, advantage_max: float, kl: float) -> None:
    options = {"beta": beta, "advantage_max": advantage_max, "kl": kl}
    run = displaced(learning, **options)
    ats = placed(run)
    assert len(ats) == 3
    assert_worked_out(run, ats, **options)
    r = torch.cat([loss.metrics["optimality"] for loss in run.losses()])
    assert (float(r.min()), float(r.max())) == ((0, 1) if advantage_max == 1.5 else (pytest.approx(0.3), pytest.approx(0.7)))


@pytest.mark.parametrize(
    "times", [Discrete(count=3), LogitNormal(count=3, shift=3.0), Uniform(count=3, stratified=False)], ids=lambda t: t.name
)
def test_loss_and_gradient_are_those_of_the_paper_at_any_training_times(learning: Any, times: Any) -> None:
    run = displaced(learning, kl=0.5, timesteps=times)
    assert_worked_out(run, placed(run, times), kl=0.5)


@pytest.mark.parametrize("batch_size", [8, 3])
def test_an_update_is_the_mean_over_all_samples_and_times_whatever_the_batches(learning: Any, batch_size: int) -> None:
    run = displaced(learning, batch_size=batch_size, kl=0.5)
    learner = Learner(run.policy, TrainingConfig.model_validate({"max_grad_norm": 1e9}))
    gathered = UpdateMetrics()
    learner.step(run.hooks.update(run.experience, run.policy), gathered)
    hands = [ByHand(at, kl=0.5) for at in noised_batches(run.experience, TIMES)]  # of all samples at once
    gradient = torch.stack([run.policy.parameters[f"transformer.{name}"].grad.double() for name in ("p", "q")])
    expected = torch.cat([hand.gradient(NEW, OLD, START) for hand in hands]).mean(0)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    loss = torch.cat([hand.loss(NEW, OLD, START) for hand in hands]).mean()
    assert gathered.metrics()["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_an_error_near_zero_is_divided_by_a_hundred_thousandth_and_not_by_itself(learning: Any) -> None:
    times = Uniform(count=3, low=1e-7, high=5e-6)
    run = displaced(learning, timesteps=times)
    # with clean latents of zero, noisy ones as small as these are exact in float32
    run = replace(run, experience=replace(run.experience, latents=torch.zeros_like(run.experience.latents)))
    for loss, at in zip(run.losses(), placed(run, times), strict=True):
        hand = ByHand(at)
        assert all(float(error.abs().mean(1).max()) < 1e-5 for error in hand.pair(NEW, OLD))
        torch.testing.assert_close(loss.values.double(), hand.loss(NEW, OLD, START), rtol=1e-4, atol=0)
        torch.testing.assert_close(run.gradient(loss.values), hand.gradient(NEW, OLD, START).sum(0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_an_advantage_of_zero_moves_nothing_from_the_old_policy(learning: Any, beta: float) -> None:
    run = learning((0.0,) * 8, beta=beta)
    for loss in run.losses():
        assert torch.equal(loss.metrics["optimality"], torch.full((8,), 0.5))
        gradients = torch.stack([run.gradient(value) for value in loss.values])
        # at 1 the two policies are the same bit for bit; else they are so up to rounding
        assert float(gradients.abs().max()) <= (0 if beta == 1 else 1e-5)


def test_an_advantage_beyond_the_maximum_counts_as_the_maximum(learning: Any) -> None:
    found, signs = [], torch.tensor(ADVANTAGES).sign()
    for size in (5.0, 9.0):
        run = displaced(learning, advantage_max=5.0)
        losses = replace(run, experience=replace(run.experience, advantages=size * signs)).losses()
        found.append(torch.cat([loss.values for loss in losses]))
        assert all(torch.equal(loss.metrics["optimality"], (signs > 0).float()) for loss in losses)
    assert torch.equal(*found)


def alone_with(run: Learning, sample: int, advantage: float) -> Learning:
    """The run with ``advantage`` for ``sample`` and zero for the others."""
    advantages = torch.zeros(len(run.experience))
    advantages[sample] = advantage
    return replace(run, experience=replace(run.experience, advantages=advantages))


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_an_update_lowers_the_error_of_a_better_sample_and_raises_that_of_a_worse_one(learning: Any, beta: float) -> None:
    run = learning(ADVANTAGES, beta=beta, timesteps=TIMES)
    for sample, sign in product(range(8), (1.0, -1.0)):
        alone = alone_with(run, sample, sign)
        for loss, at in zip(alone.losses(), placed(alone), strict=True):
            p, q = (torch.tensor(START, dtype=torch.float64) - 1e-4 * run.gradient(loss.values)).tolist()
            hand = ByHand(at)
            before, after = (hand.error(hand.velocity(weights)).square().mean(1)[sample] for weights in (START, (p, q)))
            assert float(before - after) * sign > 0


def test_the_kl_is_zero_at_the_reference_and_pulls_back_to_it(learning: Any) -> None:
    run = learning((0.0,) * 8, kl=1.0, timesteps=TIMES)
    for loss in run.losses():
        assert torch.equal(loss.terms["kl"], torch.zeros(8))
        assert not run.gradient(loss.terms["kl"]).any()
    run.move_to(*NEW)
    for loss, at in zip(run.losses(), placed(run), strict=True):
        hand = ByHand(at)
        apart = (hand.velocity(NEW) - hand.velocity(START)).square().mean(1)
        torch.testing.assert_close(loss.terms["kl"].detach().double(), apart, rtol=1e-5, atol=1e-7)
        downhill = -run.gradient(loss.terms["kl"])
        back = torch.tensor(START) - torch.tensor(NEW)
        assert float(downhill @ back.double()) > 0


def test_the_reference_stays_what_training_started_from(learning: Any) -> None:
    run = displaced(learning, kl=0.5)
    first = [loss.terms["kl"].detach() for loss in run.losses()]
    run.policy.iteration_finished(1)  # moves the old policy
    again = [loss.terms["kl"].detach() for loss in run.losses()]
    assert all(map(torch.equal, first, again))
    present = [weight.item() for weight in run.policy.parameters.values()]
    assert present == pytest.approx(NEW), "kept weights were left in place"


def test_without_a_kl_there_is_no_term_and_no_reference(learning: Any) -> None:
    run = displaced(learning)
    assert all(not loss.terms for loss in run.losses())
    with pytest.raises(RunError, match="no weights are kept as 'reference'"):
        run.policy.compare(placed(run)[0].step, {"reference": At(REFERENCE)})


def kept(run: Learning, name: str) -> list[float]:
    with run.policy.using(name):
        return [weight.item() for weight in run.policy.parameters.values()]


def test_the_old_policy_draws(learning: Any) -> None:
    assert learning(ADVANTAGES).experience.plan.weights == "old"


def test_the_old_policy_is_an_average_that_moves_after_each_iteration(learning: Any) -> None:
    run = learning(ADVANTAGES, old={"name": "constant", "decay": DECAY})
    assert kept(run, "old") == pytest.approx(START)
    run.move_to(*MIDDLE)
    run.losses()
    assert kept(run, "old") == pytest.approx(START), "within an iteration it stands still"
    run.policy.iteration_finished(0)
    assert kept(run, "old") == pytest.approx(OLD)
    run.move_to(*NEW)
    run.policy.iteration_finished(1)
    twice = [DECAY * old + (1 - DECAY) * new for old, new in zip(OLD, NEW, strict=True)]
    assert kept(run, "old") == pytest.approx(twice)


def test_left_to_itself_the_old_policy_copies_first_and_keeps_a_thousandth_more_each_iteration(learning: Any) -> None:
    run = learning(ADVANTAGES)
    run.move_to(*MIDDLE)
    run.policy.iteration_finished(0)
    assert kept(run, "old") == pytest.approx(MIDDLE)
    run.move_to(*NEW)
    run.policy.iteration_finished(200)
    assert kept(run, "old") == pytest.approx([0.2 * old + 0.8 * new for old, new in zip(MIDDLE, NEW, strict=True)])
    run.move_to(*START)
    run.policy.iteration_finished(0)
    run.move_to(*MIDDLE)
    run.policy.iteration_finished(9000)  # never more than a half
    assert kept(run, "old") == pytest.approx([(start + middle) / 2 for start, middle in zip(START, MIDDLE, strict=True)])


@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_weights_that_are_the_same_share_a_forward(learning: Any, count: Any, kl: float) -> None:
    run = learning(ADVANTAGES, batch_size=3, kl=kl, old={"name": "constant", "decay": DECAY}, timesteps=TIMES)
    counted = count(run.policy)

    def forwards() -> float:
        before = counted.forwards
        losses = run.losses()
        assert len(losses) == 3 * 3, "three times of three batches (3, 3 and 2 samples)"
        return (counted.forwards - before) / len(losses)

    assert forwards() == 1, "present, old and reference are the same"
    run.move_to(*MIDDLE)
    assert forwards() == 2, "old and reference are the same"
    run.policy.iteration_finished(0)
    run.move_to(*NEW)
    assert forwards() == (3 if kl else 2)


def test_two_times_share_a_forward_and_change_neither_loss_nor_gradient(learning: Any, count: Any) -> None:
    found, forwards = [], []
    for together in (1, 2):
        run = displaced(learning, batch_size=5, timesteps_per_forward=together, timesteps=Uniform(count=4, low=0.1), kl=0.5)
        counted = count(run.policy)
        losses = run.losses()
        values = torch.cat([loss.values for loss in losses])
        assert len(values) == 8 * 4
        found.append((values.sum().detach(), run.gradient(values), values.detach().sort().values))
        forwards.append(counted.forwards)
    assert forwards == [3 * 2 * 4, 3 * 2 * 2], "three weights, two batches, the times"
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_a_stochastic_solver_changes_what_is_drawn_and_nothing_else(learning: Any) -> None:
    drawn = [displaced(learning, dynamics=dynamics) for dynamics in (None, FlowSDEConfig().build("dynamics"))]
    assert not torch.equal(*(run.experience.latents for run in drawn))
    for run in drawn:
        assert_worked_out(run, placed(run))
