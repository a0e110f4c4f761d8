"""The plugin draws what diffusers' own pipelines of HunyuanVideo 1.5 draw."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import draw_one_by_one, relative_difference
from hunyuan_videos import SIZES, Videos
from text_to_image import EXACT, LONG

from flowfactory.testing import check_encode_media


@pytest.mark.parametrize("guidance", [1.0, 1.5, 6.0])
def test_what_is_drawn_is_the_pipelines(videos: Videos, guidance: float) -> None:
    assert videos.check(guidance=guidance).media.shape == (2, 5, 3, 28, 36)


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_any_number_of_steps_is_the_pipelines(family: Videos, steps: int) -> None:
    family.check(steps=steps, guidance=6.0)


@pytest.mark.parametrize("size", [(16, 48, 1), (48, 16, 9), (32, 32, 13)])
def test_any_size_and_number_of_frames_is_the_pipelines(family: Videos, size: Any) -> None:
    assert family.check(size=size, guidance=3.0).media.shape == (2, size[2], 3, *size[:2])


@pytest.mark.parametrize("frames", [1, 9])
@pytest.mark.parametrize("picture", SIZES)
def test_a_picture_of_any_size_is_drawn_on_as_the_pipeline_does(family: Videos, picture: Any, frames: int) -> None:
    prompts, size = family.prompts(kind="i2v", picture=picture), (*SIZES[picture][:2], frames)
    assert family.check(prompts, "i2v", size=size, guidance=3.0).media.shape == (2, frames, 3, *size[:2])


@pytest.mark.parametrize("prompt", ["", "Cat", LONG, LONG * 40, 'a "red"', '"a" “b” "a"', f'"{LONG}"', f'"{LONG * 4}"'])
def test_a_prompt_of_any_length_is_the_pipelines(family: Videos, prompt: str) -> None:
    family.check((prompt,), guidance=2.0, steps=2)


def test_a_negative_prompt_is_what_the_pipeline_makes_of_it(videos: Videos) -> None:
    ours, quoted, empty = (videos.check(guidance=6.0, negative=text) for text in ("Blurry square", 'a "cat"', ""))
    assert relative_difference(ours.latents, empty.latents) > 1e-3, "the negative prompt changes nothing"
    assert relative_difference(ours.latents, quoted.latents) > 1e-3, "what it has in quotes changes nothing"


def test_what_is_quoted_changes_what_is_drawn(videos: Videos) -> None:
    made = [videos.bench(videos.prompts((text,))) for text in ('a "cat"', "a cat")]
    bare, quoted = ((bench.hooks, bench.draw(1).latents)[1] for bench in made)
    assert relative_difference(quoted, bare) > 1e-3


@pytest.mark.parametrize("guidance", [1.0, 6.0])
def test_prompts_of_any_lengths_share_a_forward_exactly(videos: Videos, guidance: float) -> None:
    texts = ("cat", LONG, f'a "{LONG}"', 'photo of "a"')
    made = videos.bench(videos.prompts(texts), guidance=guidance, negative='blurry "cat"' if guidance > 1 else "")
    calls: list[int] = []
    made.policy.modules["transformer"].register_forward_hook(lambda *_: calls.append(1))
    together = made.draw(4)
    assert len(calls) == 4, "not all of them share a forward"
    alone = draw_one_by_one(made)
    assert relative_difference(together.latents, alone.latents) < EXACT
    assert relative_difference(together.media, alone.media) < EXACT


def test_the_picture_changes_what_is_drawn(family: Videos) -> None:
    one, other = (family.bench([family.prompts(("a cat", "a cat"), "i2v")[row]], "i2v").draw(1).latents for row in (0, 1))
    assert relative_difference(one, other) > 1e-3


@pytest.mark.parametrize("frames", [1, 9])
def test_latents_of_videos_are_those_that_the_pipeline_decodes(videos: Videos, frames: int) -> None:
    pipeline = videos.pipeline()
    media, latents = check_encode_media(videos.options(), (28, 36, frames), pipeline=pipeline)
    assert relative_difference(latents[:1], latents[1:]) > 1e-2, "two videos give the same"
    first = torch.nn.functional.interpolate(media[:, 0], (28, 36))
    with torch.no_grad():
        mean = pipeline.vae.encode(pipeline.video_processor.normalize(first)[:, :, None]).latent_dist.mode()
    if frames == 1:
        assert relative_difference(latents, mean * pipeline.vae.config.scaling_factor) < EXACT
