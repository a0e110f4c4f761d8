"""Qwen-Image-2.1 over the parts of a QwenImage21Pipeline: one or more pictures and a text to a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from flowfactory import Canvas, Prompt, Takes, models
from flowfactory.models import Entry, Family, Parts
from flowfactory_qwen_image.picture_areas import resize_to_area, thin_error
from flowfactory_qwen_image.qwen_image_21 import LICENCES, QWEN_IMAGE_21, QwenImage21Options, encode_media, entries


def encode(parts: Parts, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Entry]:
    """embeds [L, D] and slots [L] of each prompt read together with its pictures, and the latents [C, H, W] of the i-th."""
    processor = parts.pipeline.image_processor
    for prompt in prompts:
        pictures = [models.read_picture(path).convert("RGBA") for path in prompt.images]
        sizes = [resize_to_area(parts.options.picture_area, picture.width, picture.height) for picture in pictures]
        resized = [processor.resize(picture, height, width) for picture, (width, height) in zip(pictures, sizes, strict=True)]
        (entry,) = entries(*parts.pipeline.encode_prompt(prompt.text, resized, parts.device))
        pixels = [processor.preprocess(picture).to(parts.device) / 2 + 0.5 for picture in resized]
        latents = [encode_media(parts, picture)[0].to(entry["embeds"].dtype) for picture in pixels]
        yield {**entry, **models.number_images(latents)}


QWEN_IMAGE_21_EDIT = replace(
    QWEN_IMAGE_21,
    encode=encode,
    encoded_with=("vae",),
    encode_batch=1,  # as many as the pipeline takes
    unused={"text_encoder": (r"lm_head\.weight",)},
    negative_media=True,
)


class QwenImage21EditConfig(QwenImage21Options):
    """Any diffusers QwenImage21Pipeline, from pictures and texts: Qwen-Image-2.1."""

    known_as = ("qwen-image-21-edit", "qwen-image-edit-2.1", "qwen-2.1-edit")
    checkpoint_licences: ClassVar[Mapping[str, str]] = LICENCES

    family: ClassVar[Family] = QWEN_IMAGE_21_EDIT
    takes: ClassVar[Takes] = Takes(images=(1, float("inf")))

    picture_area: int = Field(
        1024 * 1024, ge=32 * 32, le=8192 * 8192, description="pixels of a picture as both encoders get it"
    )

    def picture_error(self, width: int, height: int) -> str | None:
        return thin_error(self.picture_area, width, height)
