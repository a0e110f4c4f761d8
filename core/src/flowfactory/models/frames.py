"""Pictures as videos of one frame, by VAEs of diffusers that are made for videos."""

from __future__ import annotations

from torch import Tensor

from flowfactory.models.family import Parts
from flowfactory.models.latents import decode_normalized, encode_normalized
from flowfactory.models.pretrained import Pretrained
from flowfactory.models.resolution import Grid

PATCH = 2


def decode_frame(parts: Parts, latents: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] of latents [B, C, H, W]."""
    return decode_normalized(parts, latents[:, :, None])[:, :, 0]


def encode_frame(parts: Parts, media: Tensor) -> Tensor:
    """Latents [B, C, H, W] of pictures [B, 3, H, W] in [0, 1]: the other way round of :func:`decode_frame`."""
    return encode_normalized(parts, media[:, :, None])[:, :, 0]


def frame_grid(checkpoint: Pretrained) -> Grid:
    """Multiples of what two by two latents cover of a VAE that halves sides as often as ``temperal_downsample`` is long."""
    halvings = checkpoint.config("vae").get("temperal_downsample", [False, True, True])
    return Grid(PATCH * 2 ** len(halvings))
