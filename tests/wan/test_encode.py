"""Prompts, pictures and videos are encoded as the pipeline encodes them, once."""

from __future__ import annotations

import gc
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_wan
import torch
from families import open_bench, relative_difference
from wan_pipelines import CONFIGS, SIZES

from flowfactory import Canvas, Prompt, UserError
from flowfactory.data.pictures import read_picture
from flowfactory.data.videos import read_video

LONG = "a photo of a red circle and a blue square " * 80
TEXTS = ("a photo of a red circle", "", "cat", "  blue &amp; green\n\ncat ", LONG)


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_text_is_the_pipelines_encode_prompt(model: Any, pipeline: Any, prompts: Any, task: str) -> None:
    told = [replace(prompts(task)[i % 3], text=text) for i, text in enumerate(TEXTS)]
    ours = model(task, "2.1", told, SIZES["2.1"]).conditions.stack("embeds")
    with torch.no_grad():
        theirs, _ = pipeline(task).encode_prompt(list(TEXTS), do_classifier_free_guidance=False, max_sequence_length=512)
    assert ours.shape == (5, 512, 32)
    assert relative_difference(ours, theirs) < 1e-5
    assert bool((ours[1, 1:] == 0).all()), "an empty text is its end alone"


@pytest.mark.parametrize("kind", ["2.1", "a14b", "5b"])
def test_the_picture_is_what_the_pipeline_joins_to_the_latents(model: Any, pipeline: Any, prompts: Any, kind: str) -> None:
    told, canvas = prompts("i2v"), Canvas(*SIZES[kind])
    ours = model("i2v", kind, told, SIZES[kind]).conditions.entries
    theirs = pipeline("i2v", kind)
    for prompt, entry in zip(told, ours, strict=True):
        picture = read_picture(prompt.images[0])
        pixels = theirs.video_processor.preprocess(picture, height=canvas.height, width=canvas.width)
        with torch.no_grad():
            _, condition, *_ = theirs.prepare_latents(
                pixels, 1, theirs.vae.config.z_dim, *canvas, torch.float32, torch.device("cpu")
            )
            seen = theirs.encode_image(picture, torch.device("cpu")) if kind == "2.1" else None
        assert relative_difference(entry["condition"], condition[0]) < 1e-5
        assert set(entry) == {"embeds", "condition"} | ({"image"} if kind == "2.1" else set())
        if seen is not None:
            assert relative_difference(entry["image"], seen) < 1e-5
    mask = ours[0]["condition"][:4]
    if kind != "5b":  # the first of two latent frames is given
        assert torch.equal(mask, torch.tensor([1.0, 0.0])[None, :, None, None].expand(4, 2, 4, 6))


@pytest.mark.parametrize("kind", ["2.1", "a14b"])
def test_both_pictures_are_what_the_pipeline_joins_to_the_latents(model: Any, pipeline: Any, prompts: Any, kind: str) -> None:
    told, canvas = prompts("flf2v"), Canvas(32, 48, 9)
    ours = model("flf2v", kind, told, canvas).conditions.entries
    theirs = pipeline("flf2v", kind)
    for prompt, entry in zip(told, ours, strict=True):
        pictures = [read_picture(path) for path in prompt.images]
        first, last = (theirs.video_processor.preprocess(picture, height=32, width=48) for picture in pictures)
        with torch.no_grad():
            _, condition = theirs.prepare_latents(first, 1, 4, *canvas, torch.float32, torch.device("cpu"), last_image=last)
        assert relative_difference(entry["condition"], condition[0]) < 1e-5
        assert set(entry) == {"embeds", "condition"} | ({"image"} if kind == "2.1" else set())
        if kind == "2.1":
            with torch.no_grad():
                seen = theirs.encode_image(pictures, torch.device("cpu"))
            assert entry["image"].shape == (2, 5, 16)
            assert relative_difference(entry["image"], seen) < 1e-5
    mask = ours[0]["condition"][:4, :, 0, 0]  # the first frame is the first latent one; the last is one of the four of its last
    assert torch.equal(mask, torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 1]]))


def test_the_video_is_encoded_as_the_pipeline_encodes_it(model: Any, pipeline: Any, prompts: Any) -> None:
    told, canvas = prompts("v2v"), Canvas(*SIZES["2.1"])
    ours = model("v2v", "2.1", told, SIZES["2.1"]).conditions.stack("video")
    for prompt, found in zip(told, ours, strict=True):
        assert (
            relative_difference(found, encode_frames(pipeline("v2v"), read_video(prompt.video, canvas.frames), canvas)) < 1e-5
        )


def encode_frames(theirs: Any, frames: Any, canvas: Canvas) -> torch.Tensor:
    """The latents that the pipeline makes of a video's frames."""
    theirs.scheduler.set_timesteps(2)
    pixels = theirs.video_processor.preprocess_video(frames, height=canvas.height, width=canvas.width)
    with torch.no_grad(), without_noise(theirs):
        clean: torch.Tensor = theirs.prepare_latents(
            *(pixels, 1, 4, canvas.height, canvas.width, torch.float32, torch.device("cpu")),
            timestep=theirs.scheduler.timesteps[:1],
        )
    return clean[0]


