"""Tiny random HunyuanVideo 1.5 checkpoints, built without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from tiny_z_image import CHAT
from transformers import (
    ByT5Tokenizer,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from flowfactory.testing.tiny_checkpoints import qwen_tokenizer, t5_text

WIDTH, GLYPHS, IMAGE, LATENTS = 32, 24, 16, 4


def text_to_video(folder: Path, task: str = "t2v") -> Path:
    """A HunyuanVideo15Pipeline whose sides are multiples of 4, or with ``task`` "i2v" one that starts from a picture."""
    torch.manual_seed(0)
    parts = {
        "transformer": _transformer().eval(),
        "vae": _vae().eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
        "text_encoder_2": t5_text(384, GLYPHS),
        "tokenizer_2": ByT5Tokenizer(),
        "guider": ClassifierFreeGuidance(guidance_scale=6.0),
    }
    kind = HunyuanVideo15Pipeline if task == "t2v" else HunyuanVideo15ImageToVideoPipeline
    if task == "i2v":
        parts |= {"image_encoder": _eyes().eval(), "feature_extractor": SiglipImageProcessor(size={"height": 8, "width": 8})}
    told = kind(**dict.fromkeys(["text_encoder", "tokenizer"]), **parts).system_message
    tokenizer = qwen_tokenizer([told, "system user assistant"])
    tokenizer.chat_template = CHAT
    kind(text_encoder=_text(len(tokenizer)).eval(), tokenizer=tokenizer, **parts).save_pretrained(folder)
    return folder


def image_to_video(folder: Path) -> Path:
    """A HunyuanVideo15ImageToVideoPipeline, whose pictures are cropped to about 32 by 32 pixels."""
    return text_to_video(folder, "i2v")


def _transformer() -> Any:
    return HunyuanVideo15Transformer3DModel(
        in_channels=2 * LATENTS + 1,
        out_channels=LATENTS,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=WIDTH,
        text_embed_2_dim=GLYPHS,
        image_embed_dim=IMAGE,
        rope_axes_dim=(4, 6, 6),
        target_size=32,
    )


def _vae() -> Any:
    return AutoencoderKLHunyuanVideo15(
        latent_channels=LATENTS,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )


def _text(vocabulary: int) -> Any:
    return Qwen2_5_VLTextModel(
        Qwen2_5_VLTextConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=37,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def _eyes() -> Any:
    return SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=IMAGE, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
        )
    )
