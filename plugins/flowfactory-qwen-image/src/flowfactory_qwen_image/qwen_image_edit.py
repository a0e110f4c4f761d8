"""Qwen-Image-Edit over the parts of a QwenImageEditPlusPipeline: one or more pictures and a text to a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field

from flowfactory import Canvas, Prompt, Takes, models
from flowfactory.models import Entry, Family, FamilyConfig, Parts, Pretrained
from flowfactory_qwen_image.picture_areas import resize_to_area, thin_error
from flowfactory_qwen_image.qwen_image import QWEN_IMAGE, check_steps

if TYPE_CHECKING:
    from flowfactory import RunConfig


class EditCheckpoint(Pretrained):
    """A folder or a hub id, opened with or without torchvision."""

    def load(self, kind: Any, folder: Path, name: str, dtype: torch.dtype, stays: bool = False) -> Any:
        if name == "processor":
            from flowfactory_qwen_image.picture_processor import PictureProcessor

            kind = PictureProcessor
        return super().load(kind, folder, name, dtype, stays)


def encode(parts: Parts, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Entry]:
    """embeds [L, D] of each prompt read together with its pictures, and the latents [C, H, W] of the i-th as image_i."""
    pipeline, options = parts.pipeline, parts.options
    for prompt in prompts:
        pictures = [models.read_picture(path) for path in prompt.images]
        read, drawn = (
            [resize_to_area(area, picture.width, picture.height) for picture in pictures]
            for area in (options.condition_area, options.vae_area)
        )
        resized = [
            pipeline.image_processor.resize(picture, height, width)
            for picture, (width, height) in zip(pictures, read, strict=True)
        ]
        embeds, _ = pipeline.encode_prompt(prompt.text, resized, parts.device)
        latents = []
        for picture, (width, height) in zip(pictures, drawn, strict=True):
            pixels = pipeline.image_processor.preprocess(picture, height, width).to(parts.device)
            latents.append(models.encode_frame(parts, pixels / 2 + 0.5)[0].to(embeds.dtype))
        yield {"embeds": embeds[0]} | models.number_images(latents)


QWEN_IMAGE_EDIT = replace(
    QWEN_IMAGE,
    pipelines=("QwenImageEditPlusPipeline",),
    encoders=("text_encoder", "tokenizer", "processor"),
    encode=encode,
    encoded_with=("vae",),
    encode_batch=1,  # as many as the pipeline takes
    unused={"text_encoder": (r"lm_head\.weight",)},
    negative_media=True,
)


class QwenImageEditConfig(FamilyConfig):
    """Any diffusers QwenImageEditPlusPipeline: Qwen-Image-Edit-2509 and -2511 (arXiv:2508.02324)."""

    known_as = ("qwen-edit", "qwenimageedit", "qwen-image-edit-2509", "qwen-image-edit-2511")

    family: ClassVar[Family] = QWEN_IMAGE_EDIT
    checkpoint_licences: ClassVar[Mapping[str, str]] = {"Qwen/Qwen-Image-Edit-2511": "Apache-2.0"}
    context_parallel = True
    takes: ClassVar[Takes] = Takes(images=(1, float("inf")))

    vae_area: int = Field(1024 * 1024, ge=32 * 32, le=8192 * 8192, description="pixels of a picture as the transformer gets it")
    condition_area: int = Field(
        384 * 384, ge=32 * 32, le=8192 * 8192, description="pixels of a picture as the text encoder gets it"
    )

    def picture_error(self, width: int, height: int) -> str | None:
        told = (thin_error(area, width, height) for area in (self.vae_area, self.condition_area))
        return next(filter(None, told), None)

    def picture_tokens(self, width: int, height: int) -> int:
        token = self.family.grid(self.checkpoint).multiple
        return math.prod(side // token for side in resize_to_area(self.vae_area, width, height))

    def check(self, run: RunConfig) -> None:
        """As every family's, and the schedule has as many steps as it needs."""
        super().check(run)
        check_steps(self.checkpoint, run)

    @property
    def checkpoint(self) -> Pretrained:
        return EditCheckpoint(self.path, self.family.pipelines, self.variant, self.family.unused, self.single_files)
