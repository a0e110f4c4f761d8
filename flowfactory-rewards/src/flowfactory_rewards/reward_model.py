"""What rewards that are a pretrained model share: where its weights are, and how pictures and videos go through it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from flowfactory import CheckpointPath, ComponentConfig, Device, Samples, UserError, hookimpl
from flowfactory.models import check_file, check_files, reading
from flowfactory.rewards import load_shared, to_pixels
from flowfactory_rewards.frame_sampling import sample_frames
from flowfactory_rewards.weights import count_parameters, grey, refuse_one_answer

if TYPE_CHECKING:
    from flowfactory import RunConfig

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Scorer = Callable[[Tensor, Sequence[str]], Tensor]
"""Scores [n] of pictures [n, 3, H, W] in [0, 1] and their n prompts."""


class RewardModelConfig(ComponentConfig):
    """What every learned reward's options share."""

    free_to_change = ("device", "batch_size")

    path: CheckpointPath = Field(description="a folder or a hub id with the weights")
    device: Device = Field(
        "auto", examples=["auto", "cpu", "cuda", "cuda:1"], description="auto (the run's), cpu, cuda, cuda:1 …"
    )
    dtype: Literal["float32", "bf16", "fp16"] = Field("float32", description="what the model computes in")
    batch_size: int = Field(16, ge=1, le=100_000, description="pictures in one forward; does not change the scores")
    frames: int = Field(8, ge=1, le=10_000, description="of a video that are looked at, evenly spread; its score is their mean")

    def device_and_dtype(self, device: torch.device) -> tuple[torch.device, torch.dtype]:
        """Where and in what the model computes in a run on ``device``."""
        return device if self.device == "auto" else torch.device(self.device), DTYPES[self.dtype]

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The folders and hub ids of the models that it holds."""
        return (self.path,)

    @property
    def files(self) -> tuple[tuple[str, str | None], ...]:
        """Where weights are read from: a folder or hub id, and the file in it; None for a model as transformers saves it."""
        return tuple((path, None) for path in self.checkpoints)

    def check(self, run: RunConfig) -> None:
        """The files that are on this machine are whole."""
        try:
            for folder, file in ((Path(path), file) for path, file in self.files if Path(path).is_dir()):
                check_files(folder) if file is None else check_file(folder / file)
        except UserError as error:
            raise ValueError(str(error)) from error

    learned: ClassVar[bool] = True

    def weight_bytes(self) -> dict[str, int] | None:
        """As ComponentConfig.weights, where all of them are on this machine as safetensors."""
        size = DTYPES[self.dtype].itemsize
        found = {f"{path}, {self.dtype}": count_parameters(path) for path in self.checkpoints}
        known = {name: size * count for name, count in found.items() if count is not None}
        return known if len(known) == len(found) else None


class RewardModel:
    """Each picture by itself, through what ``load(*arguments, device, dtype)`` makes; it is made once for all labels.

    reads_prompts: whether its scores depend on the prompt, which is then proved as soon as the weights are read.
    """

    pointwise = True

    def __init__(
        self,
        label: str,
        config: RewardModelConfig,
        load: Callable[..., Scorer],
        *arguments: Hashable,
        reads_prompts: bool = True,
    ) -> None:
        self.label, self._config, self.reads_prompts = label, config, reads_prompts
        self._load, self._arguments = load, arguments
        self._scorer: Scorer | None = None

    @hookimpl
    def prepare_reward(self, device: torch.device) -> None:
        """Read the weights. UserError: they are not all there, score no picture, or different prompts get one score."""
        scorer = load_shared(self._load, *self._arguments, *self._config.device_and_dtype(device))
        with torch.inference_mode(), reading(self._config.path):
            if self.reads_prompts:
                refuse_one_answer(lambda prompt: scorer(grey(), [prompt]), self._config.path)
            else:
                scorer(grey(), [""])
        self._scorer = scorer

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        """``{label: scores [B]}``."""
        if self._scorer is None:
            self.prepare_reward(samples.media.device)
        assert self._scorer is not None
        clips = sample_frames(samples.media, self._config.frames)
        pictures = clips.flatten(0, 1)
        if pictures.shape[1] == 1:
            pictures = pictures.expand(-1, 3, -1, -1)
        prompts = [prompt for prompt in samples.prompts for _ in range(clips.shape[1])]
        size = self._config.batch_size
        with torch.inference_mode():
            scores = [self._scorer(pictures[i : i + size], prompts[i : i + size]) for i in range(0, len(pictures), size)]
        return {self.label: torch.cat(scores).float().reshape(len(clips), -1).mean(1)}


def to_pil(pictures: Tensor) -> list[Image.Image]:
    """The n pictures [n, 3, H, W] in [0, 1] as Pillow has them, with 256 levels: what released code reads from files."""
    return [Image.fromarray(picture) for picture in to_pixels(pictures)]
