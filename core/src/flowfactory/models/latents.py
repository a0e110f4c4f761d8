"""Latents: their shape, and media of them by the VAEs of diffusers."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from flowfactory.canvas import Canvas
from flowfactory.errors import UserError
from flowfactory.models.checkpoint_files import AGAIN
from flowfactory.models.family import Parts
from flowfactory.models.pretrained import Pretrained
from flowfactory.models.resolution import Grid


def latent_shape(parts: Parts, canvas: Canvas) -> tuple[int, ...]:
    """[C, H, W] of the latents of a transformer that takes them as they are."""
    scale = parts.pipeline.vae_scale_factor
    return (parts.pipeline.transformer.config.in_channels, canvas.height // scale, canvas.width // scale)


def packed_shape(parts: Parts, canvas: Canvas) -> tuple[int, ...]:
    """[C, H, W] of the latents, before two by two become the channels of a token."""
    channels, height, width = latent_shape(parts, canvas)
    return (channels // 4, height, width)


def packed_grid(checkpoint: Pretrained) -> Grid:
    """Multiples of what a token covers, which is two by two latents."""
    channels = checkpoint.config("vae").get("block_out_channels")
    return Grid(2 ** len(channels) if channels else 16)


def pack_latents(latents: Tensor) -> Tensor:
    """Tokens [B, H W / 4, 4 C] of latents [B, C, H, W], in the order of FLUX's ``_pack_latents``."""
    return torch.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack_latents(tokens: Tensor, height: int, width: int) -> Tensor:
    """Latents [B, C, height, width]: the other way round of :func:`pack_latents`."""
    return torch.pixel_shuffle(tokens.transpose(1, 2).reshape(len(tokens), -1, height // 2, width // 2), 2)


def packed_positions(parts: Parts, fields: Sequence[Tensor]) -> Tensor:
    """[tokens, 3] of packed latents [B, C, H, W]: their place among ``fields``, 0 for what is drawn; then row and column."""
    device, sizes = fields[0].device, tuple((field.shape[-2] // 2, field.shape[-1] // 2) for field in fields)

    def make() -> Tensor:
        ranges = ((torch.tensor([place]), torch.arange(h), torch.arange(w)) for place, (h, w) in enumerate(sizes))
        return torch.cat([torch.cartesian_prod(*axes) for axes in ranges]).float().to(device)

    return parts.once(("positions of packed latents", sizes, device), make)


def decode_scaled(parts: Parts, latents: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] of a VAE with a scale and, where its class has one, a shift for all channels.

    UserError: its config lacks one of them that its class has; or the class has no scale.
    """
    vae = parts.pipeline.vae
    latents = latents / _factor(parts, "scaling_factor")
    if "shift_factor" in _settings(vae):
        latents = latents + _factor(parts, "shift_factor")
    pictures: Tensor = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    return pictures.float() / 2 + 0.5


def encode_scaled(parts: Parts, media: Tensor) -> Tensor:
    """Latents of pictures [B, 3, H, W] in [0, 1]: the other way round of :func:`decode_scaled`. UserError: as there."""
    latents = posterior_mean(parts, media)
    if "shift_factor" in _settings(parts.pipeline.vae):
        latents = latents - _factor(parts, "shift_factor")
    return latents * _factor(parts, "scaling_factor")


def posterior_mean(parts: Parts, media: Tensor) -> Tensor:
    """The mean [B, ...] of what the VAE takes the latents of ``media`` [B, ...] in [0, 1] to be, in float32."""
    vae = parts.pipeline.vae
    encoded = vae.encode((media.float() * 2 - 1).to(vae.dtype), return_dict=False)[0]
    mean: Tensor = encoded if isinstance(encoded, Tensor) else encoded.mean
    return mean.float()


def _settings(vae: Any) -> Collection[str]:
    """The names of all that the config of a VAE of its class may say."""
    return inspect.signature(type(vae).__init__).parameters


def _factor(parts: Parts, name: str) -> float:
    vae = parts.pipeline.vae
    if name not in _settings(vae):
        told = f"decode_scaled does not fit {type(vae).__name__}, which has no {name}"
        raise UserError(f"model: {told}; let the family's decode be another, such as decode_normalized")
    found: float | None = vae.config.get(name)
    if found is None:
        raise UserError(f"model.path: the config.json of the vae of {parts.options.path} has no {name}; {AGAIN}")
    return found


def decode_normalized(parts: Parts, latents: Tensor) -> Tensor:
    """Videos [B, 3, F, H, W] of latents [B, C, F, H, W], by a VAE that normalises each channel."""
    vae = parts.pipeline.vae
    mean, std = channel_statistics(parts)
    videos: Tensor = vae.decode((latents.float() * std + mean).to(vae.dtype), return_dict=False)[0]
    return videos.float() / 2 + 0.5


def encode_normalized(parts: Parts, media: Tensor) -> Tensor:
    """Latents [B, C, F, H, W] of videos [B, 3, F, H, W] in [0, 1]: the other way round of :func:`decode_normalized`."""
    mean, std = channel_statistics(parts)
    return (posterior_mean(parts, media) - mean) / std


def channel_statistics(parts: Parts) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of what the VAE encodes, [C, 1, 1, 1]."""
    config = parts.pipeline.vae.config
    mean, std = (torch.tensor(of, device=parts.device).view(-1, 1, 1, 1) for of in (config.latents_mean, config.latents_std))
    return mean, std
