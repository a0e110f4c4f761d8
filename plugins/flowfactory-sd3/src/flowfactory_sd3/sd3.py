"""Stable Diffusion 3 over the parts of a StableDiffusion3Pipeline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from flowfactory import Canvas, Conditions, Prompt, models
from flowfactory.models import Entry, Family, FamilyConfig, Grid, Parts, Pretrained

LORA_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
)

CLIP_TOKENS = 77


def encode(parts: Parts, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Entry]:
    """embeds [L, D] and pooled [P] of each prompt."""
    embeds, _, pooled, _ = parts.pipeline.encode_prompt(
        [prompt.text for prompt in prompts],
        None,
        None,
        device=parts.device,
        do_classifier_free_guidance=False,
        max_sequence_length=parts.options.max_sequence_length,
    )
    for row, whole in zip(embeds, pooled, strict=True):
        yield {"embeds": row, "pooled": whole}


def sigmas(parts: Parts, steps: int, canvas: Canvas) -> Tensor:
    """[steps + 1], shifted by the resolution where the scheduler says so."""
    if not parts.pipeline.scheduler.config.get("use_dynamic_shifting"):
        return models.scheduler_sigmas(parts, steps)
    patch = parts.pipeline.transformer.config.patch_size
    _, height, width = models.latent_shape(parts, canvas)
    return models.scheduler_sigmas(
        parts, steps, mu=models.resolution_shift(parts, (height // patch) * (width // patch), max_shift=1.16)
    )


def velocity(parts: Parts, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
    """[B, C, H, W]."""
    embeds = conditions.stack("embeds")
    found: Tensor = parts.pipeline.transformer(
        hidden_states=latents.to(embeds.dtype),
        timestep=sigma * parts.pipeline.scheduler.config.num_train_timesteps,
        encoder_hidden_states=embeds,
        pooled_projections=conditions.stack("pooled"),
        return_dict=False,
    )[0]
    return found


def grid(checkpoint: Pretrained) -> Grid:
    """Multiples of what a latent patch covers, within the positions the transformer has."""
    vae, transformer = checkpoint.config("vae"), checkpoint.config("transformer")
    if not vae or not transformer:
        return Grid(16)  # what every released checkpoint covers; its longest side is not known before it is there
    channels = vae.get("block_out_channels") or vae["encoder_block_out_channels"]  # AutoencoderTiny writes the latter
    multiple = int(2 ** (len(channels) - 1) * transformer["patch_size"])
    return Grid(multiple, multiple * transformer.get("pos_embed_max_size", math.inf))


SD3 = Family(
    distribution="flowfactory-sd3",
    pipelines=("StableDiffusion3Pipeline",),
    encoders=("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3"),
    encode=encode,
    shape=models.latent_shape,
    sigmas=sigmas,
    velocity=velocity,
    decode=models.decode_scaled,
    encode_media=models.encode_scaled,
    blocks=("JointTransformerBlock",),
    lora_targets=LORA_TARGETS,
    comfyui=((r"(.+)", r"transformer.\1"),),  # diffusers' own names, of which it knows the rows of its fused weights
    grid=grid,
    optional=("text_encoder_3", "tokenizer_3"),
)


class SD3Config(FamilyConfig):
    """Any diffusers StableDiffusion3Pipeline: SD3, SD3.5 medium and large (arXiv:2403.03206)."""

    known_as: ClassVar[tuple[str, ...]] = (
        *("sd3.5", "sd35", "sd3-medium", "sd3.5-medium", "sd3.5-large"),
        *("stable-diffusion-3", "stable-diffusion-3.5-medium", "stable-diffusion-3.5-large"),
    )

    starter_options: ClassVar[Mapping[str, Any]] = {"path": "stabilityai/stable-diffusion-3.5-medium"}
    checkpoint_licences: ClassVar[Mapping[str, str]] = {"stabilityai/stable-diffusion-3.5-medium": "see its page"}
    starter_sampling: ClassVar[Mapping[str, Any]] = {"size": [512, 512], "steps": 10, "guidance": 4.5}

    family: ClassVar[Family] = SD3

    max_sequence_length: int = Field(256, ge=1, le=512, description="tokens of the T5 encoder")

    def encoded_tokens(self) -> int | None:
        """Those of CLIP, then those of the T5 encoder."""
        clip = self.checkpoint.config("text_encoder").get("max_position_embeddings", CLIP_TOKENS)
        return int(clip) + self.max_sequence_length
