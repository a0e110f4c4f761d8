"""The model: its options, and the functions in which it differs from others over a pipeline of diffusers.

As it stands it is Stable Diffusion 3. flowfactory's page on models has all that a ``Family`` may say besides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from flowfactory import Canvas, Conditions, Prompt, models
from flowfactory.models import Entry, Family, FamilyConfig, Grid, Parts, Pretrained
from pydantic import Field
from torch import Tensor


def encode(parts: Parts, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Entry]:
    """embeds [L, D] and pooled [P] of each prompt."""
    # Change: your pipeline's own encode_prompt, without classifier-free guidance, which core does. Where it returns a mask, cut
    # the padding off, or yield the mask as zeros and ones and give it to the transformer.
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
    """[steps + 1], as the checkpoint's scheduler has them."""
    # Change: models.shifted_sigmas, where your pipeline shifts them by the resolution.
    return models.scheduler_sigmas(parts, steps)


def velocity(parts: Parts, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
    """Noise less clean latents [B, C, H, W]; sigma [B] is 1 for noise and 0 for clean."""
    # Change: one forward of your transformer as the pipeline's call does it. Mind the sign, scale and direction of time, and a
    # mask: nothing but tests/test_parity.py proves that they are right. Give `guidance` on where it is embedded.
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
    """Multiples of what a patch of latents covers."""
    # Change: from the configs of your checkpoint, which are empty where it is not on this machine yet.
    vae, transformer = checkpoint.config("vae"), checkpoint.config("transformer")
    if not vae or not transformer:
        return Grid(16)
    multiple = 2 ** (len(vae["block_out_channels"]) - 1) * transformer["patch_size"]
    return Grid(multiple, multiple * transformer["pos_embed_max_size"])


FAMILY = Family(
    distribution="flowfactory-newname",
    pipelines=("StableDiffusion3Pipeline",),  # Change: the class in diffusers
    # Change: all that encode alone needs, tokenizers too
    encoders=("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3"),
    optional=("text_encoder_3", "tokenizer_3"),  # Change: which of them a checkpoint may lack
    encode=encode,
    shape=models.latent_shape,  # Change: models.packed_shape, or one of yours, where a token is two by two latents
    sigmas=sigmas,
    velocity=velocity,
    decode=models.decode_scaled,  # Change: where your VAE has other statistics
    encode_media=models.encode_scaled,  # Change: the other way round, as decode; without it nothing is learned from records
    blocks=("JointTransformerBlock",),  # Change: class names of the repeated blocks, which sharding and checkpointing wrap
    lora_targets=("to_q", "to_k", "to_v", "to_out.0"),  # Change: endings of the names of the layers that get adapters
    grid=grid,
    comfyui=((r"(.+)", r"transformer.\1"),),  # Change: what ComfyUI calls the layers; leave it out where it has no such model
)


class NewNameConfig(FamilyConfig):
    """Any diffusers StableDiffusion3Pipeline."""

    family: ClassVar[Family] = FAMILY
    # Change: a checkpoint that people know, which configs are begun with, and what it is drawn with
    starter_options: ClassVar[Mapping[str, Any]] = {"path": "stabilityai/stable-diffusion-3.5-medium"}
    starter_sampling: ClassVar[Mapping[str, Any]] = {"size": [512, 512], "steps": 10, "guidance": 4.5}

    max_sequence_length: int = Field(256, ge=1, le=512, description="tokens of the T5 encoder")
