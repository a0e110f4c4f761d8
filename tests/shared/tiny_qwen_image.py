"""Tiny random Qwen-Image and Qwen-Image-Edit checkpoints, built without a network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer, Qwen2VLImageProcessorPil

from flowfactory.testing.tiny_checkpoints import QWEN_SPECIALS, qwen_tokenizer

SHIFT = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 4, "max_image_seq_len": 64}
TERMINAL = {"shift_terminal": 0.02}
LATENTS = 4
WIDTH = 32


def qwen_image(folder: Path, terminal: bool = True) -> Path:
    """A QwenImagePipeline; its schedule ends above zero as the released one's does, or not."""
    torch.manual_seed(0)
    template = QwenImagePipeline(None, None, None, None, None).prompt_template_encode
    tokenizer = qwen_tokenizer(template_lines(template))
    QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SHIFT, **(TERMINAL if terminal else {})),
        vae=vae(),
        text_encoder=_text_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=_transformer(),
    ).save_pretrained(folder)
    return folder


def qwen_image_edit(folder: Path, clean_pictures: bool = False) -> Path:
    """A QwenImageEditPlusPipeline; ``clean_pictures``: given pictures are at sigma 0 to the transformer, as in 2511."""
    torch.manual_seed(0)
    template = QwenImageEditPlusPipeline(None, None, None, None, None, None).prompt_template_encode
    tokenizer = qwen_tokenizer([*template_lines(template), "Picture 1: 2: 3:"])
    QwenImageEditPlusPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SHIFT, **TERMINAL),
        vae=vae(),
        text_encoder=_text_encoder(tokenizer),
        tokenizer=tokenizer,
        processor=None,
        transformer=_transformer(zero_cond_t=clean_pictures),
    ).save_pretrained(folder)
    # by its files: without torchvision no Qwen2VLProcessor can be made that could save itself
    tokenizer.save_pretrained(folder / "processor")
    Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=112 * 112).save_pretrained(folder / "processor")
    index = json.loads((folder / "model_index.json").read_text())
    index["processor"] = ["transformers", "Qwen2VLProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def template_lines(template: str) -> list[str]:
    """What stands between special tokens, which a tokenizer sees apart."""
    return re.split("|".join(map(re.escape, (*QWEN_SPECIALS, "{}"))), template)


def vae() -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=LATENTS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.3, -0.2, 0.1, -0.4],
        latents_std=[1.3, 0.7, 2.1, 0.9],
    ).eval()


def _transformer(**options: Any) -> QwenImageTransformer2DModel:
    return QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=4 * LATENTS,
        out_channels=LATENTS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
        **options,
    ).eval()


def _text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    ids = {special: tokenizer.convert_tokens_to_ids(special) for special in QWEN_SPECIALS}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 37,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
        },
        vision_config={
            "depth": 2,
            "hidden_size": WIDTH,
            "intermediate_size": 37,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0],
            "window_size": 112,
            "patch_size": 14,
        },
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        vision_token_id=ids["<|vision_pad|>"],
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()
