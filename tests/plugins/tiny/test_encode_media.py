"""Latents of pictures by the tiny model, whose VAE is an AutoencoderTiny that was pretrained on scenes."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from flowfactory import Runtime
from flowfactory.hooks.calls import Hooks
from flowfactory.hooks.manager import make_manager
from flowfactory.testing import check_encode_media
from flowfactory.testing.pipeline_parity import relative_difference
from flowfactory_tiny import FOLDER
from flowfactory_tiny.pretrain import encode_pictures
from flowfactory_tiny.scenes import render, sample_scene
from flowfactory_tiny.tiny import TinyConfig

CONFIG = TinyConfig(train="full")
SCENES = [sample_scene(random.Random(seed)) for seed in range(6)]


@pytest.fixture(scope="module")
def pipeline() -> Any:
    absent = {"text_encoder_3": None, "tokenizer_3": None}
    return StableDiffusion3Pipeline.from_pretrained(FOLDER / "pipeline", **absent)


@pytest.fixture(scope="module")
def model() -> Any:
    loaded = CONFIG.build("model")
    loaded.load(Runtime(torch.device("cpu"), torch.float32))
    return loaded


@pytest.fixture(scope="module")
def latents(model: Any) -> Tensor:
    """Of the pictures of SCENES, by the hook."""
    return Hooks(make_manager({"model": model})).encode_media(render(SCENES, 32))


def test_latents_are_those_that_the_transformer_was_pretrained_on(pipeline: Any, latents: Tensor) -> None:
    assert relative_difference(latents, encode_pictures(pipeline.vae, SCENES)) < 1e-5
    assert abs(float(latents.mean())) < 0.5
    assert 0.5 < float(latents.std()) < 1.5


def test_scenes_are_redrawn_of_their_latents(model: Any, latents: Tensor) -> None:
    with torch.no_grad():
        redrawn = model.decode(latents)
    assert float((redrawn - render(SCENES, 32)).abs().mean()) < 0.03


def test_the_vae_sees_pictures_from_zero_to_one(pipeline: Any) -> None:
    seen: list[Tensor] = []
    handle = pipeline.vae.encoder.layers.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    media, _ = check_encode_media(CONFIG, (32, 32), pipeline=pipeline)
    handle.remove()
    torch.testing.assert_close(seen[0], media, rtol=0, atol=1e-6)  # its encoder takes [-1, 1], and gives its layers this
