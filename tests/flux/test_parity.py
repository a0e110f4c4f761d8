"""The plugin draws what diffusers' own pipelines draw."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tiny_flux
import torch
from diffusers import Flux2Pipeline, FluxKontextPipeline
from families import draw_one_by_one, open_bench, relative_difference
from flux_family import EVERY, LONG, TOKENS, Flux, drawn_by, is_flux2, make_config, make_prompts

from flowfactory import Trajectory
from flowfactory.testing import Bench, check_encode_media

PROMPTS = ("a photo of a red circle", LONG)
GUIDED = ("dev", "kontext", "flux2", "klein-base")
SEVERAL = ("flux2", "klein", "klein-base")


def same(flux: Flux, variant: str, made: Bench, **options: Any) -> Trajectory:
    """Our trajectory, after it has been found to be the pipeline's."""
    ours = made.draw(len(made.plan.keys))
    theirs = drawn_by(flux.pipeline(variant), made, max_sequence_length=TOKENS[variant], **options)
    assert relative_difference(ours.latents, theirs.latents) < 1e-5
    assert ours.media.shape[-2:] == made.plan.canvas[:2]
    assert relative_difference(ours.media, theirs.media) < 1e-5
    return ours


@pytest.mark.parametrize("variant", EVERY)
def test_ode_latents_and_pictures_are_the_pipelines(flux: Flux, variant: str) -> None:
    plain = same(flux, variant, flux.model(variant, flux.prompts(variant, *PROMPTS)))
    guided = same(flux, variant, flux.model(variant, flux.prompts(variant, *PROMPTS), guidance=4.0))
    if variant in GUIDED:
        assert relative_difference(guided.latents, plain.latents) > 1e-3, "guidance changes nothing"
    else:
        assert torch.equal(guided.latents, plain.latents)
    other = flux.model(variant, flux.prompts(variant, "green square", LONG)).draw(2)
    assert relative_difference(other.latents[0], plain.latents[0]) > 1e-3, "the prompt changes nothing"
    assert relative_difference(other.latents[1], plain.latents[1]) < 1e-5


@pytest.mark.skipif(find_spec("torchvision") is None, reason="the tokenizer of the released FLUX.2 needs torchvision")
def test_the_tokenizer_of_the_released_checkpoint_changes_nothing(tmp_path: Path) -> None:
    folder = tiny_flux.flux2(tmp_path / "checkpoint", pixtral=True)
    made = open_bench(make_config("flux2", folder), tmp_path / "cache", make_prompts(*PROMPTS), (32, 32), steps=2)
    theirs = drawn_by(Flux2Pipeline.from_pretrained(folder), made, max_sequence_length=TOKENS["flux2"])
    assert relative_difference(made.draw(2).latents, theirs.latents) < 1e-5


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("variant", ["dev", "schnell", "flux2", "klein-base"])
def test_any_number_of_steps_is_the_pipelines(flux: Flux, variant: str, steps: int) -> None:
    same(flux, variant, flux.model(variant, make_prompts("cat"), steps=steps, guidance=2.0))


@pytest.mark.parametrize("size", [(32, 80), (128, 16)])
@pytest.mark.parametrize("variant", EVERY)
def test_a_picture_need_not_be_square(flux: Flux, variant: str, size: tuple[int, int]) -> None:
    same(flux, variant, flux.model(variant, flux.prompts(variant, "cat"), size, steps=2))


@pytest.mark.parametrize("guidance", [0.0, 0.5])
@pytest.mark.parametrize("variant", ["dev", "flux2", "klein-base"])
def test_guidance_below_one_is_what_the_pipeline_makes_of_it(flux: Flux, variant: str, guidance: float) -> None:
    below = same(flux, variant, flux.model(variant, make_prompts("cat"), guidance=guidance))
    plain = flux.model(variant, make_prompts("cat")).draw(1)
    assert torch.equal(below.latents, plain.latents) == (variant == "klein-base")  # the others embed any number


def test_a_negative_prompt_is_what_the_pipeline_makes_of_its_embeds(flux: Flux) -> None:
    made = flux.model("klein-base", make_prompts("cat", negative="blurry square"), guidance=3.0)
    embeds, _ = flux.pipeline("klein-base").encode_prompt("blurry square", max_sequence_length=TOKENS["klein-base"])
    ours = same(flux, "klein-base", made, negative_prompt_embeds=embeds)
    empty = flux.model("klein-base", make_prompts("cat"), guidance=3.0).draw(1)
    assert relative_difference(ours.latents, empty.latents) > 1e-3, "the negative prompt changes nothing"


