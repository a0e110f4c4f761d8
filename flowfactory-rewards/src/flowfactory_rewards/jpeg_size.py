"""Compressibility, the classical test reward of DDPO (arXiv:2305.13301)."""

from __future__ import annotations

from io import BytesIO
from typing import Literal

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from flowfactory import ComponentConfig, Samples, hookimpl
from flowfactory.rewards import to_pixels
from flowfactory_rewards.frame_sampling import sample_frames


class JpegSizeConfig(ComponentConfig):
    """The size of the picture as a JPEG file, in kilobytes (of 1000 bytes); of a video, the mean over frames."""

    known_as = ("jpeg", "compressibility", "jpeg-compressibility", "jpeg-incompressibility")

    prefer: Literal["small", "large"] = Field("small", description="small: the score is minus the size; large: the size")
    quality: int = Field(95, ge=1, le=100, description="of the JPEG, as Pillow counts it")
    frames: int = Field(8, ge=1, le=10_000, description="of a video that are looked at, evenly spread")

    def ignores_prompts(self) -> bool:
        return True

    def weight_bytes(self) -> dict[str, int]:
        return {}

    def build(self, label: str) -> JpegSize:
        return JpegSize(label, self)


class JpegSize:
    """Each picture by itself."""

    pointwise = True

    def __init__(self, label: str, config: JpegSizeConfig) -> None:
        self.label, self._config = label, config
        self._sign = -1.0 if config.prefer == "small" else 1.0

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        """``{label: plus or minus kilobytes [B]}``."""
        clips = to_pixels(sample_frames(samples.media, self._config.frames))
        sizes = [sum(self._kilobytes(Image.fromarray(frame)) for frame in clip) / len(clip) for clip in clips]
        return {self.label: self._sign * torch.tensor(sizes)}

    def _kilobytes(self, picture: Image.Image) -> float:
        file = BytesIO()
        picture.save(file, format="JPEG", quality=self._config.quality)
        return len(file.getvalue()) / 1000
