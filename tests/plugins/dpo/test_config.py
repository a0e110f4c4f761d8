"""The options of DPO and DGPO, and the configs that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flowfactory import testing

both = pytest.mark.parametrize("name", ["dpo", "dgpo"])


@both
def test_more_updates_than_groups_are_refused(tmp_path: Path, name: str) -> None:
    testing.check_refuses_more_updates_than_groups(testing.settings(tmp_path, name, sampling={"groups": 3}))


@both
def test_training_timesteps_that_make_no_sense_are_refused(tmp_path: Path, name: str) -> None:
    testing.check_timesteps_options(testing.settings(tmp_path, {"name": name}))


@both
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"beta": 0}, r"algorithm\.beta"),
        ({"beta": -1}, r"algorithm\.beta"),
        ({"reference_guidance": -1}, r"algorithm\.reference_guidance"),
        ({"reference_ema": {"name": "constant", "decay": 1.5}}, r"algorithm\.reference_ema\.decay"),
        ({"betta": 1}, r"algorithm\.betta.*did you mean 'beta'"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_in_one_line(
    tmp_path: Path, name: str, options: dict[str, Any], sentence: str
) -> None:
    testing.check_refused(testing.settings(tmp_path, {"name": name, **options}), sentence)


def test_arms_of_a_pair_that_would_share_no_noise_are_refused(tmp_path: Path) -> None:
    def dpo(shared: bool | None) -> dict[str, Any]:
        return testing.settings(tmp_path, {"name": "dpo", "timesteps": {"name": "uniform", "shared": shared}})

    testing.check_refused(dpo(shared=False), r"algorithm\.timesteps\.shared: .* leave it out")
    for shared in (None, True):
        testing.begin(dpo(shared))


def test_a_negative_kl_is_refused(tmp_path: Path) -> None:
    testing.check_refused(testing.settings(tmp_path, {"name": "dgpo", "kl": -0.1}), r"algorithm\.kl")
