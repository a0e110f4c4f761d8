"""The plugin draws what diffusers' own ChromaPipeline draws."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest
from families import relative_difference
from text_to_image import LONG, PROMPTS, TextToImage, check_rows
from torch import Tensor

from flowfactory.testing import check_against_pipeline, check_encode_media


@pytest.mark.parametrize("guidance", [1.0, 1.5, 5.0])
@pytest.mark.parametrize("shift", ["static", "dynamic"])
def test_what_is_drawn_is_the_pipelines(family: TextToImage, shift: str, guidance: float) -> None:
    assert family.check(kind=shift, guidance=guidance).media.shape == (2, 3, 32, 48)


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_any_number_of_steps_is_the_pipelines(family: TextToImage, steps: int) -> None:
    family.check(steps=steps, guidance=5.0)


@pytest.mark.parametrize("size", [(32, 32), (64, 16), (12, 20)])
def test_any_size_is_the_pipelines(family: TextToImage, size: tuple[int, int]) -> None:
    assert family.check(kind="dynamic", size=size, guidance=3.0).media.shape[-2:] == size


@pytest.mark.parametrize("prompt", ["", "cat", LONG, LONG * 4], ids=["empty", "short", "long", "cut"])
def test_a_prompt_of_any_length_is_the_pipelines(family: TextToImage, prompt: str) -> None:
    family.check((prompt,), guidance=2.0)


def test_a_negative_prompt_is_what_the_pipeline_makes_of_it(family: TextToImage) -> None:
    ours = family.check(guidance=5.0, negative="blurry square")
    empty = family.check(guidance=5.0)
    assert relative_difference(ours.latents, empty.latents) > 1e-3, "the negative prompt changes nothing"


def masking(prepare: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """The pipeline's mask, as one that hides."""

    @wraps(prepare)
    def hide(*given: Any, **options: Any) -> Tensor | None:
        found = prepare(*given, **options)
        return None if found is None else found.bool()

    return hide


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_padding_is_hidden_as_by_a_mask_that_is_true_or_false(family: TextToImage, guidance: float) -> None:
    pipeline, given = family.pipeline(), {"size": (32, 48), "guidance": guidance, "pack": family.pack, "unpack": family.unpack}
    plain = family.check(guidance=guidance)
    pipeline._prepare_attention_mask = masking(pipeline._prepare_attention_mask)
    ours = check_against_pipeline(
        family.options(mask_padding=True), PROMPTS, tolerance=1e-5, pipeline=pipeline, **given, **family.call
    )
    assert relative_difference(ours.latents, plain.latents) > 1e-3, "the mask changes nothing"


def test_hidden_padding_makes_no_difference(family: TextToImage) -> None:
    short, long = (family.bench(mask_padding=True, max_sequence_length=length).draw(2).latents for length in (10, 24))
    assert relative_difference(short, long) < 1e-5
    short, long = (family.bench(max_sequence_length=length).draw(2).latents for length in (10, 24))
    assert relative_difference(short, long) > 1e-3


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("mask_padding", [False, True])
def test_prompts_of_any_lengths_share_a_forward_exactly(family: TextToImage, mask_padding: bool, guidance: float) -> None:
    check_rows(family, guidance, mask_padding=mask_padding)


def test_latents_of_pictures_are_those_that_the_pipeline_decodes(family: TextToImage) -> None:
    _, latents = check_encode_media(family.options(), family.size, pipeline=family.pipeline())
    assert relative_difference(latents[:1], latents[1:]) > 1e-2, "two pictures give the same"
