"""The reward ``scene`` asks for captions of its world where it judges, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from flowfactory import UserError
from flowfactory.config.loading import validate
from flowfactory.testing import settings

CAPTION, OTHER = "a red circle on black", "a photo of a dog"
REFUSED = "reward scene cannot judge it: not a caption"


def check(folder: Path, train: Sequence[Mapping[str, Any]], heldout: Sequence[Mapping[str, Any]], **changes: Any) -> None:
    prompts = {}
    for name, lines in (("train", train), ("heldout", heldout)):
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        prompts[name] = str(file)
    validate(settings(folder, "crd", prompts=prompts, **changes), folder=folder)


def test_a_prompt_that_lists_other_rewards_may_say_anything(tmp_path: Path) -> None:
    rewards = {"s": {"name": "scene"}}
    drawn = {"prompt": CAPTION, "rewards": ["s"]}
    check(tmp_path, [{"prompt": OTHER, "rewards": ["light"]}, drawn], [drawn], rewards=rewards)
    with pytest.raises(UserError, match=f"prompt 2 of train.jsonl: {REFUSED}"):
        check(tmp_path, [drawn, {"prompt": OTHER, "rewards": ["light", "s"]}], [drawn], rewards=rewards)
    with pytest.raises(UserError, match=f"prompt 1 of train.jsonl: {REFUSED}"):
        check(tmp_path, [{"prompt": OTHER}], [drawn], rewards=rewards)


def test_only_the_file_whose_pictures_it_scores_is_read(tmp_path: Path) -> None:
    caption, other = [{"prompt": CAPTION}], [{"prompt": OTHER}]
    evaluation = {"rewards": {"s": {"name": "scene"}}}
    check(tmp_path, other, caption, evaluation=evaluation)
    with pytest.raises(UserError, match=f"prompt 1 of heldout.jsonl: {REFUSED}"):
        check(tmp_path, caption, other, evaluation=evaluation)
    trained = {"rewards": {"s": {"name": "scene"}}, "evaluation": {"rewards": {"light": {"name": "bright"}}}}
    check(tmp_path, caption, other, **trained)
    with pytest.raises(UserError, match=f"prompt 1 of train.jsonl: {REFUSED}"):
        check(tmp_path, other, caption, **trained)
    with pytest.raises(UserError, match=f"prompt 1 of heldout.jsonl: {REFUSED}"):
        check(tmp_path, caption, other, rewards={"s": {"name": "scene"}})  # evaluations use the training rewards
