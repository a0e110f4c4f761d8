"""The options of AWM, and the configs that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flowfactory import testing


def test_training_timesteps_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    testing.check_timesteps_options(testing.settings(tmp_path, {"name": "awm"}, sampling={"steps": 5}))


@pytest.mark.parametrize("steps", [1, 4])
def test_default_times_go_with_any_number_of_sampling_steps(tmp_path: Path, steps: int) -> None:
    testing.train(testing.settings(tmp_path, "awm", sampling={"steps": steps}, training={"iterations": 1}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weighting", "sqrt"),
        ("power", 0),
        ("power", 1.5),
        ("clip_range", 0),
        ("advantage_scale", 0),
        ("kl", -1),
        ("ema_kl", -1),
        ("ema", {"name": "constant", "decay": 1.5}),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_in_one_line(tmp_path: Path, key: str, value: Any) -> None:
    testing.check_refused(testing.settings(tmp_path, {"name": "awm", key: value}), rf"algorithm\.{key}")
