"""Sana over the parts of a SanaPipeline."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from flowfactory import Canvas, Conditions, Prompt, models
from flowfactory.models import Entry, Family, FamilyConfig, Grid, Parts, Pretrained

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # what is between two attentions is convolutions


def encode(parts: Parts, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Entry]:
    """embeds [L_i, D] of each prompt: its own tokens, behind the instruction, which is cut off again, unless it is negative."""
    for negative, alike in groupby(prompts, lambda prompt: prompt.is_negative):
        embeds, mask, _, _ = parts.pipeline.encode_prompt(
            [prompt.text for prompt in alike],
            do_classifier_free_guidance=False,
            device=parts.device,
            max_sequence_length=parts.options.max_sequence_length,
            complex_human_instruction=None if negative else instruction(parts),
        )
        yield from ({"embeds": row[own.bool()]} for row, own in zip(embeds, mask, strict=True))


def instruction(parts: Parts) -> list[str] | None:
    """The lines that the pipeline puts before a prompt where its call is told of none; None where they are turned off."""
    if not parts.options.complex_human_instruction:
        return None
    lines: list[str] = inspect.signature(parts.pipeline.__call__).parameters["complex_human_instruction"].default
    return lines


def sigmas(parts: Parts, steps: int, canvas: Canvas) -> Tensor:
    """[steps + 1], with the shift of the checkpoint's scheduler."""
    return models.scheduler_sigmas(parts, steps)


def velocity(parts: Parts, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
    """[B, C, H, W], float32."""
    pipeline, (embeds, valid) = parts.pipeline, conditions.pad("embeds")
    time = sigma * pipeline.scheduler.config.num_train_timesteps
    found: Tensor = pipeline.transformer(
        latents.to(embeds.dtype),
        encoder_hidden_states=embeds,
        encoder_attention_mask=valid.to(embeds.dtype),
        timestep=time * pipeline.transformer.config.timestep_scale,
        return_dict=False,
    )[0]
    return found[:, : latents.shape[1]].float()  # the rest is a variance that some learned


def grid(checkpoint: Pretrained) -> Grid:
    """Multiples of what a latent patch covers."""
    levels = len(checkpoint.config("vae").get("encoder_block_out_channels", "levels"))
    return Grid(2 ** (levels - 1) * int(checkpoint.config("transformer").get("patch_size", 1)))


SANA = Family(
    distribution="flowfactory-sana",
    pipelines=("SanaPipeline",),
    encoders=("text_encoder", "tokenizer"),
    encode=encode,
    shape=models.latent_shape,
    sigmas=sigmas,
    velocity=velocity,
    decode=models.decode_scaled,
    encode_media=models.encode_scaled,
    blocks=("SanaTransformerBlock",),
    lora_targets=LORA_TARGETS,
    grid=grid,
    padded=frozenset({"embeds"}),
)


class SanaConfig(FamilyConfig):
    """Any diffusers SanaPipeline: Sana (arXiv:2410.10629) and Sana 1.5 (arXiv:2501.18427)."""

    known_as = ("sana1.5", "sana-1.5", "sana-1.6b")
    checkpoint_licences: ClassVar[Mapping[str, str]] = {"Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers": "see its page"}

    family: ClassVar[Family] = SANA

    max_sequence_length: int = Field(300, ge=2, le=4096, description="tokens of a prompt, the instruction not counted")
    complex_human_instruction: bool = Field(
        True, description="put the pipeline's instruction to enhance prompts before every prompt but negative ones"
    )

    def check_checkpoint(self) -> None:
        """ValueError: as for every family; or the transformer embeds guidance."""
        super().check_checkpoint()
        if self.checkpoint.config("transformer").get("guidance_embeds"):
            raise ValueError(f"model.path: the transformer of {self.path} embeds guidance, which is Sana-Sprint; take Sana")
