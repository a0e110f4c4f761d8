"""The suites for algorithms notice what they are for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory import AlgorithmConfig, At, Experience, Loss, Policy, hookimpl, testing
from flowfactory.flow import NoisedBatch, TimestepsConfig, Uniform, noised_micro_batches
from flowfactory.flow.dynamics import CPSConfig, DanceSDEConfig, FlowSDEConfig
from flowfactory.policy import REFERENCE, Constant
from flowfactory.rl import clipped_surrogate, squared_error, velocity_kl
from flowfactory.testing import ODE, Learning, NoisedByHand

ADVANTAGES = (1.0, -1.0, 0.5, -0.5)
NEW = (0.4, -0.1)
Lossy = Callable[[NoisedBatch, Policy], Loss]
COUNT = itertools.count(1)


class Told(TimestepsConfig):
    """An algorithm whose losses are as it is told."""

    loss: Any

    def build(self, label: str) -> object:
        loss, timesteps = self.loss, self.timesteps

        class Algorithm:
            @hookimpl
            def run_started(self, policy: Policy) -> None:
                policy.keep_reference()
                policy.track_ema("average", Constant(decay=0.5))

            @hookimpl
            def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
                for at in noised_micro_batches(experience, timesteps):
                    yield loss(at, policy)

        return Algorithm()


def regression(at: NoisedBatch, policy: Policy) -> Loss:
    return Loss(at.samples.advantages * squared_error(policy.evaluate(at.step).velocity, at.target))


def learn(loss: Lossy = regression, *shape: int) -> Learning:
    return testing.learning(Told(loss=loss), ADVANTAGES, (0.3, -0.2), 4, ODE(), *shape)


def expected(run: Learning) -> list[tuple[Tensor, Tensor]]:
    hands = [NoisedByHand(at) for at in run.noised_batches(Uniform())]
    return [
        (hand.advantages * hand.error((0.3, -0.2)), hand.advantages[:, None] * hand.error_gradient((0.3, -0.2)))
        for hand in hands
    ]


def test_losses_are_compared_with_those_by_hand_value_by_value_and_gradient_by_gradient() -> None:
    run = learn()
    right = expected(run)
    assert len(testing.check_losses(run, right)) == 2
    for wrong in (
        right[:1],
        [right[1], right[0]],
        [(values, gradients * 1.01) for values, gradients in right],
        [(values + 1e-3, gradients) for values, gradients in right],
    ):
        with pytest.raises(AssertionError):
            testing.check_losses(run, wrong)


def test_in_any_order_each_row_still_counts_once() -> None:
    run = learn(regression, 3)
    (values, gradients), other = expected(learn())
    testing.check_losses_in_any_order(run, [other, (values.flip(0), gradients.flip(0))])
    with pytest.raises(AssertionError, match="not each expected one once"):
        testing.check_losses_in_any_order(run, [other, other])
    with pytest.raises(AssertionError):
        testing.check_losses_in_any_order(run, [other, (values, gradients.flip(0))])


def test_a_loss_that_depends_on_what_fits_a_forward_is_noticed() -> None:
    def uneven(at: NoisedBatch, policy: Policy) -> Loss:
        return Loss(regression(at, policy).values * len(at))

    def make(loss: Lossy) -> Callable[[int, int], Learning]:
        return lambda *shape: learn(loss, *shape)

    shapes = [(4, 1), (3, 1), (4, 2)]
    assert testing.check_same_updates_whatever_fits_a_forward(make(regression), shapes) == [2, 4, 1]
    with pytest.raises(AssertionError, match=r"losses of \(3, 1\)"):
        testing.check_same_updates_whatever_fits_a_forward(make(uneven), shapes)


def test_a_loss_that_no_advantage_weighs_is_noticed() -> None:
    def unweighed(at: NoisedBatch, policy: Policy) -> Loss:
        return Loss(policy.evaluate(at.step).velocity.flatten(1).sum(1))

    testing.check_no_advantage_no_gradient(learn())
    with pytest.raises(AssertionError, match="zero have a gradient"):
        testing.check_no_advantage_no_gradient(
            learn(lambda at, policy: Loss(policy.evaluate(at.step).velocity.flatten(1).sum(1)))
        )


def test_a_descent_the_wrong_way_is_noticed() -> None:
    def turned(at: NoisedBatch, policy: Policy) -> Loss:
        return Loss(-regression(at, policy).values)

    def measures(run: Learning) -> list[Any]:
        hands = [NoisedByHand(at) for at in run.noised_batches(Uniform())]
        return [lambda weights, hand=hand: -hand.error(weights) for hand in hands]

    run = learn()
    testing.check_descent_follows_advantages(run, measures(run))
    with pytest.raises(AssertionError, match=r"advantage of 1\.0 changes sample 0 by -"):
        testing.check_descent_follows_advantages(learn(turned), measures(run))


def ratios(at: NoisedBatch, policy: Policy, clip_range: float = 0.01, shift: float = 0.0) -> Loss:
    new, kept = policy.compare(at.step, {"old": At(REFERENCE)})
    now, then = (squared_error(found.velocity, at.target) for found in (new, kept["old"]))
    r = torch.exp(then - now) + shift
    surrogate = clipped_surrogate(r, at.samples.advantages, clip_range)
    return Loss(surrogate, metrics={"ratio/mean": r}, extremes={"ratio/max_deviation": (r - 1).abs()})


def test_a_ratio_that_is_not_quite_one_is_noticed() -> None:
    testing.check_ratios_are_one(learn(ratios))
    with pytest.raises(AssertionError, match="a ratio is not one"):
        testing.check_ratios_are_one(learn(lambda at, policy: ratios(at, policy, shift=1e-6)))


def test_a_clip_at_another_bound_or_on_another_side_is_noticed() -> None:
    def check(loss: Lossy) -> set[tuple[bool, str]]:
        seen = set()
        for weights in (NEW, (0.1, -0.4)):
            run = learn(loss)
            run.move_to(*weights)
            hands = [NoisedByHand(at) for at in run.noised_batches(Uniform())]
            seen |= testing.check_clip(run, [torch.exp(h.error((0.3, -0.2)) - h.error(weights)) for h in hands], 0.01)
        return seen

    assert len(check(ratios)) >= 3
    with pytest.raises(AssertionError, match="is not cut"):
        check(lambda at, policy: ratios(at, policy, clip_range=10.0))


def penalty(at: NoisedBatch, policy: Policy, name: str = REFERENCE, sign: float = 1.0, shift: float = 0.0) -> Loss:
    new, kept = policy.compare(at.step, {"other": At(name)})
    term = sign * velocity_kl(new.velocity, kept["other"].velocity) + shift
    return regression(at, policy).add_term("kl", 1.0, term)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sign": -1.0}, "not above zero away"), ({"shift": 1e-6}, "kl is not zero where it starts")],
)
def test_a_penalty_that_pushes_away_or_is_never_zero_is_noticed(options: dict[str, float], message: str) -> None:
    assert len(testing.check_penalty(learn(penalty), "kl", NEW)) == 2
    with pytest.raises(AssertionError, match=message):
        testing.check_penalty(learn(lambda at, policy: penalty(at, policy, **options)), "kl", NEW)


def test_a_reference_that_follows_the_policy_is_noticed() -> None:
    testing.check_reference_stays(learn(penalty), "kl", NEW)
    with pytest.raises(AssertionError, match="measured from has moved"):
        testing.check_reference_stays(learn(lambda at, policy: penalty(at, policy, "average")), "kl", NEW)


def test_an_average_with_another_schedule_is_noticed() -> None:
    testing.check_average(learn(), "average", {0: 0.5, 7: 0.5})
    with pytest.raises(AssertionError, match="'average' after iteration 7"):
        testing.check_average(learn(), "average", {0: 0.5, 7: 0.6})


def test_a_forward_too_many_is_noticed() -> None:
    def twice(at: NoisedBatch, policy: Policy) -> Loss:
        regression(at, policy)
        return regression(at, policy)

    testing.check_forwards(learn(), 2, 1)
    testing.check_forwards_fit(learn(regression, 3), 8)
    with pytest.raises(AssertionError, match="2 losses take 4 forwards, 4 with a graph"):
        testing.check_forwards(learn(twice), 2, 1)
    run = learn(regression, 3)
    with pytest.raises(AssertionError, match="4 rows, more than the 3"):
        testing.check_forwards_fit(replace(run, hooks=Whole(run)), 8)


class Whole:
    """Hooks that give an algorithm all samples at once, though fewer fit a forward."""

    def __init__(self, run: Learning) -> None:
        self.run = run

    def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
        yield from self.run.hooks.update(replace(experience, batch_size=4), policy)


@pytest.mark.parametrize(("name", "config"), [("flow-sde", FlowSDEConfig), ("dance-sde", DanceSDEConfig), ("cps", CPSConfig)])
def test_steps_by_hand_have_the_gradients_that_autograd_finds(name: str, config: Any) -> None:
    class Recorder(AlgorithmConfig):
        def build(self, label: str) -> object:
            class Algorithm:
                @hookimpl
                def plan(self, plan: Any) -> Any:
                    return replace(plan, recorded=plan.stochastic)

            return Algorithm()

    run = testing.learning(Recorder(), ADVANTAGES, dynamics=config(noise_level=0.7).build("dynamics"))
    for step in run.experience.steps:
        hand = testing.step_by_hand(step, name, 0.7)
        torch.testing.assert_close(step.log_prob.double(), hand.log_density((0.3, -0.2)), rtol=1e-5, atol=1e-5)
        found = testing.autograd_by_hand(hand.log_density, NEW)
        torch.testing.assert_close(found, hand.score(NEW), rtol=1e-9, atol=1e-12)
        found = testing.autograd_by_hand(lambda pair, hand=hand: hand.divergence(pair, (0.3, -0.2)), NEW)
        torch.testing.assert_close(found, hand.divergence_gradient(NEW, (0.3, -0.2)), rtol=1e-9, atol=1e-12)
        found = testing.autograd_by_hand(lambda pair, hand=hand: hand.distance(pair, (0.3, -0.2)), NEW)
        torch.testing.assert_close(found, hand.distance_gradient(NEW, (0.3, -0.2)), rtol=1e-9, atol=1e-12)


PLUGIN = """
from itertools import count
from pydantic import Field
from flowfactory import AlgorithmConfig, Loss, hookimpl
from flowfactory.flow import Timesteps, Uniform, noised_micro_batches
from flowfactory.rl import squared_error

