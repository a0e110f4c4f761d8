"""The plugin draws what diffusers' own Lumina2Pipeline draws."""

from __future__ import annotations

from typing import Any

import pytest
from families import relative_difference
from text_to_image import LONG, TextToImage, check_rows

from flowfactory.testing import check_encode_media


@pytest.mark.parametrize("guidance", [1.0, 1.5, 4.0])
@pytest.mark.parametrize("shift", ["released", "even", "dynamic"])
def test_what_is_drawn_is_the_pipelines(family: TextToImage, shift: str, guidance: float) -> None:
    assert family.check(kind=shift, guidance=guidance).media.shape == (2, 3, 32, 48)


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_any_number_of_steps_is_the_pipelines(family: TextToImage, steps: int) -> None:
    family.check(steps=steps, guidance=4.0)


@pytest.mark.parametrize("size", [(32, 32), (64, 16), (16, 128)])
def test_any_size_is_the_pipelines(family: TextToImage, size: tuple[int, int]) -> None:
    assert family.check(size=size, guidance=3.0).media.shape[-2:] == size


@pytest.mark.parametrize("prompt", ["", "cat", LONG, LONG * 4], ids=["empty", "short", "long", "cut"])
def test_a_prompt_of_any_length_is_the_pipelines(family: TextToImage, prompt: str) -> None:
    family.check((prompt,), guidance=2.0)


def test_a_negative_prompt_is_what_the_pipeline_makes_of_it(family: TextToImage) -> None:
    ours = family.check(guidance=4.0, negative="blurry square")
    empty = family.check(guidance=4.0)
    assert relative_difference(ours.latents, empty.latents) > 1e-3, "the negative prompt changes nothing"


def test_the_system_prompt_is_the_pipelines(family: TextToImage) -> None:
    own = {"system_prompt": "red blue"}
    ours = family.check(guidance=4.0, negative="blurry", options=own, call=own)
    usual = family.check(guidance=4.0, negative="blurry")
    assert relative_difference(ours.latents, usual.latents) > 1e-3, "the system prompt changes nothing"
    family.check(options={"system_prompt": ""}, call={"system_prompt": ""})


@pytest.mark.parametrize("shift", ["released", "even", "dynamic"])
@pytest.mark.parametrize(
    "twists",
    [
        {"cfg_normalization": False},
        {"cfg_trunc_ratio": 0.25},
        {"cfg_trunc_ratio": 0.0},
        {"cfg_normalization": False, "cfg_trunc_ratio": 0.5},
    ],
    ids=str,
)
def test_the_twists_of_guidance_are_the_pipelines(family: TextToImage, shift: str, twists: dict[str, Any]) -> None:
    ours = family.check(kind=shift, guidance=4.0, steps=4, options=twists, call=twists)
    plain = family.check(kind=shift, guidance=4.0, steps=4)
    assert relative_difference(ours.latents, plain.latents) > 1e-3, "the option changes nothing"


@pytest.mark.parametrize("shift", ["released", "even", "dynamic"])
def test_guidance_ends_at_the_step_at_which_the_pipeline_ends_it(family: TextToImage, shift: str) -> None:
    for tenth in (1, 4, 9):
        twists = {"cfg_trunc_ratio": tenth / 10}
        family.check(kind=shift, guidance=4.0, steps=10, options=twists, call=twists)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_prompts_of_any_lengths_share_a_forward_exactly(family: TextToImage, guidance: float) -> None:
    check_rows(family, guidance)


def test_latents_of_pictures_are_those_that_the_pipeline_decodes(family: TextToImage) -> None:
    _, latents = check_encode_media(family.options(), family.size, pipeline=family.pipeline())
    assert relative_difference(latents[:1], latents[1:]) > 1e-2, "two pictures give the same"
