"""FLUX.1 over the parts of a FluxPipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from flowfactory import Canvas, Conditions, Prompt, models
from flowfactory.models import Entry, Family, FamilyConfig, Grid, Parts
from flowfactory_flux.common import embed_guidance, embeds_guidance, never_guided

if TYPE_CHECKING:
    from flowfactory import RunConfig

LORA_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp"),
)


def encode(parts: Parts, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Entry]:
    """embeds [L, D] and pooled [P] of each prompt."""
    embeds, pooled, _ = parts.pipeline.encode_prompt(
        [prompt.text for prompt in prompts],
        None,
        device=parts.device,
        max_sequence_length=parts.options.max_sequence_length,
    )
    for row, whole in zip(embeds, pooled, strict=True):
        yield {"embeds": row, "pooled": whole}


def sigmas(parts: Parts, steps: int, canvas: Canvas) -> Tensor:
    """[steps + 1], shifted by the resolution where the scheduler says so."""
    return models.shifted_sigmas(parts, steps, models.packed_shape(parts, canvas))


def velocity(parts: Parts, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
    """[B, C, H, W], from the tokens of the latents with those of the picture behind them."""
    embeds = conditions.stack("embeds")
    fields = [latents.to(embeds.dtype), *models.stack_images(conditions)]
    found: Tensor = parts.pipeline.transformer(
        hidden_states=torch.cat([models.pack_latents(field) for field in fields], dim=1),
        timestep=sigma,
        guidance=embed_guidance(parts, latents, guidance),
        pooled_projections=conditions.stack("pooled"),
        encoder_hidden_states=embeds,
        txt_ids=torch.zeros(embeds.shape[1], 3, device=embeds.device),
        img_ids=models.packed_positions(parts, fields),
        return_dict=False,
    )[0]
    height, width = latents.shape[-2:]
    return models.unpack_latents(found[:, : height * width // 4], height, width)


FLUX1 = Family(
    distribution="flowfactory-flux",
    pipelines=("FluxPipeline",),
    encoders=("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    encode=encode,
    shape=models.packed_shape,
    sigmas=sigmas,
    velocity=velocity,
    decode=models.decode_scaled,
    encode_media=models.encode_scaled,
    blocks=("FluxTransformerBlock", "FluxSingleTransformerBlock"),
    lora_targets=LORA_TARGETS,
    comfyui=((r"(.+)", r"transformer.\1"),),  # diffusers' own names, of which it knows the rows of its fused weights
    grid=models.packed_grid,
    guided=never_guided,
    takes_guidance=embeds_guidance,
    unused={"text_encoder": (r"text_projection\.weight",)},  # of the CLIP that Stable Diffusion 3 shares
)


class Flux1Config(FamilyConfig):
    """Any diffusers FluxPipeline: FLUX.1 dev, schnell and Krea."""

    known_as: ClassVar[tuple[str, ...]] = (
        "flux",
        "flux-dev",
        "flux1-dev",
        "flux.1",
        "flux.1-dev",
        "flux-schnell",
        "flux.1-schnell",
        "schnell",
        "krea",
    )

    family: ClassVar[Family] = FLUX1
    checkpoint_licences: ClassVar[Mapping[str, str]] = {"black-forest-labs/FLUX.1-dev": "FLUX.1 [dev] Non-Commercial License"}
    context_parallel = True

    max_sequence_length: int = Field(512, ge=1, le=512, description="tokens of the T5 encoder; schnell was made for 256")

    def check_context(self, run: RunConfig, grid: Grid) -> None:
        """As every family's, and the tokens of text can be divided too."""
        super().check_context(run, grid)
        models.check_text(run.distributed.context, "max_sequence_length", self.max_sequence_length)