CALLS = count()

class PlainConfig(AlgorithmConfig):
    timesteps: Timesteps = Uniform()
    forgets: bool = False
    takes_all: bool = True
    most: float = Field(1.0, gt=0)

    def check(self, run):
        if not self.takes_all:
            self.timesteps.check(run)

    def build(self, label):
        return Plain(self)

class Plain:
    def __init__(self, config):
        self.config = config

    @hookimpl
    def update(self, experience, policy):
        for at in noised_micro_batches(experience, self.config.timesteps):
            error = squared_error(policy.evaluate(at.step).velocity, at.target)
            weight = 1 + next(CALLS) if self.config.forgets else 1
            yield Loss(weight * at.samples.advantages * error, metrics={"error": error})

@hookimpl
def register_components(register):
    register("algorithm", "plain", PlainConfig)
"""


@pytest.fixture
def plain(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``plain(forgets=True)``: a run of an algorithm that is not quite right, if asked."""

    def make(**options: Any) -> dict[str, Any]:
        folder = tmp_path / str(next(COUNT))
        folder.mkdir()
        (folder / "plain.py").write_text(PLUGIN)
        return testing.settings(folder, {"name": "plain", **options}, plugins=[folder / "plain.py"])

    return make


def test_a_metric_or_a_term_that_is_not_there_is_noticed(plain: Callable[..., dict[str, Any]]) -> None:
    assert len(testing.check_runs(plain(), metrics=["error"]).records) == 3
    with pytest.raises(AssertionError, match="margin is not reported"):
        testing.check_runs(plain(), metrics=["margin"])
    with pytest.raises(AssertionError, match="kl too"):
        testing.check_runs(plain(), terms=["kl"])


