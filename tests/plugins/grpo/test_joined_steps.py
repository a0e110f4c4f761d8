"""Steps that share a forward: a batch whose rows are at different sigmas is worth as much as its steps one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flowfactory import AlgorithmConfig
from flowfactory.config.loading import validate
from flowfactory.config.schema import TrainingConfig
from flowfactory.runs.train import train
from flowfactory.training.learner import Learner
from flowfactory.training.metrics import UpdateMetrics
from flowfactory_grpo.dppo import DPPOConfig
from flowfactory_grpo.grpo import GRPOConfig
from flowfactory_grpo.grpo_guard import GRPOGuardConfig

NEW = (0.5, -0.1)
ADVANTAGES = (1.2, -0.7, 0.4, -1.5, 0.9, -0.3, 2.0, -2.0)
# bounds that cut some of the losses
BOUNDS: dict[type[AlgorithmConfig], dict[str, float]] = {
    GRPOConfig: {"clip_range": 1e-2},
    GRPOGuardConfig: {"clip_range": 2e-3},
    DPPOConfig: {"kl_bound": 8e-3},
}

every_algorithm = pytest.mark.parametrize("algorithm", list(BOUNDS), ids=["grpo", "grpo-guard", "dppo"])
every_dynamics = pytest.mark.parametrize("dynamics", ["flow-sde", "dance-sde", "cps"])


@every_algorithm
@every_dynamics
@pytest.mark.parametrize("batch_size", [8, 3])
@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_joined_steps_have_the_losses_and_the_gradient_of_single_ones(
    learning: Any, algorithm: Any, batch_size: int, kl: float
) -> None:
    found = []
    for times in (1, 2):
        run = learning(ADVANTAGES, batch_size, times, kl=kl, **BOUNDS[algorithm])
        run.move_to(*NEW)
        losses = run.losses()
        assert max(len(loss.values) for loss in losses) == times * batch_size
        found.append((run, losses))
    (one, single), (two, joined) = found
    for part in ("metrics", "extremes", "terms"):
        for name in getattr(single[0], part):
            expected = torch.cat([getattr(loss, part)[name] for loss in single])
            torch.testing.assert_close(torch.cat([getattr(loss, part)[name] for loss in joined]), expected)
    expected = torch.cat([loss.values for loss in single])
    assert len(expected) == 3 * 8, "three steps of eight samples"
    assert len(set(expected.tolist())) > 8, "the steps' losses differ"
    torch.testing.assert_close(torch.cat([loss.values for loss in joined]), expected)
    gradient = one.gradient(expected)
    torch.testing.assert_close(two.gradient(torch.cat([loss.values for loss in joined])), gradient, rtol=1e-5, atol=1e-6)


@every_algorithm
def test_before_the_first_update_every_ratio_is_one_in_joined_steps(learning: Any, algorithm: Any) -> None:
    for loss in learning(ADVANTAGES, 8, 2).losses():
        # other kernels for other row counts round otherwise
        torch.testing.assert_close(loss.metrics["ratio/mean"], torch.ones(len(loss.values)), rtol=0, atol=1e-6)


@every_algorithm
@pytest.mark.parametrize(("kl", "weights"), [(0.0, 1), (0.5, 2)])
@pytest.mark.parametrize(("times", "pieces"), [(1, 3), (2, 2), (3, 1), (5, 1)])
def test_joined_steps_take_fewer_forwards(
    learning: Any, count: Any, algorithm: Any, kl: float, weights: int, times: int, pieces: int
) -> None:
    run = learning(ADVANTAGES, batch_size=3, timesteps_per_forward=times, kl=kl)
    run.move_to(*NEW)
    counted = count(run.policy)
    losses = run.losses()
    assert len(losses) == 3 * pieces, "three batches (3, 3 and 2 samples) of three steps"
    assert counted.forwards == weights * len(losses)


@every_algorithm
def test_an_update_is_the_mean_over_all_samples_and_steps_however_they_are_joined(learning: Any, algorithm: Any) -> None:
    found = []
    for times in (1, 2, 3):
        run = learning(ADVANTAGES, 3, times, kl=0.5, **BOUNDS[algorithm])
        run.move_to(*NEW)
        learner, gathered = Learner(run.policy, TrainingConfig.model_validate({"max_grad_norm": 1e9})), UpdateMetrics()
        learner.step(run.hooks.update(run.experience, run.policy), gathered)
        gradient = torch.stack([parameter.grad for parameter in run.policy.parameters.values()])
        assert bool(gradient.all())
        found.append((gradient, gathered.metrics()))
    (expected, metrics), *others = found
    for gradient, other in others:
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)
        assert other == pytest.approx(metrics, rel=1e-5, abs=1e-6)


def test_a_config_says_how_many_steps_share_a_forward_and_trains_as_without(settings: dict[str, Any], tmp_path: Any) -> None:
    found = []
    for times in (1, 2):
        settings["training"]["timesteps_per_forward"] = times
        settings["output"]["dir"] = str(tmp_path / f"run{times}")
        settings["algorithm"] = {"name": "grpo-guard", "kl": 0.1}
        records = train(validate(settings), say=lambda _: None).records()[1:]
        found.append([{key: record[key] for key in ("loss", "kl", "reward/light/mean", "grad_norm")} for record in records])
    one, two = found
    for single, joined in zip(one, two, strict=True):
        assert joined == pytest.approx(single, rel=1e-4, abs=1e-5)
