from pathlib import Path

import torch
from flowfactory import testing

from flowfactory_newname.dynamics import NewNameConfig


def test_they_keep_the_contract() -> None:
    # marginals=False for dynamics that are meant to leave the path of the flow
    testing.check_dynamics(NewNameConfig())
    testing.check_dynamics(NewNameConfig(noise_level=2.0))


def test_a_step_is_the_one_worked_out_by_hand() -> None:
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    dynamics = NewNameConfig(noise_level=2.0).build("")
    moved = dynamics.transition(3 * one, 5 * one, 0.5 * one, 0.25 * one)
    # 5 + 3 (-0.25) + (2 0.5)² / (2 0.5) (5 + 0.5 3) (-0.25), and 2 0.5 sqrt(0.25)
    assert moved.mean.item() == 5 - 0.75 - 6.5 * 0.25
    assert moved.std.item() == 0.5


def test_a_run_learns_under_them(tmp_path: Path) -> None:
    settings = testing.settings(tmp_path, "policy-gradient", sampling={"dynamics": "newname"})
    testing.check_runs(settings)
