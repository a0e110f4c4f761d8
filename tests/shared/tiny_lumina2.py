"""Tiny random Lumina Image 2.0 checkpoints, built without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel
from tiny_gemma import gemma_text, gemma_tokenizer

from flowfactory.testing.tiny_checkpoints import kl_vae

WIDTH = 32
SYSTEM = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based on "
    "textual prompts or user prompts. <Prompt Start>"
)
SHIFTS: dict[str, dict[str, Any]] = {
    "released": {"shift": 6.0},
    "even": {"shift": 1.0},
    "dynamic": {"use_dynamic_shifting": True, "base_image_seq_len": 2, "max_image_seq_len": 6},
}


def lumina2(folder: Path, shift: str = "released") -> Path:
    """A Lumina2Pipeline whose sides are multiples of 16 up to 128; ``shift`` is a key of SHIFTS."""
    torch.manual_seed(0)
    tokenizer = gemma_tokenizer([SYSTEM])
    Lumina2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SHIFTS[shift]),
        vae=kl_vae((8, 8, 8, 8), 4, 0.1159, 0.3611, norm_num_groups=4, layers_per_block=1).eval(),
        text_encoder=gemma_text(tokenizer, WIDTH),
        tokenizer=tokenizer,
        transformer=_transformer().eval(),
    ).save_pretrained(folder)
    return folder


def _transformer() -> Any:
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=WIDTH,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(128, 8, 8),
        cap_feat_dim=WIDTH,
    )
    with torch.no_grad():
        for name, weight in transformer.named_parameters():
            if "norm" in name and weight.dim() == 1 and not name.endswith("bias"):  # else ones
                weight.copy_(1 + 0.3 * torch.randn(weight.shape))
    return transformer
