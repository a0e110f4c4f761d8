"""The plugin draws what diffusers' own StableDiffusion3Pipeline draws."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from diffusers import StableDiffusion3Img2ImgPipeline
from families import open_bench, relative_difference

from flowfactory import Trajectory
from flowfactory.testing import Drawn, check_encode_media, draw_with_pipeline
from flowfactory_sd3.sd3 import SD3Config

PROMPTS = ("a photo of a red circle", "blue cat, 3 times")
Draw = Callable[..., tuple[Trajectory, Drawn]]


@pytest.fixture(scope="module")
def both(diffusers_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Draw:
    """``both(folder, …)``: our trajectory, then what the pipeline drew from the same noise."""
    cache, pipeline = tmp_path_factory.mktemp("cache"), lru_cache(diffusers_pipeline)

    def draw(
        folder: Path, size: tuple[int, int] = (32, 32), steps: int = 4, guidance: float = 1.0, negative: str = ""
    ) -> tuple[Trajectory, Drawn]:
        config = SD3Config.model_validate({"path": str(folder), "train": "full", "max_sequence_length": 16})
        made = open_bench(config, cache, PROMPTS, size, steps, guidance, negative)
        ours = made.draw(len(PROMPTS))
        return ours, draw_with_pipeline(pipeline(folder), made, ours.latents.shape[1:], max_sequence_length=16)

    return draw


@pytest.mark.parametrize("dynamic", [False, True], ids=["static-shift", "dynamic-shift"])
@pytest.mark.parametrize("dual", [False, True], ids=["sd3", "sd3.5-medium"])
@pytest.mark.parametrize("t5", [False, True], ids=["no-t5", "t5"])
def test_ode_latents_and_pictures_are_the_pipelines(both: Draw, checkpoint: Any, t5: bool, dual: bool, dynamic: bool) -> None:
    folder = checkpoint(t5=t5, dual=dual, dynamic=dynamic)
    plain, theirs = both(folder)
    assert relative_difference(plain.latents, theirs.latents) < 1e-5
    assert plain.media.shape == (2, 3, 32, 32)
    assert relative_difference(plain.media, theirs.media) < 1e-5
    guided, theirs = both(folder, guidance=4.5)
    assert relative_difference(guided.latents, theirs.latents) < 1e-5
    assert relative_difference(guided.media, theirs.media) < 1e-5
    assert relative_difference(guided.latents, plain.latents) > 1e-3, "guidance changes nothing"


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_any_number_of_steps_is_the_pipelines(both: Draw, checkpoint: Any, steps: int) -> None:
    ours, theirs = both(checkpoint(dynamic=True), steps=steps)
    assert relative_difference(ours.latents, theirs.latents) < 1e-5


@pytest.mark.parametrize("size", [(32, 48), (64, 16)])
def test_a_picture_need_not_be_square(both: Draw, checkpoint: Any, size: tuple[int, int]) -> None:
    ours, theirs = both(checkpoint(dynamic=True), size=size)
    assert ours.media.shape[-2:] == size
    assert relative_difference(ours.latents, theirs.latents) < 1e-5
    assert relative_difference(ours.media, theirs.media) < 1e-5


def test_a_negative_prompt_is_what_the_pipeline_makes_of_it(both: Draw, checkpoint: Any) -> None:
    ours, theirs = both(checkpoint(), guidance=4.0, negative="blurry square")
    assert relative_difference(ours.latents, theirs.latents) < 1e-5
    empty, _ = both(checkpoint(), guidance=4.0)
    assert relative_difference(ours.latents, empty.latents) > 1e-4, "the negative prompt changes nothing"


def test_guidance_below_one_is_off_as_in_the_pipeline(both: Draw, checkpoint: Any) -> None:
    ours, theirs = both(checkpoint(), guidance=0.5)
    assert relative_difference(ours.latents, theirs.latents) < 1e-5


def test_latents_of_pictures_are_those_that_the_pipeline_of_pictures_starts_from(
    diffusers_pipeline: Any, checkpoint: Any
) -> None:
    folder = checkpoint()
    pipeline = diffusers_pipeline(folder)
    media, latents = check_encode_media(SD3Config.model_validate({"path": str(folder), "train": "full"}), pipeline=pipeline)
    theirs = SimpleNamespace(vae=pipeline.vae, vae_scale_factor=pipeline.vae_scale_factor, scheduler=NoNoise())
    pixels = pipeline.image_processor.normalize(media)
    with (
        torch.no_grad(),
        patch(
            f"{StableDiffusion3Img2ImgPipeline.__module__}.retrieve_latents",
            lambda encoded, generator: encoded.latent_dist.mode(),
        ),
    ):
        clean = StableDiffusion3Img2ImgPipeline.prepare_latents(theirs, pixels, None, 2, 1, torch.float32, torch.device("cpu"))
    assert relative_difference(latents, clean) < 1e-5
    assert relative_difference(latents[:1], latents[1:]) > 1e-2, "two pictures give the same"


class NoNoise:
    """A scheduler that mixes none into latents."""

    def scale_noise(self, latents: Any, timestep: Any, noise: Any) -> Any:
        return latents
