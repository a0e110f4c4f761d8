"""What a config may say, and runs in float32 and bf16."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from families import LORA, check_sizes, settings_of, train_two_iterations

from flowfactory import UserError
from flowfactory.config.loading import load, validate
from flowfactory.models.pretrained import Pretrained
from flowfactory.testing import bench
from flowfactory_z_image.z_image import grid

BFLOAT = torch.bfloat16


@pytest.fixture
def settings(checkpoint: Any, tmp_path: Path) -> dict[str, Any]:
    return settings_of("z-image", checkpoint(), tmp_path, max_sequence_length=64)


@pytest.mark.parametrize(
    ("section", "size", "nearest"),
    [
        ("sampling", [30, 32], [32, 32]),
        ("sampling", [1, 33], [4, 32]),
        ("sampling", [96, 64], [64, 64]),  # the transformer has positions for 16 patches of 4 pixels
        ("evaluation", [64, 70], [64, 64]),
    ],
)
def test_a_size_that_cannot_be_drawn_is_refused_with_the_nearest(
    settings: dict[str, Any], section: str, size: list[int], nearest: list[int]
) -> None:
    check_sizes(settings, section, size, nearest)


def test_the_largest_size_is_drawn(bench_of: Any, checkpoint: Any) -> None:
    assert bench_of(checkpoint(), ("a red circle",), (64, 64), steps=1).draw(1).media.shape == (1, 3, 64, 64)


def test_without_its_files_a_checkpoint_is_taken_for_a_released_one() -> None:
    assert grid(Pretrained("no/checkpoint", ("ZImagePipeline",))) == (16, 8192, None)


def test_the_longest_side_is_what_rows_and_columns_have_positions_for(tmp_path: Path) -> None:
    for part, config in (("vae", {"block_out_channels": [8, 8, 8]}), ("transformer", {"axes_lens": [8, 20, 16]})):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    assert grid(Pretrained(str(tmp_path), ("ZImagePipeline",))) == (8, 128, None)


def test_frames_and_pictures_of_prompts_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["sampling"]["frames"] = 5
    with pytest.raises(UserError, match=r"sampling\.frames: this model draws pictures"):
        validate(settings)
    (tmp_path / "picture.png").write_bytes(b"")
    (tmp_path / "train.jsonl").write_text(json.dumps({"prompt": "cat", "image": "picture.png"}) + "\n")
    with pytest.raises(UserError, match="brings 1 images, and model 'z-image' takes 0"):
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


@pytest.mark.parametrize(
    "option",
    [{"cfg_normalization": -1}, {"cfg_truncation": 1.5}, {"cfg_truncation": -0.1}, {"max_sequence_length": 0}],
    ids=str,
)
def test_options_out_of_range_are_refused(settings: dict[str, Any], option: dict[str, Any]) -> None:
    settings["model"] |= option
    with pytest.raises(UserError, match=rf"model\.{next(iter(option))}: "):
        validate(settings)


def test_a_checkpoint_of_another_pipeline_is_one_line(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text(json.dumps({"_class_name": "ZImageOmniPipeline"}))
    settings["model"]["path"] = str(tmp_path / "other")
    with pytest.raises(UserError, match=r"holds a ZImageOmniPipeline; this model reads ZImagePipeline$"):
        validate(settings)


@pytest.mark.parametrize("train", ["full", LORA], ids=["full", "lora"])
def test_bf16_draws_and_replays_what_it_drew(options: Any, checkpoint: Any, tmp_path: Path, train: Any) -> None:
    config = options(checkpoint("base"), train=train, cfg_normalization=0.7)
    prompts = ("a photo of a red circle", "cat")
    made = bench(config, tmp_path, prompts, (20, 32), guidance=4.0, group_size=2, precision=BFLOAT)
    drawn = made.draw(4)
    assert bool(drawn.media.isfinite().all())
    assert drawn.latents.dtype == torch.float32
    assert len(drawn.steps) > 0
    for step in drawn.steps:
        replayed = made.policy.evaluate(step).log_prob
        assert replayed is not None
        assert step.log_prob is not None
        assert float((torch.exp(replayed - step.log_prob) - 1).abs().max().detach()) < 1e-5
    assert {weight.dtype for weight in made.policy.parameters.values()} == {torch.float32}
    transformer = made.policy.modules["transformer"]
    stored = {weight.dtype for name, weight in transformer.named_parameters() if "lora" not in name}
    assert stored == ({torch.float32} if train == "full" else {BFLOAT})
    assert {entry["embeds"].dtype for entry in made.conditions.entries} == {BFLOAT}


def test_the_example_is_valid_as_it_is_and_for_the_distilled_checkpoint() -> None:
    pytest.importorskip("flowfactory_rewards", reason="the reward of the example")
    assert load("z-image").sampling.guidance == 4
    path = files("flowfactory_z_image") / "examples" / "z-image.yaml"
    turbo = load("z-image", re.findall(r"--set (\S+)", path.read_text()))
    assert (turbo.sampling.guidance, turbo.evaluation.guidance, turbo.sampling.steps) == (0, 0, 6)


def test_two_iterations_train(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))
    directory = train_two_iterations(
        settings["model"], {"name": "reinforce"}, tmp_path / "train.txt", tmp_path, sampling={"size": [32, 32], "guidance": 4}
    )
    assert [record["iteration"] for record in directory.records()] == [0, 1, 2]
