"""Tiny Chroma checkpoints, opened by the plugin and by diffusers."""

from __future__ import annotations

from typing import Any

import pytest
from text_to_image import TextToImage
from tiny_chroma import chroma
from torch import Tensor

from flowfactory import Canvas
from flowfactory_chroma.chroma import ChromaConfig

LENGTH = {"max_sequence_length": 24}


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> TextToImage:
    def pack(pipeline: Any, noise: Tensor) -> Any:
        return pipeline._pack_latents(noise, *noise.shape)

    def unpack(pipeline: Any, latents: Tensor, canvas: Canvas) -> Any:
        return pipeline._unpack_latents(latents, canvas.height, canvas.width, pipeline.vae_scale_factor)

    folder = tmp_path_factory.mktemp("chroma")
    return TextToImage(ChromaConfig, chroma, folder, "static", LENGTH, LENGTH, pack=pack, unpack=unpack)
