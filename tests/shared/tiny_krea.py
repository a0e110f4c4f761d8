"""Tiny random Krea 2 checkpoints, built without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel
from tiny_qwen_image import LATENTS, SHIFT, template_lines, vae
from transformers import Qwen3VLConfig, Qwen3VLModel

from flowfactory.testing.tiny_checkpoints import QWEN_SPECIALS, qwen_tokenizer

WIDTH = 32
LAYERS = (1, 2, 3)


def krea2(folder: Path, distilled: bool = False) -> Path:
    """A Krea2Pipeline; ``distilled``: its shift is the same for each size."""
    torch.manual_seed(0)
    empty = Krea2Pipeline(None, None, None, None, None)
    tokenizer = qwen_tokenizer(template_lines(empty.prompt_template_encode_prefix + empty.prompt_template_encode_suffix))
    Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SHIFT),
        vae=vae(),
        text_encoder=qwen3_vl(tokenizer),
        tokenizer=tokenizer,
        transformer=_transformer(),
        text_encoder_select_layers=LAYERS,
        is_distilled=distilled,
    ).save_pretrained(folder)
    return folder


def _transformer() -> Any:
    transformer = Krea2Transformer2DModel(
        in_channels=4 * LATENTS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=37,
        timestep_embed_dim=16,
        text_hidden_dim=WIDTH,
        num_text_layers=len(LAYERS),
        text_num_attention_heads=4,
        text_num_key_value_heads=2,
        text_intermediate_size=37,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    ).eval()
    with torch.no_grad():
        for name, weight in transformer.named_parameters():
            if "norm" in name or "table" in name:  # zeros
                weight.copy_(0.3 * torch.randn(weight.shape))
    return transformer


def qwen3_vl(tokenizer: Any, model: Any = Qwen3VLModel, layers: int = 3) -> Any:
    """A Qwen3-VL of the class ``model``, in eval mode."""
    ids = {special: tokenizer.convert_tokens_to_ids(special) for special in QWEN_SPECIALS}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 37,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": WIDTH,
            "intermediate_size": 37,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
    )
    return model(config).eval()
