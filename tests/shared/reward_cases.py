"""What tests of rewards judge, and what a picture is to a model, worked out by hand."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flowfactory import ComponentConfig, Samples, UserError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PROMPTS = ("a red circle", "a photo of a blue square", "cat")


def samples(media: Tensor, prompts: Sequence[str] = PROMPTS) -> Samples:
    return Samples(media, tuple(prompts), torch.zeros(len(prompts), dtype=torch.int64), ({},) * len(prompts))


def pictures(height: int = 32, width: int = 32, count: int = 3) -> Tensor:
    """[count, 3, height, width]: coarse noise, so that resizing leaves something of it."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").clamp(0, 1)


def to_pil_image(picture: Tensor) -> Image.Image:
    """A picture [3, H, W] as Pillow opens it."""
    return Image.fromarray(np.round(picture.numpy() * 255).astype(np.uint8).transpose(1, 2, 0))


def normalize_image(picture: Image.Image, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> Tensor:
    """[3, H, W], float64."""
    values = (np.asarray(picture, np.float64) / 255 - np.array(mean)) / np.array(std)
    return torch.from_numpy(values.transpose(2, 0, 1))


def resize_and_crop(picture: Image.Image, size: int) -> Image.Image:
    """Its shorter side resized to ``size``, and the middle of it."""
    width, height = (int(size * side / min(picture.size)) for side in picture.size)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return resized.crop((left, top, left + size, top + size))


def randomize_weights(model: Any, scale: float = 0.15, seed: int = 0) -> Any:
    """``model`` with weights so large that scores differ, in eval mode; the same at every call."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, weight in module.named_parameters(recurse=False):
                centre = float(name == "weight" and "norm" in type(module).__name__.lower())
                weight.copy_(torch.randn(weight.shape, generator=source) * scale + centre)
    return model.eval()


def refusal(config: ComponentConfig) -> str:
    """What preparing the reward is refused with, in one line."""
    reward: Any = config.build("mine")
    with pytest.raises(UserError) as caught:
        reward.prepare_reward(torch.device("cpu"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def find_alive(kind: type) -> list[Any]:
    """The objects of ``kind`` that anyone holds."""
    gc.collect()
    return [found for found in gc.get_objects() if isinstance(found, kind)]
