"""Prompts are encoded as the pipelines encode them, once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions
from families import open_bench
from PIL import Image

from flowfactory import Canvas, Prompt, Runtime, UserError
from flowfactory.hooks.calls import Hooks
from flowfactory.hooks.manager import make_manager

LONG = "a photo of a red circle and a blue square " * 4
TEXTS = ("a photo of a red circle", "", "cat", LONG)
CANVAS = Canvas(32, 32)


def hooks_of(config: Any) -> Hooks:
    hooks = Hooks(make_manager({"model": config.build("model")}))
    hooks.load(Runtime(torch.device("cpu"), torch.float32))
    return hooks


@pytest.mark.parametrize("longest", [5, 512])
def test_texts_are_encoded_by_the_pipelines_encode_prompt(
    config: Any, diffusers_pipeline: Any, checkpoint: Any, longest: int
) -> None:
    options = config("image").model_copy(update={"max_sequence_length": longest})
    pipeline = diffusers_pipeline(checkpoint("image"))
    for text, entry in zip(TEXTS, hooks_of(options).encode([Prompt(text) for text in TEXTS], CANVAS), strict=True):
        with torch.no_grad():
            embeds, _ = pipeline.encode_prompt(text, max_sequence_length=longest)
        assert set(entry) == {"embeds"}
        torch.testing.assert_close(entry["embeds"], embeds[0], rtol=1e-5, atol=1e-6)
        assert 1 <= len(entry["embeds"]) <= longest


@pytest.mark.parametrize("kind", ["image", "edit-2509"])
def test_of_the_template_nothing_is_left_before_the_prompt(diffusers_pipeline: Any, checkpoint: Any, kind: str) -> None:
    """Otherwise these tests would say nothing about the number of tokens that the pipeline drops."""
    pipeline = diffusers_pipeline(checkpoint(kind))
    tokens = pipeline.tokenizer(pipeline.prompt_template_encode.format("red circle"))["input_ids"]
    rest = pipeline.tokenizer.decode(tokens[pipeline.prompt_template_encode_start_idx :])
    assert rest == "red circle<|im_end|>\n<|im_start|>assistant\n"


def test_a_batch_of_texts_is_encoded_as_one_by_one(config: Any) -> None:
    hooks = hooks_of(config("image"))
    prompts = [Prompt("a photo of a circle " * (i % 3) + f"{i}") for i in range(34)]
    together = list(hooks.encode(prompts, CANVAS))
    assert len({len(entry["embeds"]) for entry in together}) > 2
    for i in (0, 31, 32, 33):  # both sides of the border between two batches of the encoder
        (alone,) = hooks.encode([prompts[i]], CANVAS)
        torch.testing.assert_close(together[i]["embeds"], alone["embeds"], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together[0]["embeds"][-1], together[1]["embeds"][-1])


def test_pictures_go_to_the_text_encoder_and_to_the_vae(
    config: Any, diffusers_pipeline: Any, checkpoint: Any, pictures: dict[str, Path]
) -> None:
    options = config("edit-2509")
    pipeline = diffusers_pipeline(checkpoint("edit-2509"))
    names = (("square",), ("wide", "tall"))
    prompts = [Prompt("a red cat", images=tuple(pictures[name] for name in group)) for group in names]
    for prompt, entry in zip(prompts, hooks_of(options).encode(prompts, CANVAS), strict=True):
        files = [Image.open(path).convert("RGB") for path in prompt.images]
        ratios = [file.width / file.height for file in files]
        small = [
            pipeline.image_processor.resize(file, *calculate_dimensions(options.condition_area, ratio)[::-1])
            for file, ratio in zip(files, ratios, strict=True)
        ]
        with torch.no_grad():
            embeds, mask = pipeline.encode_prompt("a red cat", image=small)
        assert mask is None
        torch.testing.assert_close(entry["embeds"], embeds[0], rtol=1e-5, atol=1e-6)
        assert set(entry) == {"embeds", *(f"image_{i}" for i in range(len(files)))}
        for i, (file, ratio) in enumerate(zip(files, ratios, strict=True)):
            width, height = calculate_dimensions(options.vae_area, ratio)
            pixels = pipeline.image_processor.preprocess(file, height, width).unsqueeze(2)
            with torch.no_grad():
                latents = pipeline._encode_vae_image(pixels, None)
            assert entry[f"image_{i}"].shape == (4, height // 8, width // 8)
            torch.testing.assert_close(entry[f"image_{i}"], latents[0, :, 0], rtol=1e-5, atol=1e-6)


def test_a_negative_prompt_is_read_with_the_pictures_of_its_prompt(config: Any, cache: Path, pictures: dict[str, Path]) -> None:
    prompts = [Prompt("cat", images=(pictures[name],)) for name in ("square", "other")]
    made = open_bench(config("edit-2509"), cache, prompts, (32, 32), guidance=4.0, negative="blurry")
    first, second = made.conditions.negative.entries  # type: ignore[union-attr]
    assert first["embeds"].shape == second["embeds"].shape
    assert not torch.allclose(first["embeds"], second["embeds"])
    for negative, given in zip((first, second), made.conditions.entries, strict=True):
        assert torch.equal(negative["image_0"], given["image_0"])
        assert not torch.equal(negative["embeds"][-1], given["embeds"][-1])


@pytest.mark.parametrize("kind", ["image", "edit-2509"])
def test_prompts_in_the_cache_need_no_encoder(
    config: Any, checkpoint: Any, pictures: dict[str, Path], tmp_path: Path, cache: Path, kind: str
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint(kind), folder)
    images = (pictures["wide"],) if kind != "image" else ()
    prompts = [Prompt(text, images=images) for text in TEXTS[:2]]

    def draw() -> torch.Tensor:
        made = open_bench(config(kind, path=folder), cache, prompts, (32, 32), guidance=4.0, negative="blurry")
        return made.draw(2).latents

    first = draw()
    spoil(folder / "text_encoder" / "model.safetensors")
    for tokenizer in folder.glob("*/tokenizer.json"):
        spoil(tokenizer)
    assert torch.equal(draw(), first)
    shutil.rmtree(cache)
    with pytest.raises(UserError, match="is cut off or damaged"):  # so the encoders really could not have been read
        draw()


def spoil(file: Path) -> None:
    """Make ``file`` unreadable, with its size and time as before, which the key of the cache is made of."""
    facts = file.stat()
    file.write_bytes(b"\xff" * facts.st_size)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize("part", ["vae", "processor", "text_encoder"])
def test_other_files_of_what_encodes_pictures_are_not_served_from_the_cache(
    config: Any, checkpoint: Any, pictures: dict[str, Path], tmp_path: Path, cache: Path, part: str
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint("edit-2509"), folder)
    prompts = [Prompt("cat", images=(pictures["square"],))]
    assert open_bench(config("edit-2509", path=folder), cache, prompts, (32, 32)).entries == 1
    assert open_bench(config("edit-2509", path=folder), cache, prompts, (32, 32)).entries == 0
    os.utime(next(file for file in (folder / part).iterdir()))
    assert open_bench(config("edit-2509", path=folder), cache, prompts, (32, 32)).entries == 1


def test_other_areas_are_not_served_from_the_cache(config: Any, pictures: dict[str, Path], cache: Path) -> None:
    prompts = [Prompt("cat", images=(pictures["wide"],))]
    small = config("edit-2509")
    sizes = set()
    for options in (
        small,
        small.model_copy(update={"vae_area": 64 * 64}),
        small.model_copy(update={"condition_area": 96 * 96}),
    ):
        made = open_bench(options, cache, prompts, (32, 32))
        assert made.entries == 1
        sizes.add((len(made.conditions.entries[0]["embeds"]), made.conditions.entries[0]["image_0"].shape))
    assert len(sizes) == 3


@pytest.mark.parametrize("size", [(70, 66), (67, 101), (300, 130)])
def test_as_many_tokens_of_a_picture_are_foretold_as_are_encoded(config: Any, size: tuple[int, int], tmp_path: Path) -> None:
    options = config("edit-2509")
    picture = tmp_path / "picture.png"
    Image.new("RGB", size, (200, 30, 30)).save(picture)
    (entry,) = hooks_of(options).encode([Prompt("cat", images=(picture,))], CANVAS)
    height, width = entry["image_0"].shape[-2:]
    assert options.picture_tokens(*size) == (height // 2) * (width // 2)
