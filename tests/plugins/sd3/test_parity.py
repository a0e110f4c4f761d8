"""The plugin draws what diffusers' own StableDiffusion3Pipeline draws."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from flowfactory import Trajectory, flow

PROMPTS = ("a photo of a red circle", "blue cat, 3 times")
Draw = Callable[..., tuple[Trajectory, Tensor, Tensor]]


@pytest.fixture(scope="module")
def both(open_with: Any, diffusers_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Draw:
    """``both(folder, …)``: our trajectory, then the latents and the pictures of the pipeline from the same noise."""
    cache = tmp_path_factory.mktemp("cache")

    @lru_cache
    def models(folder: Path) -> tuple[Any, Any]:
        return open_with(cache, folder), diffusers_pipeline(folder)

    def draw(
        folder: Path, size: tuple[int, int] = (32, 32), steps: int = 4, guidance: float = 1.0, negative: str = ""
    ) -> tuple[Trajectory, Tensor, Tensor]:
        model, pipeline = models(folder)
        ours = model.draw(PROMPTS, size, steps, guidance, negative)
        noise = flow.noise(model.plan(PROMPTS, size, steps, guidance), (4, size[0] // 2, size[1] // 2))

        def theirs(output: str) -> Tensor:
            result: Tensor = pipeline(
                prompt=list(PROMPTS),
                negative_prompt=[negative] * len(PROMPTS),
                height=size[0],
                width=size[1],
                num_inference_steps=steps,
                guidance_scale=guidance,
                latents=noise,
                max_sequence_length=16,
                output_type=output,
            ).images
            return result

        return ours, theirs("latent"), theirs("pt")

    return draw


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest element."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("dynamic", [False, True], ids=["static-shift", "dynamic-shift"])
@pytest.mark.parametrize("dual", [False, True], ids=["sd3", "sd3.5-medium"])
@pytest.mark.parametrize("t5", [False, True], ids=["no-t5", "t5"])
def test_ode_latents_and_pictures_are_the_pipelines(both: Draw, checkpoint: Any, t5: bool, dual: bool, dynamic: bool) -> None:
    folder = checkpoint(t5=t5, dual=dual, dynamic=dynamic)
    plain, latents, pictures = both(folder)
    assert apart(plain.latents, latents) < 1e-5
    assert plain.media.shape == (2, 3, 32, 32)
    assert apart(plain.media, pictures) < 1e-5
    guided, latents, pictures = both(folder, guidance=4.5)
    assert apart(guided.latents, latents) < 1e-5
    assert apart(guided.media, pictures) < 1e-5
    assert apart(guided.latents, plain.latents) > 1e-3, "guidance changes nothing"


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_any_number_of_steps_is_the_pipelines(both: Draw, checkpoint: Any, steps: int) -> None:
    ours, latents, _ = both(checkpoint(dynamic=True), steps=steps)
    assert apart(ours.latents, latents) < 1e-5


@pytest.mark.parametrize("size", [(32, 48), (64, 16)])
def test_a_picture_need_not_be_square(both: Draw, checkpoint: Any, size: tuple[int, int]) -> None:
    ours, latents, pictures = both(checkpoint(dynamic=True), size=size)
    assert ours.media.shape[-2:] == size
    assert apart(ours.latents, latents) < 1e-5
    assert apart(ours.media, pictures) < 1e-5


def test_a_negative_prompt_is_what_the_pipeline_makes_of_it(both: Draw, checkpoint: Any) -> None:
    ours, latents, _ = both(checkpoint(), guidance=4.0, negative="blurry square")
    assert apart(ours.latents, latents) < 1e-5
    empty, _, _ = both(checkpoint(), guidance=4.0)
    assert apart(ours.latents, empty.latents) > 1e-4, "the negative prompt changes nothing"


def test_guidance_below_one_is_off_as_in_the_pipeline(both: Draw, checkpoint: Any) -> None:
    ours, latents, _ = both(checkpoint(), guidance=0.5)
    assert apart(ours.latents, latents) < 1e-5
