"""What a config may not say, and what bf16 changes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import policy_gradient
import pytest
import torch
from families import LORA, relative_difference
from PIL import Image
from wan_pipelines import CONFIGS, EVERY, SIZES

from flowfactory import Runtime, UserError
from flowfactory.config.loading import validate
from flowfactory.data.prompts import check_files, check_media
from flowfactory.testing import bench
from flowfactory.testing.two_parameter import FILE
from flowfactory.training.prompts import prepare_prompts

PLUGINS = [FILE, policy_gradient.__file__]


@pytest.fixture
def settings(checkpoint: Any, tmp_path: Path) -> Any:
    """``settings(task, kind, sampling, **options)``: a config as a mapping."""
    (tmp_path / "prompts.txt").write_text("a red circle\n")

    def build(task: str, kind: str = "2.1", sampling: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        return {
            "model": {"name": f"wan-{task}", "path": str(checkpoint(task, kind)), **options},
            "algorithm": "reinforce",
            "rewards": {"light": "bright"},
            "prompts": {"train": str(tmp_path / "prompts.txt")},
            "sampling": {"size": [64, 64], "frames": 5, "steps": 3, "dynamics": "flow-sde", **(sampling or {})},
            "plugins": PLUGINS,
        }

    return build


@pytest.mark.parametrize(
    ("kind", "key", "value", "nearest"),
    [
        ("2.1", "size", [30, 64], [32, 64]),
        ("2.1", "size", [64, 1], [64, 16]),
        ("2.1", "size", [1024, 64], [512, 64]),  # the tiny transformer has 32 positions of 16 pixels
        ("5b", "size", [48, 80], [64, 64]),
        ("a14b", "frames", 6, 5),
        ("5b", "frames", 80, 81),
    ],
)
def test_a_canvas_that_cannot_be_drawn_is_refused_with_the_nearest(
    settings: Any, kind: str, key: str, value: Any, nearest: Any
) -> None:
    task = "i2v" if kind == "5b" else "t2v"
    with pytest.raises(UserError, match=rf"sampling\.{key} {re.escape(str(value))}.*nearest is {re.escape(str(nearest))}$"):
        validate(settings(task, kind, {key: value}))
    assert validate(settings(task, kind, {key: nearest}))


def test_a_video_needs_its_number_of_frames(settings: Any) -> None:
    with pytest.raises(UserError, match=r"sampling\.frames is missing"):
        validate(settings("t2v", "2.1", {"frames": None}))


@pytest.mark.parametrize(("task", "kind"), EVERY)
def test_every_checkpoint_is_accepted(settings: Any, task: str, kind: str) -> None:
    assert validate(settings(task, kind)).sampling.frames == 5


@pytest.mark.parametrize(("task", "option"), [("t2v", {"experts": "both"}), ("i2v", {"guidance_2": 3.0})])
def test_an_option_of_two_experts_is_refused_for_one(settings: Any, checkpoint: Any, task: str, option: Any) -> None:
    (name,) = option
    with pytest.raises(UserError, match=rf"model\.{name}: .* has one transformer, and no second for it; leave it out$"):
        validate(settings(task, "2.1", **option))
    assert validate(settings(task, "a14b", **option))
    config = CONFIGS[task].model_validate({"path": str(checkpoint(task)), **option})
    refused(config, r"has one transformer")  # what was not on this machine is known when it is loaded


def test_a_text_to_video_checkpoint_is_refused_for_pictures(settings: Any, checkpoint: Any) -> None:
    for kind in ("2.1", "a14b"):
        folder = str(checkpoint("t2v", kind))
        with pytest.raises(UserError, match=r"draws from text alone; use the model wan-t2v$"):
            validate(settings("i2v", path=folder))
        refused(CONFIGS["i2v"].model_validate({"path": folder}), "draws from text alone")


def test_a_checkpoint_of_as_many_pictures_is_asked_for(settings: Any, checkpoint: Any) -> None:
    for task, kind, other, told in (
        ("flf2v", "2.1", "i2v", r"is given a first frame alone; use the model wan-i2v$"),
        ("flf2v", "5b", "i2v", r"is given a first frame alone; use the model wan-i2v$"),
        ("i2v", "2.1", "flf2v", r"is given a first and a last frame; use the model wan-flf2v$"),
    ):
        with pytest.raises(UserError, match=told):
            validate(settings(other, kind) | {"model": {"name": f"wan-{task}", "path": str(checkpoint(other, kind))}})
    text = {"name": "wan-flf2v", "path": str(checkpoint("t2v"))}
    with pytest.raises(UserError, match=r"holds a WanPipeline; this model reads WanImageToVideoPipeline$"):
        validate(settings("t2v") | {"model": text})


def test_one_frame_is_refused_for_two(settings: Any) -> None:
    with pytest.raises(UserError, match=r"sampling\.frames 1: a first and a last frame are two; the nearest is 5$"):
        validate(settings("flf2v", sampling={"frames": 1}))
    assert validate(settings("flf2v", sampling={"frames": 5}))


@pytest.mark.parametrize("kind", ["a14b", "5b"])
def test_wan_2_2_is_refused_for_videos(settings: Any, checkpoint: Any, kind: str) -> None:
    folder = str(checkpoint("t2v", kind))
    with pytest.raises(UserError, match=r"is a Wan 2\.2 checkpoint; wan-v2v reads Wan 2\.1"):
        validate(settings("v2v", path=folder))
    refused(CONFIGS["v2v"].model_validate({"path": folder}), "is a Wan 2.2 checkpoint")


@pytest.mark.parametrize("task", ["t2v", "i2v", "v2v"])
def test_a_checkpoint_of_another_pipeline_is_one_line(checkpoint: Any, tmp_path: Path, task: str) -> None:
    index = json.loads((checkpoint(task) / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxPipeline"}))
    refused(CONFIGS[task].model_validate({"path": str(tmp_path)}), "holds a FluxPipeline; this model reads Wan")


def refused(config: Any, reason: str) -> None:
    with pytest.raises(UserError) as error:
        config.build("model").load(Runtime(torch.device("cpu"), torch.float32))
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("strength", [0.0, 1.1])
def test_a_strength_that_is_no_share_is_refused(settings: Any, strength: float) -> None:
    with pytest.raises(UserError, match=r"strength"):
        validate(settings("v2v", strength=strength))


@pytest.mark.parametrize(("task", "wrong"), [("t2v", "i2v"), ("i2v", "t2v"), ("i2v", "v2v"), ("v2v", "t2v"), ("flf2v", "i2v")])
def test_prompts_bring_what_the_model_takes(prompts: Any, task: str, wrong: str) -> None:
    check_media(prompts(task), CONFIGS[task].takes, f"wan-{task}")
    with pytest.raises(UserError, match=rf"brings . (images|video), and model 'wan-{task}' takes"):
        check_media(prompts(wrong), CONFIGS[task].takes, f"wan-{task}")


def test_a_video_that_is_too_short_is_one_line(checkpoint: Any, prompts: Any, tmp_path: Path) -> None:
    config = CONFIGS["v2v"].model_validate({"path": str(checkpoint("v2v"))})
    with pytest.raises(UserError, match=r"it has 9 frames at 16 a second, and 13 are needed"):
        bench(config, tmp_path, prompts("v2v")[:1], (32, 32, 13))
    check_files(prompts("v2v")[:1], config, 9)
    with pytest.raises(UserError, match=r"it has 9 frames at 16 a second, and 13 are needed"):  # before weights are read
        check_files(prompts("v2v")[:1], config, 13)


def test_a_picture_that_is_far_too_thin_is_refused_before_weights_are_read(settings: Any, tmp_path: Path) -> None:
    Image.new("RGB", (1, 2000)).save(tmp_path / "thin.png")
    (tmp_path / "thin.jsonl").write_text('{"prompt": "a", "image": "thin.png"}\n')
    config = validate(settings("i2v") | {"prompts": {"train": str(tmp_path / "thin.jsonl")}})
    with pytest.raises(UserError, match=r"thin\.png: 1 x 2000 pixels are more than 100 times as long as wide; crop it$"):
        prepare_prompts(config)


@pytest.mark.parametrize(("task", "kind"), [("t2v", "a14b"), ("i2v", "2.1"), ("i2v", "5b"), ("flf2v", "2.1"), ("v2v", "2.1")])
def test_bf16_draws_finite_videos_and_replays_what_it_drew(
    checkpoint: Any, prompts: Any, tmp_path: Path, task: str, kind: str
) -> None:
    config = CONFIGS[task].model_validate({"path": str(checkpoint(task, kind)), "train": LORA})
    made = bench(config, tmp_path, prompts(task)[:1], SIZES[kind], 3, 2.0, 2, precision=torch.bfloat16)
    drawn = made.draw(2)
    assert bool(drawn.media.isfinite().all())
    assert len(drawn.steps) == 2
    for step in drawn.steps:
        replayed = made.policy.evaluate(step).log_prob
        assert replayed is not None
        assert step.log_prob is not None
        assert torch.equal(replayed, step.log_prob)
    assert {weight.dtype for weight in made.policy.parameters.values()} == {torch.float32}
    frozen = {weight.dtype for name, weight in made.policy.modules["transformer"].named_parameters() if "to_q.base" in name}
    assert frozen == {torch.bfloat16}


def test_the_vae_computes_in_float32_under_bf16(checkpoint: Any, prompts: Any, pipeline: Any, tmp_path: Path) -> None:
    config = CONFIGS["t2v"].model_validate({"path": str(checkpoint("t2v")), "train": LORA})
    made = bench(config, tmp_path, prompts("t2v")[:1], (32, 32, 5), 2, group_size=2, precision=torch.bfloat16)
    drawn = made.draw(2)
    vae = pipeline("t2v").vae
    mean, std = (torch.tensor(of)[:, None, None, None] for of in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        videos = vae.decode(drawn.latents * std + mean).sample
    assert relative_difference(drawn.media, (videos.transpose(1, 2) / 2 + 0.5).clamp(0, 1)) < 1e-5


def test_tiles_and_smaller_batches_decode_the_same(model: Any, prompts: Any) -> None:
    whole, pieces, tiles = (
        model("t2v", "2.1", prompts("t2v")[:2], (32, 32, 5), 1, **options).draw(2).media
        for options in ({}, {"decode_batch_size": 1}, {"tiling": True})
    )
    assert relative_difference(pieces, whole) < 1e-5
    assert relative_difference(tiles, whole) < 1e-5  # one tile holds all of so small a video


@pytest.mark.parametrize(("kind", "rate"), [("2.1", 16), ("a14b", 16), ("5b", 24)])
def test_clips_have_the_frame_rate_that_the_checkpoint_was_trained_with(model: Any, prompts: Any, kind: str, rate: int) -> None:
    assert model("t2v", kind, prompts("t2v")[:1], (32, 64, 5)).sampler.frame_rate == rate
