"""FLUX.2 over the parts of a Flux2Pipeline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from flowfactory import Canvas, Conditions, Prompt, Takes, UserError, models
from flowfactory.models import Entry, Family, FamilyConfig, Grid, Parts
from flowfactory_flux.common import embed_guidance, embeds_guidance, never_guided

if TYPE_CHECKING:
    from flowfactory import RunConfig

LORA_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out", "to_qkv_mlp_proj"),
)

# diffusers' names where weights are fused or swapped, and ComfyUI's elsewhere, which all its versions know
COMFYUI = (
    (r"(transformer_blocks\.\d+\.attn\..+)", r"transformer.\1"),
    (r"norm_out\.linear", "transformer.norm_out.linear"),
    (r"transformer_blocks\.(\d+)\.ff\.linear_in", r"diffusion_model.double_blocks.\1.img_mlp.0"),
    (r"transformer_blocks\.(\d+)\.ff\.linear_out", r"diffusion_model.double_blocks.\1.img_mlp.2"),
    (r"transformer_blocks\.(\d+)\.ff_context\.linear_in", r"diffusion_model.double_blocks.\1.txt_mlp.0"),
    (r"transformer_blocks\.(\d+)\.ff_context\.linear_out", r"diffusion_model.double_blocks.\1.txt_mlp.2"),
    (r"single_transformer_blocks\.(\d+)\.attn\.to_qkv_mlp_proj", r"diffusion_model.single_blocks.\1.linear1"),
    (r"single_transformer_blocks\.(\d+)\.attn\.to_out", r"diffusion_model.single_blocks.\1.linear2"),
    (r"x_embedder", "diffusion_model.img_in"),
    (r"context_embedder", "diffusion_model.txt_in"),
    (r"proj_out", "diffusion_model.final_layer.linear"),
    (r"time_guidance_embed\.timestep_embedder\.linear_1", "diffusion_model.time_in.in_layer"),
    (r"time_guidance_embed\.timestep_embedder\.linear_2", "diffusion_model.time_in.out_layer"),
    (r"time_guidance_embed\.guidance_embedder\.linear_1", "diffusion_model.guidance_in.in_layer"),
    (r"time_guidance_embed\.guidance_embedder\.linear_2", "diffusion_model.guidance_in.out_layer"),
    (r"(double_stream_modulation_(?:img|txt)|single_stream_modulation)\.linear", r"diffusion_model.\1.lin"),
)
SHORTEST, LONGEST = 64, 8  # of a picture, as Flux2ImageProcessor.check_image_input has them


def encode(parts: Parts, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Entry]:
    """embeds [L, D] of each prompt, and the latents [C, H, W] of its pictures."""
    embeds, _ = parts.pipeline.encode_prompt(
        [prompt.text for prompt in prompts],
        device=parts.device,
        max_sequence_length=parts.options.max_sequence_length,
    )
    for prompt, row in zip(prompts, embeds, strict=True):
        yield {"embeds": row} | models.number_images(encode_image(parts, path) for path in prompt.images)


def encode_image(parts: Parts, path: Path) -> Tensor:
    """Latents [C, H, W] of a picture, no larger than ``picture_area`` and cropped to whole tokens as the pipeline does."""
    pipeline, image = parts.pipeline, models.read_picture(path)
    processor = pipeline.image_processor
    if reason := parts.options.picture_error(*image.size):
        raise UserError(f"picture {path}: {reason}")
    image = processor._resize_if_exceeds_area(image, parts.options.picture_area)
    multiple = 2 * pipeline.vae_scale_factor
    width, height = (side // multiple * multiple for side in image.size)
    pixels = processor.preprocess(image, height=height, width=width, resize_mode="crop")
    return encode_media(parts, pixels.to(parts.device) / 2 + 0.5)[0].to(pipeline.vae.dtype)


def shape(parts: Parts, canvas: Canvas) -> tuple[int, ...]:
    """[C, H, W] of the latents, two by two of the VAE's as the channels of one."""
    scale = 2 * parts.pipeline.vae_scale_factor
    return (parts.pipeline.transformer.config.in_channels, canvas.height // scale, canvas.width // scale)


def sigmas(parts: Parts, steps: int, canvas: Canvas) -> Tensor:
    """[steps + 1], with a shift that was fitted to the resolution and the number of steps."""
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    _, height, width = shape(parts, canvas)
    return models.scheduler_sigmas(
        parts, steps, sigmas=models.even_sigmas(steps), mu=compute_empirical_mu(height * width, steps)
    )


def velocity(parts: Parts, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
    """[B, C, H, W], from the tokens of the latents with those of the pictures behind them."""
    pipeline, embeds = parts.pipeline, conditions.stack("embeds")
    drawn, pictures = latents.to(embeds.dtype), models.stack_images(conditions)
    found = pipeline.transformer(
        hidden_states=torch.cat([pipeline._pack_latents(field) for field in (drawn, *pictures)], dim=1),
        timestep=sigma,
        guidance=embed_guidance(parts, latents, guidance),
        encoder_hidden_states=embeds,
        txt_ids=text_ids(parts, embeds),
        img_ids=position_ids(parts, drawn, pictures),
        return_dict=False,
    )[0]
    of_drawn: Tensor = found[:, : drawn[0, 0].numel()]
    return of_drawn.transpose(1, 2).reshape(latents.shape)


def text_ids(parts: Parts, embeds: Tensor) -> Tensor:
    """[1, L, 4] of embeds [B, L, D]."""

    def make() -> Tensor:
        found: Tensor = parts.pipeline._prepare_text_ids(embeds[:1]).to(embeds.device)
        return found

    return parts.once(("text ids", embeds.shape[1], embeds.device), make)


def position_ids(parts: Parts, drawn: Tensor, pictures: list[Tensor]) -> Tensor:
    """[1, tokens, 4] of latents [B, C, H, W]: those that are drawn, then the pictures'."""
    pipeline = parts.pipeline

    def make() -> Tensor:
        positions = [pipeline._prepare_latent_ids(drawn[:1])]
        if pictures:
            positions.append(pipeline._prepare_image_ids([field[:1] for field in pictures]))
        return torch.cat(positions, dim=1).to(drawn.device)

    sizes = tuple(field.shape[-2:] for field in (drawn, *pictures))
    return parts.once(("position ids", sizes, drawn.device), make)


def decode(parts: Parts, latents: Tensor) -> Tensor:
    """Pictures [B, 3, H, W]."""
    vae = parts.pipeline.vae
    mean, std = statistics(parts)
    latents = parts.pipeline._unpatchify_latents(latents * std + mean)
    pictures: Tensor = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    return pictures.float() / 2 + 0.5


def encode_media(parts: Parts, media: Tensor) -> Tensor:
    """Latents [B, C, H, W] of pictures [B, 3, H, W] in [0, 1]."""
    mean, std = statistics(parts)
    patches: Tensor = parts.pipeline._patchify_latents(models.posterior_mean(parts, media))
    return (patches - mean) / std


def statistics(parts: Parts) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of the patches, [1, C, 1, 1]."""
    vae = parts.pipeline.vae
    mean, variance = (stored.view(1, -1, 1, 1) for stored in (vae.bn.running_mean, vae.bn.running_var))
    return mean, (variance + vae.config.batch_norm_eps).sqrt()


FLUX2 = Family(
    distribution="flowfactory-flux",
    pipelines=("Flux2Pipeline",),
    encoders=("text_encoder", "tokenizer"),
    encode=encode,
    shape=shape,
    sigmas=sigmas,
    velocity=velocity,
    decode=decode,
    encode_media=encode_media,
    blocks=("Flux2TransformerBlock", "Flux2SingleTransformerBlock"),
    lora_targets=LORA_TARGETS,
    comfyui=COMFYUI,
    grid=models.packed_grid,
    guided=never_guided,
    takes_guidance=embeds_guidance,
    encoded_with=("vae",),
    encode_batch=4,  # the text encoder returns all its hidden states and the scores of a vocabulary, at 512 tokens a prompt
    chat_template=True,
    # hidden states are read, and of texts alone
    unused={
        "text_encoder": (r"lm_head\.weight", r"model\.(vision_tower|multi_modal_projector)\..*"),
        "vae": (r"bn\.num_batches_tracked",),  # its mean and variance alone are read
    },
)


class Flux2Config(FamilyConfig):
    """Any diffusers Flux2Pipeline: FLUX.2 dev, which draws from text and from up to ten pictures."""

    known_as: ClassVar[tuple[str, ...]] = ("flux.2", "flux-2", "flux2-dev", "flux.2-dev")

    family: ClassVar[Family] = FLUX2
    checkpoint_licences: ClassVar[Mapping[str, str]] = {"black-forest-labs/FLUX.2-dev": "FLUX Non-Commercial License"}
    context_parallel = True
    takes: ClassVar[Takes] = Takes(images=(0, 10))

    max_sequence_length: int = Field(512, ge=1, le=100_000, description="tokens of the text encoder")
    picture_area: int = Field(
        1024 * 1024, ge=64 * 64, le=8192 * 8192, description="pixels of a prompt's picture; a larger one is made smaller"
    )

    def picture_error(self, width: int, height: int) -> str | None:
        if min(width, height) >= SHORTEST and max(width, height) <= LONGEST * min(width, height):
            return None
        return f"{width} x {height} pixels: take one of at least {SHORTEST} x {SHORTEST}, up to {LONGEST} times as long as wide"

    def picture_tokens(self, width: int, height: int) -> int:
        token = self.family.grid(self.checkpoint).multiple
        if width * height > self.picture_area:
            scale = math.sqrt(self.picture_area / (width * height))  # as Flux2ImageProcessor does
            width, height = int(width * scale), int(height * scale)
        return (width // token) * (height // token)

    def check(self, run: RunConfig) -> None:
        """As every family's, and the tokenizer can be opened."""
        super().check(run)
        _, tokenizer = self.checkpoint.config("").get("tokenizer", (None, None))
        if tokenizer == "PixtralProcessor" and find_spec("torchvision") is None:
            raise ValueError("model: the tokenizer of this checkpoint needs torchvision; pip install 'flowfactory-flux[flux2]'")

    def check_context(self, run: RunConfig, grid: Grid) -> None:
        """As every family's, and the tokens of text can be divided too."""
        super().check_context(run, grid)
        models.check_text(run.distributed.context, "max_sequence_length", self.max_sequence_length)
