"""What FLUX.1 and FLUX.2 have in common: embedded guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from flowfactory.models import Parts, Pretrained


def embeds_guidance(checkpoint: Pretrained) -> bool:
    """Whether the transformer has a guidance embedding; so until its config is here."""
    return bool(checkpoint.config("transformer").get("guidance_embeds", True))


def never_guided(checkpoint: Pretrained) -> bool:
    """No classifier-free guidance."""
    return False


def embed_guidance(parts: Parts, latents: Tensor, guidance: float) -> Tensor | None:
    """The guidance of each sample [B], None for a transformer without an embedding of it."""
    if not parts.pipeline.transformer.config.guidance_embeds:
        return None
    return torch.full([len(latents)], guidance, device=latents.device)
