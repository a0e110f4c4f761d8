"""The plugin draws what diffusers' own Krea2Pipeline draws."""

from __future__ import annotations

import pytest
from families import relative_difference
from text_to_image import EXACT, PROMPTS, TextToImage, check_rows

from flowfactory.testing import check_encode_media

LONG = "a photo of a red circle and a blue square, " * 2
kinds = pytest.mark.parametrize("kind", ["raw", "turbo"])


@kinds
@pytest.mark.parametrize("guidance", [0.0, 1.5, 4.5])
def test_ode_latents_and_pictures_are_the_pipelines(family: TextToImage, kind: str, guidance: float) -> None:
    assert family.check(kind=kind, guidance=guidance).media.shape == (2, 3, *family.size)


@kinds
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_any_number_of_steps_is_the_pipelines(family: TextToImage, steps: int, kind: str) -> None:
    family.check(kind=kind, guidance=0.0, steps=steps)


@pytest.mark.parametrize("size", [(32, 48), (64, 16), (16, 16)])
def test_a_picture_need_not_be_square(family: TextToImage, size: tuple[int, int]) -> None:
    assert family.check(size=size, guidance=3.0).media.shape[-2:] == size


@pytest.mark.parametrize("prompt", ["", "cat", LONG, LONG * 3], ids=["empty", "short", "long", "cut"])
def test_a_prompt_of_any_length_is_the_pipelines(family: TextToImage, prompt: str) -> None:
    family.check((prompt,), guidance=2.0)


def test_a_negative_prompt_is_what_the_pipeline_makes_of_it(family: TextToImage) -> None:
    ours, empty = family.check(guidance=4.0, negative="blurry square"), family.check(guidance=4.0)
    assert relative_difference(ours.latents, empty.latents) > 1e-3, "the negative prompt changes nothing"


def test_what_is_drawn_depends_on_the_prompt_the_shift_and_guidance(family: TextToImage) -> None:
    plain = family.bench(("red circle",)).draw(1).latents
    for other in (
        family.bench(("blue cat",)),
        family.bench(("red circle",), "turbo"),
        family.bench(("red circle",), guidance=4.0),
    ):
        assert relative_difference(other.draw(1).latents, plain) > 1e-3


def test_guidance_of_one_is_off_unlike_in_the_pipeline(family: TextToImage) -> None:
    off = family.check(guidance=0.0)
    assert relative_difference(family.bench(guidance=1.0).draw(2).latents, off.latents) < EXACT
    with pytest.raises(AssertionError, match="at step 1 of 4"):
        family.check(guidance=1.0)


@pytest.mark.parametrize("guidance", [0.0, 4.0])
def test_prompts_of_any_lengths_share_a_forward_exactly(family: TextToImage, guidance: float) -> None:
    check_rows(family, guidance)


def test_prompts_of_one_length_need_no_mask(family: TextToImage) -> None:
    masks = []
    for prompts in (("a cat", "a circle"), PROMPTS):
        made = family.bench(prompts)
        made.policy.modules["transformer"].register_forward_hook(
            lambda module, args, given, output: masks.append(given["encoder_attention_mask"]), with_kwargs=True
        )
        made.draw(2)
    assert masks[0] is None
    assert masks[-1] is not None


def test_encode_media_is_the_other_way_round_of_decode(family: TextToImage) -> None:
    _, latents = check_encode_media(family.options(), family.size, pipeline=family.pipeline())
    assert relative_difference(latents[:1], latents[1:]) > 1e-2, "two pictures give the same"
