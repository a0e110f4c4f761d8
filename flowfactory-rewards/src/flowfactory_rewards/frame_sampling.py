"""Which frames of a video are looked at."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def spread(media: Tensor, count: int) -> Tensor:
    """At most ``count`` frames [B, f, C, H, W], evenly spread, first and last among them; a picture [B, C, H, W] is one."""
    clips = media[:, None] if media.dim() == 4 else media
    wanted = min(count, clips.shape[1])
    return clips[:, torch.linspace(0, clips.shape[1] - 1, wanted).round().long()]


def pixels(media: Tensor) -> NDArray[np.uint8]:
    """uint8 [..., H, W, C] of media [..., C, H, W] in [0, 1], as they would be on disk."""
    found: NDArray[np.uint8] = (media.detach().float().clamp(0, 1) * 255).round().byte().movedim(-3, -1).cpu().numpy()
    return found
