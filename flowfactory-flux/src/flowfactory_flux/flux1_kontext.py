"""FLUX.1 Kontext (arXiv:2506.15742) over the parts of a FluxKontextPipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from flowfactory import Canvas, Prompt, Takes, UserError, models
from flowfactory.models import Entry, Family, Parts
from flowfactory_flux import flux1
from flowfactory_flux.flux1 import FLUX1, Flux1Config


def encode(parts: Parts, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Entry]:
    """embeds [L, D] and pooled [P] of each prompt, and the latents [C, H, W] of its picture."""
    for prompt, entry in zip(prompts, flux1.encode(parts, prompts, canvas), strict=True):
        yield {**entry, **models.number_images(encode_image(parts, path) for path in prompt.images)}


def encode_image(parts: Parts, path: Path) -> Tensor:
    """Latents [C, H, W] of a picture in the size that FluxKontextPipeline gives it."""
    pipeline, image = parts.pipeline, models.read_picture(path)
    if reason := parts.options.picture_error(*image.size):
        raise UserError(f"picture {path}: {reason}")
    processor = pipeline.image_processor
    height, width = processor.get_default_height_width(image)  # in whole tokens, before the ratio is taken too
    if parts.options.auto_resize:
        width, height = preferred_size(width, height)
    pixels = processor.preprocess(image, height, width)
    return models.encode_scaled(parts, pixels.to(parts.device) / 2 + 0.5)[0].to(pipeline.vae.dtype)


def preferred_size(width: int, height: int) -> tuple[int, int]:
    """The width and height nearest in ratio among those that Kontext was trained on."""
    from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS

    ratio = width / height
    _, width, height = min((abs(ratio - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS)
    return width, height


FLUX1_KONTEXT = replace(FLUX1, pipelines=("FluxKontextPipeline",), encode=encode, encoded_with=("vae",))


class Flux1KontextConfig(Flux1Config):
    """Any diffusers FluxKontextPipeline: FLUX.1 Kontext dev (arXiv:2506.15742), which edits the picture of each prompt."""

    known_as = ("kontext", "flux-kontext", "flux.1-kontext-dev")

    family: ClassVar[Family] = FLUX1_KONTEXT
    checkpoint_licences: ClassVar[Mapping[str, str]] = {
        "black-forest-labs/FLUX.1-Kontext-dev": "FLUX.1 [dev] Non-Commercial License"
    }
    takes: ClassVar[Takes] = Takes(images=(1, 1))

    auto_resize: bool = Field(
        True,
        description="give a picture the nearest of the sizes that Kontext was trained on, about a megapixel; else keep its",
    )

    def picture_error(self, width: int, height: int) -> str | None:
        token = self.family.grid(self.checkpoint).multiple
        if min(width, height) < token:
            return f"{width} x {height} pixels are fewer than a token covers, {token} x {token}; take a larger one"
        return None

    def picture_tokens(self, width: int, height: int) -> int:
        token = self.family.grid(self.checkpoint).multiple
        width, height = (side - side % token for side in (width, height))
        if self.auto_resize:
            width, height = preferred_size(width, height)
        return (width // token) * (height // token)
