"""Z-Image over the parts of a ZImagePipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from flowfactory import Canvas, Conditions, Prompt, models
from flowfactory.models import Entry, Family, FamilyConfig, Grid, Parts, Pretrained

PATCH = 2  # the transformer can have several, and the pipeline uses this one
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")

# queries, keys and values by diffusers' names, of which it knows the rows of its fused weight
COMFYUI = (
    (r"(.+\.attention)\.to_out\.0", r"diffusion_model.\1.out"),
    (r"all_x_embedder\.2-1", "diffusion_model.x_embedder"),
    (r"all_final_layer\.2-1\.(.+)", r"diffusion_model.final_layer.\1"),
    (r"((?:layers|noise_refiner|context_refiner|cap_embedder|t_embedder)\..+)", r"diffusion_model.\1"),
)


def encode(parts: Parts, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Entry]:
    """embeds [L_i, D] of each prompt: its own tokens alone."""
    embeds, _ = parts.pipeline.encode_prompt(
        [prompt.text for prompt in prompts],
        device=parts.device,
        do_classifier_free_guidance=False,
        max_sequence_length=parts.options.max_sequence_length,
    )
    yield from ({"embeds": row} for row in embeds)


def sigmas(parts: Parts, steps: int, canvas: Canvas) -> Tensor:
    """[steps + 1], shifted by the resolution where the scheduler says so."""
    return models.shifted_sigmas(parts, steps, models.latent_shape(parts, canvas))


def to_timestep(sigma: Tensor) -> Tensor:
    """[B], from 0 for noise to 1, rounded as the pipeline rounds it."""
    return (1000 - 1000 * sigma) / 1000


def velocity(parts: Parts, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
    """[B, C, H, W]."""
    embeds = [entry["embeds"] for entry in conditions.entries]
    frames = list(latents.to(embeds[0].dtype).unsqueeze(2))
    towards_clean = parts.pipeline.transformer(frames, to_timestep(sigma), embeds, return_dict=False)[0]
    return -torch.stack(towards_clean).squeeze(2)


def guide(parts: Parts, given: Tensor, without: Tensor, guidance: float, sigma: Tensor) -> Tensor:
    """Extrapolated; no longer than ``cfg_normalization`` times the velocity with the prompt.

    After ``cfg_truncation`` it is that one alone.
    """
    given = given.float()
    guided = models.extrapolated_guidance(parts, given, without.float(), guidance, sigma)
    if most := parts.options.cfg_normalization:
        guided = guided * (most * models.norm_ratio(given, guided, (1, 2, 3))).clamp(max=1)
    # the option is a double, and the pipeline compares it as one
    return models.guide_until(to_timestep(sigma).double() > parts.options.cfg_truncation, given, guided)


def grid(checkpoint: Pretrained) -> Grid:
    """Multiples of what a latent patch covers, within the positions the transformer has."""
    levels = len(checkpoint.config("vae").get("block_out_channels", "four"))
    positions = checkpoint.config("transformer").get("axes_lens", (1024, 512, 512))  # of text, rows, columns
    multiple = PATCH * 2 ** (levels - 1)
    return Grid(multiple, multiple * min(positions[1:]))


Z_IMAGE = Family(
    distribution="flowfactory-z-image",
    pipelines=("ZImagePipeline",),
    encoders=("text_encoder", "tokenizer"),
    encode=encode,
    shape=models.latent_shape,
    sigmas=sigmas,
    velocity=velocity,
    decode=models.decode_scaled,
    encode_media=models.encode_scaled,
    blocks=("ZImageTransformerBlock",),
    lora_targets=LORA_TARGETS,
    comfyui=COMFYUI,
    grid=grid,
    guide=guide,
    encode_batch=8,  # every layer's hidden states are kept, at the full length
    not_encoded=("cfg_normalization", "cfg_truncation"),
    padded=frozenset({"embeds"}),
    chat_template=True,
    unused={"text_encoder": (r"lm_head\.weight",)},  # of the whole Qwen3, which some have saved
)


class ZImageConfig(FamilyConfig):
    """Any diffusers ZImagePipeline: Z-Image and Z-Image-Turbo (arXiv:2511.22699)."""

    known_as = ("zimage", "z-image-turbo", "z-turbo")
    checkpoint_licences: ClassVar[Mapping[str, str]] = {"Tongyi-MAI/Z-Image": "Apache-2.0"}

    family: ClassVar[Family] = Z_IMAGE
    zero_guidance: ClassVar[bool] = True  # so do the users of Z-Image-Turbo

    max_sequence_length: int = Field(512, ge=1, le=512, description="tokens of a prompt in its chat template")
    cfg_normalization: float | bool = Field(
        0.0, ge=0, description="bound on the guided velocity's norm, in norms of the one with the prompt; 0 is none, true is 1"
    )
    cfg_truncation: float = Field(1.0, ge=0, le=1, description="no guidance where 1 - sigma is above this")
