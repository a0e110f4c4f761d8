"""A reward that looks at whole groups and leaves behind what it saw, and one to watch beside it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from flowfactory import ComponentConfig, Samples, hookimpl


class RecorderConfig(ComponentConfig):
    """The place of each sample's brightness among those of its group."""

    folder: str = Field("", description="where the media go, by the time they were seen")

    def build(self, label: str) -> Recorder:
        return Recorder(label, self.folder)


class Recorder:
    def __init__(self, label: str, folder: str) -> None:
        self.label, self.folder = label, folder
        self.calls = 0

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        light = samples.media.flatten(1).mean(1)
        scores = torch.zeros(len(light))
        for group in samples.groups.unique():
            rows = samples.groups == group
            scores[rows] = light[rows].argsort().argsort().float() + 10 * light[rows]
        if self.folder:
            seen = Path(self.folder)
            seen.mkdir(parents=True, exist_ok=True)
            torch.save((samples.prompts, samples.media, scores), seen / f"{os.getpid()}-{self.calls:04d}.pt")
            self.calls += 1
        return {self.label: scores}


class ContrastConfig(ComponentConfig):
    """How far each sample's numbers spread."""

    def build(self, label: str) -> Contrast:
        return Contrast(label)


class Contrast:
    def __init__(self, label: str) -> None:
        self.label = label

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        return {self.label: samples.media.flatten(1).std(1)}


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    register("reward", "recorder", RecorderConfig)
    register("reward", "contrast", ContrastConfig)
