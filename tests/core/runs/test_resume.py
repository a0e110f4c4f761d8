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
    assert config_changes(fixed_config(load()), load(changed)) == []


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
    assert config_changes(fixed_config(load()), load(changed)) == told


def test_a_key_that_an_older_version_did_not_know_is_no_change_while_it_has_its_default(load: Load) -> None:
    now = load({"training": {"warmup": 5}})
    unknown = ("training.warmup", "training.decay", "training.optimizer.betas", "algorithm.clip_range", "rewards.bright.scale")
    older = {key: value for key, value in fixed_config(now).items() if key not in unknown and not key.startswith("advantages.")}
    assert len(older) <= len(fixed_config(now)) - len(unknown) - 2
    assert config_changes(older, now) == ["training.warmup (None then, 5 now)"]


@pytest.mark.parametrize("then", [None, {"name": "constant", "decay": 0.5}])
def test_what_is_new_where_there_was_something_else_is_a_change(then: Any, load: Load) -> None:
    before = fixed_config(load({"sampling": {"ema": then}} if then else None))
    now = load({"sampling": {"ema": {"name": "linear"}}})
    assert config_changes(before, now)
