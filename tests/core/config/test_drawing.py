"""Shared noise and solvers in a config, and in a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from flowfactory.config.idle_keys import idle_keys
from flowfactory.config.schema import RunConfig
from flowfactory.errors import UserError
from flowfactory.runs.train import train
from flowfactory.testing.counters import ForwardCount
from flowfactory.training.iteration import collect_rollouts
from flowfactory.training.metrics import Timer
from flowfactory.training.plans import evaluation_plan, sampling_plan
from flowfactory.training.setup import Run

Load = Callable[..., RunConfig]
LATE = {"name": "flow-sde", "sde_steps": [2]}
NET = {"model": {"name": "net", "train": "full"}, "algorithm": {"name": "score", "pull": 0}}


@pytest.mark.parametrize("shared", ["start", "prefix"])
@pytest.mark.parametrize("dynamics", ["ode", "dpm-solver", "heun"])
def test_a_group_without_noise_in_its_steps_shares_none(
    shared: str, dynamics: str, load: Load, matching: Callable[..., dict[str, Any]]
) -> None:
    told = rf"sampling\.shared_noise: {shared}: the steps of {dynamics} add no noise, so that all pictures .* leave it out$"
    with pytest.raises(UserError, match=told):
        load(matching() | {"sampling": {"dynamics": dynamics, "shared_noise": shared}})


@pytest.mark.parametrize("dynamics", ["dpm-solver", "heun"])
def test_an_algorithm_that_learns_from_stochastic_steps_refuses_a_solver(dynamics: str, load: Load) -> None:
    with pytest.raises(UserError, match="algorithm score needs stochastic dynamics"):
        load({"sampling": {"dynamics": dynamics}})


def test_evaluations_add_no_noise_to_steps(load: Load) -> None:
    with pytest.raises(
        UserError, match=r"evaluation\.dynamics: flow-sde adds noise to the steps; choose ode, dpm-solver or heun"
    ):
        load({"evaluation": {"dynamics": "flow-sde"}})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"name": "heun", "order": 3}, r"evaluation\.dynamics\.order: unknown key"),
        ("heunn", r"evaluation\.dynamics: no dynamics called 'heunn'; did you mean 'heun'\?"),
        ("dpmpp_2m", r"evaluation\.dynamics: no dynamics called 'dpmpp_2m'; did you mean 'dpm-solver'\?"),
        (3, r"evaluation\.dynamics: got 3; give the name of a dynamics"),
    ],
)
def test_a_mistake_in_the_dynamics_of_evaluations_is_told_at_its_place(given: object, told: str, load: Load) -> None:
    with pytest.raises(UserError, match=rf"^config\.yaml: {told}"):
        load({"evaluation": {"dynamics": given}})


def test_evaluations_follow_the_ode_unless_told_otherwise_and_share_nothing(prepared: Callable[..., Run]) -> None:
    run = prepared({"sampling": {"shared_noise": "prefix", "dynamics": LATE}})
    plan = evaluation_plan(run.assembly, run.config, sampling_plan(run.assembly, run.config, 0, ()).keys)
    assert (plan.starts, plan.shares_prefix, plan.stochastic) == ((), False, frozenset())
    assert type(run.assembly.evaluation_dynamics.make_solver()).__name__ == "Euler"  # type: ignore[attr-defined]
    other = prepared({"evaluation": {"dynamics": "heun"}})
    assert type(other.assembly.evaluation_dynamics.make_solver()).__name__ == "Heun"  # type: ignore[attr-defined]


def test_a_prefix_of_no_step_is_told(load: Load) -> None:
    def told(**dynamics: Any) -> list[str]:
        config = load({"sampling": {"shared_noise": "prefix", "dynamics": {"name": "flow-sde", **dynamics}}})
        return [sentence for sentence in idle_keys(config) if "shared_noise" in sentence]

    assert len(told()) == len(told(sde_steps=[0, 2], num_sde_steps=2)) == 1
    assert told(num_sde_steps=1) == told(sde_steps=[1, 2]) == []


def test_a_run_draws_a_prefix_once_a_group_and_learns_from_ratios_of_one(load: Load) -> None:
    counted = ForwardCount()
    sampling = {"shared_noise": "prefix", "dynamics": LATE}
    said: list[str] = []
    train(load(NET | {"sampling": sampling, "training": {"updates": 1}}), observers=[counted], say=said.append)
    # 4 groups of 4: two steps of one sample a group, then two of each
    assert [each.get("sample") for each in counted.iterations[1:]] == [2 * 4 + 2 * 16] * 3
    assert any("a ratio of 1 within 0.0e+00" in sentence for sentence in said), said


@pytest.mark.parametrize("batch_size", [3, 16])
def test_a_prefix_draws_what_a_shared_start_does(batch_size: int, prepared: Callable[..., Run]) -> None:
    found = []
    for shared in ("start", "prefix"):
        sampling = {"shared_noise": shared, "dynamics": LATE, "batch_size": batch_size}
        run = prepared(
            {"model": {"name": "net", "train": "full"}, "algorithm": {"name": "score", "pull": 0}, "sampling": sampling}
        )
        found.append(collect_rollouts(run, 0, Timer(run.policy.device)).experience)
    assert torch.allclose(found[0].latents, found[1].latents, atol=1e-6)
    assert len(found[0].latents.flatten(1).unique(dim=0)) == 16


@pytest.mark.parametrize(("dynamics", "each"), [("dpm-solver", 4), ("heun", 7)])
def test_a_decoupled_algorithm_learns_from_what_a_solver_drew(
    dynamics: str, each: int, load: Load, matching: Callable[..., dict[str, Any]]
) -> None:
    counted = ForwardCount()
    changes = matching() | {"model": {"name": "net", "train": "full"}, "sampling": {"dynamics": dynamics}}
    done = train(load(changes | {"evaluation": {"dynamics": dynamics}}), observers=[counted], say=lambda _: None)
    assert [round(found["sample"] / 16) for found in counted.iterations[1:]] == [each] * 3
    assert counted.iterations[0]["evaluation"] == each * 2
    assert all(record["loss"] == record["loss"] for record in done.records()[1:])
