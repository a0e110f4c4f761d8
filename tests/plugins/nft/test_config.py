"""The options of DiffusionNFT, and the configs that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flowfactory import testing


def test_training_timesteps_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    testing.check_timesteps_options(testing.settings(tmp_path, {"name": "nft"}))


def test_an_average_to_sample_with_is_refused_since_the_old_policy_draws(tmp_path: Path) -> None:
    testing.check_refuses_another_sampler(testing.settings(tmp_path, {"name": "nft"}))


@pytest.mark.parametrize(
    ("key", "value"),
    [("beta", 0), ("advantage_max", 0), ("kl", -1), ("old", {"name": "constant", "decay": 1.5}), ("old", 0.5)],
)
def test_an_option_that_makes_no_sense_is_refused_in_one_line(tmp_path: Path, key: str, value: Any) -> None:
    testing.check_refused(testing.settings(tmp_path, {"name": "nft", key: value}), rf"algorithm\.{key}")
