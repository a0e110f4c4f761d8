"""The plugin draws what diffusers' own ZImagePipeline draws."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from diffusers import ZImageImg2ImgPipeline
from families import draw_one_by_one, relative_difference

from flowfactory import Trajectory
from flowfactory.testing import Bench, Drawn, check_encode_media

LONG = "a photo of a red circle and a blue square, " * 2  # more than the 32 tokens that are padded to
PROMPTS = ("a photo of a red circle", LONG)
Both = Callable[..., tuple[Trajectory, Drawn]]


@pytest.fixture(scope="module")
def both(bench_of: Callable[..., Bench], pipeline_of: Any, drawn_by: Any) -> Both:
    """``both(folder, …)``: our trajectory, and what the pipeline drew from the same noise."""
    pipeline_for = lru_cache(pipeline_of)

    def draw(folder: Path, prompts: Any = PROMPTS, **given: Any) -> tuple[Trajectory, Drawn]:
        twists = {name: given[name] for name in ("cfg_normalization", "cfg_truncation") if name in given}
        made = bench_of(folder, prompts, **given)
        return made.draw(len(prompts)), drawn_by(pipeline_for(folder), made, **twists)

    return draw


@pytest.mark.parametrize("guidance", [0.0, 1.5, 4.0])
@pytest.mark.parametrize("shift", ["turbo", "base", "dynamic"])
def test_ode_latents_and_pictures_are_the_pipelines(both: Both, checkpoint: Any, shift: str, guidance: float) -> None:
    ours, theirs = both(checkpoint(shift), guidance=guidance)
    assert relative_difference(ours.latents, theirs.latents) < 1e-5
    assert ours.media.shape == (2, 3, 32, 32)
    assert relative_difference(ours.media, theirs.media) < 1e-5


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_any_number_of_steps_is_the_pipelines(both: Both, checkpoint: Any, steps: int) -> None:
    ours, theirs = both(checkpoint("dynamic"), steps=steps)
    assert relative_difference(ours.latents, theirs.latents) < 1e-5


@pytest.mark.parametrize("size", [(32, 48), (64, 16), (20, 12)])  # 96, 64 and 15 tokens: with and without padding to 32
def test_a_picture_need_not_be_square(both: Both, checkpoint: Any, size: tuple[int, int]) -> None:
    ours, theirs = both(checkpoint("dynamic"), size=size, guidance=3.0)
    assert ours.media.shape[-2:] == size
    assert relative_difference(ours.latents, theirs.latents) < 1e-5
    assert relative_difference(ours.media, theirs.media) < 1e-5


@pytest.mark.parametrize("prompt", ["", "cat", LONG, LONG * 3], ids=["empty", "short", "long", "cut"])
def test_a_prompt_of_any_length_is_the_pipelines(both: Both, checkpoint: Any, prompt: str) -> None:
    ours, theirs = both(checkpoint(), (prompt,), guidance=2.0)
    assert relative_difference(ours.latents, theirs.latents) < 1e-5


@pytest.mark.parametrize(
    "twists",
    [
        {"cfg_normalization": 1.0},
        {"cfg_normalization": True},
        {"cfg_normalization": 0.3},
        {"cfg_truncation": 0.2},
        {"cfg_truncation": 0.0},
        {"cfg_normalization": 0.8, "cfg_truncation": 0.3},
    ],
    ids=str,
)
def test_the_twists_of_guidance_are_the_pipelines(both: Both, checkpoint: Any, twists: dict[str, Any]) -> None:
    ours, theirs = both(checkpoint("base"), guidance=4.0, steps=6, **twists)
    assert relative_difference(ours.latents, theirs.latents) < 1e-5
    plain, _ = both(checkpoint("base"), guidance=4.0, steps=6)
    assert relative_difference(ours.latents, plain.latents) > 1e-3, "the option changes nothing"


def test_a_bound_that_nothing_reaches_changes_nothing(both: Both, checkpoint: Any) -> None:
    ours, theirs = both(checkpoint(), guidance=4.0, cfg_normalization=100.0)
    assert relative_difference(ours.latents, theirs.latents) < 1e-5
    plain, _ = both(checkpoint(), guidance=4.0)
    assert relative_difference(ours.latents, plain.latents) < 1e-6


def test_guidance_ends_at_the_step_at_which_the_pipeline_ends_it(both: Both, checkpoint: Any) -> None:
    # with these steps 1 - sigma is 0.6 at the fourth of them, rounded up
    ours, theirs = both(checkpoint("even"), guidance=4.0, steps=5, cfg_truncation=0.6)
    assert relative_difference(ours.latents, theirs.latents) < 1e-5


def test_a_negative_prompt_is_what_the_pipeline_makes_of_it(both: Both, checkpoint: Any) -> None:
    ours, theirs = both(checkpoint(), guidance=4.0, negative="blurry square")
    assert relative_difference(ours.latents, theirs.latents) < 1e-5
    empty, _ = both(checkpoint(), guidance=4.0)
    assert relative_difference(ours.latents, empty.latents) > 1e-3, "the negative prompt changes nothing"


def test_what_is_drawn_depends_on_the_prompt_the_shift_and_guidance(bench_of: Any, checkpoint: Any) -> None:
    plain = bench_of(checkpoint(), ("red circle",)).draw(1).latents
    assert relative_difference(bench_of(checkpoint(), ("blue cat",)).draw(1).latents, plain) > 1e-2
    assert relative_difference(bench_of(checkpoint("base"), ("red circle",)).draw(1).latents, plain) > 1e-2
    assert relative_difference(bench_of(checkpoint("dynamic"), ("red circle",)).draw(1).latents, plain) > 1e-2
    assert relative_difference(bench_of(checkpoint(), ("red circle",), guidance=4.0).draw(1).latents, plain) > 1e-2


def test_guidance_of_one_is_off_unlike_in_the_pipeline(
    both: Both, bench_of: Any, pipeline_of: Any, drawn_by: Any, checkpoint: Any
) -> None:
    made = bench_of(checkpoint(), PROMPTS, guidance=1.0)
    ours, pipeline = made.draw(2).latents, pipeline_of(checkpoint())
    assert relative_difference(ours, drawn_by(pipeline, made, guidance_scale=0.0).latents) < 1e-5
    assert relative_difference(ours, drawn_by(pipeline, made).latents) > 1e-2


@pytest.mark.parametrize("size", [(32, 32), (20, 12)])
@pytest.mark.parametrize("guidance", [0.0, 4.0])
def test_prompts_of_any_lengths_share_a_forward_exactly(
    bench_of: Any, checkpoint: Any, guidance: float, size: tuple[int, int]
) -> None:
    prompts = ("cat", LONG, "", "a photo of a red circle", LONG * 3)
    made = bench_of(checkpoint("base"), prompts, size, guidance=guidance, negative="blurry " * 40)
    calls = []
    made.policy.modules["transformer"].register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    together = made.draw(len(prompts)).latents
    assert calls == [5 if guidance == 0 else 10] * 4
    assert relative_difference(together, draw_one_by_one(made).latents) < 1e-5


def test_latents_of_pictures_are_those_that_the_pipeline_of_pictures_starts_from(
    options: Any, pipeline_of: Any, checkpoint: Any
) -> None:
    pipeline = pipeline_of(checkpoint())
    media, latents = check_encode_media(options(checkpoint()), pipeline=pipeline)
    theirs = SimpleNamespace(vae=pipeline.vae, vae_scale_factor=pipeline.vae_scale_factor, scheduler=NoNoise())
    pixels = pipeline.image_processor.normalize(media)
    with (
        torch.no_grad(),
        patch(f"{ZImageImg2ImgPipeline.__module__}.retrieve_latents", lambda encoded, generator: encoded.latent_dist.mode()),
    ):
        clean = ZImageImg2ImgPipeline.prepare_latents(
            theirs, pixels, None, 2, 4, 32, 48, torch.float32, torch.device("cpu"), None
        )
    assert relative_difference(latents, clean) < 1e-5
    assert relative_difference(latents[:1], latents[1:]) > 1e-2, "two pictures give the same"


class NoNoise:
    """A scheduler that mixes none into latents."""

    def scale_noise(self, latents: Any, timestep: Any, noise: Any) -> Any:
        return latents
