from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from flowfactory.config.component import AlgorithmConfig
from flowfactory.config.schema import RunConfig
from flowfactory.errors import RunError, UserError
from flowfactory.experience import Experience
from flowfactory.training.iteration import collect_rollouts
from flowfactory.training.metrics import Timer
from flowfactory.training.recompute import recompute_log_prob
from flowfactory.training.rollouts import Rollouts
from flowfactory.training.setup import Run
from flowfactory.training.update import losses, split_updates
from flowfactory.types import Step

Prepared = Callable[..., Run]
NET = {"model": {"name": "net", "train": "full"}}
CPU = torch.device("cpu")


class Clipped(AlgorithmConfig):
    """What the toy's algorithm would say of itself."""

    trust_region: ClassVar[Mapping[str, tuple[str, ...]]] = {"ratio/max_deviation": ("clip_range",)}

    clip_range: float = 0.1

    def build(self, label: str) -> object:
        raise AssertionError("the run has been built")


class Groupwise(Clipped):
    groupwise: ClassVar[bool] = True


def densities(experience: Experience) -> Tensor:
    """[steps, B]"""
    return torch.stack([step.log_prob for step in experience.steps if step.log_prob is not None])


def config_of(run: Run, algorithm: AlgorithmConfig | None = None) -> RunConfig:
    return run.config.model_copy(update={"algorithm": algorithm or Clipped()})


def off(pool: Rollouts) -> Rollouts:
    """The rollouts with log-densities and means that nothing computes, which all have to be replaced."""
    noise = torch.Generator().manual_seed(3)

    def wrong(like: Tensor) -> Tensor:
        return like + torch.rand(like.shape, generator=noise)

    steps = tuple(
        replace(step, log_prob=wrong(step.log_prob), mean=wrong(step.latents))
        for step in pool.experience.steps
        if step.log_prob is not None
    )
    return replace(pool, experience=replace(pool.experience, steps=steps))


def deviations(run: Run, pool: Rollouts, epoch: int = 0) -> Iterator[float]:
    """|ratio - 1| of every loss of an epoch, at the weights that drew."""
    training = run.config.training
    for rows in split_updates(pool.experience.groups, training.updates, run.config.seed, 0, epoch):
        for loss in losses(run, pool, rows, epoch):
            yield float(loss.extremes["ratio/max_deviation"].detach().max())


@pytest.mark.parametrize("keep_on", ["device", "host"])
@pytest.mark.parametrize("training", [{"updates": 1}, {"updates": 2, "batch_size": 3}, {"updates": 5, "batch_size": 2}])
def test_every_ratio_of_the_first_epoch_is_one_to_the_bit(prepared: Prepared, training: Any, keep_on: str) -> None:
    run = prepared({**NET, "training": {**training, "precision": "bf16"}, "sampling": {"keep_on": keep_on}})
    pool = off(collect_rollouts(run, 0, Timer(CPU)))
    assert min(deviations(run, pool)) > 0
    told: list[int] = []
    fresh = recompute_log_prob(pool, run.policy, config_of(run), told.append)
    assert sum(told) == 16  # each sample once
    assert set(deviations(run, fresh)) == {0.0}
    expected = (torch.exp(densities(fresh.experience) - densities(pool.experience)) - 1).abs().max()
    assert fresh.sampling_deviation == pytest.approx(float(expected), rel=1e-6)


def test_means_are_those_of_the_replayed_steps(prepared: Prepared) -> None:
    run = prepared(NET)
    fresh = recompute_log_prob(off(collect_rollouts(run, 0, Timer(CPU))), run.policy, config_of(run))
    for step in fresh.experience.steps:
        replayed = run.policy.evaluate(step).detach()
        torch.testing.assert_close(step.mean, replayed.mean)
        torch.testing.assert_close(step.log_prob, replayed.log_prob)


