"""A CLIP, a SigLIP and what else is aligned so, so small that a test makes them in no time."""

from __future__ import annotations

from pathlib import Path

import torch
from reward_cases import normalize_image, randomize_weights, resize_and_crop, to_pil_image
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from flowfactory.testing.tiny_checkpoints import clip_tokenizer

SIZE = 16
LENGTH = 12


def clip_folder(folder: Path, seed: int = 4) -> Path:
    """A CLIPModel with its tokenizer and its picture processor; the logarithm of its scale is 1.5."""
    tokenizer = clip_tokenizer(LENGTH)
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": LENGTH,
            "eos_token_id": len(tokenizer) - 1,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIZE,
            "patch_size": 8,
        },
        projection_dim=24,
    )
    model = randomize_weights(CLIPModel(config), seed=seed)
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=SIZE).save_pretrained(folder)
    return folder


def embeddings(folder: Path, pictures: Tensor, prompts: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Of pictures [n, 3, H, W] and prompts, each by itself and unpadded: [n, 24] of length 1, float64."""
    model = CLIPModel.from_pretrained(folder).double()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    seen = torch.stack([normalize_image(resize_and_crop(to_pil_image(picture), SIZE)) for picture in pictures])
    told = []
    with torch.no_grad():
        looked = model.vision_model(pixel_values=seen).last_hidden_state[:, 0]
        looked = model.vision_model.post_layernorm(looked) @ model.visual_projection.weight.T
        for prompt in prompts:
            ids = torch.tensor([tokenizer(prompt).input_ids[: LENGTH - 1]])
            ids[0, -1] = tokenizer.eos_token_id
            read = model.text_model(input_ids=ids).last_hidden_state[0, -1]
            told.append(read @ model.text_projection.weight.T)
    return functional.normalize(looked, dim=1), functional.normalize(torch.stack(told), dim=1)
