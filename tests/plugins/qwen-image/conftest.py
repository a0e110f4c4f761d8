"""Tiny Qwen-Image checkpoints, pictures, and the same things drawn by the plugin and by diffusers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageEditPlusPipeline, QwenImagePipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
from families import open_bench
from PIL import Image
from tiny_qwen_image import LATENTS, qwen_image, qwen_image_edit
from torch import Tensor

from flowfactory import Canvas, Prompt, Trajectory
from flowfactory.testing import Bench, Drawn, draw_with_pipeline
from flowfactory_qwen_image.picture_processor import PictureProcessor
from flowfactory_qwen_image.qwen_image import QwenImageConfig
from flowfactory_qwen_image.qwen_image_edit import QwenImageEditConfig

AREAS = {"vae_area": 64 * 32, "condition_area": 64 * 64}
TEXTS = ("a photo of a red circle", "blue cat, 3 times", "")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The encode-once cache of the test, empty at first."""
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def _areas(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' own pipeline makes pictures as small as the tests do."""
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", AREAS["vae_area"])
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "CONDITION_IMAGE_SIZE", AREAS["condition_area"])


Checkpoint = Callable[[str], Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """``checkpoint(kind)`` is a folder: "image", "image-lightning" without shift_terminal, "edit-2509" or "edit-2511"."""
    build: dict[str, Callable[[Path], Path]] = {
        "image": qwen_image,
        "image-lightning": lambda folder: qwen_image(folder, terminal=False),
        "edit-2509": qwen_image_edit,
        "edit-2511": lambda folder: qwen_image_edit(folder, clean_pictures=True),
    }
    return lru_cache(lambda kind: build[kind](tmp_path_factory.mktemp(kind)))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of pictures by what they look like."""
    folder = tmp_path_factory.mktemp("pictures")
    sizes = {"square": (40, 40), "other": (40, 40), "wide": (64, 30), "tall": (20, 50)}
    for i, (name, size) in enumerate(sizes.items()):
        pixels = torch.randint(0, 256, (6, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        Image.fromarray(pixels.numpy()).resize(size, Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in sizes}


@pytest.fixture(scope="session")
def config(checkpoint: Checkpoint) -> Callable[..., Any]:
    """``config(kind, …)`` is the plugin's, on the checkpoint of that kind or on ``path``."""

    def build(kind: str, train: Any = "full", path: Path | None = None) -> Any:
        options = {"path": str(path or checkpoint(kind)), "train": train}
        if kind.startswith("image"):
            return QwenImageConfig.model_validate(options)
        return QwenImageEditConfig.model_validate(options | AREAS)

    return build


@pytest.fixture(scope="session")
def diffusers_pipeline() -> Callable[[Path], Any]:
    """``diffusers_pipeline(folder)`` is the whole checkpoint as diffusers itself runs it."""

    def load(folder: Path) -> Any:
        pipeline: Any
        if (folder / "processor").exists():
            # diffusers cannot open this part without torchvision
            processor = PictureProcessor.from_pretrained(folder, subfolder="processor")
            pipeline = QwenImageEditPlusPipeline.from_pretrained(folder, processor=processor)
        else:
            pipeline = QwenImagePipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return load


def theirs(pipeline: Any, made: Bench) -> Drawn:
    """What the pipeline makes of the plan of ``made``, a sample at a time where it takes one."""
    height, width, _ = made.plan.canvas

    def pack(pipeline: Any, noise: Tensor) -> Any:
        return pipeline._pack_latents(noise, *noise.shape)

    def unpack(pipeline: Any, latents: Tensor, canvas: Canvas) -> Any:
        return pipeline._unpack_latents(latents, canvas.height, canvas.width, 8)[:, :, 0]

    return draw_with_pipeline(pipeline, made, (LATENTS, height // 8, width // 8), pack, unpack, "true_cfg_scale")


Both = Callable[..., tuple[Trajectory, Drawn]]


@pytest.fixture(scope="module")
def both(config: Any, diffusers_pipeline: Any, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """``both(kind, prompts, …)``: what the plugin draws of the prompts, and what the pipeline does from the same noise."""
    cached = tmp_path_factory.mktemp("cache")
    pipeline = lru_cache(diffusers_pipeline)

    def draw(
        kind: str,
        prompts: Sequence[str | Prompt] = TEXTS,
        size: tuple[int, int] = (32, 32),
        steps: int = 3,
        guidance: float = 1.0,
        negative: str = "",
    ) -> tuple[Trajectory, Drawn]:
        made = open_bench(config(kind), cached, prompts, size, steps, guidance, negative)
        return made.draw(len(prompts)), theirs(pipeline(checkpoint(kind)), made)

    return draw


@pytest.fixture(scope="session")
def their_picture() -> Callable[..., Drawn]:
    """``their_picture(pipeline, made)``: what the pipeline draws where ``made`` does."""
    return theirs