@pytest.mark.parametrize(("variant", "guidance"), [("flux2", 3.0), ("klein", 1.0), ("klein-base", 1.0), ("klein-base", 3.0)])
def test_pictures_are_what_the_pipeline_makes_of_them(flux: Flux, variant: str, guidance: float) -> None:
    def latents_with(*places: int) -> torch.Tensor:
        prompts = flux.bringing(*places, texts=("a red cat", "blue"))
        return same(flux, variant, flux.model(variant, prompts, steps=2, guidance=guidance)).latents

    one, other, two, swapped, three = (
        latents_with(0),
        latents_with(2),
        latents_with(0, 1),
        latents_with(1, 0),
        latents_with(0, 1, 2),
    )
    assert relative_difference(one, other) > 1e-3, "what is in a picture changes nothing"
    assert relative_difference(two, one) > 1e-3, "a second picture changes nothing"
    assert relative_difference(two, swapped) > 1e-3, "the order of pictures changes nothing"
    assert relative_difference(three, two) > 1e-3, "a third picture changes nothing"


def test_kontext_edits_its_picture_as_the_pipeline_does(flux: Flux) -> None:
    found = [
        same(flux, "kontext", flux.model("kontext", make_prompts("a red cat", "blue", images=[path]), guidance=2.5)).latents
        for path in flux.pictures
    ]
    assert relative_difference(found[0], found[2]) > 1e-3, "what is in the picture changes nothing"
    assert relative_difference(found[0], found[1]) > 1e-3, "the size of the picture changes nothing"


@pytest.mark.parametrize(("size", "chosen"), [((40, 90), (64, 160)), ((90, 40), (96, 48)), ((70, 66), (64, 64))])
def test_kontext_gives_a_picture_the_nearest_of_its_sizes(
    flux: Flux, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], chosen: tuple[int, int]
) -> None:
    # a hundredth of the real ones; 90 x 40 pixels are 80 x 32 of whole tokens, which is nearer to 160 x 64 than to 144 x 64
    preferred = [(48, 96), (64, 64), (144, 64), (160, 64)]
    monkeypatch.setattr("diffusers.pipelines.flux.pipeline_flux_kontext.PREFERRED_KONTEXT_RESOLUTIONS", preferred)
    prompts = make_prompts("cat", images=[tiny_flux.picture(tmp_path / f"{size}.png", size)])
    made = flux.model("kontext", prompts, steps=1, auto_resize=True)
    same(flux, "kontext", made, _auto_resize=True)
    assert made.conditions.entries[0]["image_0"].shape[1:] == (chosen[0] // 8, chosen[1] // 8)


def test_flux2_shrinks_a_picture_to_a_megapixel(flux: Flux, tmp_path: Path) -> None:
    prompts = make_prompts("cat", images=[tiny_flux.picture(tmp_path / "picture.png", (1300, 1000))])
    made = flux.model("klein", prompts, (16, 16), steps=1)
    same(flux, "klein", made)
    assert made.conditions.entries[0]["image_0"].shape[1:] == (72, 56)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("variant", EVERY)
def test_a_batch_of_different_prompts_is_its_rows_drawn_alone(flux: Flux, variant: str, guidance: float) -> None:
    made = flux.model(variant, flux.mixed(variant), steps=2, guidance=guidance)
    whole = made.draw(5)
    alone = draw_one_by_one(made)
    assert relative_difference(whole.latents, alone.latents) < 1e-5
    assert relative_difference(whole.media, alone.media) < 1e-5


@pytest.mark.parametrize("variant", EVERY)
def test_latents_of_pictures_are_those_of_the_pipeline_that_edits_them(flux: Flux, variant: str) -> None:
    pipeline = flux.pipeline(variant)
    media, latents = check_encode_media(make_config(variant, flux.folder(variant)), pipeline=pipeline)
    edits = type(pipeline) if is_flux2(pipeline) else FluxKontextPipeline
    with torch.no_grad():
        theirs = edits._encode_vae_image(pipeline, pipeline.image_processor.normalize(media), None)
    assert relative_difference(latents, theirs) < 1e-5
    assert relative_difference(latents[:1], latents[1:]) > 1e-2, "two pictures give the same"


@pytest.mark.parametrize("variant", ["dev", "flux2"])
def test_position_ids_are_made_once_for_all_forwards(flux: Flux, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = flux.model(variant, flux.prompts(variant, *PROMPTS), steps=3)
    pipeline = type(flux.pipeline(variant))
    name = "_prepare_latent_ids" if variant == "flux2" else "_prepare_latent_image_ids"
    original, calls = getattr(pipeline, name), list[int]()

    def counted(*given: Any, **options: Any) -> Any:
        calls.append(1)
        return original(*given, **options)

    monkeypatch.setattr(pipeline, name, staticmethod(counted))
    made.draw(2)
    made.draw(1)
    assert len(calls) <= 1  # none where another test has drawn with this model before
