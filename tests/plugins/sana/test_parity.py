"""The plugin draws what diffusers' own SanaPipeline draws by Euler steps along its scheduler's sigmas."""

from __future__ import annotations

import pytest
from families import relative_difference
from text_to_image import LONG, TextToImage, check_rows

from flowfactory.testing import check_encode_media

KINDS = ["1", "1.5", "2k", "learned"]


@pytest.mark.parametrize("guidance", [1.0, 1.5, 4.5])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_is_the_pipelines(family: TextToImage, kind: str, guidance: float) -> None:
    assert family.check(kind=kind, guidance=guidance).media.shape == (2, 3, 32, 64)


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_any_number_of_steps_is_the_pipelines(family: TextToImage, steps: int) -> None:
    family.check(steps=steps, guidance=4.5)


@pytest.mark.parametrize("size", [(32, 32), (64, 32), (32, 96)])
@pytest.mark.parametrize("kind", ["1", "2k"])
def test_any_size_is_the_pipelines(family: TextToImage, kind: str, size: tuple[int, int]) -> None:
    assert family.check(kind=kind, size=size, guidance=3.0).media.shape[-2:] == size


@pytest.mark.parametrize("prompt", ["", "Cat", LONG, LONG * 4], ids=["empty", "short", "long", "cut"])
def test_a_prompt_of_any_length_is_the_pipelines(family: TextToImage, prompt: str) -> None:
    family.check((prompt,), guidance=2.0)


def test_a_negative_prompt_is_what_the_pipeline_makes_of_it(family: TextToImage) -> None:
    ours = family.check(guidance=4.5, negative="Blurry square")
    empty = family.check(guidance=4.5)
    assert relative_difference(ours.latents, empty.latents) > 1e-3, "the negative prompt changes nothing"


def test_the_instruction_can_be_left_out(family: TextToImage) -> None:
    without = {"complex_human_instruction": False}
    ours = family.check(guidance=4.5, negative="blurry", options=without, call=without)
    usual = family.check(guidance=4.5, negative="blurry")
    assert relative_difference(ours.latents, usual.latents) > 1e-3, "the instruction changes nothing"


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_prompts_of_any_lengths_share_a_forward_exactly(family: TextToImage, guidance: float) -> None:
    check_rows(family, guidance)


def test_latents_of_pictures_are_those_that_the_pipeline_decodes(family: TextToImage) -> None:
    _, latents = check_encode_media(family.options(), family.size, pipeline=family.pipeline())
    assert relative_difference(latents[:1], latents[1:]) > 1e-2, "two pictures give the same"
