"""What FLUX.1 and FLUX.2 have in common: the grid and embedded guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from flowfactory.models import Grid, Parts, Pretrained


def grid(checkpoint: Pretrained) -> Grid:
    """Multiples of what a token covers, which is two by two latents."""
    channels = checkpoint.config("vae").get("block_out_channels")
    return Grid(2 ** len(channels) if channels else 16)


def embeds_guidance(checkpoint: Pretrained) -> bool:
    """Whether the transformer has a guidance embedding; so until its config is here."""
    return bool(checkpoint.config("transformer").get("guidance_embeds", True))


def never_guided(parts: Parts) -> bool:
    """No classifier-free guidance."""
    return False


def embed_guidance(parts: Parts, latents: Tensor, guidance: float) -> Tensor | None:
    """The guidance of each sample [B], None for a transformer without an embedding of it."""
    if not parts.pipeline.transformer.config.guidance_embeds:
        return None
    return torch.full([len(latents)], guidance, device=latents.device)


def position_ids(parts: Parts, field: Tensor, place: int) -> Tensor:
    """[tokens, 3] of latents [B, C, H, W]: ``place``, 0 for what is drawn and 1 for the picture, then row and column."""
    _, _, height, width = field.shape
    ids: Tensor = parts.pipeline._prepare_latent_image_ids(0, height // 2, width // 2, field.device, torch.float32)
    ids[:, 0] = place
    return ids