def test_a_first_record_with_another_value_is_noticed(plain: Callable[..., dict[str, Any]]) -> None:
    error = testing.train(plain()).records[0]["error"]
    testing.check_first_update(plain(), {"error": error})
    with pytest.raises(AssertionError, match="error of the first update is"):
        testing.check_first_update(plain(), {"error": error + 1})


def test_what_a_checkpoint_does_not_hold_is_noticed(plain: Callable[..., dict[str, Any]]) -> None:
    testing.check_resumes_bit_for_bit(plain())
    with pytest.raises(AssertionError, match="records of a resumed run differ"):
        testing.check_resumes_bit_for_bit(plain(forgets=True))


def test_a_refusal_that_does_not_come_or_says_something_else_is_noticed(plain: Callable[..., dict[str, Any]]) -> None:
    testing.check_refused(plain(most=0), r"algorithm\.most")
    with pytest.raises(AssertionError, match="the config is accepted"):
        testing.check_refused(plain(), "most")
    with pytest.raises(AssertionError, match="is not found"):
        testing.check_refused(plain(most=0), "least")


def test_an_algorithm_that_takes_too_many_timesteps_or_splits_groups_is_noticed(
    plain: Callable[..., dict[str, Any]],
) -> None:
    testing.check_timesteps_options(plain(takes_all=False))
    for check in (
        testing.check_timesteps_options,
        testing.check_refuses_another_sampler,
        testing.check_refuses_more_updates_than_groups,
    ):
        with pytest.raises(AssertionError, match="the config is accepted"):
            check(plain())


def test_recorded_steps_that_nobody_needs_are_noticed(plain: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    raw = plain()
    raw["sampling"]["dynamics"] = "flow-sde"
    testing.check_records_no_step(raw)
    (tmp_path / "records").mkdir()
    plugin = Path(__file__).parents[2] / "shared" / "policy_gradient.py"
    raw = testing.settings(tmp_path / "records", "reinforce", plugins=[plugin], sampling={"dynamics": "flow-sde"})
    with pytest.raises(AssertionError, match="preflight replays recorded steps"):
        testing.check_records_no_step(raw)
