"""The plugin draws what diffusers' own pipelines draw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageEditPlusPipeline
from families import draw_one_by_one, open_bench, relative_difference

from flowfactory import Prompt, Trajectory
from flowfactory.testing import check_encode_media

Pictures = dict[str, Path]
CLOSE = 1e-5


def assert_same(ours: Trajectory, theirs: Any) -> None:
    assert relative_difference(ours.latents, theirs.latents) < CLOSE
    assert relative_difference(ours.media, theirs.media) < CLOSE


def of(pictures: Pictures, *names: str, text: str = "a red circle", negative: str | None = None) -> Prompt:
    return Prompt(text, images=tuple(pictures[name] for name in names), negative=negative)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("kind", ["image", "image-lightning"])
def test_latents_and_pictures_are_the_pipelines(both: Any, kind: str, guidance: float) -> None:
    ours, theirs = both(kind, guidance=guidance)
    assert ours.media.shape == (3, 3, 32, 32)
    assert_same(ours, theirs)


@pytest.mark.parametrize("kind", ["image", "edit-2511"])
def test_guidance_changes_the_picture_and_below_one_is_off(both: Any, pictures: Pictures, kind: str) -> None:
    prompts = ["a photo of a red circle"] if kind == "image" else [of(pictures, "square")]
    off, theirs = both(kind, prompts, guidance=0.5)
    assert_same(off, theirs)
    plain, _ = both(kind, prompts)
    assert torch.equal(off.latents, plain.latents)
    guided, _ = both(kind, prompts, guidance=4.0)
    assert relative_difference(guided.latents, plain.latents) > 1e-3


@pytest.mark.parametrize(("kind", "steps"), [("image", 2), ("image", 9), ("image-lightning", 1), ("image-lightning", 4)])
def test_any_number_of_steps_is_the_pipelines(both: Any, kind: str, steps: int) -> None:
    assert_same(*both(kind, ["blue cat"], steps=steps, guidance=2.5))


@pytest.mark.parametrize("size", [(32, 48), (64, 16), (96, 80)])
def test_a_picture_need_not_be_square(both: Any, size: tuple[int, int]) -> None:
    ours, theirs = both("image", size=size, guidance=3.0)
    assert ours.media.shape[-2:] == size
    assert_same(ours, theirs)


def test_the_schedule_depends_on_the_size_and_ends_where_the_scheduler_says(both: Any) -> None:
    small, _ = both("image", ["blue cat"])
    large, _ = both("image", ["blue cat"], size=(96, 96))
    bare, _ = both("image-lightning", ["blue cat"])
    assert float(large.sigmas[1] - small.sigmas[1]) > 0.01
    assert float(small.sigmas[-2]) == pytest.approx(0.02, abs=1e-6)
    assert float(bare.sigmas[-2]) > 0.1


def test_a_negative_prompt_is_what_the_pipeline_makes_of_it(both: Any) -> None:
    ours, theirs = both("image", guidance=4.0, negative="blurry square")
    assert_same(ours, theirs)
    empty, _ = both("image", guidance=4.0)
    assert relative_difference(ours.latents, empty.latents) > 1e-3


def test_the_prompt_changes_the_picture(both: Any) -> None:
    red, _ = both("image", ["a red circle"])
    blue, _ = both("image", ["a blue circle"])
    assert relative_difference(red.latents, blue.latents) > 1e-3


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("kind", ["edit-2509", "edit-2511"])
def test_edits_of_any_number_and_size_of_pictures_are_the_pipelines(
    both: Any, pictures: Pictures, kind: str, guidance: float
) -> None:
    given = [("square",), ("wide",), ("tall", "wide"), ("square", "tall", "square")]
    ours, theirs = both(kind, [of(pictures, *names) for names in given], guidance=guidance, negative="blurry")
    assert_same(ours, theirs)


@pytest.mark.parametrize(("size", "steps"), [((32, 64), 2), ((80, 48), 6)])
def test_an_edit_may_have_another_size_than_what_is_edited(
    both: Any, pictures: Pictures, size: tuple[int, int], steps: int
) -> None:
    ours, theirs = both("edit-2511", [of(pictures, "wide")], size=size, steps=steps, guidance=2.0)
    assert ours.media.shape[-2:] == size
    assert_same(ours, theirs)


@pytest.mark.parametrize("kind", ["edit-2509", "edit-2511"])
def test_text_negative_prompt_content_and_order_of_pictures_change_an_edit(
    config: Any, cache: Path, pictures: Pictures, kind: str
) -> None:
    prompts = [
        of(pictures, "square", "other"),
        of(pictures, "square", "other", text="a blue cat"),
        of(pictures, "square", "other", negative="blurry"),
        of(pictures, "other", "square"),
        of(pictures, "square", "square"),
        of(pictures, "square"),
    ]
    made = open_bench(config(kind), cache, prompts, (32, 32), steps=3, guidance=3.0)
    same_noise = replace(made.plan, keys=made.plan.keys[:1] * len(prompts))
    first, *others = made.sampler.draw(made.conditions, same_noise, len(prompts)).latents
    for changed in others:
        assert relative_difference(changed, first) > 1e-3


def test_given_pictures_are_at_another_time_in_2511(both: Any, pictures: Pictures) -> None:
    old, _ = both("edit-2509", [of(pictures, "square")])
    new, _ = both("edit-2511", [of(pictures, "square")])
    assert relative_difference(old.latents, new.latents) > 1e-4  # with the same weights


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_prompts_of_different_lengths_are_drawn_as_one_by_one(config: Any, cache: Path, guidance: float) -> None:
    prompts = [
        Prompt("a photo of a red circle"),
        Prompt("cat"),
        Prompt("", negative="blurry photo of a square"),
        Prompt("a blue cat, " * 20),
    ]
    made = open_bench(config("image"), cache, prompts, (32, 32), guidance=guidance)
    assert len({len(entry["embeds"]) for entry in made.conditions.entries}) == 4
    assert relative_difference(made.draw(4).latents, draw_one_by_one(made).latents) < CLOSE


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("kind", ["edit-2509", "edit-2511"])
def test_prompts_with_different_pictures_are_drawn_as_one_by_one(
    config: Any, cache: Path, pictures: Pictures, kind: str, guidance: float
) -> None:
    prompts = [
        of(pictures, "square"),
        of(pictures, "wide", text="a photo of a blue cat"),
        of(pictures, "other", text="", negative="blurry"),
        of(pictures, "tall", "square"),
        of(pictures, "wide", text="a green square"),
    ]
    made = open_bench(config(kind), cache, prompts, (32, 48), guidance=guidance)
    assert relative_difference(made.draw(5).latents, draw_one_by_one(made).latents) < CLOSE


@pytest.mark.parametrize("kind", ["image", "edit-2511"])
def test_prompts_share_a_forward_whatever_their_length(config: Any, cache: Path, pictures: Pictures, kind: str) -> None:
    texts = ("a photo of a red circle", "cat", "a blue square")
    prompts = [of(pictures, "square", text=text) if kind != "image" else Prompt(text) for text in texts]
    made = open_bench(config(kind), cache, prompts, (32, 32), steps=4, guidance=4.0)
    rows: list[int] = []
    made.policy.modules["transformer"].register_forward_hook(
        lambda module, args, kwargs, output: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    made.draw(3)
    assert rows == [6] * 4


@pytest.mark.parametrize("kind", ["image", "edit-2511"])
def test_latents_of_pictures_are_those_of_the_pipeline_that_edits_them(
    config: Any, checkpoint: Any, diffusers_pipeline: Any, kind: str
) -> None:
    pipeline = diffusers_pipeline(checkpoint(kind))
    media, latents = check_encode_media(config(kind), pipeline=pipeline)
    pixels = pipeline.image_processor.normalize(media)[:, :, None]
    edits = diffusers_pipeline(checkpoint("edit-2511"))
    edits.vae = pipeline.vae
    with torch.no_grad():
        theirs = QwenImageEditPlusPipeline._encode_vae_image(edits, pixels, None)[:, :, 0]
    assert relative_difference(latents, theirs) < CLOSE
    assert relative_difference(latents[:1], latents[1:]) > 1e-2, "two pictures give the same"
