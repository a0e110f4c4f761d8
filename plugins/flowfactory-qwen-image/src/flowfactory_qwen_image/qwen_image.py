"""Qwen-Image over the parts of a QwenImagePipeline, and what it shares with Qwen-Image-Edit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from flowfactory import Canvas, Conditions, Prompt, UserError, models
from flowfactory.models import Entry, Family, FamilyConfig, Parts, Pretrained

if TYPE_CHECKING:
    from flowfactory import RunConfig

LORA_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
)
PATCH = 2
TOO_FEW_STEPS = "steps 1: the schedule of this checkpoint ends above zero, which takes 2 steps or more"


def unread_weights(parts: Parts) -> tuple[str, ...]:
    """What makes the text that leaves the last block, which nothing reads."""
    last = f"transformer.transformer_blocks.{parts.pipeline.transformer.config.num_layers - 1}"
    return (f"{last}.attn.to_add_out.", f"{last}.txt_mlp.")


def encode(parts: Parts, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Entry]:
    """embeds [L, D] of each prompt, without the template's tokens and without padding."""
    embeds, mask = parts.pipeline.encode_prompt(
        [prompt.text for prompt in prompts],
        device=parts.device,
        max_sequence_length=parts.options.max_sequence_length,
    )
    for i, row in enumerate(embeds):
        yield {"embeds": row if mask is None else row[mask[i].bool()]}


def sigmas(parts: Parts, steps: int, canvas: Canvas) -> Tensor:
    """[steps + 1], shifted by the resolution as the scheduler says. UserError: fewer than it can stretch to its end."""
    refuse_steps(parts, steps)
    return models.shifted_sigmas(parts, steps, models.packed_shape(parts, canvas))


def velocity(parts: Parts, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
    """[B, C, H, W]. The conditions' latents of pictures, if any, follow those that are drawn."""
    pipeline = parts.pipeline
    embeds, valid = conditions.pad("embeds", parts.context)
    lengths = {len(entry["embeds"]) for entry in conditions.entries}
    pictures = [latents, *models.stack_images(conditions)]
    # rounded as in the pipeline: to thousandths in the embeds' dtype
    time = (sigma * pipeline.scheduler.config.num_train_timesteps).to(embeds.dtype) / 1000
    found: Tensor = pipeline.transformer(
        hidden_states=torch.cat([models.pack_latents(picture.to(embeds.dtype)) for picture in pictures], dim=1),
        timestep=time,
        encoder_hidden_states=embeds,
        encoder_hidden_states_mask=None if lengths == {embeds.shape[1]} else valid,
        img_shapes=[[(1, *(side // PATCH for side in picture.shape[-2:])) for picture in pictures]] * len(latents),
        return_dict=False,
    )[0]
    height, width = latents.shape[-2:]
    return models.unpack_latents(found[:, : height * width // PATCH**2], height, width)


def guide(parts: Parts, given: Tensor, without: Tensor, guidance: float, sigma: Tensor) -> Tensor:
    """Linear guidance, every patch of it rescaled to the norm that it has with the prompt alone."""
    mixed = models.linear_guidance(parts, given, without, guidance, sigma)
    given, mixed = torch.pixel_unshuffle(given.float(), PATCH), torch.pixel_unshuffle(mixed.float(), PATCH)
    return torch.pixel_shuffle(mixed * models.norm_ratio(given, mixed, 1), PATCH)


def refuse_steps(parts: Parts, steps: int) -> None:
    """UserError: fewer than the schedule can stretch to its end."""
    if steps == 1 and parts.pipeline.scheduler.config.get("shift_terminal"):
        raise UserError(TOO_FEW_STEPS)


def check_steps(checkpoint: Pretrained, run: RunConfig) -> None:
    """ValueError: fewer steps than the schedule can stretch to its end."""
    if checkpoint.config("scheduler").get("shift_terminal") and 1 in (run.sampling.steps, run.evaluation.steps):
        raise ValueError(TOO_FEW_STEPS)


QWEN_IMAGE = Family(
    distribution="flowfactory-qwen-image",
    pipelines=("QwenImagePipeline",),
    encoders=("text_encoder", "tokenizer"),
    encode=encode,
    shape=models.packed_shape,
    sigmas=sigmas,
    velocity=velocity,
    decode=models.decode_frame,
    encode_media=models.encode_frame,
    blocks=("QwenImageTransformerBlock",),
    lora_targets=LORA_TARGETS,
    comfyui=((r"(.+)", r"diffusion_model.\1"),),  # its layers are called as those of diffusers
    grid=models.frame_grid,
    guide=guide,
    unread=unread_weights,
    padded=frozenset({"embeds"}),
    # hidden states are read, and of texts alone
    unused={"text_encoder": (r"lm_head\.weight", r"model\.visual\..*")},
)


class QwenImageConfig(FamilyConfig):
    """Any diffusers QwenImagePipeline (arXiv:2508.02324)."""

    known_as = ("qwen", "qwenimage")

    family: ClassVar[Family] = QWEN_IMAGE
    checkpoint_licences: ClassVar[Mapping[str, str]] = {"Qwen/Qwen-Image": "Apache-2.0"}
    context_parallel = True

    max_sequence_length: int = Field(512, ge=1, le=1024, description="tokens of a prompt")

    def check(self, run: RunConfig) -> None:
        """As every family's, and the schedule has as many steps as it needs."""
        super().check(run)
        check_steps(self.checkpoint, run)
