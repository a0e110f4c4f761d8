"""What a config may say, and runs in float32 and bf16."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from families import check_sizes, settings_of, train_two_iterations
from text_to_image import TextToImage

from flowfactory import UserError
from flowfactory.config.loading import load, validate
from flowfactory.models.pretrained import Pretrained
from flowfactory_krea.krea2 import KREA2


@pytest.fixture
def settings(family: TextToImage, tmp_path: Path) -> dict[str, Any]:
    return settings_of("krea2", family.checkpoint(), tmp_path, max_sequence_length=64)


@pytest.mark.parametrize(
    ("section", "size", "nearest"),
    [("sampling", [30, 32], [32, 32]), ("sampling", [1, 41], [16, 48]), ("evaluation", [64, 72], [64, 64])],
)
def test_a_size_that_cannot_be_drawn_is_refused_with_the_nearest(
    settings: dict[str, Any], section: str, size: list[int], nearest: list[int]
) -> None:
    check_sizes(settings, section, size, nearest)


def test_without_its_files_a_checkpoint_is_taken_for_a_released_one() -> None:
    assert KREA2.grid(Pretrained("no/checkpoint", ("Krea2Pipeline",))).multiple == 16


def test_frames_and_pictures_of_prompts_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["sampling"]["frames"] = 5
    with pytest.raises(UserError, match=r"sampling\.frames: this model draws pictures"):
        validate(settings)
    (tmp_path / "picture.png").write_bytes(b"")
    (tmp_path / "train.jsonl").write_text(json.dumps({"prompt": "cat", "image": "picture.png"}) + "\n")
    with pytest.raises(UserError, match="brings 1 images, and model 'krea2' takes 0"):
        train_two_iterations(
            settings["model"], {"name": "reinforce"}, tmp_path / "train.jsonl", tmp_path, sampling={"size": [32, 32]}
        )


@pytest.mark.parametrize("section", ["sampling", "evaluation"])
def test_guidance_that_is_on_in_diffusers_alone_is_refused(settings: dict[str, Any], section: str) -> None:
    settings.setdefault(section, {})["guidance"] = 0.5
    with pytest.raises(UserError, match=rf"{section}\.guidance 0\.5: guidance begins at 1"):
        validate(settings)
    for fine in (0, 1, 1.5):
        settings[section]["guidance"] = fine
        assert validate(settings)


@pytest.mark.parametrize("length", [5, 1025])
def test_a_length_without_a_token_of_the_prompt_is_refused(settings: dict[str, Any], length: int) -> None:
    settings["model"]["max_sequence_length"] = length
    with pytest.raises(UserError, match=r"model\.max_sequence_length: "):
        validate(settings)


def test_a_checkpoint_of_another_pipeline_is_one_line(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    settings["model"]["path"] = str(tmp_path / "other")
    with pytest.raises(UserError, match=r"holds a FluxPipeline; this model reads Krea2Pipeline$"):
        validate(settings)


def test_an_encoded_prompt_is_as_large_as_all_its_layers(family: TextToImage) -> None:
    assert family.options().encoded_bytes(2) == 64 * 3 * 32 * 2 + 256  # tokens, layers, width, bytes; and the header


def test_the_example_is_valid_as_it_is_and_for_the_distilled_checkpoint() -> None:
    pytest.importorskip("flowfactory_rewards", reason="the reward of the example")
    assert load("krea2").sampling.guidance == 4.5
    path = files("flowfactory_krea") / "examples" / "krea2.yaml"
    turbo = load("krea2", re.findall(r"--set (\S+)", path.read_text()))
    assert (turbo.sampling.guidance, turbo.evaluation.guidance, turbo.sampling.steps) == (0, 0, 8)


def test_two_iterations_train(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))
    directory = train_two_iterations(
        settings["model"], {"name": "reinforce"}, tmp_path / "train.txt", tmp_path, sampling={"size": [32, 32], "guidance": 4}
    )
    assert [record["iteration"] for record in directory.records()] == [0, 1, 2]
