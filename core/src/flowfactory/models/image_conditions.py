"""The pictures that a prompt brings, as entries of its conditions."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count, takewhile

from torch import Tensor

from flowfactory.types import (
    Conditions,
)


def number_images(pictures: Iterable[Tensor]) -> dict[str, Tensor]:
    """The latents of a prompt's pictures as entries of its conditions, in order."""
    return {f"image_{place}": latents for place, latents in enumerate(pictures)}


def stack_images(conditions: Conditions) -> list[Tensor]:
    """The latents [B, C, H, W] of each picture that the prompts bring, in order: what :func:`number_images` put there."""
    names = takewhile(lambda name: name in conditions.entries[0], (f"image_{place}" for place in count()))
    return [conditions.stack(name) for name in names]
