"""Video to video over the parts of a WanVideoToVideoPipeline: a video with noise mixed in is drawn anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from flowfactory import Canvas, Conditions, Prompt, Takes, models
from flowfactory.models import Entry, Family, Parts
from flowfactory_wan import common as wan
from flowfactory_wan.experts import HIGH, WanConfig
from flowfactory_wan.wan_t2v import WAN_T2V


def encode(parts: Parts, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Entry]:
    """embeds [512, D] of each prompt, and video [C, F, H, W], the latents of its video; a negative prompt has none."""
    for prompt, embeds in zip(prompts, wan.encode_text(parts, prompts), strict=True):
        if prompt.video is None:
            yield {"embeds": embeds}
            continue
        rate = parts.options.video_rate if prompt.video_fps == "model" else None
        frames = models.read_video(prompt.video, canvas.frames, rate)
        pixels = parts.pipeline.video_processor.preprocess_video(frames, height=canvas.height, width=canvas.width)
        yield {"embeds": embeds, "video": models.encode_normalized(parts, pixels.to(parts.device) / 2 + 0.5)[0]}


def sigmas(parts: Parts, steps: int, canvas: Canvas) -> Tensor:
    """[steps + 1], the end of a longer schedule where ``strength`` is below 1.

    Longer by what the pipeline leaves out: asked for n steps, it takes the last int(n * strength).
    """
    whole = next(n for n in count(steps) if int(n * parts.options.strength) == steps)
    return wan.sigmas(parts, whole, canvas)[-steps - 1 :]


def start(parts: Parts, noise: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
    """The video with as much noise as the first sigma says."""
    return torch.lerp(conditions.stack("video"), noise, sigma.to(noise.device))


WAN_V2V = replace(
    WAN_T2V,
    pipelines=("WanVideoToVideoPipeline", "WanPipeline"),
    encode=encode,
    sigmas=sigmas,
    guide=models.linear_guidance,
    start=start,
    transformers=(HIGH,),
    experts=("",),
    encoded_with=("vae",),
    exact=frozenset({"video"}),
    not_encoded=("strength",),
    canvas_matters=True,
)


class WanV2VConfig(WanConfig):
    """A diffusers WanVideoToVideoPipeline: Wan 2.1 from a video and a text (arXiv:2503.20314)."""

    known_as = ("wan", "wan2.1", "v2v", "wan-2.1")

    family: ClassVar[Family] = WAN_V2V
    checkpoint_licences: ClassVar[Mapping[str, str]] = {"Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "Apache-2.0"}
    takes: ClassVar[Takes] = Takes(video=(1, 1))
    video_rate: ClassVar[float | None] = 16

    strength: float = Field(0.8, gt=0, le=1, description="of the noise that is mixed into the video; 1 leaves nothing of it")

    def checkpoint_error(self) -> str | None:
        index = self.checkpoint.config("")
        if index.get("boundary_ratio") is not None or index.get("expand_timesteps"):
            return f"model.path: {self.path} is a Wan 2.2 checkpoint; wan-v2v reads Wan 2.1, as its pipeline does"
        return None
