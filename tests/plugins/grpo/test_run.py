"""Runs of GRPO and its relatives: which steps they record and train on, what they report, and that they learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flowfactory import testing
from flowfactory.flow.dynamics import CPSConfig, DanceSDEConfig, FlowSDEConfig
from flowfactory_grpo.dppo import DPPOConfig
from flowfactory_grpo.grpo import GRPOConfig
from flowfactory_grpo.grpo_guard import GRPOGuardConfig

WINDOW = {"name": "flow-sde", "sde_steps": [1, 2, 4], "num_sde_steps": 2}
PLACES = {round(1 - i / 6, 6): i for i in range(7)}
every_algorithm = pytest.mark.parametrize("algorithm", ["grpo", "grpo-guard", "dppo"])
every_dynamics = pytest.mark.parametrize("dynamics", ["flow-sde", "dance-sde", "cps"])


def settings(folder: Path, name: str, dynamics: Any = WINDOW, model: Any = None, **options: Any) -> dict[str, Any]:
    """A run of two stochastic steps of three candidates; ``epochs`` is of the training, other options of the algorithm."""
    training = {"epochs": options.pop("epochs", 1)}
    sampling = {"dynamics": dynamics}
    return testing.settings(folder, {"name": name, **options}, model=model or {}, sampling=sampling, training=training)


@pytest.mark.parametrize("stochastic", [(), (0,), (1, 3)])
def test_just_the_stochastic_steps_are_recorded(stochastic: tuple[int, ...]) -> None:
    plan = testing.make_plan(GRPOConfig(), stochastic=frozenset(stochastic), recorded=frozenset({0, 1, 2, 3}))
    assert plan.recorded == set(stochastic)
    assert plan.stochastic == set(stochastic)


def test_an_iteration_records_and_trains_as_many_of_the_candidates_as_the_config_says(tmp_path: Path) -> None:
    run = testing.begin(settings(tmp_path, "grpo"))
    windows = []
    for iteration in range(10):
        drawn = run.draw(iteration)
        experience = drawn.experience
        windows.append(frozenset(PLACES[round(float(step.sigma[0]), 6)] for step in experience.steps))
        assert windows[-1] == experience.plan.stochastic == experience.plan.recorded
        assert all(step.log_prob is not None for step in experience.steps)
        assert len(drawn.losses()) == 2 * 2, "two steps of two batches"
    assert all(len(window) == 2 and window <= {1, 2, 4} for window in windows)
    assert len(set(windows)) == 3, "every pair of the three candidates comes up"
    again = [run.draw(iteration).experience.plan.stochastic for iteration in range(10)]
    assert again == windows, "the window depends on the seed and the iteration alone"


@every_algorithm
@every_dynamics
def test_of_a_sliding_window_no_step_outside_it_is_recorded(tmp_path: Path, algorithm: str, dynamics: str) -> None:
    window = {"name": dynamics, "sde_steps": [0, 1, 2, 4], "num_sde_steps": 2, "slide": {"every": 2, "stride": 1}}
    run = testing.begin(settings(tmp_path, algorithm, window))
    windows = []
    for iteration in range(7):
        experience = run.draw(iteration).experience
        recorded = [PLACES[round(float(step.sigma[0]), 6)] for step in experience.steps]
        assert experience.plan.stochastic == experience.plan.recorded == set(recorded)
        assert all(step.next_latents is not None and step.log_prob is not None for step in experience.steps)
        assert all((step.mean is None) == (algorithm == "grpo") for step in experience.steps)
        windows.append(recorded)
    assert windows == [[0, 1], [0, 1], [1, 2], [1, 2], [2, 4], [2, 4], [0, 1]]


def test_steps_outside_the_window_are_eulers(tmp_path: Path) -> None:
    run = testing.begin(settings(tmp_path, "grpo", {"name": "flow-sde", "sde_steps": [1, 4]}, {"p": 0.4, "q": 0.3}))
    early, late = run.draw(0).experience.steps
    assert early.next_latents is not None
    x = early.next_latents.double()
    for i in (2, 3):  # by hand: velocity = p x + q sigma, and a sixth of the way at a time
        x = x - (0.4 * x + 0.3 * (1 - i / 6)) / 6
    torch.testing.assert_close(late.latents.double(), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "dynamics"),
    [
        ({}, {}),
        ({"clip_range": 0.2}, {}),
        ({"kl": 0.05}, {}),
        ({"kl": 0.05, "kl_form": "velocity"}, {}),
        ({}, {"noise_level": 0.4, "sde_steps": [0, 1, 2], "num_sde_steps": 1}),
    ],
)
def test_grpo_learns_what_the_reward_asks_for(options: dict[str, Any], dynamics: dict[str, Any]) -> None:
    chosen = FlowSDEConfig.model_validate(dynamics).build("dynamics")
    testing.check_algorithm(GRPOConfig.model_validate(options), dynamics=chosen)


@pytest.mark.parametrize("config", [GRPOGuardConfig(kl=0.01), DPPOConfig(kl=0.01)], ids=["grpo-guard", "dppo"])
@pytest.mark.parametrize("dynamics", [FlowSDEConfig, DanceSDEConfig, CPSConfig], ids=["flow-sde", "dance-sde", "cps"])
def test_its_relatives_learn_what_the_reward_asks_for(config: Any, dynamics: Any) -> None:
    testing.check_algorithm(config, iterations=12, dynamics=dynamics().build("dynamics"))


def test_a_run_passes_preflight_and_moves_off_its_reference(tmp_path: Path) -> None:
    trained = testing.check_runs(settings(tmp_path, "grpo", kl=0.1), ["ratio/mean", "ratio/max_deviation"], ["kl"])
    replay = "replaying 2 recorded steps gives a ratio of 1"
    (replayed,) = (line.split(" within ")[1] for line in trained.said if replay in line)
    assert float(replayed) <= 1e-6  # of batches of 8 and of 4, which other kernels may round otherwise
    records = trained.records
    assert records[0]["kl"] == 0
    assert records[1]["kl"] > 0
    assert all(record["ratio/max_deviation"] <= 1e-6 for record in records), "one update an iteration is on-policy"


@pytest.mark.parametrize(
    ("algorithm", "options", "deviation", "share"),
    [
        ("grpo", {"clip_range": 1e-4, "epochs": 4}, "ratio/max_deviation", "clip_fraction"),
        ("grpo-guard", {"clip_range": 1e-4, "epochs": 3, "kl": 0.1}, "ratio/max_deviation", "clip_fraction"),
        ("dppo", {"kl_bound": 1e-5, "epochs": 3, "kl": 0.1}, "kl_old/max", "masked_fraction"),
    ],
)
def test_later_updates_of_an_iteration_are_off_policy_and_bounded(
    tmp_path: Path, algorithm: str, options: dict[str, Any], deviation: str, share: str
) -> None:
    bound = options.get("clip_range") or options["kl_bound"]
    terms = ["kl"] if "kl" in options else []
    for record in testing.check_runs(settings(tmp_path, algorithm, **options), [deviation, share], terms).records:
        assert record[deviation] > bound
        assert 0 < record[share] < 1


@every_algorithm
def test_a_resumed_run_gives_the_weights_of_one_that_was_not_stopped(tmp_path: Path, algorithm: str) -> None:
    kept = testing.check_resumes_bit_for_bit(settings(tmp_path, algorithm, kl=0.1)).kept(3)
    assert set(kept) == {"reference/transformer.p", "reference/transformer.q"}


@every_algorithm
@pytest.mark.parametrize("ema", [None, {"name": "constant", "decay": 0.5}], ids=["present", "average"])
def test_log_densities_that_are_computed_again_start_at_one_and_resume_exactly(
    tmp_path: Path, algorithm: str, ema: Any
) -> None:
    raw = settings(tmp_path, algorithm, kl=0.1, epochs=2)
    raw["training"] |= {"recompute_log_prob": True, "updates": 2, "batch_size": 3, "timesteps_per_forward": 2}
    raw["sampling"]["ema"] = ema
    trained = testing.check_resumes_bit_for_bit(raw)
    assert sum("sampling's own log-densities are off by" in line for line in trained.said) == 1
    assert all(record["ratio/sampling_deviation"] < 1e-5 for record in trained.records)
    assert all(record["seconds/recompute"] > 0 for record in trained.records)


@every_algorithm
def test_the_first_ratio_of_what_was_computed_again_is_one_to_the_bit(tmp_path: Path, algorithm: str) -> None:
    raw = settings(tmp_path, algorithm)
    raw["training"] |= {"recompute_log_prob": True, "batch_size": 3, "timesteps_per_forward": 2}
    distances = {"ratio/mean": 1, "ratio/max_deviation": 0} | ({"kl_old/max": 0} if algorithm == "dppo" else {})
    for record in testing.check_runs(raw, ["ratio/sampling_deviation"]).records:
        assert {name: record[name] for name in distances} == distances


@every_algorithm
@pytest.mark.parametrize("epochs", [1, 2])
def test_what_the_first_update_cuts_is_a_figure_of_its_own(tmp_path: Path, algorithm: str, epochs: int) -> None:
    cut = "masked_fraction" if algorithm == "dppo" else "clip_fraction"
    bound = {"kl_bound": 1e-7} if algorithm == "dppo" else {"clip_range": 1e-5}
    for record in testing.check_runs(settings(tmp_path, algorithm, epochs=epochs, **bound), [cut]).records:
        assert record[f"{cut}/first_update"] == 0
        assert (record[cut] > 0) is (epochs == 2)
