"""Qwen-Image-Edit over the parts of a QwenImageEditPlusPipeline: one or more pictures and a text to a picture."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field

from flowfactory import Canvas, Prompt, Takes, models
from flowfactory.models import Entry, Family, FamilyConfig, Parts, Pretrained
from flowfactory_qwen_image.qwen_image import QWEN_IMAGE, check_steps

if TYPE_CHECKING:
    from flowfactory import RunConfig


class EditCheckpoint(Pretrained):
    """A folder or a hub id, opened with or without torchvision."""

    def open(self, names: Collection[str], dtypes: Mapping[str, torch.dtype], **given: Any) -> Any:
        if "processor" in names:
            from flowfactory_qwen_image.picture_processor import PictureProcessor

            given["processor"] = PictureProcessor.from_pretrained(self.path, subfolder="processor")
        return super().open(names, dtypes, **given)


def encode(parts: Parts, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Entry]:
    """embeds [L, D] of each prompt read together with its pictures, and the latents [C, H, W] of the i-th as image_i."""
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions

    pipeline, options = parts.pipeline, parts.options
    for prompt in prompts:
        pictures = [models.read_picture(path) for path in prompt.images]
        read, drawn = (
            [calculate_dimensions(area, picture.width / picture.height) for picture in pictures]
            for area in (options.condition_area, options.vae_area)
        )
        resized = [
            pipeline.image_processor.resize(picture, height, width)
            for picture, (width, height) in zip(pictures, read, strict=True)
        ]
        embeds, _ = pipeline.encode_prompt(prompt.text, resized, parts.device)
        latents = []
        for picture, (width, height) in zip(pictures, drawn, strict=True):
            pixels = pipeline.image_processor.preprocess(picture, height, width)[:, :, None].to(parts.device, embeds.dtype)
            latents.append(pipeline._encode_vae_image(pixels, None)[0, :, 0])
        yield {"embeds": embeds[0]} | models.number_images(latents)


QWEN_IMAGE_EDIT = replace(
    QWEN_IMAGE,
    pipelines=("QwenImageEditPlusPipeline",),
    encoders=("text_encoder", "tokenizer", "processor"),
    encode=encode,
    encoded_with=("vae",),
    encode_batch=1,  # as many as the pipeline takes
    negative_media=True,
)


class QwenImageEditConfig(FamilyConfig):
    """Any diffusers QwenImageEditPlusPipeline: Qwen-Image-Edit-2509 and -2511 (arXiv:2508.02324)."""

    known_as = ("qwen-edit", "qwenimageedit")

    family: ClassVar[Family] = QWEN_IMAGE_EDIT
    takes: ClassVar[Takes] = Takes(images=(1, float("inf")))

    vae_area: int = Field(1024 * 1024, ge=32 * 32, le=8192 * 8192, description="pixels of a picture as the transformer gets it")
    condition_area: int = Field(
        384 * 384, ge=32 * 32, le=8192 * 8192, description="pixels of a picture as the text encoder gets it"
    )

    def check(self, run: RunConfig) -> None:
        """As every family's, and the schedule has as many steps as it needs."""
        super().check(run)
        check_steps(self.checkpoint, run)

    @property
    def checkpoint(self) -> Pretrained:
        return EditCheckpoint(self.path, self.family.pipelines)
