"""Tiny random Chroma checkpoints, built without a network."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler
from tiny_flux import DYNAMIC, ROPE, WIDTH

from flowfactory.testing.tiny_checkpoints import scaled_vae, t5_text, t5_tokenizer

SHIFTS = {"static": {"shift": 3.0}, "dynamic": DYNAMIC}


def chroma(folder: Path, shift: str = "static") -> Path:
    """A ChromaPipeline whose sides are multiples of 4; ``shift`` is a key of SHIFTS."""
    torch.manual_seed(0)
    tokenizer = t5_tokenizer()
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=sum(ROPE),
        num_attention_heads=WIDTH // sum(ROPE),
        joint_attention_dim=WIDTH,
        axes_dims_rope=ROPE,
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=2,
    )
    ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SHIFTS[shift]),
        vae=scaled_vae(shift=0.1159, scale=0.3611),
        text_encoder=t5_text(len(tokenizer), WIDTH),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    ).save_pretrained(folder)
    return folder
