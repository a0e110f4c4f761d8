"""What a config may say, and a run."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import policy_gradient
import pytest
from families import LORA, train_two_iterations
from hunyuan_videos import Videos
from PIL import Image

from flowfactory import UserError
from flowfactory.config.loading import load, validate
from flowfactory.models.pretrained import Pretrained
from flowfactory.testing.two_parameter import FILE
from flowfactory_hunyuan_video.text_to_video import grid

NAMES = {"t2v": "hunyuan-video-1.5", "i2v": "hunyuan-video-1.5-i2v"}
GRPO = {"name": "grpo", "clip_range": 1e-3}
NFT = {"name": "nft", "kl": 0, "timesteps": {"name": "uniform", "count": 2}}


@pytest.fixture
def settings(videos: Videos, tmp_path: Path) -> dict[str, Any]:
    """A config, as a mapping."""
    lines: list[dict[str, str]] = [
        {"prompt": prompt.text, **({"image": str(prompt.images[0])} if prompt.images else {})} for prompt in videos.prompts()
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "model": {"name": NAMES[videos.kind], "path": str(videos.checkpoint()), "train": LORA},
        "algorithm": "reinforce",
        "rewards": {"light": "bright"},
        "prompts": {"train": str(tmp_path / "prompts.jsonl")},
        "sampling": {"size": [32, 32], "frames": 5, "guidance": 4, "dynamics": "flow-sde"},
        "plugins": [FILE, policy_gradient.__file__],
    }


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [("size", [30, 32], [32, 32]), ("size", [1, 33], [4, 32]), ("frames", 6, 5), ("frames", 80, 81)],
)
def test_a_canvas_that_cannot_be_drawn_is_refused_with_the_nearest(
    settings: dict[str, Any], key: str, value: Any, nearest: Any
) -> None:
    settings["sampling"][key] = value
    with pytest.raises(UserError, match=rf"sampling\.{key} {re.escape(str(value))}.*nearest is {re.escape(str(nearest))}$"):
        validate(settings)
    settings["sampling"][key] = nearest
    assert validate(settings)


def test_a_video_needs_its_number_of_frames(settings: dict[str, Any]) -> None:
    del settings["sampling"]["frames"]
    with pytest.raises(UserError, match=r"sampling\.frames is missing"):
        validate(settings)


def test_without_its_files_a_checkpoint_is_taken_for_a_released_one() -> None:
    assert grid(Pretrained("no/checkpoint", ("HunyuanVideo15Pipeline",))) == (16, math.inf, 4)


def test_guidance_below_one_is_refused(settings: dict[str, Any]) -> None:
    settings["sampling"]["guidance"] = 0.5
    with pytest.raises(UserError, match=r"sampling\.guidance 0\.5: guidance begins at 1"):
        validate(settings)


def test_a_checkpoint_of_the_other_task_is_one_line(settings: dict[str, Any], videos: Videos) -> None:
    settings["model"]["path"] = str(videos.checkpoint("t2v" if videos.kind == "i2v" else "i2v"))
    with pytest.raises(UserError, match=r"holds a HunyuanVideo15\w*; this model reads HunyuanVideo15\w+$"):
        validate(settings)


def test_a_step_distilled_transformer_is_refused(settings: dict[str, Any], videos: Videos, tmp_path: Path) -> None:
    copied = shutil.copytree(videos.checkpoint(), tmp_path / "distilled")
    file = copied / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_meanflow": True}))
    settings["model"]["path"] = str(copied)
    with pytest.raises(UserError, match=r"distilled is for a few steps, .*; take one that is not step-distilled$"):
        validate(settings)


def test_a_picture_that_is_far_too_thin_is_refused_before_weights_are_read(
    settings: dict[str, Any], videos: Videos, tmp_path: Path
) -> None:
    if videos.kind == "t2v":
        return
    Image.new("RGB", (1, 2000)).save(tmp_path / "thin.png")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a", "image": "thin.png"}\n')
    with pytest.raises(UserError, match=r"1 x 2000 pixels are more than 100 times as long as wide; crop it"):
        train_two_iterations(
            settings["model"], GRPO, tmp_path / "prompts.jsonl", tmp_path, sampling={"size": [32, 32], "frames": 5}
        )


def test_the_examples_are_valid(videos: Videos) -> None:
    pytest.importorskip("flowfactory_rewards", reason="the rewards of the example")
    pytest.importorskip("flowfactory_grpo" if videos.kind == "t2v" else "flowfactory_nft", reason="its algorithm")
    assert load(NAMES[videos.kind]).sampling.guidance == 6


@pytest.mark.parametrize("algorithm", [GRPO, NFT], ids=["grpo", "nft"])
@pytest.mark.parametrize("train", ["full", LORA], ids=["full", "lora"])
def test_two_iterations_train(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: dict[str, Any], train: Any
) -> None:
    pytest.importorskip(f"flowfactory_{algorithm['name']}", reason="the algorithm")
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))
    directory = train_two_iterations(
        settings["model"] | {"train": train},
        algorithm,
        tmp_path / "prompts.jsonl",
        tmp_path,
        sampling={"size": [20, 28], "frames": 5, "guidance": 4},
    )
    assert [record["iteration"] for record in directory.records()] == [0, 1, 2]
