"""Which frames of a video are looked at."""

from __future__ import annotations

import torch
from torch import Tensor


def frame_indices(total: int, count: int) -> Tensor:
    """Which of ``total`` frames are looked at: at most ``count``, evenly spread, first and last among them."""
    return torch.linspace(0, total - 1, min(count, total)).round().long()


def sample_frames(media: Tensor, count: int) -> Tensor:
    """At most ``count`` frames [B, f, C, H, W], evenly spread, first and last among them; a picture [B, C, H, W] is one."""
    clips = media[:, None] if media.dim() == 4 else media
    return clips[:, frame_indices(clips.shape[1], count)]
