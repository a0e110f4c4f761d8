"""What a config may say, and a run."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from families import check_sizes, settings_of, train_two_iterations
from text_to_image import TextToImage

from flowfactory import UserError
from flowfactory.config.loading import load, validate
from flowfactory.models.pretrained import Pretrained
from flowfactory_sana.sana import grid


@pytest.fixture
def settings(family: TextToImage, tmp_path: Path) -> dict[str, Any]:
    return settings_of("sana", family.checkpoint(), tmp_path, max_sequence_length=30)


@pytest.mark.parametrize(
    ("section", "size", "nearest"),
    [("sampling", [30, 32], [32, 32]), ("sampling", [1, 33], [4, 32]), ("evaluation", [64, 70], [64, 72])],
)
def test_a_size_that_cannot_be_drawn_is_refused_with_the_nearest(
    settings: dict[str, Any], section: str, size: list[int], nearest: list[int]
) -> None:
    check_sizes(settings, section, size, nearest)


def test_without_its_files_a_checkpoint_is_taken_for_a_released_one() -> None:
    assert grid(Pretrained("no/checkpoint", ("SanaPipeline",))) == (32, math.inf, None)


def test_frames_are_refused(settings: dict[str, Any]) -> None:
    settings["sampling"]["frames"] = 5
    with pytest.raises(UserError, match=r"sampling\.frames: this model draws pictures"):
        validate(settings)


@pytest.mark.parametrize("section", ["sampling", "evaluation"])
def test_guidance_below_one_is_refused(settings: dict[str, Any], section: str) -> None:
    settings.setdefault(section, {})["guidance"] = 0.5
    with pytest.raises(UserError, match=rf"{section}\.guidance 0\.5: guidance begins at 1"):
        validate(settings)


@pytest.mark.parametrize("option", [{"complex_human_instruction": 2}, {"max_sequence_length": 1}], ids=str)
def test_options_out_of_range_are_refused(settings: dict[str, Any], option: dict[str, Any]) -> None:
    settings["model"] |= option
    with pytest.raises(UserError, match=rf"model\.{next(iter(option))}: "):
        validate(settings)


def test_a_checkpoint_of_another_pipeline_is_one_line(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text(json.dumps({"_class_name": "SanaSprintPipeline"}))
    settings["model"]["path"] = str(tmp_path / "other")
    with pytest.raises(UserError, match=r"holds a SanaSprintPipeline; this model reads SanaPipeline$"):
        validate(settings)


def test_a_transformer_of_sana_sprint_is_refused(settings: dict[str, Any], family: TextToImage, tmp_path: Path) -> None:
    copied = shutil.copytree(family.checkpoint(), tmp_path / "sprint")
    file = copied / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"guidance_embeds": True}))
    settings["model"]["path"] = str(copied)
    with pytest.raises(UserError, match=r"sprint embeds guidance, which is Sana-Sprint; take Sana$"):
        validate(settings)


def test_the_example_is_valid() -> None:
    pytest.importorskip("flowfactory_rewards", reason="the reward of the example")
    assert load("sana").sampling.guidance == 4.5


def test_two_iterations_train(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))
    directory = train_two_iterations(
        settings["model"], {"name": "reinforce"}, tmp_path / "train.txt", tmp_path, sampling={"size": [32, 32], "guidance": 4}
    )
    assert [record["iteration"] for record in directory.records()] == [0, 1, 2]


def test_it_trains_as_the_example_does(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))
    directory = train_two_iterations(
        settings["model"],
        {"name": "reinforce"},
        tmp_path / "train.txt",
        tmp_path,
        sampling={"size": [32, 32], "guidance": 4},
        training={"precision": "bf16", "autocast": False},
    )
    assert [record["iteration"] for record in directory.records()] == [0, 1, 2]
