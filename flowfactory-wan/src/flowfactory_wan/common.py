"""Prompts, latents and schedules as every Wan pipeline has them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from flowfactory import Canvas, Prompt, models
from flowfactory.models import Grid, Parts, Pretrained

TEXT_LENGTH = 512  # the transformer tells text from image tokens by this number
ENCODERS = ("text_encoder", "tokenizer")
UNUSED = {
    "text_encoder": (r"decoder\..*", r"lm_head\.weight"),  # of the whole UMT5
    "image_encoder": (r"visual_projection\.weight",),  # of the CLIP that was cut out of
}
BLOCKS = ("WanTransformerBlock",)
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj", "ffn.net.0.proj", "ffn.net.2")

# Wan's own names
COMFYUI = (
    (r"blocks\.(\d+)\.attn1\.to_([qkv])", r"diffusion_model.blocks.\1.self_attn.\2"),
    (r"blocks\.(\d+)\.attn1\.to_out\.0", r"diffusion_model.blocks.\1.self_attn.o"),
    (r"blocks\.(\d+)\.attn2\.to_([qkv])", r"diffusion_model.blocks.\1.cross_attn.\2"),
    (r"blocks\.(\d+)\.attn2\.to_out\.0", r"diffusion_model.blocks.\1.cross_attn.o"),
    (r"blocks\.(\d+)\.attn2\.add_([kv])_proj", r"diffusion_model.blocks.\1.cross_attn.\2_img"),
    (r"blocks\.(\d+)\.ffn\.net\.0\.proj", r"diffusion_model.blocks.\1.ffn.0"),
    (r"blocks\.(\d+)\.ffn\.net\.2", r"diffusion_model.blocks.\1.ffn.2"),
    (r"condition_embedder\.time_embedder\.linear_1", "diffusion_model.time_embedding.0"),
    (r"condition_embedder\.time_embedder\.linear_2", "diffusion_model.time_embedding.2"),
    (r"condition_embedder\.text_embedder\.linear_1", "diffusion_model.text_embedding.0"),
    (r"condition_embedder\.text_embedder\.linear_2", "diffusion_model.text_embedding.2"),
    (r"condition_embedder\.time_proj", "diffusion_model.time_projection.1"),
    (r"condition_embedder\.image_embedder\.ff\.net\.0\.proj", "diffusion_model.img_emb.proj.1"),
    (r"condition_embedder\.image_embedder\.ff\.net\.2", "diffusion_model.img_emb.proj.3"),
    (r"proj_out", "diffusion_model.head.head"),
)


def encode_text(parts: Parts, prompts: Sequence[Prompt]) -> Tensor:
    """[B, 512, D], zeros behind each text."""
    embeds: Tensor = parts.pipeline.encode_prompt(
        [prompt.text for prompt in prompts],
        do_classifier_free_guidance=False,
        max_sequence_length=TEXT_LENGTH,
        device=parts.device,
    )[0]
    return embeds


def shape(parts: Parts, canvas: Canvas) -> tuple[int, ...]:
    """[C, F, H, W] of the latents."""
    pipeline = parts.pipeline
    scale, stride = pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal
    return (
        pipeline.vae.config.z_dim,
        (canvas.frames - 1) // stride + 1,
        canvas.height // scale,
        canvas.width // scale,
    )


def sigmas(parts: Parts, steps: int, canvas: Canvas) -> Tensor:
    """[steps + 1], with the shift of the checkpoint's scheduler."""
    return models.scheduler_sigmas(parts, steps)


def decode(parts: Parts, latents: Tensor) -> Tensor:
    """Videos [B, F, 3, H, W]."""
    return models.decode_normalized(parts, latents).transpose(1, 2)


def encode_media(parts: Parts, media: Tensor) -> Tensor:
    """Latents [B, C, F, H, W] of videos [B, F, 3, H, W] in [0, 1]."""
    return models.encode_normalized(parts, media.transpose(1, 2))


def frame_rate(parts: Parts) -> float:
    """16 frames a second, 24 of the 5B, whose VAE is another."""
    return 24 if parts.pipeline.vae.config.get("patch_size") else 16


def grid(checkpoint: Pretrained) -> Grid:
    """Multiples of what a latent patch covers, within the positions the transformer has."""
    vae, transformer = checkpoint.config("vae"), checkpoint.config("transformer")
    if not vae or not transformer:
        return Grid(16, stride=4)  # Wan 2.1 and 2.2 A14B; the 5B's 32 is known once its configs are here
    multiple = int(vae.get("scale_factor_spatial", 8) * transformer["patch_size"][1])
    return Grid(multiple, multiple * transformer.get("rope_max_seq_len", math.inf), vae.get("scale_factor_temporal", 4))
