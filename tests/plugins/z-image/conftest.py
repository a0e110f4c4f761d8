"""Tiny Z-Image checkpoints, opened by the plugin and by diffusers."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImagePipeline
from families import open_bench
from tiny_z_image import z_image

from flowfactory.testing import Bench, Drawn, draw_with_pipeline
from flowfactory_z_image.z_image import ZImageConfig

TEXT_LENGTH = 64


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``checkpoint(shift)``, built once a session; a test that changes files copies the folder first."""

    @lru_cache
    def build(shift: str = "turbo") -> Path:
        return z_image(tmp_path_factory.mktemp("checkpoint"), shift)

    return build


@pytest.fixture(scope="session")
def options() -> Callable[..., ZImageConfig]:
    """``options(folder, …)``: the model's, with short prompts and all weights unless told otherwise."""

    def make(folder: Path, **given: Any) -> ZImageConfig:
        known = {"path": str(folder), "train": "full", "max_sequence_length": TEXT_LENGTH}
        return ZImageConfig.model_validate(known | given)

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
def pipeline_of() -> Callable[[Path], ZImagePipeline]:
    """``pipeline_of(folder)`` is the whole checkpoint as diffusers itself runs it."""

    def load(folder: Path) -> ZImagePipeline:
        pipeline = ZImagePipeline.from_pretrained(folder, dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return load


@pytest.fixture(scope="session")
def drawn_by() -> Callable[..., Drawn]:
    """``drawn_by(pipeline, made, …)``: what diffusers draws of the plan of ``made`` from the same noise."""

    def draw(pipeline: Any, made: Bench, **given: Any) -> Drawn:
        height, width, _ = made.plan.canvas
        return draw_with_pipeline(pipeline, made, (4, height // 2, width // 2), max_sequence_length=TEXT_LENGTH, **given)

    return draw
