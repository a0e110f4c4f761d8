"""``check_against_pipeline`` tells a family that is the pipeline's from one that is not, and says what is off."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchHeunDiscreteScheduler, UniPCMultistepScheduler
from families import relative_difference
from torch import Tensor

from flowfactory import Canvas, Conditions, Prompt, UserError, models
from flowfactory.models import Entry, Family, Parts
from flowfactory.testing import bench, check_against_pipeline, check_encode_media, check_model
from flowfactory_sd3 import sd3

TEXT = {"max_sequence_length": 16}


def config(folder: Any, **changed: Any) -> sd3.SD3Config:
    class Changed(sd3.SD3Config):
        family: ClassVar[Family] = replace(sd3.SD3, **changed)

    return Changed.model_validate({"path": str(folder), "train": "full", **TEXT})


def flipped(parts: Parts, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
    return -sd3.velocity(parts, latents, sigma, conditions, guidance)


def reversed_time(parts: Parts, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
    return sd3.velocity(parts, latents, 1 - sigma, conditions, guidance)


def swapped_text(parts: Parts, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
    return sd3.velocity(parts, latents, sigma, Conditions(conditions.entries[::-1]), guidance)


def without_text(parts: Parts, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in conditions.entries[0].items()}
    return sd3.velocity(parts, latents, sigma, Conditions((zeros,) * len(conditions.entries)), guidance)


def even_sigmas(parts: Parts, steps: int, canvas: Canvas) -> Tensor:
    return torch.linspace(1, 0, steps + 1)


def unshifted(parts: Parts, latents: Tensor) -> Tensor:
    return models.decode_scaled(parts, latents) + 0.001


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_a_family_that_is_the_pipelines_passes(checkpoint: Any, guidance: float) -> None:
    ours = check_against_pipeline(config(checkpoint()), size=(32, 48), guidance=guidance, negative="blurry", **TEXT)
    assert ours.media.shape == (2, 3, 32, 48)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"velocity": flipped}, r"latents part .*Stable.*at step 1 of 4, sigma 1, .*: the velocity has the opposite sign$"),
        ({"velocity": reversed_time}, r"at step 1 of 4, sigma 1, by .* more than 1e-04: the velocity is off by .*look at"),
        ({"velocity": swapped_text}, r"at step 1 of 4, .*what it does with the text$"),
        ({"velocity": without_text}, r"another prompt changes the latents by 0.0e\+00 .* proves nothing of the text"),
        (
            {"sigmas": even_sigmas},
            r"^the sigmas are \[1.0, 0.75, 0.5, 0.25, 0.0\], and those of .* are \[1.0, 0.8577, 0.6",
        ),
        ({"decode": unshifted}, r"^the media differ from those of Stable.* though the latents agree: look at decode$"),
    ],
    ids=["sign", "time", "swapped text", "no text", "sigmas", "decode"],
)
def test_what_is_off_is_said(checkpoint: Any, changed: dict[str, Callable[..., Any]], told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        check_against_pipeline(config(checkpoint(), **changed), **TEXT)


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers, by numpy
@pytest.mark.parametrize(
    "scheduler",
    [DPMSolverMultistepScheduler(**FLOW), UniPCMultistepScheduler(**FLOW), FlowMatchHeunDiscreteScheduler(shift=3.0)],
    ids=["dpm", "unipc", "heun"],
)
def test_a_scheduler_of_higher_order_is_compared_by_euler_steps(
    checkpoint: Any, diffusers_pipeline: Any, scheduler: Any
) -> None:
    pipeline = diffusers_pipeline(checkpoint())
    pipeline.scheduler = scheduler

    def sigmas(parts: Parts, steps: int, canvas: Canvas) -> Tensor:
        scheduler.set_timesteps(steps)
        found = torch.unique_consecutive(scheduler.sigmas)
        return torch.where(found > 1 - 1e-5, torch.ones_like(found), found)

    made = config(checkpoint(), sigmas=sigmas)
    check_against_pipeline(made, pipeline=pipeline, guidance=3.0, **TEXT)
    assert pipeline.scheduler is scheduler
    with pytest.raises(AssertionError, match=r"^the sigmas are"):
        check_against_pipeline(config(checkpoint(), sigmas=even_sigmas), pipeline=pipeline, **TEXT)


def test_a_pipeline_that_packs_says_so(checkpoint: Any, diffusers_pipeline: Any) -> None:
    pipeline = diffusers_pipeline(checkpoint())
    with pytest.raises(AssertionError, match=r"have shape .*; give pack and unpack$"):
        check_against_pipeline(config(checkpoint()), pipeline=pipeline, unpack=lambda p, x, canvas: x.flatten(2), **TEXT)


def test_a_family_that_encodes_too_few_is_told(checkpoint: Any) -> None:
    def encode(parts: Parts, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Entry]:
        return itertools.islice(sd3.encode(parts, prompts, canvas), 1)

    line = encode.__code__.co_firstlineno
    with pytest.raises(
        UserError, match=rf"^model: encode \(test_pipeline_check\.py line {line}\) yielded 1 for 2 prompts; yield"
    ):
        check_against_pipeline(config(checkpoint(), encode=encode), **TEXT)


def sampled(parts: Parts, media: Tensor) -> Tensor:
    vae = parts.pipeline.vae
    latents: Tensor = vae.encode(media * 2 - 1).latent_dist.sample(torch.Generator().manual_seed(0))
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


@pytest.mark.parametrize(
    ("encode_media", "told"),
    [
        (None, r"^the family has no encode_media"),
        (lambda parts, media: models.posterior_mean(parts, media), r"^decode gives the VAE other latents than .* got of it"),
        (sampled, r"^decode gives the VAE other latents .* of the mean that is not sampled$"),
        (
            lambda parts, media: models.encode_scaled(parts, media).flatten(2),
            r"^encode_media: latents have shape \[4, 384\], and not \[4, 16, 24\]$",
        ),
    ],
    ids=["none", "not normalised", "sampled", "packed"],
)
def test_an_encoding_that_is_not_the_other_way_round_is_told(checkpoint: Any, encode_media: Any, told: str) -> None:
    # one that packs is decoded all the same
    def decode(parts: Parts, latents: Tensor) -> Tensor:
        return models.decode_scaled(parts, latents.reshape(-1, 4, 16, 24))

    media, _ = check_encode_media(config(checkpoint()))
    assert media.shape == (2, 3, 32, 48)
    with pytest.raises(AssertionError, match=told):
        check_encode_media(config(checkpoint(), encode_media=encode_media, decode=decode))


def test_a_family_need_not_encode_media_until_it_is_asked_to(checkpoint: Any, tmp_path: Path) -> None:
    without = config(checkpoint(), encode_media=None)
    check_model(without, size=(16, 16))
    with pytest.raises(UserError, match=r"^model: Changed encodes no media, so that it cannot learn from records$"):
        bench(without, tmp_path, size=(16, 16)).hooks.encode_media(torch.zeros(1, 3, 16, 16))


def test_media_are_encoded_as_many_at_once_as_are_decoded(checkpoint: Any, tmp_path: Path) -> None:
    media = torch.rand((3, 3, 16, 32), generator=torch.Generator().manual_seed(0))
    whole = bench(config(checkpoint()), tmp_path, size=(16, 32)).hooks.encode_media(media)
    sizes = list[int]()

    def noted(parts: Parts, media: Tensor) -> Tensor:
        sizes.append(len(media))
        return models.encode_scaled(parts, media)

    made = config(checkpoint(), encode_media=noted).model_copy(update={"decode_batch_size": 2})
    pieces = bench(made, tmp_path, size=(16, 32)).hooks.encode_media(media)
    assert relative_difference(pieces, whole) < 1e-5
    assert sizes == [2, 1]
