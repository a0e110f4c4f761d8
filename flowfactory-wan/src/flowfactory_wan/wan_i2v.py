"""Image to video over the parts of a WanImageToVideoPipeline: the picture is the first frame, and a second one the last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from flowfactory import Canvas, Conditions, Prompt, Takes, models
from flowfactory.flow import expand_sigma
from flowfactory.models import Entry, Family, Parts
from flowfactory_wan.common import ENCODERS, encode_text
from flowfactory_wan.experts import ExpertsConfig, forward_experts
from flowfactory_wan.wan_t2v import WAN_T2V

LONGEST = 100  # CLIP's picture is first as large as it takes for 224 pixels at the short side


def encode(parts: Parts, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Entry]:
    """embeds [512, D] and condition of each prompt, and for Wan 2.1 image [pictures, 257, E], CLIP's embeddings.

    condition is what the pipeline joins to the latents' channels, mask and latents of the pictures [4 + C, F, H, W]; for the
    5B, whose first frame is given, it is the latents of that frame [C, 1, H, W].
    """
    pipeline = parts.pipeline
    for prompt, embeds in zip(prompts, encode_text(parts, prompts), strict=True):
        pictures = [models.read_picture(path) for path in prompt.images]
        first, *last = (
            pipeline.video_processor.preprocess(picture, canvas.height, canvas.width).to(parts.device, torch.float32)
            for picture in pictures
        )
        drawn = torch.empty(0, device=parts.device)  # else the pipeline draws noise, which the plan does
        _, condition, *_ = pipeline.prepare_latents(
            *(first, 1, pipeline.vae.config.z_dim, canvas.height, canvas.width),
            *(canvas.frames, torch.float32, parts.device, None, drawn, *last),
        )
        entry = {"embeds": embeds, "condition": condition[0]}
        if pipeline.transformer.config.image_dim is not None:
            entry["image"] = pipeline.encode_image(pictures, parts.device).to(embeds.dtype)
        yield entry


def velocity(parts: Parts, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
    """[B, C, F, H, W]."""
    embeds, condition = conditions.stack("embeds"), conditions.stack("condition")
    image = conditions.stack("image") if "image" in conditions.entries[0] else None
    timestep = sigma * parts.pipeline.scheduler.config.num_train_timesteps
    given = parts.pipeline.config.expand_timesteps
    if given:
        seen = torch.cat([condition, latents[:, :, 1:]], dim=2)
        timestep = _token_timesteps(parts, timestep, seen)
    else:
        seen = torch.cat([latents, condition], dim=1)

    found = forward_experts(parts, sigma, seen, timestep, embeds, image)
    if not given:
        return found
    # straight to the given frame, whatever the transformer says there
    first = (latents[:, :, :1].float() - condition) / expand_sigma(sigma, latents).clamp(min=1e-6)
    return torch.cat([first, found[:, :, 1:].float()], dim=2)


def _token_timesteps(parts: Parts, timestep: Tensor, latents: Tensor) -> Tensor:
    """[B, tokens]: 0 in the given first frame, the sample's time [B] in all others."""
    _, high, wide = parts.pipeline.transformer.config.patch_size
    frames, height, width = latents.shape[2:]
    times = timestep[:, None, None].repeat(1, frames, (height // high) * (width // wide))
    times[:, 0] = 0
    return times.flatten(1)


WAN_I2V = replace(
    WAN_T2V,
    pipelines=("WanImageToVideoPipeline", "WanPipeline"),
    encoders=(*ENCODERS, "image_encoder", "image_processor"),
    encode=encode,
    velocity=velocity,
    encoded_with=("vae",),
    exact=frozenset({"condition"}),
    optional=("image_encoder", "image_processor"),
    float32=("vae", "image_encoder"),
    negative_media=True,
    canvas_matters=True,
)


class PicturesConfig(ExpertsConfig):
    """What the models that are given pictures share."""

    def picture_error(self, width: int, height: int) -> str | None:
        if max(width, height) > LONGEST * min(width, height):
            return f"{width} x {height} pixels are more than {LONGEST} times as long as wide; crop it"
        return None

    def checkpoint_error(self) -> str | None:
        index = self.checkpoint.config("")
        lacking = [name for name in WAN_I2V.optional if index.get(name) in (None, [None, None])]
        if lacking and self.checkpoint.config("transformer").get("image_dim") is not None:
            return f"model.path: {self.path} has no {lacking[0]}, which its transformer needs; get it again, whole"
        return super().checkpoint_error()


class WanI2VConfig(PicturesConfig):
    """Any diffusers WanImageToVideoPipeline: Wan 2.1, Wan 2.2 A14B and 5B, from one picture (arXiv:2503.20314)."""

    known_as = ("wan", "wan2.1", "wan2.2", "wan2", "i2v", "wan-2.1", "wan-2.2")

    family: ClassVar[Family] = WAN_I2V
    checkpoint_licences: ClassVar[Mapping[str, str]] = {"Wan-AI/Wan2.2-TI2V-5B-Diffusers": "Apache-2.0"}
    takes: ClassVar[Takes] = Takes(images=(1, 1))

    def checkpoint_error(self) -> str | None:
        index = self.checkpoint.config("")
        if index.get("_class_name") == "WanPipeline" and not index.get("expand_timesteps"):
            return f"model.path: {self.path} draws from text alone; use the model wan-t2v"
        if self.checkpoint.config("transformer").get("pos_embed_seq_len") is not None:
            return f"model.path: {self.path} is given a first and a last frame; use the model wan-flf2v"
        return super().checkpoint_error()
