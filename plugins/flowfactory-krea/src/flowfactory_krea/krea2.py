"""Krea 2 over the parts of a Krea2Pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from flowfactory import Canvas, Conditions, Prompt, models
from flowfactory.models import Entry, Family, FamilyConfig, Parts

PATCH = 2
DISTILLED_SHIFT = 1.15  # the pipeline's, for any size
SUFFIX = 5  # tokens of the template behind a prompt

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "to_gate", "ff.gate", "ff.up", "ff.down")
STACKS = ((r"transformer_blocks\.(\d+)", r"blocks.\1"), (r"text_fusion\.(\w+_blocks\.\d+)", r"txtfusion.\1"))
LAYERS = (
    *((rf"attn\.to_{ours}", f"attn.{theirs}") for ours, theirs in (("q", "wq"), ("k", "wk"), ("v", "wv"), ("gate", "gate"))),
    *((r"attn\.to_out\.0", "attn.wo"), *((rf"ff\.{name}", f"mlp.{name}") for name in ("gate", "up", "down"))),
)
COMFYUI = (
    *((rf"{ours}\.{layer}", f"diffusion_model.{theirs}.{name}") for ours, theirs in STACKS for layer, name in LAYERS),
    (r"img_in", "diffusion_model.first"),
    (r"time_embed\.linear_1", "diffusion_model.tmlp.0"),
    (r"time_embed\.linear_2", "diffusion_model.tmlp.2"),
    (r"time_mod_proj", "diffusion_model.tproj.1"),
    (r"txt_in\.linear_1", "diffusion_model.txtmlp.1"),
    (r"txt_in\.linear_2", "diffusion_model.txtmlp.3"),
    (r"text_fusion\.projector", "diffusion_model.txtfusion.projector"),
    (r"final_layer\.linear", "diffusion_model.last.linear"),
)


def encode(parts: Parts, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Entry]:
    """embeds [L, layers, D] of each prompt: without the padding, which is in the middle and which nothing attends to."""
    embeds, valid = parts.pipeline.encode_prompt(
        [prompt.text for prompt in prompts], device=parts.device, max_sequence_length=parts.options.max_sequence_length
    )
    yield from ({"embeds": row[there]} for row, there in zip(embeds, valid, strict=True))


def sigmas(parts: Parts, steps: int, canvas: Canvas) -> Tensor:
    """[steps + 1], shifted by the resolution, or as the distilled checkpoint always is."""
    if not parts.pipeline.config.is_distilled:
        return models.shifted_sigmas(parts, steps, models.packed_shape(parts, canvas))
    return models.scheduler_sigmas(parts, steps, sigmas=models.even_sigmas(steps), mu=DISTILLED_SHIFT)


def velocity(parts: Parts, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
    """[B, C, H, W]."""
    pipeline = parts.pipeline
    embeds, valid = conditions.pad("embeds")
    lengths = {len(entry["embeds"]) for entry in conditions.entries}
    # the channels of a patch come out in the order of the pipeline's _pack_latents
    patches = torch.pixel_unshuffle(latents.to(embeds.dtype), PATCH)
    height, width = patches.shape[-2:]
    found: Tensor = pipeline.transformer(
        hidden_states=patches.flatten(2).transpose(1, 2),
        encoder_hidden_states=embeds,
        timestep=sigma.to(embeds.dtype),
        position_ids=pipeline.prepare_position_ids(embeds.shape[1], height, width, latents.device),
        encoder_attention_mask=None if len(lengths) == 1 else valid,
        return_dict=False,
    )[0]
    return torch.pixel_shuffle(found.transpose(1, 2).reshape(len(latents), -1, height, width), PATCH)


KREA2 = Family(
    distribution="flowfactory-krea",
    pipelines=("Krea2Pipeline",),
    encoders=("text_encoder", "tokenizer"),
    encode=encode,
    shape=models.packed_shape,
    sigmas=sigmas,
    velocity=velocity,
    decode=models.decode_frame,
    encode_media=models.encode_frame,
    blocks=("Krea2TransformerBlock", "Krea2TextFusionBlock"),
    lora_targets=LORA_TARGETS,
    comfyui=COMFYUI,
    grid=models.frame_grid,
    guide=models.extrapolated_guidance,
    encode_batch=8,  # every layer's hidden states are kept, at the full length
    padded=frozenset({"embeds"}),
    # hidden states are read, and of texts alone
    unused={"text_encoder": (r"lm_head\.weight", r"(model\.)?visual\..*")},
)


class Krea2Config(FamilyConfig):
    """Any diffusers Krea2Pipeline: Krea 2 Raw, which is made to be trained, and the distilled Turbo."""

    known_as = ("krea-2", "krea2-raw", "krea-2-raw", "krea2-turbo", "krea-2-turbo")
    checkpoint_licences: ClassVar[Mapping[str, str]] = {"krea/Krea-2-Raw": "Krea 2 Community License"}

    family: ClassVar[Family] = KREA2
    zero_guidance: ClassVar[bool] = True  # so do the users of Turbo

    max_sequence_length: int = Field(
        512, ge=SUFFIX + 1, le=1024, description="tokens of a prompt, with 5 of the template; each is 12 layers of the encoder"
    )
