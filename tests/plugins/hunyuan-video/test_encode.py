"""Prompts and pictures are encoded as the pipelines encode them."""

from __future__ import annotations

import pytest
import torch
from families import relative_difference
from hunyuan_videos import SIZES, Videos
from text_to_image import EXACT, LONG

from flowfactory import Canvas
from flowfactory.data.pictures import read_picture

PROMPTS = ('A photo of a "RED" circle and a “blue” cat', "", "blue cat", LONG * 40, f'"{LONG * 4}"')


def test_encode_is_the_pipelines_encode_prompt(videos: Videos) -> None:
    prompts = videos.prompts(PROMPTS)
    ours = list(videos.bench([]).hooks.encode(prompts, Canvas(28, 36, 5)))
    with torch.no_grad():
        embeds, own, glyphs, drawn = videos.pipeline().encode_prompt(list(PROMPTS), batch_size=len(PROMPTS))
    for entry, row, mask, letters, quoted in zip(ours, embeds, own.bool(), glyphs, drawn.bool(), strict=True):
        torch.testing.assert_close(entry["embeds"], row[mask], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(entry["glyphs"], letters[quoted], rtol=1e-5, atol=1e-5)
    assert len({len(entry["embeds"]) for entry in ours}) == 5, "all prompts are equally long"
    assert len(ours[3]["embeds"]) == 1000, "the longest is not cut"
    assert [len(entry["glyphs"]) > 0 for entry in ours] == [True, False, False, False, True]
    assert len(ours[4]["glyphs"]) == 256, "the longest of what is quoted is not cut"


@pytest.mark.parametrize("picture", SIZES)
def test_a_picture_is_encoded_as_the_pipeline_does(family: Videos, picture: tuple[int, int]) -> None:
    pipeline, canvas = family.pipeline("i2v"), Canvas(*SIZES[picture])
    prompts = family.prompts(kind="i2v", picture=picture)
    ours = list(family.bench([], "i2v").hooks.encode(prompts, canvas))
    for prompt, entry in zip(prompts, ours, strict=True):
        whole = read_picture(prompt.images[0])
        asked = pipeline.video_processor.calculate_default_height_width(whole.height, whole.width, pipeline.target_size)
        assert asked == canvas[:2]
        cropped = pipeline.video_processor.resize(whole, *asked, resize_mode="crop")
        latents = torch.zeros(1, 4, 2, canvas.height // 4, canvas.width // 4)
        with torch.no_grad():
            image = pipeline.encode_image(cropped, 1, torch.device("cpu"), torch.float32)
            given, mask = pipeline.prepare_cond_latents_and_mask(
                latents, cropped, 1, *asked, torch.float32, torch.device("cpu")
            )
        assert relative_difference(entry["image"], image[0]) < EXACT
        assert relative_difference(entry["condition"], given[0, :, :1]) < EXACT
        assert not given[:, :, 1:].any()
        assert bool((mask[:, :, :1] == 1).all())


def test_prompts_in_the_cache_are_not_encoded_again(videos: Videos) -> None:
    cache = videos.folder / f"cache of {videos.kind}"
    counts = [videos.bench(cache=cache, guidance=4.0).entries for _ in range(2)]
    assert counts == [2, 0]
