"""HunyuanVideo 1.5 over the parts of a HunyuanVideo15ImageToVideoPipeline: the picture is the first frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from flowfactory import Canvas, Conditions, Prompt, Takes, models
from flowfactory.models import Entry, Family, Parts
from flowfactory_hunyuan_video import text_to_video
from flowfactory_hunyuan_video.text_to_video import HUNYUAN_VIDEO, HunyuanVideoConfig, forward, unread_of_the_text

LONGEST = 100  # the whole picture is first made as large as it takes to cover the canvas


def encode(parts: Parts, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Entry]:
    """As of texts, with image [P, E], SigLIP's embedding of each prompt's picture, and condition [C, 1, H, W], its latents.

    Both are of the picture as it covers the canvas, cropped to it at its centre.
    """
    pipeline, (high, wide, _) = parts.pipeline, canvas
    for prompt, entry in zip(prompts, text_to_video.encode(parts, prompts, canvas), strict=True):
        whole = models.read_picture(prompt.images[0])
        picture = pipeline.video_processor.resize(whole, height=high, width=wide, resize_mode="crop")
        latents = pipeline._get_image_latents(pipeline.vae, pipeline.video_processor, picture, high, wide, parts.device)
        image = pipeline.encode_image(picture, 1, parts.device, entry["embeds"].dtype)
        yield {**entry, "image": image[0], "condition": latents[0]}


def velocity(parts: Parts, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
    """[B, C, F, H, W]."""
    first = conditions.stack("condition")
    known = torch.cat([first, torch.ones_like(first[:, :1])], dim=1)
    given = functional.pad(known, (*(0, 0, 0, 0), 0, latents.shape[2] - 1))
    return forward(parts, latents, sigma, conditions, given.to(latents.dtype), conditions.stack("image"))


HUNYUAN_VIDEO_I2V = replace(
    HUNYUAN_VIDEO,
    pipelines=("HunyuanVideo15ImageToVideoPipeline",),
    encoders=(*HUNYUAN_VIDEO.encoders, "image_encoder", "feature_extractor"),
    encode=encode,
    velocity=velocity,
    unread=unread_of_the_text,
    encoded_with=("vae",),
    negative_media=True,
    canvas_matters=True,
)


class HunyuanVideoI2VConfig(HunyuanVideoConfig):
    """Any diffusers HunyuanVideo15ImageToVideoPipeline: HunyuanVideo 1.5 from one picture (arXiv:2511.18870)."""

    known_as = ("hunyuan-video-i2v", "hunyuanvideo-i2v", "hunyuanvideo-1.5-i2v", "hunyuan-i2v", "hunyuan-image-to-video")

    family: ClassVar[Family] = HUNYUAN_VIDEO_I2V
    checkpoint_licences: ClassVar[Mapping[str, str]] = {
        "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_i2v": "see its page"
    }
    takes: ClassVar[Takes] = Takes(images=(1, 1))

    def picture_error(self, width: int, height: int) -> str | None:
        if max(width, height) > LONGEST * min(width, height):
            return f"{width} x {height} pixels are more than {LONGEST} times as long as wide; crop it"
        return None