def test_a_faster_video_is_encoded_at_the_models_speed(
    model: Any, pipeline: Any, prompts: Any, checkpoint: Any, tmp_path: Path
) -> None:
    canvas, video = Canvas(*SIZES["2.1"]), tiny_wan.video(tmp_path / "fast", 3, 9, rate=32)
    fast = replace(prompts("v2v")[0], video=video)
    kept = replace(fast, video_fps="keep")
    hooks, every = model("v2v", "2.1", [], SIZES["2.1"]).hooks, read_video(video, 9)
    for told, frames in ((fast, every[::2]), (kept, every[:5])):  # the model draws 16 a second
        (entry,) = hooks.encode([told], canvas)
        assert relative_difference(entry["video"], encode_frames(pipeline("v2v"), frames, canvas)) < 1e-5
    config = CONFIGS["v2v"].model_validate({"path": str(checkpoint("v2v"))})
    for told, entries in ((fast, 1), (kept, 1), (fast, 0)):
        assert open_bench(config, tmp_path / "cache", [told], SIZES["2.1"]).entries == entries


def without_noise(pipeline: Any) -> Any:
    from unittest.mock import patch

    return patch.object(pipeline.scheduler, "scale_noise", lambda latents, timestep, noise: latents)


@pytest.mark.parametrize(("task", "count"), [("t2v", 33), ("i2v", 3), ("v2v", 3)])
def test_a_batch_of_prompts_is_encoded_as_one_by_one(model: Any, prompts: Any, task: str, count: int) -> None:
    told = [replace(prompts(task)[number % 3], text=f"a photo of {number} circle") for number in range(count)]
    hooks, canvas = model(task, "2.1", [], (16, 16, 5)).hooks, Canvas(16, 16, 5)
    together = list(hooks.encode(told, canvas))
    assert len(together) == count
    for number in {0, min(31, count - 2), count - 1}:  # both sides of the border between two batches of the encoders
        (alone,) = hooks.encode([told[number]], canvas)
        assert set(alone) == set(together[number])
        for name, tensor in alone.items():
            torch.testing.assert_close(together[number][name], tensor, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together[0]["embeds"], together[2]["embeds"])


def spoil(file: Path) -> None:
    """Make ``file`` unreadable, with its size and time as before, which the key of the cache is made of."""
    facts = file.stat()
    file.write_bytes(b"\xff" * facts.st_size)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize("task", ["i2v", "v2v"])
def test_prompts_in_the_cache_need_no_encoder(checkpoint: Any, prompts: Any, tmp_path: Path, task: str) -> None:
    folder, cache = tmp_path / "checkpoint", tmp_path / "cache"
    shutil.copytree(checkpoint(task), folder)
    config = CONFIGS[task].model_validate({"path": str(folder)})

    def draw() -> torch.Tensor:
        return open_bench(config, cache, prompts(task)[:2], (16, 32, 5), 1, 4.0, "blurry").draw(2).latents

    first = draw()
    for encoder in ("text_encoder", "image_encoder") if task == "i2v" else ("text_encoder",):
        spoil(folder / encoder / "model.safetensors")
    assert torch.equal(draw(), first)
    shutil.rmtree(cache)
    with pytest.raises(UserError, match="is cut off or damaged"):  # so the encoders really could not have been read
        draw()


@pytest.mark.parametrize(("task", "part"), [("i2v", "vae"), ("i2v", "image_encoder")])
def test_other_weights_of_what_encodes_are_not_served_from_the_cache(
    checkpoint: Any, prompts: Any, tmp_path: Path, task: str, part: str
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint(task), folder)
    config = CONFIGS[task].model_validate({"path": str(folder)})
    assert open_bench(config, tmp_path, prompts(task)[:1], (16, 32, 5)).entries == 1
    assert open_bench(config, tmp_path, prompts(task)[:1], (16, 32, 5)).entries == 0
    (weights,) = (folder / part).glob("*.safetensors")
    os.utime(weights)
    assert open_bench(config, tmp_path, prompts(task)[:1], (16, 32, 5)).entries == 1


def test_what_is_encoded_depends_on_the_media_and_on_the_canvas_where_it_should(
    checkpoint: Any, prompts: Any, tmp_path: Path
) -> None:
    for task, count in (("t2v", 1), ("i2v", 2)):
        config, told = CONFIGS[task].model_validate({"path": str(checkpoint(task))}), prompts(task)[:1]
        cache = tmp_path / task
        assert open_bench(config, cache, told, (16, 32, 5)).entries == 1
        assert open_bench(config, cache, told, (32, 16, 5)).entries == count - 1
        others = [Prompt(told[0].text, images=prompts(task)[2].images, video=prompts(task)[2].video)]
        assert open_bench(config, cache, others, (16, 32, 5)).entries == count - 1


def test_no_encoder_stays_after_encoding(checkpoint: Any, prompts: Any, tmp_path: Path) -> None:
    def encoders() -> list[int]:
        return [id(thing) for thing in gc.get_objects() if type(thing).__name__ in ("UMT5EncoderModel", "CLIPVisionModel")]

    config = CONFIGS["i2v"].model_validate({"path": str(checkpoint("i2v"))})
    before = encoders()
    made = open_bench(config, tmp_path, prompts("i2v")[:1], (16, 16, 5), guidance=3.0)
    assert set(made.policy.modules) == {"transformer"}
    assert encoders() == before
