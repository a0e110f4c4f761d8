"""Text to video over the parts of a WanPipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from flowfactory import Canvas, Conditions, Prompt
from flowfactory.models import Entry, Family, Parts
from flowfactory_wan.common import (
    BLOCKS,
    COMFYUI,
    ENCODERS,
    LORA_TARGETS,
    UNUSED,
    decode,
    encode_media,
    encode_text,
    frame_rate,
    grid,
    shape,
    sigmas,
)
from flowfactory_wan.experts import HIGH, LOW, ExpertsConfig, forward_experts, guide, trained_experts


def encode(parts: Parts, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Entry]:
    """embeds [512, D] of each prompt."""
    return ({"embeds": row} for row in encode_text(parts, prompts))


def velocity(parts: Parts, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
    """[B, C, F, H, W].

    A time a sample, where the pipeline gives the 5B's transformer the same time for each of its tokens.
    """
    timestep = sigma * parts.pipeline.scheduler.config.num_train_timesteps
    return forward_experts(parts, sigma, latents, timestep, conditions.stack("embeds"))


WAN_T2V = Family(
    distribution="flowfactory-wan",
    pipelines=("WanPipeline",),
    encoders=ENCODERS,
    encode=encode,
    shape=shape,
    sigmas=sigmas,
    velocity=velocity,
    decode=decode,
    encode_media=encode_media,
    blocks=BLOCKS,
    lora_targets=LORA_TARGETS,
    comfyui=COMFYUI,
    grid=grid,
    guide=guide,
    trained_transformers=trained_experts,
    transformers=(HIGH, LOW),
    experts=("high_noise", "low_noise"),
    not_encoded=("experts", "guidance_2"),
    unused=UNUSED,
    float32=("vae",),
    frame_rate=frame_rate,
)


class WanT2VConfig(ExpertsConfig):
    """Any diffusers WanPipeline: text to video with Wan 2.1, Wan 2.2 A14B and 5B (arXiv:2503.20314)."""

    known_as = ("wan", "wan2.1", "wan2.2", "wan2", "t2v", "wan-2.1", "wan-2.2")
    checkpoint_licences: ClassVar[Mapping[str, str]] = {"Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "Apache-2.0"}

    family: ClassVar[Family] = WAN_T2V
