"""The options of Flash-GRPO, and runs of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flowfactory import testing
from flowfactory.flow.dynamics import CPSConfig, FlowSDEConfig
from flowfactory_grpo.flash_grpo import FlashGRPOConfig

ONE = {"name": "flow-sde", "num_sde_steps": 1}
UNSTATED = Path(__file__).with_name("unstated.py")


def settings(folder: Path, dynamics: Any = ONE, sampling: Any = None, training: Any = None, **options: Any) -> dict[str, Any]:
    """A run of one stochastic step a picture."""
    chosen, algorithm = {"dynamics": dynamics, **(sampling or {})}, {"name": "flash-grpo", **options}
    return testing.settings(folder, algorithm, plugins=[UNSTATED], sampling=chosen, training=training or {})


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"dynamics": "ode"}, r"flash-grpo .*log-density.*'ode'.*deterministic.*choose .*flow-sde"),
        ({"dynamics": "unstated"}, r"flash-grpo .*linear.*does not say so: choose flow-sde.*or set rectify to false"),
        ({"dynamics": ONE | {"slide": {"every": 2}}}, r"flash-grpo .*one place for all: leave sampling\.dynamics\.slide out"),
        ({"training": {"keep_graphs": True, "batch_size": 8}}, r"flash-grpo .*leave training\.keep_graphs out"),
        ({"clip_range": 0}, r"algorithm\.clip_range"),
        ({"kl": -1}, r"algorithm\.kl"),
    ],
    ids=["ode", "unstated", "slide", "keep_graphs", "clip_range", "kl"],
)
def test_what_does_not_go_with_it_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], pattern: str) -> None:
    testing.check_refused(settings(tmp_path, **changes), pattern)


def test_unweighed_it_takes_dynamics_whose_mean_may_bend(tmp_path: Path) -> None:
    testing.begin(settings(tmp_path, "unstated", rectify=False))


def test_a_run_passes_preflight_and_reports_its_metrics(tmp_path: Path) -> None:
    run = settings(tmp_path, kl=0.1, training={"updates": 2, "batch_size": 3})
    trained = testing.check_runs(run, metrics=["ratio/mean", "clip_fraction", "step_weight"], terms=["kl"])
    assert any("replaying 1 recorded steps gives a ratio of 1" in line for line in trained.said)


def test_what_is_drawn_and_trained_does_not_depend_on_the_batches(tmp_path: Path) -> None:
    drawn = []
    for batch_size in (8, 3):
        (tmp_path / str(batch_size)).mkdir()
        run = testing.begin(settings(tmp_path / str(batch_size), sampling={"batch_size": batch_size, "groups": 3}))
        drawn.append([run.draw(iteration).experience for iteration in range(4)])
    apart = set()
    for one, two in zip(*drawn, strict=True):
        assert one.plan.windows == two.plan.windows
        assert torch.equal(one.latents, two.latents)
        (a,), (b,) = one.steps, two.steps
        assert torch.equal(a.sigma, b.sigma)
        assert torch.equal(a.latents, b.latents)
        for group in one.groups.unique():
            assert len(a.sigma[one.groups == group].unique()) == 1, "a group is trained at one sigma"
        apart.add(len(a.sigma.unique()))
    assert max(apart) > 1, "groups are trained at different ones"


def test_a_resumed_run_ends_in_the_weights_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    testing.check_resumes_bit_for_bit(settings(tmp_path), stop_after=2)


@pytest.mark.parametrize(
    ("options", "dynamics"),
    [({}, FlowSDEConfig(num_sde_steps=1)), ({"kl": 0.01}, CPSConfig(num_sde_steps=1)), ({"rectify": False}, FlowSDEConfig())],
    ids=["flow-sde", "kl-cps", "all-steps"],
)
def test_flash_grpo_learns_what_the_reward_asks_for(options: dict[str, Any], dynamics: Any) -> None:
    chosen = dynamics.build("dynamics")
    testing.check_algorithm(FlashGRPOConfig.model_validate(options), iterations=12, dynamics=chosen)
