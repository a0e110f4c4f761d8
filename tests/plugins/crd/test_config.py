"""The options of CRD, and the configs that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flowfactory import testing


def test_more_updates_than_groups_are_refused(tmp_path: Path) -> None:
    testing.check_refuses_more_updates_than_groups(testing.settings(tmp_path, "crd", sampling={"groups": 3}))


def test_another_average_to_draw_with_is_refused(tmp_path: Path) -> None:
    testing.check_refuses_another_sampler(testing.settings(tmp_path, "crd"))


def test_training_timesteps_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    testing.check_timesteps_options(testing.settings(tmp_path, {"name": "crd"}))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"beta": 0}, r"algorithm\.beta"),
        ({"temperature": 0}, r"algorithm\.temperature"),
        ({"advantage_max": 0}, r"algorithm\.advantage_max"),
        ({"kl": -0.1}, r"algorithm\.kl"),
        ({"kl_guidance": -1}, r"algorithm\.kl_guidance"),
        ({"loss": "mae"}, r"algorithm\.loss"),
        ({"centre": "median"}, r"algorithm\.centre"),
        ({"old": {"name": "constant", "decay": 1.5}}, r"algorithm\.old\.decay"),
        ({"sampling": {"name": "piecewise-linear", "points": [[3, 0.1], [3, 0.2]]}}, r"points in order"),
        ({"center": "mean"}, r"algorithm\.center.*did you mean 'centre'"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_in_one_line(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    testing.check_refused(testing.settings(tmp_path, {"name": "crd", **options}), sentence)
