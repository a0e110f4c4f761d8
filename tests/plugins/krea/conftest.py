"""Tiny Krea 2 checkpoints, opened by the plugin and by diffusers."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Krea2Pipeline
from families import open_bench
from tiny_krea import krea2
from tiny_qwen_image import LATENTS

from flowfactory.testing import Bench, Drawn, draw_with_pipeline
from flowfactory_krea.krea2 import Krea2Config

TEXT_LENGTH = 64


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``checkpoint(distilled)``, built once a session; a test that changes files copies the folder first."""

    @lru_cache
    def build(distilled: bool = False) -> Path:
        return krea2(tmp_path_factory.mktemp("checkpoint"), distilled)

    return build


@pytest.fixture(scope="session")
def options() -> Callable[..., Krea2Config]:
    """``options(folder, …)``: the model's, with short prompts and all weights unless told otherwise."""

    def make(folder: Path, **given: Any) -> Krea2Config:
        known = {"path": str(folder), "train": "full", "max_sequence_length": TEXT_LENGTH}
        return Krea2Config.model_validate(known | given)

    return make


@pytest.fixture(scope="session")
def bench_of(options: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bench]:
    """``bench_of(folder, prompts, size=…, steps=…, guidance=…, negative=…, …options)``; all share a cache."""
    shared = tmp_path_factory.mktemp("cache")

    def make(
        folder: Path,
        prompts: Any,
        size: tuple[int, int] = (32, 32),
        steps: int = 4,
        guidance: float = 0.0,
        negative: str = "",
        precision: torch.dtype = torch.float32,
        cache: Path = shared,
        **given: Any,
    ) -> Bench:
        return open_bench(options(folder, **given), cache, prompts, size, steps, guidance, negative, precision)

    return make


@pytest.fixture(scope="session")
def pipeline_of() -> Callable[[Path], Krea2Pipeline]:
    """``pipeline_of(folder)`` is the whole checkpoint as diffusers itself runs it."""

    def load(folder: Path) -> Krea2Pipeline:
        pipeline = Krea2Pipeline.from_pretrained(folder, dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return load


def pack(pipeline: Any, noise: torch.Tensor) -> torch.Tensor:
    """The noise as the pipeline takes it."""
    packed: torch.Tensor = pipeline._pack_latents(noise, *noise.shape)
    return packed


def unpack(pipeline: Any, latents: torch.Tensor, canvas: Any) -> torch.Tensor:
    """The pipeline's latents as ours."""
    unpacked: torch.Tensor = pipeline._unpack_latents(latents, canvas.height, canvas.width)
    return unpacked[:, :, 0]


@pytest.fixture(scope="session")
def drawn_by() -> Callable[..., Drawn]:
    """``drawn_by(pipeline, made, …)``: what diffusers draws of the plan of ``made`` from the same noise."""

    def draw(pipeline: Any, made: Bench, **given: Any) -> Drawn:
        height, width, _ = made.plan.canvas
        shape = (LATENTS, height // 8, width // 8)
        return draw_with_pipeline(pipeline, made, shape, pack, unpack, max_sequence_length=TEXT_LENGTH, **given)

    return draw
