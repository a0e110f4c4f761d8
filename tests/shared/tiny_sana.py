"""Tiny random Sana checkpoints, built without a network."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
from tiny_gemma import gemma_text, gemma_tokenizer

WIDTH = 32
KINDS: dict[str, dict[str, Any]] = {
    "1": {},
    "1.5": {"qk_norm": "rms_norm_across_heads"},
    "2k": {"interpolation_scale": 1.0},
    "learned": {"out_channels": 8, "timestep_scale": 0.5, "patch_size": 2},
}


def sana(folder: Path, kind: str = "1") -> Path:
    """A SanaPipeline whose sides are multiples of 4, of "learned" of 8; ``kind`` is a key of KINDS."""
    torch.manual_seed(0)
    lines = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    tokenizer = gemma_tokenizer(line.lower() for line in lines)
    SanaPipeline(
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        vae=_vae().eval(),
        text_encoder=gemma_text(tokenizer, WIDTH),
        tokenizer=tokenizer,
        transformer=_transformer(**KINDS[kind]).eval(),
    ).save_pretrained(folder)
    return folder


def _vae() -> Any:
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )


def _transformer(**given: Any) -> Any:
    options = {
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": WIDTH,
        "sample_size": 8,
    }
    return SanaTransformer2DModel(**options | given)
