"""Tiny random Qwen-Image-2.1 checkpoints, built without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from tiny_krea import WIDTH, qwen3_vl
from tiny_qwen_image import SHIFT, TERMINAL, template_lines
from transformers import Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

from flowfactory.testing.tiny_checkpoints import qwen_tokenizer
from flowfactory_qwen_image.qwen_image_21 import AbsentProcessor

LATENTS = 6
# what Qwen3-VL's own makes of one message of text
CHAT = """\
{% for message in messages %}<|im_start|>{{ message['role'] }}
{% for piece in message['content'] %}{{ piece['text'] }}{% endfor %}<|im_end|>
{% endfor %}"""


def qwen_image_21(folder: Path, terminal: bool = True, sample_sigmas: list[float] | None = None) -> Path:
    """A QwenImage21Pipeline; its schedule ends above zero, or not. ``sample_sigmas``: those that its author chose."""
    torch.manual_seed(0)
    templates = QwenImage21Pipeline(None, None, None, AbsentProcessor(), None)
    lines = [*template_lines(templates.prompt_template_t2i), "<image 1> 2> 3>"]
    tokenizer = qwen_tokenizer(lines)
    QwenImage21Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SHIFT, **(TERMINAL if terminal else {})),
        vae=_vae(),
        text_encoder=qwen3_vl(tokenizer, Qwen3VLForConditionalGeneration),
        processor=AbsentProcessor(),
        transformer=_transformer(),
        sample_sigmas=sample_sigmas,
    ).save_pretrained(folder)
    # by its files: without torchvision no Qwen3VLProcessor can be made that could save itself
    tokenizer.save_pretrained(folder / "processor")
    sizes: dict[str, Any] = {"patch_size": 16, "min_pixels": 32 * 32, "max_pixels": 128 * 128}
    Qwen2VLImageProcessorPil(**sizes).save_pretrained(folder / "processor")
    (folder / "processor" / "chat_template.jinja").write_text(CHAT)
    index = json.loads((folder / "model_index.json").read_text())
    index["processor"] = ["transformers", "Qwen3VLProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _vae() -> AutoencoderKLQwenImage21:
    return AutoencoderKLQwenImage21(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=LATENTS,
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.3, -0.2, 0.1, -0.4, 0.2, 0.0],
        latents_std=[1.3, 0.7, 2.1, 0.9, 1.0, 1.4],
    ).eval()


def _transformer() -> QwenImage21Transformer2DModel:
    transformer = QwenImage21Transformer2DModel(
        in_channels=LATENTS,
        out_channels=LATENTS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    ).eval()
    with torch.no_grad():
        for name, weight in transformer.named_parameters():
            if "norm" in name and weight.dim() == 1:  # zeros and ones
                weight.add_(0.3 * torch.randn(weight.shape))
    return transformer
