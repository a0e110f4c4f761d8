"""Latents: their shape, and media of them by the VAEs of diffusers."""

from __future__ import annotations

import torch
from torch import Tensor

from flowfactory.canvas import Canvas
from flowfactory.errors import UserError
from flowfactory.models.checkpoint_files import AGAIN
from flowfactory.models.family import Parts


def latent_shape(parts: Parts, canvas: Canvas) -> tuple[int, ...]:
    """[C, H, W] of the latents of a transformer that takes them as they are."""
    scale = parts.pipeline.vae_scale_factor
    return (parts.pipeline.transformer.config.in_channels, canvas.height // scale, canvas.width // scale)


def packed_shape(parts: Parts, canvas: Canvas) -> tuple[int, ...]:
    """[C, H, W] of the latents, before two by two become the channels of a token."""
    channels, height, width = latent_shape(parts, canvas)
    return (channels // 4, height, width)


def decode_scaled(parts: Parts, latents: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] of a VAE with a scale and a shift for all channels. UserError: its config lacks one of them."""
    vae = parts.pipeline.vae
    for name in ("scaling_factor", "shift_factor"):
        if vae.config.get(name) is None:
            raise UserError(f"model.path: the config.json of the vae of {parts.options.path} has no {name}; {AGAIN}")
    latents = latents / vae.config.scaling_factor + vae.config.shift_factor
    pictures: Tensor = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    return pictures.float() / 2 + 0.5


def decode_normalized(parts: Parts, latents: Tensor) -> Tensor:
    """Videos [B, 3, F, H, W] of latents [B, C, F, H, W], by a VAE that normalises each channel."""
    vae = parts.pipeline.vae
    mean, std = channel_statistics(parts)
    videos: Tensor = vae.decode((latents.float() * std + mean).to(vae.dtype), return_dict=False)[0]
    return videos.float() / 2 + 0.5


def channel_statistics(parts: Parts) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of what the VAE encodes, [C, 1, 1, 1]."""
    config = parts.pipeline.vae.config
    mean, std = (torch.tensor(of, device=parts.device).view(-1, 1, 1, 1) for of in (config.latents_mean, config.latents_std))
    return mean, std
