"""Chroma over the parts of a ChromaPipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from flowfactory import Canvas, Conditions, Prompt, models
from flowfactory.models import Entry, Family, FamilyConfig, Parts

LORA_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp"),
)
NEVER = -1e4  # of a pair of tokens, in the logarithm of its weight

# diffusers' own names, of which it knows the rows of its fused weights, but for what FLUX has not
COMFYUI = (
    (r"distilled_guidance_layer\.layers\.(\d+)\.linear_1", r"diffusion_model.distilled_guidance_layer.layers.\1.in_layer"),
    (r"distilled_guidance_layer\.layers\.(\d+)\.linear_2", r"diffusion_model.distilled_guidance_layer.layers.\1.out_layer"),
    (r"(distilled_guidance_layer\..+)", r"diffusion_model.\1"),
    (r"(.+)", r"transformer.\1"),
)


def encode(parts: Parts, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Entry]:
    """embeds [L, D] of each prompt, padding included, and mask [L]: ones for its tokens and the first that pads, then zeros."""
    embeds, _, mask, *_ = parts.pipeline.encode_prompt(
        [prompt.text for prompt in prompts],
        device=parts.device,
        do_classifier_free_guidance=False,
        max_sequence_length=parts.options.max_sequence_length,
    )
    yield from ({"embeds": row, "mask": own} for row, own in zip(embeds, mask, strict=True))


def sigmas(parts: Parts, steps: int, canvas: Canvas) -> Tensor:
    """[steps + 1], shifted by the resolution where the scheduler says so."""
    return models.shifted_sigmas(parts, steps, models.packed_shape(parts, canvas))


def velocity(parts: Parts, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
    """[B, C, H, W]."""
    embeds, steps = conditions.stack("embeds"), parts.pipeline.scheduler.config.num_train_timesteps
    drawn = latents.to(embeds.dtype)
    tokens = models.pack_latents(drawn)
    found: Tensor = parts.pipeline.transformer(
        hidden_states=tokens,
        timestep=(sigma * steps).to(embeds.dtype) / steps,  # rounded as in the pipeline
        encoder_hidden_states=embeds,
        txt_ids=torch.zeros(embeds.shape[1], 3, device=embeds.device),
        img_ids=models.packed_positions(parts, [drawn]),
        attention_mask=torch.cat([weigh_text(parts, conditions.stack("mask")), tokens.new_ones(tokens.shape[:2])], dim=1),
        return_dict=False,
    )[0]
    return models.unpack_latents(found, *latents.shape[-2:])


def weigh_text(parts: Parts, mask: Tensor) -> Tensor:
    """[B, L], of which the product of two tokens' is added to the logarithm of the weight that one has for the other."""
    return torch.where(mask > 0, mask, NEVER) if parts.options.mask_padding else mask


CHROMA = Family(
    distribution="flowfactory-chroma",
    pipelines=("ChromaPipeline",),
    encoders=("text_encoder", "tokenizer"),
    encode=encode,
    shape=models.packed_shape,
    sigmas=sigmas,
    velocity=velocity,
    decode=models.decode_scaled,
    encode_media=models.encode_scaled,
    blocks=("ChromaTransformerBlock", "ChromaSingleTransformerBlock"),
    lora_targets=LORA_TARGETS,
    comfyui=COMFYUI,
    grid=models.packed_grid,
    not_encoded=("mask_padding",),
    padded=frozenset({"embeds", "mask"}),  # by encode, all to one length
)


class ChromaConfig(FamilyConfig):
    """Any diffusers ChromaPipeline: Chroma1-HD and Chroma1-Base."""

    known_as = ("chroma1", "chroma1-hd", "chroma1-base", "chroma-hd")
    checkpoint_licences: ClassVar[Mapping[str, str]] = {"lodestones/Chroma1-HD": "Apache-2.0"}

    family: ClassVar[Family] = CHROMA

    max_sequence_length: int = Field(512, ge=1, le=512, description="tokens of the T5 encoder, padding included")
    mask_padding: bool = Field(
        False, description="hide the padding of prompts wholly, as Chroma was trained; diffusers' pipeline gives it less weight"
    )

    def encoded_bytes(self, precision: int) -> int | None:
        """As every family's, and a number for each token."""
        embeds = super().encoded_bytes(precision)
        return None if embeds is None else embeds + self.max_sequence_length * precision
