"""What rewards that are a pretrained model share: where its weights are, and how pictures and videos go through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from flowfactory import ComponentConfig, Samples, hookimpl
from flowfactory.config import CheckpointPath
from flowfactory.shared import shared
from flowfactory_rewards.frames import spread

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Scorer = Callable[[Tensor, Sequence[str]], Tensor]
"""Scores [n] of pictures [n, C, H, W] in [0, 1] and their n prompts."""


class LearnedConfig(ComponentConfig):
    """What every learned reward's options share."""

    path: CheckpointPath = Field(description="a folder or a hub id with the weights")
    device: str = Field("auto", description="auto (the run's), cpu, cuda, cuda:1 …")
    dtype: Literal["float32", "bf16", "fp16"] = Field("float32", description="what the model computes in")
    batch_size: int = Field(16, ge=1, description="pictures in one forward; does not change the scores")
    frames: int = Field(8, ge=1, description="of a video that are looked at, evenly spread; its score is their mean")


class Learned:
    """Each picture by itself, through what ``load(*arguments, device, dtype)`` makes; it is made once for all labels."""

    def __init__(self, label: str, config: LearnedConfig, load: Callable[..., Scorer], *arguments: str) -> None:
        self.label, self._config = label, config
        self._load, self._arguments = load, arguments
        self._scorer: Scorer | None = None

    @hookimpl
    def prepare_reward(self, device: torch.device) -> None:
        """Read the weights."""
        chosen = device if self._config.device == "auto" else torch.device(self._config.device)
        self._scorer = shared(self._load, *self._arguments, chosen, DTYPES[self._config.dtype])

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        """``{label: scores [B]}``."""
        if self._scorer is None:
            self.prepare_reward(samples.media.device)
        assert self._scorer is not None
        clips = spread(samples.media, self._config.frames)
        pictures = clips.flatten(0, 1)
        prompts = [prompt for prompt in samples.prompts for _ in range(clips.shape[1])]
        size = self._config.batch_size
        with torch.inference_mode():
            scores = [self._scorer(pictures[i : i + size], prompts[i : i + size]) for i in range(0, len(pictures), size)]
        return {self.label: torch.cat(scores).float().reshape(len(clips), -1).mean(1)}
