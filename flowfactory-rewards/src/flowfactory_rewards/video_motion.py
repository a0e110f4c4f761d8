"""How much moves in a video, by dense optical flow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from flowfactory import ComponentConfig, RunError, Samples, hookimpl
from flowfactory.rewards import to_pixels
from flowfactory_rewards.dependencies import missing_module, require
from flowfactory_rewards.frame_sampling import frame_indices
from flowfactory_rewards.prompt_checks import check_videos

if TYPE_CHECKING:
    from flowfactory import RunConfig


class VideoMotionConfig(ComponentConfig):
    """How fast a video moves: the mean length of optical flow, in frame diagonals a second, 0 for a still; higher is faster.

    The mean is over all pixels and all pairs of successive frames that are looked at. Flow is that of OpenCV's DIS
    (arXiv:1603.03590) between grey pictures. Where the model tells no frame rate, it is in diagonals a frame. It is what
    VBench's dynamic degree (arXiv:2311.17982) puts a threshold on, there by RAFT; flicker and noise count as motion too.
    """

    frames: int = Field(16, ge=2, le=10_000, description="of a video that are looked at, evenly spread")
    at_most: float | None = Field(
        None, gt=0, description="what faster videos score too, so that wild ones gain nothing; null for none"
    )

    def check(self, run: RunConfig) -> None:
        """What is drawn moves."""
        check_videos(run, self, "video-motion")

    def ignores_prompts(self) -> bool:
        return True

    def weight_bytes(self) -> dict[str, int]:
        return {}

    def lacking(self) -> str | None:
        return missing_module("video-motion", "cv2")

    def build(self, label: str) -> VideoMotion:
        require(self)
        return VideoMotion(label, self)


class VideoMotion:
    """Each video by itself, on the processor."""

    pointwise = True

    def __init__(self, label: str, config: VideoMotionConfig) -> None:
        self.label, self._config = label, config

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        """``{label: diagonals a second [B]}``. RunError: samples are pictures, or videos of one frame."""
        if samples.media.dim() == 4 or samples.media.shape[1] < 2:
            raise RunError("motion is between frames, and what was drawn has one; draw videos")
        looked_at = frame_indices(samples.media.shape[1], self._config.frames)
        rate = samples.frame_rate or 1.0
        clips = to_pixels(samples.media[:, looked_at])
        speeds = torch.tensor([measure_speed(clip, looked_at.tolist()) * rate for clip in clips])
        return {self.label: speeds.clamp(max=self._config.at_most) if self._config.at_most else speeds}


def measure_speed(clip: NDArray[np.uint8], places: list[int]) -> float:
    """Diagonals a frame that ``clip`` [F, H, W, C] moves; its frames stand at ``places`` of the whole video."""
    import cv2

    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) if frame.shape[2] == 3 else frame[..., 0] for frame in clip]
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    diagonal = float(np.hypot(*clip.shape[1:3]))
    steps = []
    for i in range(len(grey) - 1):
        moved: Any = flow.calc(grey[i], grey[i + 1], None)
        steps.append(float(np.hypot(moved[..., 0], moved[..., 1]).mean()) / diagonal / (places[i + 1] - places[i]))
    return sum(steps) / len(steps)