def test_steps_that_have_no_mean_get_none_and_nothing_else_changes(prepared: Prepared) -> None:
    run = prepared(NET)
    pool = collect_rollouts(run, 0, Timer(CPU))
    before = [step.map(lambda tensor: tensor.clone(), step.conditions) for step in pool.experience.steps]
    fresh = recompute_log_prob(pool, run.policy, config_of(run))
    for old, step, new in zip(before, pool.experience.steps, fresh.experience.steps, strict=True):
        assert new.mean is None
        for name in ("latents", "sigma", "next_sigma", "next_latents"):
            assert torch.equal(getattr(new, name), getattr(old, name))
        assert torch.equal(step.log_prob, old.log_prob)  # type: ignore[arg-type]


def test_it_is_the_weights_that_drew_whose_densities_are_computed(prepared: Prepared) -> None:
    run = prepared({**NET, "sampling": {"ema": {"name": "constant", "decay": 0.5}}})
    with torch.no_grad():
        for parameter in run.policy.parameters.values():
            parameter.add_(0.1)
    run.policy.mark_changed()
    run.policy.iteration_finished(0)
    pool = collect_rollouts(run, 0, Timer(CPU))
    present = {name: parameter.detach().clone() for name, parameter in run.policy.parameters.items()}
    fresh = recompute_log_prob(off(pool), run.policy, config_of(run))
    torch.testing.assert_close(densities(fresh.experience), densities(pool.experience))
    assert min(deviations(run, fresh)) > 1e-4, "the average has other weights"
    assert all(torch.equal(value, run.policy.parameters[name]) for name, value in present.items())


@pytest.mark.parametrize(
    ("algorithm", "timesteps", "rows"),
    [
        (Clipped(), 1, [3, 3, 2] * 4),  # two updates of eight, and two steps
        (Clipped(), 2, [6, 6, 4] * 2),
        (Groupwise(), 1, [3, 3, 1, 1] * 4),  # a group of four is larger than a forward
    ],
)
def test_it_takes_the_forwards_that_training_takes_and_keeps_no_graph(
    prepared: Prepared, algorithm: AlgorithmConfig, timesteps: int, rows: list[int]
) -> None:
    run = prepared({**NET, "training": {"updates": 2, "batch_size": 3, "timesteps_per_forward": timesteps}})
    pool, seen, inner = off(collect_rollouts(run, 0, Timer(CPU))), list[int](), run.policy._evaluate

    def evaluate(step: Step) -> Any:
        seen.append(len(step.latents))
        assert torch.is_grad_enabled(), "torch.compile makes another graph without gradients"
        return inner(step)

    run.policy._evaluate = evaluate
    fresh = recompute_log_prob(pool, run.policy, config_of(run, algorithm))
    assert sorted(seen) == sorted(rows)
    assert not any(tensor.requires_grad for step in fresh.experience.steps for tensor in (step.log_prob, step.mean))  # type: ignore[union-attr]
    for step in fresh.experience.steps:
        torch.testing.assert_close(step.log_prob, inner(step).detach().log_prob)


def test_a_step_without_a_density_cannot_be_computed_again(prepared: Prepared) -> None:
    run = prepared(NET)
    pool = collect_rollouts(run, 0, Timer(CPU))
    steps = tuple(replace(step, log_prob=None) for step in pool.experience.steps)
    with pytest.raises(RunError, match=r"^training\.recompute_log_prob: a recorded step has no log-density; choose stochastic"):
        recompute_log_prob(replace(pool, experience=replace(pool.experience, steps=steps)), run.policy, config_of(run))


def test_it_is_refused_where_the_algorithm_compares_no_step(load: Callable[..., RunConfig]) -> None:
    with pytest.raises(UserError, match=r"training\.recompute_log_prob: algorithm score compares no recorded step with what"):
        load({"training": {"recompute_log_prob": True}})


def test_what_a_rank_holds_twice_is_written_twice(prepared: Prepared) -> None:
    run = prepared(NET)
    experience = collect_rollouts(run, 0, Timer(CPU)).experience
    pool = Rollouts(experience, held=[[4, 2, 4, 7]])
    kept = torch.zeros(4)
    pool.write_back([(kept, torch.tensor([40.0, 20.0]))], [[4, 2]])
    assert kept.tolist() == [40, 20, 40, 0]
    pool.write_back([(None, torch.ones(2))], [[4, 2]])
    pool.write_back([(kept, torch.tensor([70.0]))], [[7]])
    assert kept.tolist() == [40, 20, 40, 70]
