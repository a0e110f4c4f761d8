"""The checkpoints, built once a session, the media of the prompts, and models that are opened once and never trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import pytest
import tiny_wan
from families import open_bench
from wan_pipelines import CONFIGS, open_pipeline

from flowfactory import Canvas, Prompt
from flowfactory.data.batches import make_batch
from flowfactory.testing import Bench


class Checkpoint(Protocol):
    """The folder of a tiny checkpoint; a test that changes files copies it first."""

    def __call__(self, task: str, kind: str = "2.1") -> Path: ...


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """``checkpoint(task, kind)``: task is t2v, i2v, flf2v or v2v; kind is 2.1, a14b or 5b."""

    @cache
    def build(task: str, kind: str = "2.1") -> Path:
        folder = tmp_path_factory.mktemp("checkpoint")
        if task == "v2v":
            return tiny_wan.video_to_video(folder)
        made = {"t2v": tiny_wan.text_to_video, "i2v": tiny_wan.image_to_video, "flf2v": tiny_wan.frames_to_video}
        return made[task](folder, kind)

    return build


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures of several sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    return [tiny_wan.picture(folder / f"{seed}", seed, size) for seed, size in enumerate([(20, 28), (40, 24), (20, 28)])]


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Videos of several sizes and lengths."""
    folder = tmp_path_factory.mktemp("videos")
    made = [(9, (24, 32)), (14, (32, 20)), (9, (24, 32))]
    return [tiny_wan.video(folder / f"{seed}", seed, *what) for seed, what in enumerate(made)]


@pytest.fixture(scope="session")
def prompts(pictures: list[Path], videos: list[Path]) -> Callable[[str], list[Prompt]]:
    """``prompts(task)``: three of different lengths, with the media that the task takes."""
    texts = ("a photo of a red circle", "blue cat, 3 times", "")

    def write(task: str) -> list[Prompt]:
        told = [Prompt(text, index) for index, text in enumerate(texts)]
        if task == "i2v":
            return [replace(prompt, images=(path,)) for prompt, path in zip(told, pictures, strict=True)]
        if task == "flf2v":
            both = zip(told, pictures, (*pictures[1:], pictures[0]), strict=True)
            return [replace(prompt, images=(first, last)) for prompt, first, last in both]
        if task == "v2v":
            return [replace(prompt, video=path) for prompt, path in zip(told, videos, strict=True)]
        return told

    return write


@pytest.fixture(scope="session")
def conditions_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encode-once cache of all tests that do not look at encoding."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def model(checkpoint: Checkpoint, conditions_folder: Path) -> Callable[..., Bench]:
    """``model(task, kind, prompts, size, steps, guidance, **options)``, of weights that no test may change."""

    @cache
    def load(task: str, path: Path, options: tuple[tuple[str, Any], ...]) -> Bench:
        config = CONFIGS[task].model_validate({"path": str(path), "train": "full", **dict(options)})
        return open_bench(config, conditions_folder, [], (32, 32, 5))

    def plan(
        task: str,
        kind: str,
        prompts: Sequence[Prompt],
        size: tuple[int, int, int],
        steps: int = 3,
        guidance: float = 1.0,
        path: Path | None = None,
        **options: Any,
    ) -> Bench:
        made = load(task, path or checkpoint(task, kind), tuple(options.items()))
        batch = make_batch(prompts, 1)
        plan = replace(made.plan, canvas=Canvas(*size), steps=steps, guidance=guidance, keys=batch.keys)
        conditions = made.sampler.conditions(prompts, guidance, plan.canvas)
        return replace(made, batch=batch, plan=plan, conditions=conditions)

    return plan


@pytest.fixture(scope="session")
def pipeline(checkpoint: Checkpoint) -> Callable[..., Any]:
    """``pipeline(task, kind)`` as diffusers itself runs it, but for the solver."""

    @cache
    def load(task: str, kind: str = "2.1", path: Path | None = None) -> Any:
        return open_pipeline(task, path or checkpoint(task, kind))

    return load
