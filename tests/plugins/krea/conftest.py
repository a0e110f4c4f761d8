"""Tiny Krea 2 checkpoints, opened by the plugin and by diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from text_to_image import TextToImage
from tiny_krea import krea2

from flowfactory_krea.krea2 import Krea2Config

LENGTH = {"max_sequence_length": 64}


def build(folder: Path, kind: str) -> Path:
    return krea2(folder, kind == "turbo")


def pack(pipeline: Any, noise: torch.Tensor) -> torch.Tensor:
    """The noise as the pipeline takes it."""
    packed: torch.Tensor = pipeline._pack_latents(noise, *noise.shape)
    return packed


def unpack(pipeline: Any, latents: torch.Tensor, canvas: Any) -> torch.Tensor:
    """The pipeline's latents as ours."""
    unpacked: torch.Tensor = pipeline._unpack_latents(latents, canvas.height, canvas.width)
    return unpacked[:, :, 0]


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> TextToImage:
    folder = tmp_path_factory.mktemp("krea")
    return TextToImage(Krea2Config, build, folder, "raw", LENGTH, LENGTH, pack=pack, unpack=unpack)
