"""Tiny random Z-Image checkpoints, built without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3Model

from flowfactory.testing.tiny_checkpoints import qwen_tokenizer, scaled_vae

WIDTH = 32
SHIFTS: dict[str, dict[str, Any]] = {
    "turbo": {"shift": 3.0},
    "base": {"shift": 6.0},
    "even": {"shift": 1.0},
    "dynamic": {
        "use_dynamic_shifting": True,
        "base_image_seq_len": 16,
        "max_image_seq_len": 144,
        "base_shift": 0.4,
        "max_shift": 1.3,
    },
}
# what Qwen3's own makes of one message; each of its words is one token
CHAT = """\
{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""


def z_image(folder: Path, shift: str = "turbo") -> Path:
    """A ZImagePipeline whose sides are multiples of 4 up to 64; ``shift`` is a key of SHIFTS."""
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer(["user assistant think"])
    tokenizer.chat_template = CHAT
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SHIFTS[shift]),
        vae=scaled_vae(shift=0.1159, scale=0.3611),
        text_encoder=_text(len(tokenizer)).eval(),
        tokenizer=tokenizer,
        transformer=_transformer().eval(),
    ).save_pretrained(folder)
    return folder


def _transformer() -> Any:
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=WIDTH,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[128, 16, 16],
    )
    with torch.no_grad():
        for name, weight in transformer.named_parameters():
            if "norm" in name or "pad_token" in name or name == "cap_embedder.0.weight":  # ones, and what is not initialised
                weight.copy_(1 + 0.3 * torch.randn(weight.shape))
    return transformer


def _text(vocabulary: int) -> Any:
    return Qwen3Model(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=37,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=512,
        )
    )
