"""What the losses of GRPO and its relatives share: the divergence, and steps that share a forward.

A batch whose rows are at different sigmas is worth as much as its steps one by one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flowfactory import AlgorithmConfig, At, RunError, testing
from flowfactory.policy import REFERENCE
from flowfactory.testing import Learning, Weights
from flowfactory_grpo.dppo import DPPOConfig
from flowfactory_grpo.grpo import GRPOConfig
from flowfactory_grpo.grpo_guard import GRPOGuardConfig

OLD = (0.3, -0.2)
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
@pytest.mark.parametrize("weights", [OLD, NEW], ids=["at-the-start", "after-updates"])
def test_an_advantage_of_zero_moves_nothing(learn: Any, weights: Weights) -> None:
    run = learn(ADVANTAGES)
    run.move_to(*weights)
    testing.check_no_advantage_no_gradient(run)


@every_algorithm
@pytest.mark.parametrize("form", ["mean", "velocity"])
def test_the_kl_is_zero_at_the_reference_and_pulls_back_to_it(learn: Any, form: str) -> None:
    for loss in testing.check_penalty(learn((0.0,) * 8, kl=1.0, kl_form=form), "kl", NEW):
        assert torch.equal(loss.values, loss.terms["kl"])


@every_algorithm
def test_the_reference_stays_what_training_started_from(learn: Any) -> None:
    testing.check_reference_stays(learn(ADVANTAGES, kl=0.5), "kl", NEW)


@every_algorithm
@pytest.mark.parametrize(("kl", "forwards"), [(0.0, 1), (0.5, 2)])
def test_a_step_and_batch_costs_one_forward_and_one_more_for_the_reference(learn: Any, kl: float, forwards: int) -> None:
    run = learn(ADVANTAGES, 3, kl=kl)
    run.move_to(*NEW)
    testing.check_forwards(run, 3 * 3, forwards)  # three steps of three batches (3, 3 and 2 samples)


@every_algorithm
def test_no_reference_is_kept_without_a_kl(learn: Any) -> None:
    run = learn(ADVANTAGES)
    with pytest.raises(RunError, match="no weights are kept as 'reference'"):
        run.policy.compare(run.experience.steps[0], {"reference": At(REFERENCE)})


@every_algorithm
@every_dynamics
@pytest.mark.parametrize("batch_size", [8, 3])
@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_joined_steps_have_the_losses_and_the_gradient_of_single_ones(
    learn: Any, algorithm: Any, batch_size: int, kl: float
) -> None:
    found = []
    for times in (1, 2):
        run = learn(ADVANTAGES, batch_size, times, kl=kl, **BOUNDS[algorithm])
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
def test_before_the_first_update_every_ratio_is_one_in_joined_steps(learn: Any, algorithm: Any) -> None:
    for loss in learn(ADVANTAGES, 8, 2).losses():
        # other kernels for other row counts round otherwise
        torch.testing.assert_close(loss.metrics["ratio/mean"], torch.ones(len(loss.values)), rtol=0, atol=1e-6)


@every_algorithm
@pytest.mark.parametrize(("kl", "weights"), [(0.0, 1), (0.5, 2)])
@pytest.mark.parametrize(("times", "pieces"), [(1, 3), (2, 2), (3, 1), (5, 1)])
def test_joined_steps_take_fewer_forwards(learn: Any, algorithm: Any, kl: float, weights: int, times: int, pieces: int) -> None:
    run = learn(ADVANTAGES, 3, times, kl=kl)
    run.move_to(*NEW)
    testing.check_forwards(run, 3 * pieces, weights)  # three batches (3, 3 and 2 samples) of three steps


@every_algorithm
def test_an_update_is_the_mean_over_all_samples_and_steps_however_they_are_joined(learn: Any, algorithm: Any) -> None:
    def update(times: int) -> Any:
        run: Learning = learn(ADVANTAGES, 3, times, kl=0.5, **BOUNDS[algorithm])
        run.move_to(*NEW)
        return run.update()

    single = update(1)
    assert bool(single.gradient.all())
    for joined in (update(2), update(3)):
        torch.testing.assert_close(joined.gradient, single.gradient, rtol=1e-5, atol=1e-6)
        assert joined.metrics == pytest.approx(single.metrics, rel=1e-5, abs=1e-6)


def test_a_config_says_how_many_steps_share_a_forward_and_trains_as_without(tmp_path: Path) -> None:
    dynamics = {"name": "flow-sde", "sde_steps": [1, 2, 4], "num_sde_steps": 2}
    raw = testing.settings(tmp_path, {"name": "grpo-guard", "kl": 0.1}, sampling={"dynamics": dynamics})
    one, two = (testing.train(raw, out=tmp_path / f"run{times}", timesteps_per_forward=times).records for times in (1, 2))
    for single, joined in zip(one, two, strict=True):
        wanted = {key: single[key] for key in ("loss", "kl", "reward/light/mean", "grad_norm")}
        assert {key: joined[key] for key in wanted} == pytest.approx(wanted, rel=1e-4, abs=1e-5)
