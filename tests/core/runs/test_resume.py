from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flowfactory.config.schema import RunConfig
from flowfactory.runs.resume import config_changes, fixed_config

Load = Callable[..., RunConfig]


@pytest.mark.parametrize(
    "changed",
    [
        {"rewards": {"bright": {"name": "bright", "concurrent": True, "workers": 3, "timeout": 60}}},
        {"rewards": {"bright": {"name": "bright", "seconds": 1}}},  # which the reward says itself
        {"training": {"batch_size": 2, "activation_checkpointing": "blocks"}, "sampling": {"batch_size": 3}},
        {"distributed": {"reward_ranks": "first"}},
        {"evaluation": {"rewards": {"held": "bright"}}},
    ],
)
def test_what_is_about_speed_memory_and_places_may_be_changed(changed: dict[str, Any], load: Load) -> None:
    assert config_changes(fixed_config(load()), fixed_config(load(changed))) == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"rewards": {"bright": {"name": "bright", "scale": 2.0}}}, ["rewards.bright.scale (1.0 then, 2.0 now)"]),
        ({"rewards": {"bright": {"name": "bright", "weight": 2.0}}}, ["rewards.bright.weight (1.0 then, 2.0 now)"]),
        ({"training": {"updates": 1}}, ["training.updates (2 then, 1 now)"]),
        ({"advantages": {"aggregate": "gdpo"}}, ["advantages.aggregate (sum then, gdpo now)"]),
    ],
)
def test_what_changes_a_number_may_not_be_changed(changed: dict[str, Any], told: list[str], load: Load) -> None:
    assert config_changes(fixed_config(load()), fixed_config(load(changed))) == told
